//! Pictures to latents, before `quant_conv`.

use super::config::VaeConfig;
use super::layers::{CausalConv, ChannelNorm, Downsample, History, LayerIds, MidBlock, ResidualBlock};
use crate::error::Result;
use crate::weights::Scope;
use kernels::{Dtype, Tensor};

enum DownLayer {
    Residual(Box<ResidualBlock>),
    Downsample(Box<Downsample>),
}

pub(super) struct Encoder {
    conv_in: CausalConv,
    down: Vec<DownLayer>,
    mid: MidBlock,
    norm_out: ChannelNorm,
    conv_out: CausalConv,
}

impl Encoder {
    pub(super) fn load(scope: &Scope<'_>, config: &VaeConfig, dtype: Dtype) -> Result<Self> {
        let ids = &mut LayerIds::default();
        let widths = config.encoder_widths();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let conv_in = CausalConv::load(&scope.at("conv_in"), [config.in_channels, first], 3, dtype, ids)?;
        let blocks = scope.at("down_blocks");
        let mut down = Vec::new();
        let mut cin = first;
        for (level, &width) in widths.iter().enumerate() {
            for _ in 0..config.num_res_blocks {
                let block = ResidualBlock::load(&blocks.at(down.len()), cin, width, dtype, ids)?;
                down.push(DownLayer::Residual(Box::new(block)));
                cin = width;
            }
            if let Some(&temporal) = config.temperal_downsample.get(level) {
                let layer = Downsample::load(&blocks.at(down.len()), width, temporal, dtype, ids)?;
                down.push(DownLayer::Downsample(Box::new(layer)));
            }
        }
        Ok(Self {
            conv_in,
            down,
            mid: MidBlock::load(&scope.at("mid_block"), last, dtype, ids)?,
            norm_out: ChannelNorm::load(&scope.at("norm_out"), last, 3)?,
            conv_out: CausalConv::load(&scope.at("conv_out"), [last, 2 * config.z_dim], 3, dtype, ids)?,
        })
    }

    /// The next chunk: frames [f, h, w, 3] → one latent frame [1, h', w', 2z].
    pub(super) fn forward(&self, frames: &Tensor, history: &mut History) -> Result<Tensor> {
        let mut x = self.conv_in.forward(frames, None, history)?;
        for layer in &self.down {
            x = match layer {
                DownLayer::Residual(block) => block.forward(&x, history)?,
                DownLayer::Downsample(layer) => layer.forward(&x, history)?,
            };
        }
        // The result takes its input's type: latents are f32.
        let x = self.norm_out.silu(&self.mid.forward(&x, history)?)?.to_dtype(Dtype::F32);
        let x = self.conv_out.forward(&x, None, history)?;
        history.end_chunk();
        Ok(x)
    }
}
