//! Pictures as CLIP was trained to see them: transformers' `CLIPImageProcessor` with Pillow's resampling.

use crate::error::{ModelError, Result};
use crate::picture::{Filter, centre, resample};
use kernels::Tensor;
use pipeline::{Frame, FrameSize};
use serde::Deserialize;

/// `preprocessor_config.json`; what it leaves out is CLIP's.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageProcessor {
    #[serde(default)]
    size: Option<Size>,
    #[serde(default)]
    crop_size: Option<Size>,
    /// Pillow's number of a filter.
    #[serde(default = "bicubic")]
    resample: u32,
    #[serde(default = "enabled")]
    do_resize: bool,
    #[serde(default = "enabled")]
    do_center_crop: bool,
    #[serde(default = "enabled")]
    do_rescale: bool,
    #[serde(default = "byte_scale")]
    rescale_factor: f32,
    #[serde(default = "enabled")]
    do_normalize: bool,
    #[serde(default = "clip_mean")]
    image_mean: [f32; 3],
    #[serde(default = "clip_std")]
    image_std: [f32; 3],
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Side(u32),
    Shortest { shortest_edge: u32 },
    Both { height: u32, width: u32 },
}

fn bicubic() -> u32 {
    3
}

fn enabled() -> bool {
    true
}

fn byte_scale() -> f32 {
    1.0 / 255.0
}

fn clip_mean() -> [f32; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}

fn clip_std() -> [f32; 3] {
    [0.268_629_54, 0.261_302_6, 0.275_777_1]
}

const DEFAULT_SIDE: u32 = 224;
const SIDE_MAX: u32 = 4096;

impl ImageProcessor {
    /// Refuses what we cannot do; `file` is named in the message.
    pub(super) fn check(&self, file: &str) -> Result<()> {
        let refused = |detail: &str| Err(ModelError::config(file, detail));
        let steps = [self.do_resize, self.do_center_crop, self.do_rescale, self.do_normalize];
        if steps.contains(&false) {
            return Err(ModelError::Unsupported(format!("a processor that leaves out one of its steps ({file})")));
        }
        if self.filter().is_none() {
            return Err(ModelError::Unsupported(format!("resample {} ({file})", self.resample)));
        }
        if self.image_std.iter().any(|std| !std.is_normal()) || !self.rescale_factor.is_normal() {
            return refused("image_std and rescale_factor must not be zero");
        }
        let [height, width] = self.size();
        let [resized_height, resized_width] = match self.size {
            Some(Size::Both { height, width }) => [height, width],
            Some(Size::Side(side) | Size::Shortest { shortest_edge: side }) => [side; 2],
            None => [DEFAULT_SIDE; 2],
        };
        let within = |cut: usize, of: u32| (1..=of.min(SIDE_MAX)).contains(&(cut as u32));
        match within(height, resized_height) && within(width, resized_width) {
            true => Ok(()),
            false => refused("crop_size must be at least 1 and no larger than size"),
        }
    }

    fn filter(&self) -> Option<Filter> {
        match self.resample {
            1 => Some(Filter::Lanczos),
            3 => Some(Filter::Bicubic),
            _ => None,
        }
    }

    /// Height and width of what [`ImageProcessor::pixels`] returns.
    pub fn size(&self) -> [usize; 2] {
        match self.crop_size {
            None => [DEFAULT_SIDE as usize; 2],
            Some(Size::Side(side) | Size::Shortest { shortest_edge: side }) => [side as usize; 2],
            Some(Size::Both { height, width }) => [height as usize, width as usize],
        }
    }

    /// The size that a picture has before its middle is cut out.
    fn resized(&self, from: FrameSize) -> FrameSize {
        let side = match self.size {
            Some(Size::Both { height, width }) => return FrameSize { width, height },
            Some(Size::Side(side) | Size::Shortest { shortest_edge: side }) => side,
            None => DEFAULT_SIDE,
        };
        let (short, long) = (from.width.min(from.height).max(1), from.width.max(from.height));
        // Rounded down, as the reference does.
        let long = (u64::from(side) * u64::from(long) / u64::from(short)) as u32;
        match from.width <= from.height {
            true => FrameSize { width: side, height: long },
            false => FrameSize { width: long, height: side },
        }
    }

    /// The shorter side fitted, the middle cut out, colours normalised: [height, width, 3] in f32.
    pub fn pixels(&self, picture: &Frame) -> Result<Tensor> {
        let filter = self.filter().unwrap_or(Filter::Bicubic);
        let resized = resample(picture, self.resized(picture.size()), filter);
        let [height, width] = self.size();
        let cut = centre(&resized, FrameSize { width: width as u32, height: height as u32 });
        let scale = self.rescale_factor;
        let channel =
            |(i, &byte): (usize, &u8)| (f32::from(byte) * scale - self.image_mean[i % 3]) / self.image_std[i % 3];
        Ok(Tensor::from_vec(cut.rgb().iter().enumerate().map(channel).collect(), &[height, width, 3])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(json: &str) -> Result<ImageProcessor> {
        let processor: ImageProcessor = serde_json::from_str(json).unwrap();
        processor.check("preprocessor_config.json").map(|()| processor)
    }

    #[test]
    fn sizes_are_read_in_every_spelling() {
        assert_eq!(processor("{}").unwrap().size(), [224, 224]);
        let old = processor(r#"{"size": 32, "crop_size": 30, "do_convert_rgb": true}"#).unwrap();
        assert_eq!(old.size(), [30, 30]);
        assert_eq!(old.resized(FrameSize { width: 65, height: 47 }), FrameSize { width: 44, height: 32 });
        let both = r#"{"size": {"height": 20, "width": 40}, "crop_size": {"height": 20, "width": 30}}"#;
        assert_eq!(processor(both).unwrap().size(), [20, 30]);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_the_file_s_name() {
        for bad in [
            r#"{"resample": 2}"#,
            r#"{"do_normalize": false}"#,
            r#"{"crop_size": 225}"#,
            r#"{"crop_size": 0}"#,
            r#"{"image_std": [1, 0, 1]}"#,
        ] {
            assert!(processor(bad).unwrap_err().to_string().contains("preprocessor_config.json"), "{bad}");
        }
    }
}
