//! Finds the H.264 track of an MP4 or QuickTime file and hands out its packets.
//!
//! Only the index is held in memory; packets are read one at a time. A `String` error says in a few words why the
//! built-in decoder leaves this file to ffmpeg.

use super::sps::{self, SequenceParameters};
use super::{FrameRate, VideoError};
use pipeline::limits;
use shiguredo_mp4::Decode;
use shiguredo_mp4::aux::SampleTableAccessor;
use shiguredo_mp4::bitstream::h264::{LengthSize, length_prefixed_to_annexb, parse_sps};
use shiguredo_mp4::boxes::{AvccBox, HdlrBox, MoovBox, SampleEntry, StblBox, TkhdBox, TrakBox};
use std::io::{Read, Seek, SeekFrom};
use std::num::NonZeroU32;

/// Largest index that is read: hours of video at 120 frames per second.
const INDEX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most boxes looked at while searching for the index.
const TOP_LEVEL_BOXES_MAX: u32 = 4096;
/// How far into the track the first shown frame is searched for.
const REORDER_SAMPLES_MAX: u32 = 32;

pub(super) trait Source: Read + Seek + Send {}
impl<T: Read + Seek + Send> Source for T {}

/// The video track of an open file.
pub(super) struct H264Track {
    source: Box<dyn Source>,
    source_bytes: u64,
    samples: SampleTableAccessor<StblBox>,
    length_size: LengthSize,
    /// Annex B.
    pub(super) parameter_sets: Vec<u8>,
    pub(super) sequence: SequenceParameters,
    pub(super) fps: FrameRate,
}

impl H264Track {
    pub(super) fn open(mut source: Box<dyn Source>) -> Result<Self, String> {
        let source_bytes = source.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
        let moov = read_index(&mut source, source_bytes)?;
        let track = moov.trak_boxes.into_iter().find(is_video).ok_or("no video track")?;
        check_presentation(&track)?;
        let timescale = track.mdia_box.mdhd_box.timescale;
        let edits = track.edts_box.and_then(|edits| edits.elst_box);
        let samples = SampleTableAccessor::new(track.mdia_box.minf_box.stbl_box).map_err(|e| e.to_string())?;
        if samples.sample_count() == 0 {
            return Err("fragmented or empty".into());
        }
        if edits.is_some_and(|edits| cuts_frames(&edits.entries, &samples)) {
            return Err("edit list".into());
        }
        let avcc = decoder_configuration(&samples)?;
        let fps = frame_rate(&samples, timescale).ok_or("no frame rate")?;
        let length_size = LengthSize::from_length_size_minus_one(avcc.length_size_minus_one.get())
            .map_err(|_| "unusual packet lengths")?;
        let (parameter_sets, sequence) = parameters(avcc)?;
        Ok(Self { source, source_bytes, length_size, parameter_sets, sequence, fps, samples })
    }

    pub(super) fn sample_count(&self) -> u32 {
        self.samples.sample_count()
    }

    /// Packet `index`, from 0, in decoding order, as Annex B.
    pub(super) fn packet(&mut self, index: u32) -> Result<Vec<u8>, VideoError> {
        let sample = NonZeroU32::new(index.saturating_add(1)).and_then(|index| self.samples.get_sample(index));
        let sample = sample.ok_or_else(|| VideoError::Damaged(format!("there is no frame {index}")))?;
        let (offset, bytes) = (sample.data_offset(), u64::from(sample.data_size()));
        if offset.checked_add(bytes).is_none_or(|end| end > self.source_bytes) {
            return Err(VideoError::Damaged(format!("the data of frame {index} lies behind the end of the file")));
        }
        let mut packet = vec![0; bytes as usize];
        self.source.seek(SeekFrom::Start(offset))?;
        self.source.read_exact(&mut packet)?;
        length_prefixed_to_annexb(&packet, self.length_size).map_err(|e| VideoError::Damaged(e.to_string()))
    }
}

fn read_index(source: &mut dyn Source, source_bytes: u64) -> Result<MoovBox, String> {
    let mut offset = 0_u64;
    for _ in 0..TOP_LEVEL_BOXES_MAX {
        let mut header = [0; 16];
        let available = header.len().min(source_bytes.saturating_sub(offset) as usize);
        if available < 8 {
            break;
        }
        source
            .seek(SeekFrom::Start(offset))
            .and_then(|_| source.read_exact(&mut header[..available]))
            .map_err(|e| e.to_string())?;
        let size = match u32::from_be_bytes([header[0], header[1], header[2], header[3]]) {
            0 => source_bytes - offset,
            1 => u64::from_be_bytes(header[8..].try_into().expect("eight bytes")),
            size => size.into(),
        };
        if size < 8 || offset.checked_add(size).is_none_or(|end| end > source_bytes) {
            break;
        }
        if &header[4..8] == b"moov" {
            return decode_index(source, offset, size);
        }
        offset += size;
    }
    Err("not an MP4 file".into())
}

