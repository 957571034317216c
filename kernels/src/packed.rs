//! Weights in the order that the matrix-product kernels read them: one layout for all instruction sets.
//!
//! A matrix B of k rows and n columns is cut into panels of 64 columns (the last one rounded up to a multiple of 16 and
//! filled with zeros). A panel is a sequence of *steps*; a step holds one word of 32 bits per column: one f32 row of B, or
//! a pair of bf16 rows (2s, 2s + 1) with the first in the low half, which is what `vdpbf16ps` multiplies.

use half::bf16;

use crate::parallel;
use crate::tensor::Dtype;

/// Columns of a full panel.
pub(crate) const PANEL: usize = 64;
/// Columns in a [`Line`]; panel widths are multiples of it.
pub(crate) const LINE: usize = 16;

/// Zeros after the last panel: matrix tiles read 16 steps at a time, and may read past the end of a panel.
const SPARE_LINES: usize = 16 * PANEL / LINE;

/// One cache line of words, so that panels start on its boundary.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u32; LINE]);

/// A packed k×n matrix.
#[derive(Debug, Clone)]
pub(crate) struct PackedMatrix {
    n: usize,
    k: usize,
    steps: usize,
    dtype: Dtype,
    lines: Vec<Line>,
}

impl PackedMatrix {
    /// Packs the matrix whose element at row `i`, column `j` is `at(i, j)`.
    pub(crate) fn pack(k: usize, n: usize, dtype: Dtype, at: impl Fn(usize, usize) -> f32 + Sync + Send) -> Self {
        let mut packed = Self::zeros(k, n, dtype);
        let used = packed.steps * n.div_ceil(LINE);
        parallel::for_each_piece(&mut packed.lines[..used], PANEL / LINE * packed.steps, k * n, |panel, lines| {
            let lines_per_step = panel_width(n, panel) / LINE;
            for column in 0..PANEL.min(n - panel * PANEL) {
                let (line, lane, j) = (column / LINE, column % LINE, panel * PANEL + column);
                for i in 0..k {
                    let (step, bits) = match dtype {
                        Dtype::F32 => (i, at(i, j).to_bits()),
                        Dtype::Bf16 => (i / 2, u32::from(bf16::from_f32(at(i, j)).to_bits()) << (16 * (i % 2))),
                    };
                    lines[step * lines_per_step + line].0[lane] |= bits;
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

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// A packed matrix of zeros, to be filled through [`PackedMatrix::panel_mut`].
    pub(crate) fn zeros(k: usize, n: usize, dtype: Dtype) -> Self {
        let steps = steps_of(k, dtype);
        Self { n, k, steps, dtype, lines: vec![Line([0; LINE]); steps * n.div_ceil(LINE) + SPARE_LINES] }
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

    /// The matrix as n rows of k values: what the references multiply with.
    pub(crate) fn transposed_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.n * self.k);
        for j in 0..self.n {
            out.extend((0..self.k).map(|i| {
                let (line, lane) = self.word_at(i, j);
                let word = self.lines[line].0[lane];
                match self.dtype {
                    Dtype::F32 => f32::from_bits(word),
                    Dtype::Bf16 => bf16::from_bits((word >> (16 * (i % 2))) as u16).to_f32(),
                }
            }));
        }
        out
    }

    /// Index of the line and the lane within it that hold row `i` of column `j`.
    fn word_at(&self, i: usize, j: usize) -> (usize, usize) {
        let panel = j / PANEL;
        let step = match self.dtype {
            Dtype::F32 => i,
            Dtype::Bf16 => i / 2,
        };
        let width_lines = panel_width(self.n, panel) / LINE;
        (panel * (PANEL / LINE) * self.steps + step * width_lines + (j % PANEL) / LINE, j % LINE)
    }
}

/// Words per column for `k` rows.
pub(crate) fn steps_of(k: usize, dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => k,
        Dtype::Bf16 => k.div_ceil(2),
    }
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
}
