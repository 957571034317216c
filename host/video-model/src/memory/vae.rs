//! A chunk of pictures through the autoencoder, in the steady state of a long clip.

use super::walk::Walk;
use crate::vae::{Tiling, VaeConfig};
use kernels::Dtype;

/// Earlier frames that a convolution of three taps in time remembers.
const REMEMBERED: u64 = 2;

/// The frames [f, h, w] between two layers.
#[derive(Clone, Copy)]
struct Clip {
    frames: u64,
    pixels: u64,
}

impl Clip {
    fn bytes(self, channels: usize, element: u64) -> u64 {
        self.frames * self.pixels * channels as u64 * element
    }

    /// What a convolution over it remembers.
    fn memory(self, channels: usize, element: u64) -> u64 {
        Self { frames: REMEMBERED, ..self }.bytes(channels, element)
    }
}

/// One pass, and what all of its convolutions remember.
struct Passage {
    walk: Walk,
    remembered: u64,
    /// Bytes of a feature.
    element: u64,
}

impl Passage {
    fn new(dtype: Dtype) -> Self {
        Self { walk: Walk::default(), remembered: 0, element: dtype.size_bytes() as u64 }
    }

    /// A convolution over time, whose input the caller drops: it reads a copy with the remembered frames in front.
    fn conv(&mut self, clip: Clip, cin: usize, cout: usize) -> u64 {
        let joined = self.walk.make(clip.bytes(cin, self.element) + clip.memory(cin, self.element));
        let out = self.walk.make(clip.bytes(cout, self.element));
        self.walk.drop(joined);
        self.remembered += clip.memory(cin, self.element);
        // What is remembered anew is made before the old is dropped.
        self.walk.pass(clip.memory(cin, self.element));
        out
    }

    /// Takes the input over.
    fn residual(&mut self, clip: Clip, x: u64, cin: usize, cout: usize) -> u64 {
        let normed = self.walk.make(clip.bytes(cin, self.element));
        let y = self.conv(clip, cin, cout);
        let y_normed = self.walk.make(clip.bytes(cout, self.element));
        self.walk.drop(normed + y);
        let shortcut = if cin == cout { 0 } else { self.walk.make(clip.bytes(cout, self.element)) };
        let out = self.conv(clip, cout, cout);
        self.walk.drop(x + y_normed + shortcut);
        out
    }

    /// Residual block, attention within each frame, residual block.
    fn middle(&mut self, clip: Clip, x: u64, channels: usize) -> u64 {
        let x = self.residual(clip, x, channels, channels);
        let size = clip.bytes(channels, self.element);
        // The norm, queries, keys, values, the packed keys and values, the answer.
        self.walk.pass(7 * size);
        let y = self.walk.make(size);
        self.walk.drop(x);
        self.residual(clip, y, channels, channels)
    }

    /// Norm and convolution in f32; takes the input over.
    fn last_conv(&mut self, clip: Clip, x: u64, cin: usize, cout: usize) {
        let normed = self.walk.make(clip.bytes(cin, self.element));
        self.walk.drop(x);
        let wide = match self.element {
            4 => normed,
            _ => {
                let wide = self.walk.make(clip.bytes(cin, 4));
                self.walk.drop(normed);
                wide
            }
        };
        self.element = 4;
        self.conv(clip, cin, cout);
        self.walk.drop(wide);
    }

    fn finish(self, tiles: u64, picture: u64) -> u64 {
        self.walk.peak() + tiles * self.remembered + picture
    }
}

/// Tiles of a picture and the larger of the sizes of one, in pixels of the picture.
fn tiles([height, width]: [u64; 2], tiling: Option<Tiling>) -> (u64, [u64; 2]) {
    match tiling {
        Some(Tiling { tile_px, stride_px }) if height.max(width) > tile_px as u64 => {
            let (tile, stride) = (tile_px as u64, stride_px as u64);
            (height.div_ceil(stride) * width.div_ceil(stride), [height.min(tile), width.min(tile)])
        }
        _ => (1, [height, width]),
    }
}

