//! What prompts became, kept by content: in memory, and in a folder that outlives the process. A prompt that is found here
//! never touches the text encoder, which is then not even read from disk.

mod disk;
mod lru;
mod states;

pub(super) use states::TextStates;

use disk::DiskCache;
use kernels::Tensor;
use lru::Lru;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much may be kept, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptCacheConfig {
    /// Bytes of states kept in memory; 0 keeps none.
    pub ram_bytes_max: u64,
    /// The folder and the bytes kept in it; none keeps nothing on disk. It is made when the first prompt is stored.
    pub disk: Option<(PathBuf, u64)>,
}

impl Default for PromptCacheConfig {
    fn default() -> Self {
        Self { ram_bytes_max: 64 << 20, disk: None }
    }
}

/// What the cache has done since the process started, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptCacheStats {
    /// Prompts found in memory.
    pub ram_hits: u64,
    /// Prompts found on disk only.
    pub disk_hits: u64,
    /// Prompts that had to be encoded.
    pub misses: u64,
    /// Bytes held in memory.
    pub ram_bytes: u64,
    /// Bytes held on disk.
    pub disk_bytes: u64,
}

/// Names the states of one prompt: the text encoder's digest and the prompt as it sees it, hashed together.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct PromptKey([u8; 32]);

impl PromptKey {
    /// `prompt` is cleaned already.
    pub(super) fn new(encoder_digest: &str, prompt: &str) -> Self {
        let hasher = Sha256::new().chain_update(encoder_digest).chain_update([0]).chain_update(prompt);
        Self(hasher.finalize().into())
    }
}

/// See the module.
pub(super) struct PromptCache {
    ram: Mutex<Lru<Arc<TextStates>>>,
    disk: Option<DiskCache>,
    ram_hits: AtomicU64,
    disk_hits: AtomicU64,
    misses: AtomicU64,
}

