//! Spreading work over rayon's current pool, with small jobs kept on the calling thread. Tasks are in their caller's arena.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::arena::{Arena, Entered};
use crate::buffer::Buffer;

/// Operations below which handing work to another thread costs more than it saves (about 10 µs of one core).
const SERIAL_OPERATIONS_MAX: usize = 200_000;

/// Calls `task(i)` for every i below `tasks`; in parallel when all of them together cost `operations` or more than the limit.
pub(crate) fn for_each(tasks: usize, operations: usize, task: impl Fn(usize) + Sync + Send) {
    if tasks <= 1 || operations < SERIAL_OPERATIONS_MAX || rayon::current_num_threads() == 1 {
        (0..tasks).for_each(task);
    } else {
        let arena = Arena::current();
        (0..tasks).into_par_iter().for_each_init(|| Entered::new(arena.clone()), |_, i| task(i));
    }
}

/// Splits `out` into pieces of `piece` elements and calls `task(index of the piece, piece)` for each.
pub(crate) fn for_each_piece<T: Send>(
    out: &mut [T],
    piece: usize,
    operations: usize,
    task: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    if out.len() <= piece || operations < SERIAL_OPERATIONS_MAX || rayon::current_num_threads() == 1 {
        out.chunks_mut(piece.max(1)).enumerate().for_each(|(i, p)| task(i, p));
    } else {
        let arena = Arena::current();
        let pieces = out.par_chunks_mut(piece).enumerate();
        pieces.for_each_init(|| Entered::new(arena.clone()), |_, (i, p)| task(i, p));
    }
}

/// Like [`for_each_piece`] over a new buffer of `len` elements, which is not cleared first.
///
/// # Safety
/// The task must write every element of its piece.
#[allow(unsafe_code, reason = "clearing a buffer that is then overwritten costs as much as the operation itself")]
pub(crate) unsafe fn collect_pieces<T: Copy + Send>(
    len: usize,
    piece: usize,
    operations: usize,
    task: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync + Send,
) -> Buffer<T> {
    let mut out = Buffer::with_capacity(len);
    for_each_piece(out.spare_capacity_mut(), piece, operations, task);
    // SAFETY: the tasks have written all of it.
    unsafe { out.set_len(len) };
    out
}

/// How many rows of `row` elements make a piece of a memory-bound job: enough to amortise the hand-over, small enough to
/// balance and to stay in the second-level cache.
pub(crate) fn rows_per_piece(row: usize) -> usize {
    (32 * 1024 / row.max(1)).max(1)
}

/// A pointer that tasks may share because each writes elements of its own.
#[derive(Debug)]
pub(crate) struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: sending the pointer is harmless; whoever writes through it states why no two tasks touch the same element.
#[allow(unsafe_code, reason = "parallel tasks write disjoint parts of one buffer")]
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "parallel tasks write disjoint parts of one buffer")]
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn from_pointer(pointer: *mut T) -> Self {
        Self(pointer)
    }

    /// A pointer that is only read through.
    pub(crate) fn new_const(pointer: *const T) -> Self {
        Self(pointer.cast_mut())
    }

    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}
