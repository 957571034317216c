//! Memory for tensors that is taken from the system once and used again by step after step.
//!
//! An arena owns *regions*, anonymous maps whose pages the system provides when they are first touched. Within them it
//! hands out the smallest free range that fits and joins ranges when they come back, so that buffers of any sizes share
//! the same bytes and what is held stays near the largest sum of live buffers. The same sequence of operations finds the
//! same ranges again: after its first step a job takes nothing more from the system.
#![allow(unsafe_code, reason = "regions are raw memory; ranges of them are handed out as pointers")]

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{MmapOptions, MmapRaw};

use crate::ranges::{FreeRanges, best_fit};

/// Ranges start on lines of the cache, and on whole vectors.
pub(crate) const ALIGNMENT: usize = 64;
/// Smaller buffers come from the system's allocator, which keeps such sizes per thread and is faster.
pub(crate) const ARENA_BYTES_MIN: usize = 4096;
/// Address space of the first region that nobody reserved; each further one doubles the whole. Pages that are never
/// touched cost nothing.
const REGION_BYTES_MIN: usize = 64 << 20;
/// Free ranges of fewer bytes are not worth a call to the system in [`Arena::trim`].
const TRIM_BYTES_MIN: usize = 64 << 10;

/// A pool of memory that tensors share. Handles are cheap to clone; the memory is freed with the last of them and the last
/// tensor in it.
///
/// Buffers hold what was last written to them. No operation shows that: every one writes all of its result.
#[derive(Clone, Default)]
pub struct Arena {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    regions: Vec<Region>,
    live_bytes: usize,
    peak_bytes: usize,
    growths: usize,
}

struct Region {
    map: MmapRaw,
    /// Bytes that were never touched have no pages.
    free: FreeRanges,
}

thread_local! {
    // Operations take their tensors from here. An argument would go through every function of every model and change none
    // of their results; a scope is entered by whoever owns a device's thread, and left again when it ends.
    static CURRENT: RefCell<Option<Arena>> = const { RefCell::new(None) };
}

impl Arena {
    /// An arena without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `work` on this thread; tensors that it makes, and their operations' scratch, come from the arena and return to
    /// it when their last handle is dropped, wherever that is. Work that operations hand to other threads is included.
    pub fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        let _entered = Entered::new(Some(self.clone()));
        work()
    }

    /// Sets address space aside, so that buffers of `bytes` in all lie side by side. Costs no memory until it is used.
    pub fn reserve(&self, bytes: usize) {
        let mut state = self.lock();
        if state.regions.iter().map(|region| region.free.largest()).max().unwrap_or(0) < bytes {
            state.grow(bytes);
        }
    }

    /// Bytes of the buffers in use.
    pub fn live_bytes(&self) -> usize {
        self.lock().live_bytes
    }

    /// The largest that [`Arena::live_bytes`] has been, since the last [`Arena::restart_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.lock().peak_bytes
    }

    /// Bytes that were ever used and not given back: at most so much of the arena is in physical memory.
    pub fn held_bytes(&self) -> usize {
        self.lock().regions.iter().map(|region| region.free.touched()).sum()
    }

    /// How often memory was asked of the system.
    pub fn growths(&self) -> usize {
        self.lock().growths
    }

    /// Counts the peak from the present on.
    pub fn restart_peak(&self) {
        let mut state = self.lock();
        state.peak_bytes = state.live_bytes;
    }

    /// Gives free memory back to the system.
    pub fn trim(&self) {
        let mut state = self.lock();
        state.regions.retain(|region| !region.free.is_unused());
        state.regions.iter_mut().for_each(Region::trim);
    }

    /// The arena of the scope that this thread is in: for work that its caller hands to another thread.
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// At least `bytes` (not 0) aligned to [`ALIGNMENT`]; none when the system has no more address space.
    pub(crate) fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        self.lock().take(rounded(bytes))
    }

    /// # Safety
    /// `pointer` must come from [`Arena::take`] of this arena with the same `bytes`, and nobody may use it any more.
    pub(crate) unsafe fn give_back(&self, pointer: NonNull<u8>, bytes: usize) {
        self.lock().give_back(pointer, rounded(bytes));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs between a change of one field and the next.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena").field("live_bytes", &self.live_bytes()).finish_non_exhaustive()
    }
}

/// Large buffers take whole pages, so that odd sizes leave no slivers behind.
fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of(if bytes >= 16 * 4096 { 4096 } else { ALIGNMENT })
}

impl State {
    fn take(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let fitting = self.best_fit(bytes);
        let (region, offset) = match fitting {
            Some(place) => place,
            None => {
                let mapped: usize = self.regions.iter().map(|region| region.map.len()).sum();
                // Strict systems count address space as memory: then what is needed has to do.
                if !self.grow(bytes.max(mapped).max(REGION_BYTES_MIN)) && !self.grow(bytes) {
                    return None;
                }
                self.best_fit(bytes)?
            }
        };
        let pointer = self.regions[region].take(offset, bytes)?;
        self.live_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.live_bytes);
        Some(pointer)
    }

    fn best_fit(&self, bytes: usize) -> Option<(usize, usize)> {
        best_fit(self.regions.iter().map(|region| &region.free), bytes)
    }

    fn give_back(&mut self, pointer: NonNull<u8>, bytes: usize) {
        self.live_bytes -= bytes;
        let address = pointer.as_ptr() as usize;
        for region in &mut self.regions {
            let start = region.map.as_mut_ptr() as usize;
            if (start..start + region.map.len()).contains(&address) {
                return region.free.give_back(address - start, bytes);
            }
        }
    }

    /// Maps a region; false when the system refuses.
    fn grow(&mut self, bytes: usize) -> bool {
        let Ok(map) = MmapOptions::new().len(bytes.next_multiple_of(4096)).map_anon() else { return false };
        // Tensors are large and read with long strides: fewer, larger pages. Where the system has none it is as well.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let map = MmapRaw::from(map);
        let free = FreeRanges::new(map.len());
        self.regions.push(Region { map, free });
        self.growths += 1;
        true
    }
}

