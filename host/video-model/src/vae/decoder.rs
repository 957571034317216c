//! Latents to pictures, after `post_quant_conv`.

use super::config::VaeConfig;
use super::layers::{CausalConv, ChannelNorm, History, LayerIds, MidBlock, ResidualBlock, Upsample};
use crate::error::Result;
use crate::weights::Scope;
use kernels::{Dtype, Tensor};

struct UpBlock {
    residual: Vec<ResidualBlock>,
    upsample: Option<Upsample>,
}

pub(super) struct Decoder {
    conv_in: CausalConv,
    mid: MidBlock,
    up: Vec<UpBlock>,
    norm_out: ChannelNorm,
    conv_out: CausalConv,
}

impl Decoder {
    pub(super) fn load(scope: &Scope<'_>, config: &VaeConfig, dtype: Dtype) -> Result<Self> {
        let ids = &mut LayerIds::default();
        let widths = config.decoder_widths();
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let conv_in = CausalConv::load(&scope.at("conv_in"), [config.z_dim, first], 3, dtype, ids)?;
        let mid = MidBlock::load(&scope.at("mid_block"), first, dtype, ids)?;
        let mut up = Vec::new();
        let mut cin = first;
        // Levels double the frame rate in the reverse of the order in which the encoder halves it.
        let temporal = config.temperal_downsample.iter().rev();
        let resampling = temporal.map(Some).chain([None]);
        for (level, (&width, temporal)) in widths.iter().zip(resampling).enumerate() {
            let block = UpBlock::load(&scope.at("up_blocks").at(level), cin, width, config, temporal, dtype, ids)?;
            up.push(block);
            // An up-sampler halves the channels.
            cin = width / 2;
        }
        Ok(Self {
            conv_in,
            mid,
            up,
            norm_out: ChannelNorm::load(&scope.at("norm_out"), last, 3)?,
            conv_out: CausalConv::load(&scope.at("conv_out"), [last, config.out_channels], 3, dtype, ids)?,
        })
    }

    /// The next chunk: one latent frame [1, h, w, z] → its pictures [f, h', w', 3].
    pub(super) fn forward(&self, latent: &Tensor, history: &mut History) -> Result<Tensor> {
        let x = self.conv_in.forward(latent, None, history)?;
        let mut x = self.mid.forward(&x, history)?;
        for block in &self.up {
            x = block.forward(x, history)?;
        }
        // The result takes its input's type: pictures are f32.
        let x = self.norm_out.silu(&x)?.to_dtype(Dtype::F32);
        let x = self.conv_out.forward(&x, None, history)?;
        history.end_chunk();
        Ok(x)
    }
}

impl UpBlock {
    fn load(
        scope: &Scope<'_>,
        cin: usize,
        width: usize,
        config: &VaeConfig,
        temporal: Option<&bool>,
        dtype: Dtype,
        ids: &mut LayerIds,
    ) -> Result<Self> {
        let resnets = scope.at("resnets");
        let input = |i: usize| if i == 0 { cin } else { width };
        let residual = (0..=config.num_res_blocks)
            .map(|i| ResidualBlock::load(&resnets.at(i), input(i), width, dtype, ids))
            .collect::<Result<_>>()?;
        let upsample = temporal.map(|&t| Upsample::load(&scope.at("upsamplers.0"), width, t, dtype, ids));
        Ok(Self { residual, upsample: upsample.transpose()? })
    }

    fn forward(&self, mut x: Tensor, history: &mut History) -> Result<Tensor> {
        for block in &self.residual {
            x = block.forward(&x, history)?;
        }
        match &self.upsample {
            Some(upsample) => upsample.forward(&x, history),
            None => Ok(x),
        }
    }
}