fn decode_index(source: &mut dyn Source, offset: u64, size: u64) -> Result<MoovBox, String> {
    if size > INDEX_BYTES_MAX {
        return Err("its index is too large".into());
    }
    let mut index = vec![0; size as usize];
    source.seek(SeekFrom::Start(offset)).and_then(|_| source.read_exact(&mut index)).map_err(|e| e.to_string())?;
    Ok(MoovBox::decode(&index).map_err(|e| format!("broken MP4 index: {}", e.reason))?.0)
}

fn is_video(track: &TrakBox) -> bool {
    track.mdia_box.hdlr_box.handler_type == HdlrBox::HANDLER_TYPE_VIDE
}

/// Phones write the picture as the sensor sees it and a matrix that turns it.
fn check_presentation(track: &TrakBox) -> Result<(), String> {
    let matrix = track.tkhd_box.matrix;
    let turns = (0..5).any(|i| i != 2 && (matrix[i] != 0) != (TkhdBox::DEFAULT_MATRIX[i] != 0));
    if turns || matrix[0] < 0 || matrix[4] < 0 { Err("rotated".into()) } else { Ok(()) }
}

/// Whether an edit list hides frames or shows them twice. One that starts at the first shown frame does neither.
fn cuts_frames(edits: &[shiguredo_mp4::boxes::ElstEntry], samples: &SampleTableAccessor<StblBox>) -> bool {
    let mut shown = edits.iter().filter(|edit| edit.media_time >= 0);
    let Some(edit) = shown.next() else { return false };
    let first_shown = samples
        .samples()
        .take(REORDER_SAMPLES_MAX as usize)
        .map(|s| i128::from(s.timestamp()) + i128::from(s.composition_time_offset().unwrap_or(0)))
        .min();
    shown.next().is_some() || first_shown.is_some_and(|first| i128::from(edit.media_time) > first)
}

fn decoder_configuration(samples: &SampleTableAccessor<StblBox>) -> Result<&AvccBox, String> {
    match samples.stbl_box().stsd_box.entries.as_slice() {
        [SampleEntry::Avc1(avc1)] => Ok(&avc1.avcc_box),
        [SampleEntry::Hev1(_) | SampleEntry::Hvc1(_)] => Err("H.265".into()),
        [SampleEntry::Vp08(_)] => Err("VP8".into()),
        [SampleEntry::Vp09(_)] => Err("VP9".into()),
        [SampleEntry::Av01(_)] => Err("AV1".into()),
        [_] => Err("not H.264".into()),
        _ => Err("several coding formats in one track".into()),
    }
}

fn parameters(avcc: &AvccBox) -> Result<(Vec<u8>, SequenceParameters), String> {
    let sps = avcc.sps_list.first().ok_or("no parameter set")?;
    let size = parse_sps(sps).map_err(|e| e.reason)?;
    if u32::from(size.width.max(size.height)) > limits::FRAME_SIDE_PX_MAX {
        return Err(format!("{}x{} pixels", size.width, size.height));
    }
    let sequence = sps::parse(sps).ok_or("broken parameter set")?;
    match sequence {
        SequenceParameters { progressive: false, .. } => return Err("interlaced".into()),
        SequenceParameters { chroma_format: 1, bit_depth: 8, .. } => {}
        _ => return Err("not 8-bit 4:2:0".into()),
    }
    let mut annex_b = Vec::new();
    for nal in avcc.sps_list.iter().chain(&avcc.pps_list) {
        annex_b.extend_from_slice(&[0, 0, 0, 1]);
        annex_b.extend_from_slice(nal);
    }
    Ok((annex_b, sequence))
}

/// The exact rate when all samples (but perhaps the last) are equally long, else the average.
fn frame_rate(samples: &SampleTableAccessor<StblBox>, timescale: NonZeroU32) -> Option<FrameRate> {
    let count = samples.sample_count();
    let entries = &samples.stbl_box().stts_box.entries;
    let steady = entries.iter().find(|entry| entry.sample_delta > 0 && entry.sample_count >= (count - 1).max(1));
    if let Some(entry) = steady {
        return FrameRate::new(timescale.get(), entry.sample_delta);
    }
    let ticks: u64 = entries.iter().map(|e| u64::from(e.sample_delta) * u64::from(e.sample_count)).sum();
    FrameRate::reduced(u64::from(timescale.get()) * u64::from(count), ticks)
}
