//! Which bytes of a region are free.

use std::collections::BTreeMap;

/// The free ranges of a region of memory: offset to length; no two touch each other.
#[derive(Debug)]
pub(crate) struct FreeRanges {
    free: BTreeMap<usize, usize>,
    len: usize,
    /// Bytes from the start on that were handed out since the region was made (or [`FreeRanges::forget_tail`]).
    touched: usize,
}

impl FreeRanges {
    /// A region of `len` bytes, all free.
    pub(crate) fn new(len: usize) -> Self {
        Self { free: BTreeMap::from([(0, len)]), len, touched: 0 }
    }

    /// Bytes of the region.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn touched(&self) -> usize {
        self.touched
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.free.get(&0) == Some(&self.len)
    }

    pub(crate) fn largest(&self) -> usize {
        self.free.values().copied().max().unwrap_or(0)
    }

    /// Offset and length of every free range, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.free.iter().map(|(offset, length)| (*offset, *length))
    }

    /// Takes the first `bytes` of the free range at `offset`, which has so many.
    pub(crate) fn take(&mut self, offset: usize, bytes: usize) -> Option<()> {
        let length = self.free.remove(&offset)?;
        if length > bytes {
            self.free.insert(offset + bytes, length - bytes);
        }
        self.touched = self.touched.max(offset + bytes);
        Some(())
    }

    /// Frees a range and joins it with its neighbours.
    pub(crate) fn give_back(&mut self, offset: usize, bytes: usize) {
        let (mut start, mut end) = (offset, offset + bytes);
        if let Some(length) = self.free.remove(&end) {
            end += length;
        }
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            start = before;
        }
        self.free.insert(start, end - start);
    }

    /// Counts the free range at the end as never touched.
    pub(crate) fn forget_tail(&mut self) {
        if let Some((&offset, &length)) = self.free.last_key_value()
            && offset + length == self.len
        {
            self.touched = self.touched.min(offset);
        }
    }
}

/// Region and offset of the smallest free range that holds `bytes`; of equal ones the first.
pub(crate) fn best_fit<'a>(regions: impl Iterator<Item = &'a FreeRanges>, bytes: usize) -> Option<(usize, usize)> {
    let ranges = regions.enumerate().flat_map(|(i, ranges)| ranges.iter().map(move |range| (i, range)));
    let fitting = ranges.filter(|(_, (_, length))| *length >= bytes);
    fitting.min_by_key(|(_, (_, length))| *length).map(|(region, (offset, _))| (region, offset))
}
