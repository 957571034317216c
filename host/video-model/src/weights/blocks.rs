//! GGUF's quantised blocks: 32 or 256 elements that share scales.
//!
//! Layouts and formulas as ggml defines them (`ggml-common.h`, `ggml-quants.c` of <https://github.com/ggml-org/ggml>);
//! the golden in the tests is made by its own Python package.

use half::f16;

/// Layout of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

use BlockFormat::{Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

impl BlockFormat {
    /// The format with this number in a GGUF file.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        let codes = [
            (2, Q4_0),
            (3, Q4_1),
            (6, Q5_0),
            (7, Q5_1),
            (8, Q8_0),
            (10, Q2K),
            (11, Q3K),
            (12, Q4K),
            (13, Q5K),
            (14, Q6K),
        ];
        codes.into_iter().find(|(of, _)| *of == code).map(|(_, format)| format)
    }

    /// ggml's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
        }
    }

    /// Elements and bytes of a block.
    fn size(self) -> (usize, usize) {
        match self {
            Q4_0 => (32, 18),
            Q4_1 => (32, 20),
            Q5_0 => (32, 22),
            Q5_1 => (32, 24),
            Q8_0 => (32, 34),
            Q2K => (256, 84),
            Q3K => (256, 110),
            Q4K => (256, 144),
            Q5K => (256, 176),
            Q6K => (256, 210),
        }
    }

    /// Elements of a block: rows are whole multiples of it.
    pub(super) fn elements(self) -> usize {
        self.size().0
    }

    /// Bytes of `elements` elements; None when they do not fill whole blocks.
    pub(super) fn bytes_of(self, elements: usize) -> Option<usize> {
        let (width, bytes) = self.size();
        elements.is_multiple_of(width).then(|| (elements / width).checked_mul(bytes))?
    }

    /// All elements of whole blocks.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Vec<f32> {
        let (width, block_bytes) = self.size();
        let mut out = Vec::with_capacity(bytes.len() / block_bytes * width);
        for block in bytes.chunks_exact(block_bytes) {
            match self {
                Q4_0 => small(block, 2, None, |q| q - 8.0, &mut out),
                Q4_1 => small(block, 4, None, |q| q, &mut out),
                Q5_0 => small(block, 6, Some(2), |q| q - 16.0, &mut out),
                Q5_1 => small(block, 8, Some(4), |q| q, &mut out),
                Q8_0 => {
                    let d = half(block, 0);
                    out.extend(block[2..].iter().map(|q| d * f32::from(q.cast_signed())));
                }
                Q2K => q2_k(block, &mut out),
                Q3K => q3_k(block, &mut out),
                Q4K => q45_k(block, None, &block[16..144], &mut out),
                Q5K => q45_k(block, Some(&block[16..48]), &block[48..176], &mut out),
                Q6K => q6_k(block, &mut out),
            }
        }
        out
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 32 elements: a scale, a minimum when there are 4 bytes before the rest, fifth bits at `high`, nibbles from `low` on:
/// the lower ones are elements 0..16, the upper ones 16..32.
fn small(block: &[u8], low: usize, high: Option<usize>, centred: impl Fn(f32) -> f32, out: &mut Vec<f32>) {
    let has_minimum = high.unwrap_or(low) == 4;
    let (d, m) = (half(block, 0), if has_minimum { half(block, 2) } else { 0.0 });
    let fifth = high.map_or(0, |at| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]));
    let nibbles = &block[low..];
    for i in 0..32 {
        let nibble = if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 };
        let q = f32::from(nibble | ((fifth >> i & 1) << 4) as u8);
        out.push(d * centred(q) + m);
    }
}

/// 16 scales and minima of 4 bits, quants of 2 bits.
fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, minimum) = (half(block, 80), half(block, 82));
    for (group, scale) in scales.iter().enumerate() {
        let (d, m) = (d * f32::from(scale & 15), minimum * f32::from(scale >> 4));
        out.extend(two_bits(quants, group).map(|(_, q)| d * f32::from(q) - m));
    }
}

/// 16 scales of 6 bits, quants of 2 bits whose third bit lies in a mask; without it they are 4 less.
fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (mask, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for group in 0..16 {
        let low = if group < 8 { scales[group] & 15 } else { scales[group - 8] >> 4 };
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let d = d * (f32::from(low | high << 4) - 32.0);
        let bit = group / 2;
        out.extend(two_bits(quants, group).map(|(at, q)| {
            let below = if mask[at] >> bit & 1 == 1 { 0.0 } else { 4.0 };
            d * (f32::from(q) - below)
        }));
    }
}

/// The 16 quants of a group of two-bit formats, each with its place in rows of 32 bytes: 128 elements take 32 bytes, two
/// groups a pair of bits.
fn two_bits(quants: &[u8], group: usize) -> impl Iterator<Item = (usize, u8)> {
    let (row, shift, start) = (group / 8 * 32, group % 8 / 2 * 2, group % 2 * 16);
    (start..start + 16).map(move |at| (at, quants[row + at] >> shift & 3))
}

/// 8 scales and minima of 6 bits in 12 bytes, nibbles, and perhaps their fifth bits.
fn q45_k(block: &[u8], fifth: Option<&[u8]>, nibbles: &[u8], out: &mut Vec<f32>) {
    let (d, minimum, scales) = (half(block, 0), half(block, 2), &block[4..16]);
    for group in 0..8 {
        let (scale, least) = six_bits(scales, group);
        let (d, m) = (d * f32::from(scale), minimum * f32::from(least));
        for at in 0..32 {
            let nibble = nibbles[group / 2 * 32 + at] >> (group % 2 * 4) & 15;
            let high = fifth.map_or(0, |bits| (bits[at] >> group & 1) << 4);
            out.push(d * f32::from(nibble | high) - m);
        }
    }
}

/// Scale and minimum of a group: the first four lie whole in bytes 0..4 and 4..8, whose top bits complete the others.
fn six_bits(scales: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (scales[group] & 63, scales[group + 4] & 63);
    }
    let low = scales[group + 4];
    (low & 15 | scales[group - 4] >> 6 << 4, low >> 4 | scales[group] >> 6 << 4)
}

/// 16 scales of 8 bits, low nibbles, high pairs of bits.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for group in 0..8 {
        let (part, quarter) = (group / 4, group % 4);
        for at in 0..32 {
            let nibble = low[part * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
            let pair = high[part * 32 + at] >> (2 * quarter) & 3;
            let scale = f32::from(scales[part * 8 + quarter * 2 + at / 16].cast_signed());
            out.push(d * scale * (f32::from(nibble | pair << 4) - 32.0));
        }
    }
}