/// Decoding one latent frame after the first: pictures of height × width pixels.
pub(super) fn decode_bytes(config: &VaeConfig, dtype: Dtype, picture: [usize; 2], tiling: Option<Tiling>) -> u64 {
    let (count, [height, width]) = tiles(picture.map(|side| side as u64), tiling);
    let side = config.spatial_factor() as u64;
    let mut clip = Clip { frames: 1, pixels: (height / side) * (width / side) };
    let widths = config.decoder_widths();
    let mut pass = Passage::new(dtype);
    let element = pass.element;
    let latent = pass.walk.make(clip.bytes(config.z_dim, element));
    let mut x = pass.conv(clip, config.z_dim, widths[0]);
    pass.walk.drop(latent);
    x = pass.middle(clip, x, widths[0]);
    for (level, pair) in widths.windows(2).enumerate() {
        let (width, temporal) = (pair[1], config.temperal_downsample.iter().rev().nth(level));
        // Wan 2.1's up-samplers halve the channels; Wan 2.2 keeps them, and adds the level's input to its output.
        let around = if config.is_residual { x } else { 0 };
        let mut cin = if level > 0 && !config.is_residual { pair[0] / 2 } else { pair[0] };
        pass.walk.make(around);
        for _ in 0..=config.num_res_blocks {
            x = pass.residual(clip, x, cin, width);
            cin = width;
        }
        if let Some(&temporal) = temporal {
            let out = if config.is_residual { width } else { width / 2 };
            let mut before = x;
            if temporal {
                let doubled = pass.conv(clip, width, 2 * width);
                pass.walk.pass(doubled);
                clip.frames *= 2;
                before += pass.walk.make(clip.bytes(width, element));
                pass.walk.drop(doubled);
            }
            clip.pixels *= 4;
            x = pass.walk.make(clip.bytes(out, element));
            pass.walk.drop(before);
            if around > 0 {
                pass.walk.pass(x);
            }
        }
        pass.walk.drop(around);
    }
    // The last convolution is in f32, as the pictures are.
    let last = widths[widths.len() - 1];
    pass.last_conv(clip, x, last, config.out_channels);
    let [height, width] = picture.map(|side| side as u64);
    // Tiles are put together in a picture of their own.
    let together = if count > 1 { 2 * clip.frames * height * width * 3 * 4 } else { 0 };
    pass.finish(count, together)
}

/// Encoding the pictures of one latent frame after the first.
pub(super) fn encode_bytes(config: &VaeConfig, dtype: Dtype, picture: [usize; 2]) -> u64 {
    let [height, width] = picture.map(|side| side as u64);
    let patch = config.patch_side() as u64;
    let mut clip = Clip { frames: config.temporal_factor() as u64, pixels: (height / patch) * (width / patch) };
    let widths = config.encoder_widths();
    let mut pass = Passage::new(dtype);
    let element = pass.element;
    let pictures = pass.walk.make(clip.bytes(config.in_channels, 4 + if element == 4 { 0 } else { element }));
    let mut x = pass.conv(clip, config.in_channels, widths[0]);
    for (level, pair) in widths.windows(2).enumerate() {
        let around = if config.is_residual { x } else { 0 };
        let mut cin = pair[0];
        pass.walk.make(around);
        for _ in 0..config.num_res_blocks {
            x = pass.residual(clip, x, cin, pair[1]);
            cin = pair[1];
        }
        if let Some(&temporal) = config.temperal_downsample.get(level) {
            clip.pixels /= 4;
            let smaller = pass.walk.make(clip.bytes(pair[1], element));
            pass.walk.drop(x);
            x = smaller;
            if temporal {
                pass.walk.pass(smaller);
                clip.frames = (clip.frames / 2).max(1);
                x = pass.walk.make(clip.bytes(pair[1], element));
                pass.walk.drop(smaller);
                pass.remembered += clip.memory(pair[1], element) / REMEMBERED;
            }
        }
        pass.walk.drop(around);
    }
    let last = widths[widths.len() - 1];
    x = pass.middle(clip, x, last);
    pass.last_conv(clip, x, last, 2 * config.z_dim);
    pass.walk.drop(pictures);
    pass.finish(1, 0)
}
