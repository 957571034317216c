//! Memory of one tensor or of an operation's scratch: like a `Vec` of fixed capacity, from the scope's arena.
#![allow(unsafe_code, reason = "owns raw memory; elements past the length are never read")]

use std::alloc::{self, Layout};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use half::bf16;

use crate::arena::{ALIGNMENT, ARENA_BYTES_MIN, Arena};

/// Types of which memory full of zeros holds values.
///
/// # Safety
/// That is what an implementation promises.
pub(crate) unsafe trait Zero: Copy {}
// SAFETY: zero is 0 in all of them.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for bf16 {}
// SAFETY: as above.
unsafe impl Zero for i8 {}
// SAFETY: as above.
unsafe impl Zero for u8 {}
// SAFETY: as above.
unsafe impl Zero for i32 {}
// SAFETY: as above.
unsafe impl Zero for u32 {}

/// `len` elements in memory aligned to 64 bytes (unless taken over from a `Vec`), which goes back to where it came from.
///
/// New memory is not cleared: with_capacity, then write, then `set_len`.
pub(crate) struct Buffer<T: Copy> {
    pointer: NonNull<T>,
    len: usize,
    capacity: usize,
    home: Home,
}

/// Where the memory goes.
enum Home {
    /// Nowhere: there is none.
    Empty,
    Vec,
    System,
    Arena(Arena),
}

// SAFETY: a buffer owns its elements; the arena has a lock of its own.
unsafe impl<T: Copy + Send> Send for Buffer<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Buffer<T> {}

impl<T: Copy> Buffer<T> {
    /// Room for exactly `capacity` elements, none of them written.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let layout = layout_of::<T>(capacity);
        if layout.size() == 0 {
            return Self { pointer: NonNull::dangling(), len: 0, capacity, home: Home::Empty };
        }
        let from_arena = || {
            let arena = Arena::current().filter(|_| layout.size() >= ARENA_BYTES_MIN)?;
            Some((arena.take(layout.size())?, Home::Arena(arena)))
        };
        let (pointer, home) = from_arena().unwrap_or_else(|| {
            // SAFETY: the size is not zero.
            (allocated(unsafe { alloc::alloc(layout) }, layout), Home::System)
        });
        Self { pointer: pointer.cast(), len: 0, capacity, home }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self
    where
        T: Zero,
    {
        let layout = layout_of::<T>(len);
        if layout.size() > 0 && Arena::current().is_none() {
            // SAFETY: the size is not zero. Fresh pages of the system are zeros already.
            let pointer = allocated(unsafe { alloc::alloc_zeroed(layout) }, layout);
            return Self { pointer: pointer.cast(), len, capacity: len, home: Home::System };
        }
        let mut zeros = Self::with_capacity(len);
        // SAFETY: there is room for `len` elements, for which zeros are values.
        unsafe {
            zeros.as_mut_ptr().write_bytes(0, len);
            zeros.set_len(len);
        }
        zeros
    }

    pub(crate) fn from_slice(values: &[T]) -> Self {
        let mut copy = Self::with_capacity(values.len());
        copy.extend_from_slice(values);
        copy
    }

    /// The `len` values of `values`, which must have so many.
    pub(crate) fn collect(len: usize, values: impl Iterator<Item = T>) -> Self {
        let mut out = Self::with_capacity(len);
        let written = out.spare_capacity_mut().iter_mut().zip(values).map(|(slot, value)| slot.write(value)).count();
        assert_eq!(written, len, "fewer values than announced");
        out.len = len;
        out
    }

    /// Valid for all of the capacity.
    pub(crate) fn as_ptr(&self) -> *const T {
        self.pointer.as_ptr()
    }

    /// Valid for all of the capacity.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.pointer.as_ptr()
    }

    /// # Safety
    /// The first `len` ≤ capacity elements must have been written.
    pub(crate) unsafe fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity);
        self.len = len;
    }

    pub(crate) fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<T>] {
        // SAFETY: the elements from `len` to `capacity` are ours.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr().add(self.len).cast(), self.capacity - self.len) }
    }

    /// Appends; panics when there is no room.
    pub(crate) fn extend_from_slice(&mut self, values: &[T]) {
        self.spare_capacity_mut()[..values.len()].write_copy_of_slice(values);
        self.len += values.len();
    }

    /// Appends copies of `value` up to `len` elements; panics when there is no room.
    pub(crate) fn resize(&mut self, len: usize, value: T) {
        let more = len - self.len;
        self.spare_capacity_mut()[..more].fill(MaybeUninit::new(value));
        self.len = len;
    }
}

