//! Frames between frames: a learned interpolator (IFNet), and plain blending to measure it against.

mod network;
mod sequence;
#[cfg(test)]
mod tests;
mod two_scales;

pub use sequence::{Moment, moments};

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use kernels::{Dtype, Tensor};
use network::{IfNet, IfNetConfig};
use pipeline::{Frame, FrameSize};
use two_scales::{PreparedScales, between, prepare, side_multiple};

/// Makes the frame at any time between two pictures of one size.
pub struct Interpolator {
    network: IfNet,
    parameters: u64,
}

/// A picture ready to be interpolated from, for any t and on either side.
#[derive(Debug, Clone)]
pub struct PreparedFrame {
    size: FrameSize,
    prepared: PreparedScales,
}

impl Interpolator {
    /// Loads `config.json` and the weights at the root of `files` for products in `dtype`.
    pub fn load(files: &ModelFiles, dtype: Dtype) -> Result<Self> {
        let config: IfNetConfig = files.read_json("config.json")?;
        config.check(&files.name_of("config.json"))?;
        let weights = files.weights("")?;
        let network = IfNet::load(&weights.scope(""), &config, dtype)?;
        let elements = |name: &str| weights.shape(name).map_or(0, |s| s.iter().product::<usize>() as u64);
        Ok(Self { network, parameters: weights.names().map(elements).sum() })
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Computes once what every frame next to this picture needs.
    pub fn prepare(&self, frame: &Frame) -> Result<PreparedFrame> {
        Ok(PreparedFrame { size: frame.size(), prepared: prepare(&self.network, padded(frame)?, frame.size())? })
    }

    /// The frame at `t` (0 is `first`, 1 is `last`).
    pub fn between(&self, first: &PreparedFrame, last: &PreparedFrame, t: f32) -> Result<Frame> {
        if first.size != last.size {
            let message = format!("pictures of {} and {} have no frame between them", first.size, last.size);
            return Err(ModelError::Input(message));
        }
        unpadded(&between(&self.network, &first.prepared, &last.prepared, t)?, first.size)
    }
}

/// The weighted mean of two frames of one size: what interpolation without motion gives. (Were the sizes different, the
/// pixels that `last` lacks would stay as in `first`.)
pub fn blend(first: &Frame, last: &Frame, t: f32) -> Frame {
    let mut mean = first.clone();
    for (a, b) in mean.rgb_mut().iter_mut().zip(last.rgb()) {
        *a = (f32::from(*a) * (1.0 - t) + f32::from(*b) * t).round() as u8;
    }
    mean
}

/// RGB bytes to [h, w, 3] in 0..=1, with zeros to the right and below up to the next multiple.
fn padded(frame: &Frame) -> Result<Tensor> {
    let (width, height) = (frame.size().width as usize, frame.size().height as usize);
    let multiple = side_multiple(frame.size());
    let (w, h) = (width.next_multiple_of(multiple), height.next_multiple_of(multiple));
    let mut values = vec![0.0; h * w * 3];
    for (out, row) in values.chunks_exact_mut(w * 3).zip(frame.rgb().chunks_exact(width * 3)) {
        out.iter_mut().zip(row).for_each(|(o, &byte)| *o = f32::from(byte) / 255.0);
    }
    Ok(Tensor::from_vec(values, &[h, w, 3])?)
}

/// The top left `size` of [h, w, 3], clamped and rounded to bytes.
fn unpadded(x: &Tensor, size: FrameSize) -> Result<Frame> {
    let values = x.to_vec_f32();
    let rows = values.chunks_exact(x.shape()[1] * 3).take(size.height as usize);
    let byte = |v: &f32| (v * 255.0).round().clamp(0.0, 255.0) as u8;
    let rgb = rows.flat_map(|row| row[..size.width as usize * 3].iter().map(byte)).collect();
    Frame::new(size, rgb).ok_or_else(|| ModelError::Input("the interpolator's picture is too small".to_owned()))
}
