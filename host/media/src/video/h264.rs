//! openh264, set up for files instead of calls: every frame kept, a fixed quantizer, one thread, frames in display order.

use super::colour::Decoding;
use super::sps::ColourDescription;
use super::{EncodeSettings, FrameRate, VideoError};
use openh264::OpenH264API;
use openh264::decoder::{DecodeOptions, Decoder, DecoderConfig, Flush};
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate as Hertz, FrameType, IntraFramePeriod, QpRange,
    RateControlMode, UsageType, VuiConfig,
};
use openh264::formats::YUVSlices;
use pipeline::{Frame, FrameSize};

/// What the encoder does above this rate is the same: rate control is off in effect.
const ENCODER_HERTZ_MAX: f32 = 60.0;

/// One frame as an Annex B byte stream.
pub(super) struct EncodedFrame {
    pub(super) annex_b: Vec<u8>,
    pub(super) is_intra: bool,
}

pub(super) struct H264Encoder {
    encoder: Encoder,
}

impl H264Encoder {
    pub(super) fn new(size: FrameSize, fps: FrameRate, settings: EncodeSettings) -> Result<Self, VideoError> {
        let quantizer = settings.quantizer();
        let config = EncoderConfig::new()
            // The one mode that neither skips frames nor spends a budget: it keeps within the range of quantizers, and
            // that is a single one. The bit rate only steers the level that the stream declares.
            .rate_control_mode(RateControlMode::Bufferbased)
            .bitrate(BitRate::from_bps(nominal_bits_per_second(size, fps)))
            .qp(QpRange::new(quantizer, quantizer))
            .max_frame_rate(Hertz::from_hz((fps.as_f64() as f32).clamp(1.0, ENCODER_HERTZ_MAX)))
            .skip_frames(false)
            .intra_frame_period(IntraFramePeriod::from_num_frames(settings.intra_period_frames(fps)))
            .usage_type(UsageType::CameraVideoRealTime)
            .complexity(Complexity::High)
            // A cut would be coded two steps coarser than asked for.
            .scene_change_detect(false)
            // Both save bits where a camera's noise hides it. On drawn pictures one sees stale blocks instead.
            .adaptive_quantization(false)
            .background_detection(false)
            // One thread: the CPU time that is billed is this thread's, and the bytes do not depend on the machine.
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(encode_error)?;
        Ok(Self { encoder })
    }

    /// Encodes 4:2:0 planes without padding.
    pub(super) fn encode(&mut self, planes: &[u8], size: FrameSize) -> Result<EncodedFrame, VideoError> {
        let (width, height) = (size.width as usize, size.height as usize);
        let (y, chroma) = planes.split_at(width * height);
        let (u, v) = chroma.split_at(chroma.len() / 2);
        let picture = YUVSlices::new((y, u, v), (width, height), (width, width / 2, width / 2));
        let stream = self.encoder.encode(&picture).map_err(encode_error)?;
        let frame_type = stream.frame_type();
        match frame_type {
            FrameType::IDR | FrameType::I | FrameType::P => {
                Ok(EncodedFrame { annex_b: stream.to_vec(), is_intra: frame_type == FrameType::IDR })
            }
            other => Err(VideoError::Encode(format!("the encoder returned a frame of type {other:?}"))),
        }
    }
}

/// Two bits a pixel: more than the finest quantizer needs on ordinary pictures.
fn nominal_bits_per_second(size: FrameSize, fps: FrameRate) -> u32 {
    let pixels = f64::from(size.width) * f64::from(size.height);
    (pixels * 2.0 * fps.as_f64()).clamp(64_000.0, 200_000_000.0) as u32
}

fn encode_error(error: openh264::Error) -> VideoError {
    VideoError::Encode(error.to_string())
}

pub(super) struct H264Decoder {
    decoder: Decoder,
    colours: Decoding,
}

impl H264Decoder {
    pub(super) fn new(colour: ColourDescription) -> Result<Self, VideoError> {
        // Flushing after each packet would hand out B-frames before the frames that they are shown after.
        let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
        let decoder = Decoder::with_api_config(OpenH264API::from_source(), config).map_err(decode_error)?;
        Ok(Self { decoder, colours: Decoding::of(colour) })
    }

    /// Takes one packet; returns the next frame in display order if one is complete.
    pub(super) fn decode(&mut self, annex_b: &[u8]) -> Result<Option<Frame>, VideoError> {
        let options = DecodeOptions::new().flush_after_decode(Flush::NoFlush);
        let picture = self.decoder.decode_with_options(annex_b, options).map_err(decode_error)?;
        Ok(picture.map(|picture| self.colours.decode(&picture)))
    }

    /// The frames that were held back for reordering.
    pub(super) fn finish(&mut self) -> Result<Vec<Frame>, VideoError> {
        let pictures = self.decoder.flush_remaining().map_err(decode_error)?;
        Ok(pictures.iter().map(|picture| self.colours.decode(picture)).collect())
    }
}

fn decode_error(error: openh264::Error) -> VideoError {
    VideoError::Damaged(error.to_string())
}