fn layout_of<T>(capacity: usize) -> Layout {
    match Layout::array::<T>(capacity).and_then(|layout| layout.align_to(ALIGNMENT)) {
        Ok(layout) => layout,
        Err(_) => panic!("{capacity} elements are more than can be addressed"),
    }
}

fn allocated(pointer: *mut u8, layout: Layout) -> NonNull<u8> {
    NonNull::new(pointer).unwrap_or_else(|| alloc::handle_alloc_error(layout))
}

impl<T: Copy> Drop for Buffer<T> {
    fn drop(&mut self) {
        let layout = layout_of::<T>(self.capacity);
        let pointer = self.pointer.cast::<u8>();
        match &self.home {
            Home::Empty => (),
            // SAFETY: here and below: the memory came from there with this capacity, and this was its only owner.
            Home::Vec => drop(unsafe { Vec::from_raw_parts(self.pointer.as_ptr(), 0, self.capacity) }),
            // SAFETY: as above.
            Home::System => unsafe { alloc::dealloc(pointer.as_ptr(), layout) },
            // SAFETY: as above.
            Home::Arena(arena) => unsafe { arena.give_back(pointer, layout.size()) },
        }
    }
}

impl<T: Copy> From<Vec<T>> for Buffer<T> {
    /// Takes the memory over without a copy.
    fn from(values: Vec<T>) -> Self {
        let mut values = ManuallyDrop::new(values);
        let home = if values.capacity() == 0 { Home::Empty } else { Home::Vec };
        let pointer = NonNull::new(values.as_mut_ptr()).unwrap_or(NonNull::dangling());
        Self { pointer, len: values.len(), capacity: values.capacity(), home }
    }
}

impl<T: Copy> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` elements have been written.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl<T: Copy> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::from_slice(self)
    }
}

impl<T: Copy> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} elements", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_dropped_buffer_is_used_again_and_its_old_data_is_past_the_length() {
        let arena = Arena::new();
        arena.scope(|| {
            let first = Buffer::from_slice(&[7.0f32; 5000]);
            let at = first.as_ptr();
            drop(first);
            let second = Buffer::<f32>::with_capacity(5000);
            assert_eq!((second.as_ptr(), second.len()), (at, 0));
            drop(second);
            let zeros = Buffer::<f32>::zeros(5000);
            assert!(zeros.as_ptr() == at && zeros.iter().all(|&v| v == 0.0));
        });
        assert_eq!((arena.live_bytes(), arena.growths()), (0, 1));
    }

    #[test]
    fn a_buffer_outlives_its_scope_and_its_arena() {
        let arena = Arena::new();
        let kept = arena.scope(|| Buffer::from_slice(&[3u8; 10_000]));
        drop(arena);
        assert!(kept.iter().all(|&v| v == 3));
    }

    #[test]
    fn vectors_are_taken_over_and_small_buffers_stay_outside_of_the_arena() {
        let arena = Arena::new();
        arena.scope(|| {
            let values = vec![1.0f32; 5000];
            let at = values.as_ptr();
            assert_eq!(Buffer::from(values).as_ptr(), at);
            assert_eq!(Buffer::from_slice(&[1.0f32; 8]).as_ptr() as usize % ALIGNMENT, 0);
            assert!(Buffer::<f32>::zeros(0).is_empty() && Buffer::<f32>::from(Vec::new()).is_empty());
        });
        assert_eq!(arena.growths(), 0);
    }

    #[test]
    fn capacity_is_fixed_and_collecting_checks_its_length() {
        let mut out = Buffer::with_capacity(4);
        out.resize(1, 5u8);
        out.extend_from_slice(&[6, 7]);
        assert_eq!((&out[..], &Buffer::collect(2, 1u8..3)[..]), (&[5, 6, 7][..], &[1, 2][..]));
        assert!(std::panic::catch_unwind(move || out.extend_from_slice(&[8, 9])).is_err());
        assert!(std::panic::catch_unwind(|| Buffer::collect(3, 0u8..2)).is_err());
    }
}
