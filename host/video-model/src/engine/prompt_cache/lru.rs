//! Values within a number of bytes: whatever was not used for longest goes first.

use super::PromptKey;
use std::collections::{BTreeMap, HashMap};

pub(super) struct Lru<V> {
    bytes_max: u64,
    held_bytes: u64,
    slots: HashMap<PromptKey, Slot<V>>,
    /// Keys in the order of their last use.
    by_use: BTreeMap<u64, PromptKey>,
    uses: u64,
}

struct Slot<V> {
    value: V,
    bytes: u64,
    used: u64,
}

impl<V> Lru<V> {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, held_bytes: 0, slots: HashMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// The value, which counts as a use of it.
    pub(super) fn get(&mut self, key: &PromptKey) -> Option<&V> {
        let slot = self.slots.get_mut(key)?;
        self.by_use.remove(&slot.used);
        self.uses += 1;
        slot.used = self.uses;
        self.by_use.insert(slot.used, *key);
        Some(&slot.value)
    }

    /// Keeps a value and returns the keys that had to go for it: its own when it is larger than the whole budget.
    pub(super) fn insert(&mut self, key: PromptKey, value: V, bytes: u64) -> Vec<PromptKey> {
        self.remove(&key);
        if bytes > self.bytes_max {
            return vec![key];
        }
        self.uses += 1;
        self.by_use.insert(self.uses, key);
        self.slots.insert(key, Slot { value, bytes, used: self.uses });
        self.held_bytes += bytes;
        let mut gone = Vec::new();
        while self.held_bytes > self.bytes_max {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(&oldest);
            gone.push(oldest);
        }
        gone
    }

    pub(super) fn remove(&mut self, key: &PromptKey) {
        if let Some(slot) = self.slots.remove(key) {
            self.by_use.remove(&slot.used);
            self.held_bytes -= slot.bytes;
        }
    }
}
