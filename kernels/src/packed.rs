//! Weights in the order that the matrix-product kernels read them: one layout for all instruction sets.
//!
//! A matrix B of k rows and n columns is cut into panels of 32 columns (the last one rounded up to a multiple of 16 and
//! filled with zeros). A panel is a sequence of *steps*; a step holds one word of 32 bits per column: one f32 row of B, a
//! pair of bf16 rows (2s, 2s + 1) with the first in the low half, which is what `vdpbf16ps` multiplies, or four int8 rows
//! (4s .. 4s + 3) with the first in the lowest byte, which is what `vpdpbusd` multiplies.

use half::bf16;

use crate::buffer::{Buffer, Zero};
use crate::parallel;
use crate::tensor::Dtype;

/// Columns of a full panel.
pub(crate) const PANEL: usize = 32;
/// Columns in a [`Line`]; panel widths are multiples of it.
pub(crate) const LINE: usize = 16;

/// Zeros after the last panel: matrix tiles read 16 steps at a time, and may read past the end of a panel.
const SPARE_LINES: usize = 16 * PANEL / LINE;

/// What a word holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    Bf16,
    Int8,
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Format::F32,
            Dtype::Bf16 => Format::Bf16,
        }
    }
}

impl Format {
    /// Values in a word.
    pub(crate) fn values_per_word(self) -> usize {
        match self {
            Format::F32 => 1,
            Format::Bf16 => 2,
            Format::Int8 => 4,
        }
    }

    /// Words per column for `k` rows.
    pub(crate) fn steps(self, k: usize) -> usize {
        k.div_ceil(self.values_per_word())
    }
}

/// One cache line of words, so that panels start on its boundary.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; LINE]);

// SAFETY: words may be zero.
#[allow(unsafe_code, reason = "says that zeros are a value")]
unsafe impl Zero for Line {}

/// A packed k×n matrix.
#[derive(Debug, Clone)]
pub(crate) struct PackedMatrix {
    n: usize,
    k: usize,
    steps: usize,
    format: Format,
    lines: Buffer<Line>,
}

impl PackedMatrix {
    /// Packs the matrix whose element at row `i`, column `j` is `at(i, j)`.
    pub(crate) fn pack(k: usize, n: usize, dtype: Dtype, at: impl Fn(usize, usize) -> f32 + Sync + Send) -> Self {
        match dtype {
            Dtype::F32 => Self::pack_bits(k, n, Format::F32, |i, j| at(i, j).to_bits()),
            Dtype::Bf16 => Self::pack_bits(k, n, Format::Bf16, |i, j| u32::from(bf16::from_f32(at(i, j)).to_bits())),
        }
    }

    /// [`PackedMatrix::pack`] of int8 values.
    pub(crate) fn pack_int8(k: usize, n: usize, at: impl Fn(usize, usize) -> i8 + Sync + Send) -> Self {
        Self::pack_bits(k, n, Format::Int8, |i, j| u32::from(at(i, j).cast_unsigned()))
    }

    /// Packs values given as bits in the low end of a word.
    fn pack_bits(k: usize, n: usize, format: Format, bits: impl Fn(usize, usize) -> u32 + Sync + Send) -> Self {
        let mut packed = Self::zeros(k, n, format);
        let used = packed.steps * n.div_ceil(LINE);
        let per_word = format.values_per_word();
        parallel::for_each_piece(&mut packed.lines[..used], PANEL / LINE * packed.steps, k * n, |panel, lines| {
            let lines_per_step = panel_width(n, panel) / LINE;
            for column in 0..PANEL.min(n - panel * PANEL) {
                let (line, lane, j) = (column / LINE, column % LINE, panel * PANEL + column);
                for i in 0..k {
                    let shift = 32 / per_word * (i % per_word);
                    lines[i / per_word * lines_per_step + line].0[lane] |= bits(i, j) << shift;
                }
            }
        });
        packed
    }

    pub(crate) fn n(&self) -> usize {
        self.n
    }