impl PromptCache {
    pub(super) fn new(config: PromptCacheConfig) -> Self {
        let disk = config.disk.filter(|(_, bytes_max)| *bytes_max > 0);
        Self {
            ram: Mutex::new(Lru::new(config.ram_bytes_max)),
            disk: disk.map(|(folder, bytes_max)| DiskCache::open(folder, bytes_max)),
            ram_hits: AtomicU64::new(0),
            disk_hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The states, when they are known; may read a file.
    pub(super) fn get(&self, key: PromptKey) -> Option<Arc<TextStates>> {
        let in_ram = self.lock().get(&key).cloned();
        if let Some(states) = in_ram {
            self.ram_hits.fetch_add(1, Ordering::Relaxed);
            return Some(states);
        }
        match self.disk.as_ref().and_then(|disk| disk.read(key)) {
            Some(states) => {
                self.disk_hits.fetch_add(1, Ordering::Relaxed);
                let states = Arc::new(states);
                self.lock().insert(key, Arc::clone(&states), states.bytes());
                Some(states)
            }
            None => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Keeps what an encoder gave: f32 of shape [rows, width]. May write a file.
    pub(super) fn insert(&self, key: PromptKey, states: &Tensor) {
        let Some(states) = TextStates::new(states) else { return };
        if let Some(disk) = &self.disk {
            disk.write(key, &states);
        }
        let bytes = states.bytes();
        self.lock().insert(key, Arc::new(states), bytes);
    }

    pub(super) fn stats(&self) -> PromptCacheStats {
        PromptCacheStats {
            ram_hits: self.ram_hits.load(Ordering::Relaxed),
            disk_hits: self.disk_hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            ram_bytes: self.lock().held_bytes(),
            disk_bytes: self.disk.as_ref().map_or(0, DiskCache::held_bytes),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lru<Arc<TextStates>>> {
        // Nothing that can panic runs under the lock.
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Dtype;
    use std::path::Path;

    fn states(first: f32) -> Tensor {
        let rows = [first, -1.5, 0.25, 3.0, 0.0, 0.0, 0.0, 0.0];
        Tensor::from_f32(&rows, &[4, 2]).unwrap()
    }

    fn on_disk(folder: &Path, ram_bytes_max: u64, disk_bytes_max: u64) -> PromptCache {
        PromptCache::new(PromptCacheConfig { ram_bytes_max, disk: Some((folder.to_owned(), disk_bytes_max)) })
    }

    fn key(prompt: &str) -> PromptKey {
        PromptKey::new("encoder", prompt)
    }

    fn found(cache: &PromptCache, prompt: &str) -> Option<Vec<f32>> {
        cache.get(key(prompt)).map(|states| states.tensor().unwrap().to_vec_f32())
    }

    fn files(folder: &Path) -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn states_come_back_whole_from_memory_and_from_disk_in_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let cache = on_disk(folder.path(), 1 << 20, 1 << 20);
        assert_eq!(found(&cache, "a"), None);
        cache.insert(key("a"), &states(1.0));
        assert_eq!(found(&cache, "a"), Some(states(1.0).to_vec_f32()));
        let stats = cache.stats();
        assert_eq!(
            (stats.ram_hits, stats.disk_hits, stats.misses, stats.ram_bytes),
            (1, 0, 1, 16),
            "two rows are not zero"
        );

        let next = on_disk(folder.path(), 1 << 20, 1 << 20);
        assert_eq!(next.stats().disk_bytes, stats.disk_bytes);
        assert_eq!(found(&next, "a"), Some(states(1.0).to_vec_f32()));
        assert_eq!(found(&next, "a"), Some(states(1.0).to_vec_f32()));
        assert_eq!(next.get(PromptKey::new("another encoder", "a")).map(drop), None);
        let stats = next.stats();
        assert_eq!((stats.ram_hits, stats.disk_hits, stats.misses), (1, 1, 1));
    }

    #[test]
    fn memory_stays_within_its_bytes_and_forgets_the_least_recent() {
        let cache = PromptCache::new(PromptCacheConfig { ram_bytes_max: 3 * 16, disk: None });
        for prompt in ["a", "b", "c"] {
            cache.insert(key(prompt), &states(1.0));
        }
        assert!(found(&cache, "a").is_some());
        cache.insert(key("d"), &states(1.0));
        assert!(found(&cache, "b").is_none());
        assert!(["a", "c", "d"].iter().all(|prompt| found(&cache, prompt).is_some()));
        cache.insert(key("huge"), &Tensor::from_vec(vec![1.0; 16], &[8, 2]).unwrap());
        assert!(found(&cache, "huge").is_none() && found(&cache, "a").is_some());
        assert_eq!(cache.stats().ram_bytes, 3 * 16);
        let none = PromptCache::new(PromptCacheConfig { ram_bytes_max: 0, disk: None });
        none.insert(key("a"), &states(1.0));
        assert!(found(&none, "a").is_none());
    }

    #[test]
    fn the_folder_stays_within_its_bytes_across_processes() {
        let folder = tempfile::tempdir().unwrap();
        on_disk(folder.path(), 0, 1 << 20).insert(key("probe"), &states(0.5));
        let entry_bytes = files(folder.path())[0].metadata().unwrap().len();
        let cache = on_disk(folder.path(), 0, 3 * entry_bytes);
        for (i, prompt) in ["a", "b", "c", "d"].into_iter().enumerate() {
            cache.insert(key(prompt), &states(i as f32));
        }
        assert_eq!((files(folder.path()).len(), cache.stats().disk_bytes), (3, 3 * entry_bytes));
        assert!(found(&cache, "probe").is_none() && found(&cache, "a").is_none() && found(&cache, "b").is_some());
        let smaller = on_disk(folder.path(), 0, entry_bytes);
        assert_eq!((files(folder.path()).len(), smaller.stats().disk_bytes), (1, entry_bytes));
    }

    #[test]
    fn damaged_entries_are_ignored_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let damage: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes.truncate(bytes.len() - 3),
            |bytes| *bytes.last_mut().unwrap() ^= 1,
            |bytes| bytes.clear(),
            |bytes| bytes[..8].fill(0xff),
        ];
        for change in damage {
            on_disk(folder.path(), 0, 1 << 20).insert(key("a"), &states(2.0));
            let path = files(folder.path()).remove(0);
            let mut bytes = std::fs::read(&path).unwrap();
            change(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            let cache = on_disk(folder.path(), 0, 1 << 20);
            assert_eq!(found(&cache, "a"), None);
            assert!(!path.exists(), "the damaged file is gone");
            assert_eq!((cache.stats().misses, cache.stats().disk_bytes), (1, 0));
        }
    }

    #[test]
    fn an_entry_under_another_s_name_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = on_disk(folder.path(), 0, 1 << 20);
        cache.insert(key("a"), &states(2.0));
        let a = files(folder.path()).remove(0);
        cache.insert(key("b"), &states(3.0));
        let b = files(folder.path()).into_iter().find(|path| *path != a).unwrap();
        std::fs::copy(&a, &b).unwrap();
        assert_eq!(found(&cache, "b"), None);
        assert!(found(&cache, "a").is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "not a folder").unwrap();
        let cache = on_disk(&file, 1 << 20, 1 << 20);
        cache.insert(key("a"), &states(1.0));
        assert!(found(&cache, "a").is_some(), "memory has it");
        assert_eq!(cache.stats().disk_bytes, 0);
    }

    #[test]
    fn only_matrices_of_f32_with_something_in_them_are_kept() {
        assert!(TextStates::new(&Tensor::zeros(&[4], Dtype::F32).unwrap()).is_none());
        assert!(TextStates::new(&states(1.0).to_dtype(Dtype::Bf16)).is_none());
        let empty = TextStates::new(&Tensor::zeros(&[4, 2], Dtype::F32).unwrap()).unwrap();
        assert_eq!((empty.bytes(), empty.tensor().unwrap().shape()), (0, &[4, 2][..]));
    }
}
