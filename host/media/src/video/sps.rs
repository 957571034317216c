//! What a decoder needs to know of an H.264 sequence parameter set before it starts: whether openh264 can decode the
//! stream, and how its colours are meant. Syntax: ITU-T H.264, 7.3.2.1.1 and E.1.1.

/// How the stream's numbers become colours (code points of ITU-T H.273).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ColourDescription {
    /// 1 is BT.709, 5 and 6 are BT.601, 2 is unspecified.
    pub(super) matrix_coefficients: u8,
    /// Luma from 0 to 255 instead of 16 to 235.
    pub(super) full_range: bool,
}

impl ColourDescription {
    const UNSPECIFIED: Self = Self { matrix_coefficients: 2, full_range: false };
}

/// The fields of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SequenceParameters {
    pub(super) chroma_format: u32,
    pub(super) bit_depth: u32,
    pub(super) progressive: bool,
    pub(super) colour: ColourDescription,
}

/// Parses a NAL unit of type 7, header byte included; `None` when it is not one or ends early.
pub(super) fn parse(nal: &[u8]) -> Option<SequenceParameters> {
    if nal.first()? & 0x1f != 7 {
        return None;
    }
    let payload = without_emulation_prevention(nal.get(1..)?);
    let mut bits = Bits { bytes: &payload, position: 0 };
    let profile = bits.read(8)?;
    bits.read(16)?; // constraint flags, level
    bits.golomb()?; // seq_parameter_set_id
    let (chroma_format, bit_depth) = if has_chroma_fields(profile) { chroma_fields(&mut bits)? } else { (1, 8) };
    bits.golomb()?; // log2_max_frame_num_minus4
    picture_order_count(&mut bits)?;
    bits.golomb()?; // max_num_ref_frames
    bits.flag()?; // gaps_in_frame_num_value_allowed
    bits.golomb()?; // width in macroblocks
    bits.golomb()?; // height in map units
    let progressive = bits.flag()?;
    if !progressive {
        bits.flag()?; // mb_adaptive_frame_field
    }
    bits.flag()?; // direct_8x8_inference
    if bits.flag()? {
        for _ in 0..4 {
            bits.golomb()?; // cropping
        }
    }
    let colour = if bits.flag()? { colour_of_vui(&mut bits)? } else { ColourDescription::UNSPECIFIED };
    Some(SequenceParameters { chroma_format, bit_depth, progressive, colour })
}

fn has_chroma_fields(profile: u32) -> bool {
    matches!(profile, 44 | 83 | 86 | 100 | 110 | 118 | 122 | 128 | 134 | 135 | 138 | 139 | 244)
}

fn chroma_fields(bits: &mut Bits<'_>) -> Option<(u32, u32)> {
    let chroma_format = bits.golomb()?;
    if chroma_format == 3 {
        bits.flag()?; // separate_colour_plane
    }
    let luma_depth = bits.golomb()?.checked_add(8)?;
    let chroma_depth = bits.golomb()?.checked_add(8)?;
    bits.flag()?; // qpprime_y_zero_transform_bypass
    if bits.flag()? {
        for list in 0..if chroma_format == 3 { 12 } else { 8 } {
            if bits.flag()? {
                skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
            }
        }
    }
    Some((chroma_format, luma_depth.max(chroma_depth)))
}

fn skip_scaling_list(bits: &mut Bits<'_>, entries: u32) -> Option<()> {
    let mut scale = 8_i64;
    for _ in 0..entries {
        scale = (scale + bits.signed_golomb()?).rem_euclid(256);
        // A zero ends the list: the rest repeats the last value.
        if scale == 0 {
            break;
        }
    }
    Some(())
}

fn picture_order_count(bits: &mut Bits<'_>) -> Option<()> {
    match bits.golomb()? {
        0 => drop(bits.golomb()?),
        1 => {
            bits.flag()?;
            bits.golomb()?;
            bits.golomb()?;
            for _ in 0..bits.golomb()?.min(255) {
                bits.golomb()?;
            }
        }
        _ => {}
    }
    Some(())
}

fn colour_of_vui(bits: &mut Bits<'_>) -> Option<ColourDescription> {
    const EXTENDED_ASPECT_RATIO: u32 = 255;
    if bits.flag()? && bits.read(8)? == EXTENDED_ASPECT_RATIO {
        bits.read(32)?;
    }
    if bits.flag()? {
        bits.flag()?; // overscan_appropriate
    }
    let mut colour = ColourDescription::UNSPECIFIED;
    if bits.flag()? {
        bits.read(3)?; // video_format
        colour.full_range = bits.flag()?;
        if bits.flag()? {
            bits.read(16)?; // primaries, transfer
            colour.matrix_coefficients = bits.read(8)? as u8;
        }
    }
    Some(colour)
}

/// Drops each 0x03 that the encoder put after two zero bytes (7.4.1).
fn without_emulation_prevention(nal: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for &byte in nal {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        payload.push(byte);
    }
    payload
}

struct Bits<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Bits<'_> {
    fn flag(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.position / 8)?;
        let bit = byte >> (7 - self.position % 8) & 1;
        self.position += 1;
        Some(bit == 1)
    }

    fn read(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0_u32, |value, _| Some(value << 1 | u32::from(self.flag()?)))
    }

    /// `ue(v)` of 9.1: n zeros, a one, n more bits.
    fn golomb(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        let value = (1_u64 << zeros) - 1 + u64::from(self.read(zeros)?);
        u32::try_from(value).ok()
    }

    /// `se(v)` of 9.1.1: 1, -1, 2, -2, … .
    fn signed_golomb(&mut self) -> Option<i64> {
        let code = i64::from(self.golomb()?);
        Some(if code % 2 == 0 { -(code / 2) } else { (code + 1) / 2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::h264::H264Encoder;
    use crate::video::{EncodeSettings, FrameRate};
    use pipeline::FrameSize;
    use proptest::prelude::*;

    #[test]
    fn golomb_codes_follow_the_table_of_the_standard() {
        // 1, 010, 011, 00100, 00101 are 0, 1, 2, 3, 4.
        let mut bits = Bits { bytes: &[0b1010_0110, 0b0100_0010, 0b1000_0000], position: 0 };
        assert_eq!([(); 5].map(|()| bits.golomb().unwrap()), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn emulation_prevention_is_undone() {
        assert_eq!(without_emulation_prevention(&[0, 0, 3, 1, 0, 0, 3, 0, 0, 3]), [0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(without_emulation_prevention(&[0, 3, 0, 3]), [0, 3, 0, 3]);
    }

    #[test]
    fn our_own_stream_is_progressive_420_and_tagged_as_bt709() {
        let size = FrameSize { width: 64, height: 48 };
        let fps = FrameRate::per_second(24).unwrap();
        let mut encoder = H264Encoder::new(size, fps, EncodeSettings::default()).unwrap();
        let stream = encoder.encode(&vec![128; size.rgb_bytes() / 2], size).unwrap().annex_b;
        let start = stream.windows(5).position(|bytes| bytes[..4] == [0, 0, 0, 1] && bytes[4] & 0x1f == 7).unwrap() + 4;
        let colour = ColourDescription { matrix_coefficients: 1, full_range: false };
        let expected = SequenceParameters { chroma_format: 1, bit_depth: 8, progressive: true, colour };
        assert_eq!(parse(&stream[start..]), Some(expected));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused_without_a_panic(mut nal in prop::collection::vec(any::<u8>(), 1..80)) {
            nal[0] = 0x67;
            let _ = parse(&nal);
        }
    }
}
