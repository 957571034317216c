//! MP4 with the index in front, one H.264 track, and times in whole ticks of the frame rate (ISO/IEC 14496-12 and -15).

use super::h264::EncodedFrame;
use super::{FrameRate, VideoError};
use shiguredo_mp4::bitstream::h264::{
    H264NalUnitType, H264SampleEntryConfig, LengthSize, build_avc1_box_from_annexb, parse_annexb_nal_units,
};
use shiguredo_mp4::boxes::{MoovBox, SampleEntry, UnknownBox};
use shiguredo_mp4::mux::{FinalizedBoxes, Mp4FileMuxer, Mp4FileMuxerOptions, Sample};
use shiguredo_mp4::{BoxSize, BoxType, Encode, Mp4FileTime, TrackKind};
use std::fmt::Display;
use std::num::NonZeroU32;

/// Primaries, transfer and matrix of BT.709 (ITU-T H.273), limited range: the same as the stream's VUI.
const COLR_NCLX_BT709: [u8; 11] = [b'n', b'c', b'l', b'x', 0, 1, 0, 1, 0, 1, 0];

/// Collects coded frames and lays them out as a file at the end.
pub(super) struct Mp4Muxer {
    fps: FrameRate,
    sample_entry: Option<SampleEntry>,
    samples: Vec<CodedSample>,
    media: Vec<u8>,
}

struct CodedSample {
    bytes: usize,
    is_intra: bool,
}

impl Mp4Muxer {
    pub(super) fn new(fps: FrameRate) -> Self {
        Self { fps, sample_entry: None, samples: Vec::new(), media: Vec::new() }
    }

    /// Adds the next frame. The first must carry the parameter sets.
    pub(super) fn push(&mut self, frame: &EncodedFrame) -> Result<(), VideoError> {
        if self.sample_entry.is_none() {
            self.sample_entry = Some(sample_entry(&frame.annex_b)?);
        }
        let before = self.media.len();
        for nal in parse_annexb_nal_units(&frame.annex_b).map_err(mux_error)? {
            // `avc1` keeps parameter sets in the index only.
            if matches!(nal.nal_unit_type, H264NalUnitType::Sps | H264NalUnitType::Pps) {
                continue;
            }
            let length = u32::try_from(nal.data.len()).map_err(mux_error)?;
            self.media.extend_from_slice(&length.to_be_bytes());
            self.media.extend_from_slice(nal.data);
        }
        self.samples.push(CodedSample { bytes: self.media.len() - before, is_intra: frame.is_intra });
        Ok(())
    }

    /// The whole file.
    pub(super) fn finish(self) -> Result<Vec<u8>, VideoError> {
        // The index goes first and holds offsets into what follows, so its own length must be known: a first pass
        // without room for it measures it.
        let (_, measured) = self.lay_out(0)?;
        let (media_offset, boxes) = self.lay_out(measured.moov_box_size())?;
        if !boxes.is_faststart_enabled() {
            return Err(VideoError::Encode("the index did not fit in front of the media".into()));
        }
        let mut file = vec![0; media_offset];
        file.extend_from_slice(&self.media);
        for (offset, bytes) in boxes.offset_and_bytes_pairs() {
            let start = usize::try_from(offset).map_err(mux_error)?;
            file[start..start + bytes.len()].copy_from_slice(bytes);
        }
        let undated = without_dates(boxes.moov_box().clone()).encode_to_vec().map_err(mux_error)?;
        let index = file.windows(4).position(|kind| kind == MoovBox::TYPE.as_bytes()).map(|kind| kind - 4);
        match index {
            Some(start) if undated.len() == boxes.moov_box_size() => {
                file[start..start + undated.len()].copy_from_slice(&undated);
                Ok(file)
            }
            _ => Err(VideoError::Encode("the index changed its length".into())),
        }
    }

    /// Where the media starts, and the boxes around it.
    fn lay_out(&self, index_bytes: usize) -> Result<(usize, FinalizedBoxes), VideoError> {
        let entry = self.sample_entry.as_ref().ok_or(VideoError::Empty)?;
        let timescale = NonZeroU32::new(self.fps.numerator()).ok_or(VideoError::FrameRate(self.fps))?;
        let options = Mp4FileMuxerOptions { reserved_moov_box_size: index_bytes, ..Default::default() };
        let mut muxer = Mp4FileMuxer::with_options(options).map_err(mux_error)?;
        let media_offset = muxer.initial_boxes_bytes().len();
        let mut data_offset = media_offset as u64;
        for (index, sample) in self.samples.iter().enumerate() {
            let sample = Sample {
                track_kind: TrackKind::Video,
                sample_entry: (index == 0).then(|| entry.clone()),
                keyframe: sample.is_intra,
                timescale,
                duration: self.fps.denominator(),
                composition_time_offset: None,
                data_offset,
                data_size: sample.bytes,
            };
            muxer.append_sample(&sample).map_err(mux_error)?;
            data_offset += sample.data_size as u64;
        }
        Ok((media_offset, muxer.finalize().map_err(mux_error)?.clone()))
    }
}

/// The muxer dates every file to 1970. Zero is the format's word for no date, and a real one would make two files of
/// the same frames differ.
fn without_dates(mut index: MoovBox) -> MoovBox {
    let none = Mp4FileTime::default();
    (index.mvhd_box.creation_time, index.mvhd_box.modification_time) = (none, none);
    for track in &mut index.trak_boxes {
        (track.tkhd_box.creation_time, track.tkhd_box.modification_time) = (none, none);
        let media = &mut track.mdia_box.mdhd_box;
        (media.creation_time, media.modification_time) = (none, none);
    }
    index
}

fn sample_entry(annex_b: &[u8]) -> Result<SampleEntry, VideoError> {
    let config = H264SampleEntryConfig { length_size: LengthSize::FourBytes };
    let mut avc1 = build_avc1_box_from_annexb(annex_b, &config).map_err(mux_error)?;
    avc1.unknown_boxes.push(colour_box());
    Ok(SampleEntry::Avc1(avc1))
}

fn colour_box() -> UnknownBox {
    let box_type = BoxType::Normal(*b"colr");
    let payload = COLR_NCLX_BT709.to_vec();
    UnknownBox { box_type, box_size: BoxSize::with_payload_size(box_type, payload.len() as u64), payload }
}

fn mux_error(error: impl Display) -> VideoError {
    VideoError::Encode(error.to_string())
}