impl Region {
    /// The first `bytes` of the free range at `offset`.
    fn take(&mut self, offset: usize, bytes: usize) -> Option<NonNull<u8>> {
        self.free.take(offset, bytes)?;
        // SAFETY: a free range lies within the map.
        NonNull::new(unsafe { self.map.as_mut_ptr().add(offset) })
    }

    /// Frees the pages of free ranges. The map stays.
    fn trim(&mut self) {
        for (offset, length) in self.free.iter() {
            let (start, end) = (offset.next_multiple_of(4096), (offset + length) / 4096 * 4096);
            if end.saturating_sub(start) < TRIM_BYTES_MIN {
                continue;
            }
            // SAFETY: nobody has a pointer into a free range; its contents may become zeros.
            #[cfg(unix)]
            let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
        self.free.forget_tail();
    }
}

/// While it lives, this thread's tensors come from an arena (or from none). Scopes nest.
pub(crate) struct Entered {
    before: Option<Arena>,
    /// It puts back what this thread had.
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Entered {
    pub(crate) fn new(arena: Option<Arena>) -> Self {
        Self { before: CURRENT.replace(arena), stays_on_its_thread: PhantomData }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn take(arena: &Arena, bytes: usize) -> NonNull<u8> {
        arena.take(bytes).unwrap()
    }

    fn give_back(arena: &Arena, pointer: NonNull<u8>, bytes: usize) {
        // SAFETY: the tests pass what they took.
        unsafe { arena.give_back(pointer, bytes) }
    }

    #[test]
    fn ranges_that_come_back_are_joined_and_serve_other_sizes() {
        let arena = Arena::new();
        let sizes = [3 * MIB, MIB, 2 * MIB];
        let pointers = sizes.map(|bytes| take(&arena, bytes));
        assert_eq!((arena.live_bytes(), arena.held_bytes()), (6 * MIB, 6 * MIB));
        for i in [0, 2, 1] {
            give_back(&arena, pointers[i], sizes[i]);
        }
        let whole = take(&arena, 6 * MIB);
        assert_eq!(whole, pointers[0]);
        assert_eq!((arena.peak_bytes(), arena.held_bytes(), arena.growths()), (6 * MIB, 6 * MIB, 1));
        give_back(&arena, whole, 6 * MIB);
        assert_eq!(arena.live_bytes(), 0);
    }

    #[test]
    fn the_smallest_range_that_fits_is_taken() {
        let arena = Arena::new();
        let sizes = [4 * MIB, MIB, 2 * MIB, MIB];
        let pointers = sizes.map(|bytes| take(&arena, bytes));
        give_back(&arena, pointers[0], sizes[0]);
        give_back(&arena, pointers[2], sizes[2]);
        assert_eq!(take(&arena, 2 * MIB - 100), pointers[2]);
        assert_eq!(take(&arena, 3 * MIB), pointers[0]);
    }

    #[test]
    fn trimming_gives_back_what_is_free_and_keeps_what_is_live() {
        let arena = Arena::new();
        let (kept, dropped) = (take(&arena, MIB), take(&arena, 8 * MIB));
        // SAFETY: the range is ours.
        unsafe { kept.write_bytes(7, MIB) };
        give_back(&arena, dropped, 8 * MIB);
        arena.trim();
        assert_eq!(arena.held_bytes(), MIB);
        // SAFETY: as above.
        assert!(unsafe { std::slice::from_raw_parts(kept.as_ptr(), MIB) }.iter().all(|&byte| byte == 7));
        give_back(&arena, kept, MIB);
        arena.trim();
        assert_eq!((arena.held_bytes(), arena.lock().regions.len()), (0, 0));
    }

    #[test]
    fn a_reserved_range_takes_buffers_larger_than_a_first_region() {
        let arena = Arena::new();
        arena.reserve(100 * MIB);
        let (a, b) = (take(&arena, 60 * MIB), take(&arena, 40 * MIB));
        assert_eq!(b.as_ptr() as usize - a.as_ptr() as usize, 60 * MIB);
        assert_eq!(arena.growths(), 1);
    }

    #[test]
    fn scopes_nest_and_end_with_a_panic_too() {
        let (outer, inner) = (Arena::new(), Arena::new());
        let is_current = |arena: &Arena| Arena::current().is_some_and(|c| Arc::ptr_eq(&c.state, &arena.state));
        outer.scope(|| {
            inner.scope(|| assert!(is_current(&inner)));
            assert!(is_current(&outer));
            let panicked = std::panic::catch_unwind(|| inner.scope(|| panic!("on purpose")));
            assert!(panicked.is_err() && is_current(&outer));
        });
        assert!(Arena::current().is_none());
    }
}
