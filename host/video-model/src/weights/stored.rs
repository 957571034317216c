//! How tensors lie in a file: element types and blocks of quantised elements, and how either becomes f32.

use super::blocks::BlockFormat;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// Types that weights are read from. Others are kept by name: a file may hold them as long as nobody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoredDtype {
    F32,
    F16,
    Bf16,
    /// Whole numbers that a scale beside them gives a size.
    I8,
    /// Bytes of 1 sign, 4 exponent and 3 mantissa bits, with or without a scale beside them.
    F8E4M3,
    /// GGUF's blocks, each with scales of its own.
    Blocks(BlockFormat),
    Other(String),
}

impl StoredDtype {
    /// The bytes of `elements` elements; None when they do not fill whole blocks, overflow, or the type is not known.
    pub(super) fn bytes_of(&self, elements: usize) -> Option<usize> {
        match self {
            Self::F32 => elements.checked_mul(4),
            Self::F16 | Self::Bf16 => elements.checked_mul(2),
            Self::I8 | Self::F8E4M3 => Some(elements),
            Self::Blocks(format) => format.bytes_of(elements),
            Self::Other(_) => None,
        }
    }

    /// Whether a scale beside the tensor belongs to it.
    pub(super) fn is_scaled(&self) -> bool {
        matches!(self, Self::I8 | Self::F8E4M3)
    }

    /// The elements as f32, unscaled; None for a type that is not read. `bytes` is as long as the type needs.
    pub(super) fn to_f32(&self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => halves(bytes).map(|b| f16::from_bits(b).to_f32()).collect(),
            Self::Bf16 => halves(bytes).map(|b| bf16::from_bits(b).to_f32()).collect(),
            Self::I8 => bytes.iter().map(|b| f32::from(b.cast_signed())).collect(),
            Self::F8E4M3 => bytes.iter().map(|b| f8_e4m3(*b)).collect(),
            Self::Blocks(format) => format.to_f32(bytes),
            Self::Other(_) => return None,
        })
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I8 => "I8",
            Self::F8E4M3 => "F8_E4M3",
            Self::Blocks(format) => format.name(),
            Self::Other(name) => name,
        })
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: StoredDtype,
    pub(super) shape: Vec<usize>,
    /// Within the file.
    pub(super) bytes: Range<usize>,
}

/// What a file says about itself.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) entries: BTreeMap<String, Entry>,
    /// Named strings beside the tensors.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Little-endian 16-bit patterns.
pub(super) fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b))
}

/// The "fn" variant that checkpoints use: no infinities, one NaN per sign. Open Compute Project, OFP8 1.0, section 5.
fn f8_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::f8_e4m3;

    #[test]
    fn eight_bit_floats_have_their_published_extremes() {
        let pairs = [(0x00, 0.0), (0x01, 1.0 / 512.0), (0x08, 1.0 / 64.0), (0x38, 1.0), (0x7e, 448.0), (0xfe, -448.0)];
        for (bits, value) in pairs {
            assert_eq!(f8_e4m3(bits), value, "{bits:#x}");
        }
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
    }
}