    pub(crate) fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// The dtype that A is wanted in; int8 products quantise either.
    pub(crate) fn dtype(&self) -> Dtype {
        match self.format {
            Format::F32 => Dtype::F32,
            Format::Bf16 | Format::Int8 => Dtype::Bf16,
        }
    }

    /// Bytes of the packed words, padding included.
    pub(crate) fn stored_bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// A packed matrix of zeros, to be filled through [`PackedMatrix::panel_mut`].
    pub(crate) fn zeros(k: usize, n: usize, format: impl Into<Format>) -> Self {
        let format = format.into();
        let steps = format.steps(k);
        Self { n, k, steps, format, lines: Buffer::zeros(steps * n.div_ceil(LINE) + SPARE_LINES) }
    }

    /// Steps of every panel.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// The lines of a panel: `panel_width / LINE` per step.
    pub(crate) fn panel(&self, panel: usize) -> &[Line] {
        &self.lines[self.panel_range(panel)]
    }

    /// [`PackedMatrix::panel`], to be written.
    pub(crate) fn panel_mut(&mut self, panel: usize) -> &mut [Line] {
        let range = self.panel_range(panel);
        &mut self.lines[range]
    }

    fn panel_range(&self, panel: usize) -> std::ops::Range<usize> {
        let start = panel * (PANEL / LINE) * self.steps;
        start..start + panel_width(self.n, panel) / LINE * self.steps
    }

    /// The matrix as n rows of k values: what the references multiply with. Int8 values come without their scales.
    pub(crate) fn transposed_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.n * self.k);
        for j in 0..self.n {
            out.extend((0..self.k).map(|i| {
                let bits = self.bits_at(i, j);
                match self.format {
                    Format::F32 => f32::from_bits(bits),
                    Format::Bf16 => bf16::from_bits(bits as u16).to_f32(),
                    Format::Int8 => f32::from((bits as u8).cast_signed()),
                }
            }));
        }
        out
    }

    /// The value at row `i` of column `j`, in the low end of a word.
    fn bits_at(&self, i: usize, j: usize) -> u32 {
        let per_word = self.format.values_per_word();
        let (panel, step) = (j / PANEL, i / per_word);
        let width_lines = panel_width(self.n, panel) / LINE;
        let line = panel * (PANEL / LINE) * self.steps + step * width_lines + (j % PANEL) / LINE;
        self.lines[line].0[j % LINE] >> (32 / per_word * (i % per_word))
    }
}

/// Words per column for `k` rows.
pub(crate) fn steps_of(k: usize, dtype: Dtype) -> usize {
    Format::from(dtype).steps(k)
}

/// Columns of panel `panel` of a matrix with `n` columns, rounded up to whole lines.
pub(crate) fn panel_width(n: usize, panel: usize) -> usize {
    (n - panel * PANEL).min(PANEL).next_multiple_of(LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_loses_nothing_at_odd_sizes() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (k, n) in [(1, 1), (3, 17), (8, 64), (5, 65), (7, 130)] {
                let at = |i: usize, j: usize| (i * n + j) as f32 % 251.0 - 100.0;
                let packed = PackedMatrix::pack(k, n, dtype, at);
                let back = packed.transposed_f32();
                for j in 0..n {
                    for i in 0..k {
                        assert_eq!(back[j * k + i], at(i, j), "{dtype:?} {k}x{n} at {i},{j}");
                    }
                }
            }
        }
    }

    #[test]
    fn packing_int8_loses_nothing_at_odd_sizes() {
        for (k, n) in [(1, 1), (3, 17), (8, 64), (5, 65), (7, 130)] {
            let at = |i: usize, j: usize| ((i * n + j) % 256) as u8 as i8;
            let back = PackedMatrix::pack_int8(k, n, at).transposed_f32();
            for j in 0..n {
                for i in 0..k {
                    assert_eq!(back[j * k + i], f32::from(at(i, j)), "{k}x{n} at {i},{j}");
                }
            }
        }
    }
}
