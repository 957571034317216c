//! Activations as bytes, for int8 products.
//!
//! | | |
//! |---|---|
//! | meaning | per row: scale = max |x| / 127, byte = round(x / scale) + 128 |
//! | inputs | x [m, k] f32 or bf16, row-major |
//! | outputs | bytes [m, k up to whole words], scales f32 `[m]` |
//! | preconditions | none; a row with a value that is not finite gets a scale that is not, so that its results are not |
//! | reference | `linear::reference`; exact |
//! | bound by | memory: 2 or 4 bytes read and 1 written per value |
//! | benchmark | `linear` (part of every int8 case) |
#![allow(unsafe_code, reason = "tasks write disjoint rows; every byte is written once")]

use half::bf16;

use super::Tiles;
use crate::buffer::Buffer;
use crate::elementwise::load_up_to;
use crate::packed::Format;
use crate::parallel::{self, Shared};
use crate::simd::{Element, Isa, Kernel};
use crate::tensor::Tensor;

/// Largest magnitude of a quantised value.
const LARGEST: f32 = 127.0;
/// Rows whose largest value is smaller are taken as zeros: their inverse scale would not be finite.
const SMALLEST: f32 = 1e-30;

/// x [m, k] as bytes, offset by 128 so that they are unsigned, with a scale per row.
#[derive(Debug)]
pub(crate) struct QuantisedRows {
    pub(crate) words: Buffer<u32>,
    pub(crate) scales: Buffer<f32>,
}

impl QuantisedRows {
    pub(crate) fn new(isa: Isa, x: &Tensor, m: usize, k: usize) -> Self {
        match (x.as_f32(), x.as_bf16()) {
            (Some(values), _) => Self::from_values::<f32>(isa, values, m, k),
            (_, Some(values)) => Self::from_values::<bf16>(isa, values, m, k),
            _ => unreachable!("a tensor is f32 or bf16"),
        }
    }

    fn from_values<T: Element>(isa: Isa, values: &[T], m: usize, k: usize) -> Self {
        let steps = Format::Int8.steps(k);
        let (mut words, mut scales) = (Buffer::<u32>::zeros(m * steps), Buffer::<f32>::zeros(m));
        let (to, scale) = (Shared::from_pointer(words.as_mut_ptr()), Shared::from_pointer(scales.as_mut_ptr()));
        let rows = parallel::rows_per_piece(k);
        parallel::for_each(m.div_ceil(rows), m * k / 4, |task| {
            let (first, count) = (task * rows, rows.min(m - task * rows));
            isa.run(Quantise {
                from: &values[first * k..(first + count) * k],
                k,
                to: to.get().wrapping_add(first * steps).cast(),
                pitch: 4 * steps,
                scales: scale.get().wrapping_add(first),
            });
        });
        Self { words, scales }
    }
}

/// Some whole rows.
struct Quantise<'a, T> {
    from: &'a [T],
    k: usize,
    to: *mut u8,
    /// Bytes from one row of `to` to the next.
    pitch: usize,
    scales: *mut f32,
}

impl<T: Element> Kernel for Quantise<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Tiles>(self, s: S) {
        for (r, row) in self.from.chunks_exact(self.k).enumerate() {
            let (mut largest, mut odd) = (s.splat(0.0), s.splat(0.0));
            for at in (0..self.k).step_by(S::LANES) {
                // SAFETY: the row has the elements.
                let x = unsafe { load_up_to(s, row.as_ptr().add(at), S::LANES.min(self.k - at)) };
                largest = s.max(largest, s.max(x, s.sub(s.splat(0.0), x)));
                // Zero, unless a value is not finite.
                odd = s.fma(x, s.splat(0.0), odd);
            }
            let (largest, odd) = (s.largest(largest), s.sum(odd));
            let (scale, inverse) = if largest < SMALLEST { (0.0, 0.0) } else { (largest / LARGEST, LARGEST / largest) };
            // SAFETY: there is a scale per row, and room for a row of bytes at each pitch.
            unsafe { self.scales.add(r).write(scale + odd) };
            for at in (0..self.k).step_by(S::LANES) {
                let n = S::LANES.min(self.k - at);
                // SAFETY: as above.
                unsafe {
                    let x = s.mul(load_up_to(s, row.as_ptr().add(at), n), s.splat(inverse));
                    s.store_offset_bytes(self.to.add(r * self.pitch + at), s.round(x), n);
                }
            }
        }
    }
}
