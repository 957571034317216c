//! Encoder (pictures to latents, before `quant_conv`) and decoder (latents to pictures, after `post_quant_conv`): the same
//! parts in the opposite order.

use super::config::VaeConfig;
use super::layers::{CausalConv, ChannelNorm, History, Loading, MidBlock, ResidualBlock};
use super::resize::{Downsample, Upsample};
use crate::error::Result;
use crate::weights::Scope;
use kernels::{Dtype, SizeFactors, Tensor, add_averaged, add_repeated};

pub(super) struct Network {
    conv_in: CausalConv,
    stages: Vec<Stage>,
    norm_out: ChannelNorm,
    conv_out: CausalConv,
}

enum Stage {
    Middle(Box<MidBlock>),
    Level(Box<Level>),
}

/// Residual blocks at one size, then a change of size.
struct Level {
    blocks: Vec<ResidualBlock>,
    resize: Option<Resize>,
    /// Around blocks and resize together, in Wan 2.2.
    shortcut: Option<Shortcut>,
}

enum Resize {
    Up(Upsample),
    Down(Downsample),
}

enum Shortcut {
    Averaged(SizeFactors),
    Repeated(SizeFactors),
}

impl Network {
    pub(super) fn encoder(scope: &Scope<'_>, config: &VaeConfig, dtype: Dtype) -> Result<Self> {
        let loading = &mut Loading::new(dtype);
        let widths = config.encoder_widths();
        let conv_in = load_conv_in(&scope.at("conv_in"), config, widths[0], loading)?;
        let blocks = scope.at("down_blocks");
        let mut stages = Vec::new();
        // Wan 2.1 numbers blocks and resamplers through; in Wan 2.2 each level has a module.
        let mut flat = (0..).map(|i| blocks.at(i));
        for (level, pair) in widths.windows(2).enumerate() {
            let temporal = config.temperal_downsample.get(level).copied();
            let module = blocks.at(level);
            let resnets = module.at("resnets");
            let mut block = |i: usize| if config.is_residual { Some(resnets.at(i)) } else { flat.next() };
            let names: Vec<_> = (0..config.num_res_blocks).filter_map(&mut block).collect();
            let loaded = load_blocks(&names, pair[0], pair[1], loading)?;
            let resampler = match temporal {
                Some(_) if config.is_residual => Some(module.at("downsampler")),
                Some(_) => flat.next(),
                None => None,
            };
            let resize = resampler.zip(temporal).map(|(name, t)| Downsample::load(&name, pair[1], t, loading));
            let shortcut = config.is_residual.then(|| Shortcut::Averaged(size_factors(temporal)));
            let resize = resize.transpose()?.map(Resize::Down);
            stages.push(Stage::Level(Box::new(Level { blocks: loaded, resize, shortcut })));
        }
        let last = widths[widths.len() - 1];
        stages.push(Stage::Middle(Box::new(MidBlock::load(&scope.at("mid_block"), last, loading)?)));
        let conv_out = CausalConv::load(&scope.at("conv_out"), [last, 2 * config.z_dim], 3, loading)?;
        Ok(Self { conv_in, stages, norm_out: ChannelNorm::load(&scope.at("norm_out"), last, 3)?, conv_out })
    }

    pub(super) fn decoder(scope: &Scope<'_>, config: &VaeConfig, dtype: Dtype) -> Result<Self> {
        let loading = &mut Loading::new(dtype);
        let widths = config.decoder_widths();
        let conv_in = CausalConv::load(&scope.at("conv_in"), [config.z_dim, widths[0]], 3, loading)?;
        let middle = MidBlock::load(&scope.at("mid_block"), widths[0], loading)?;
        let mut stages = vec![Stage::Middle(Box::new(middle))];
        for (level, pair) in widths.windows(2).enumerate() {
            // Levels double the frame rate in the reverse of the order in which the encoder halves it.
            let temporal = config.temperal_downsample.iter().rev().nth(level).copied();
            let module = scope.at("up_blocks").at(level);
            // Wan 2.1's up-samplers halve the channels.
            let cin = if level > 0 && !config.is_residual { pair[0] / 2 } else { pair[0] };
            let (name, cout) = match config.is_residual {
                true => ("upsampler", pair[1]),
                false => ("upsamplers.0", pair[1] / 2),
            };
            let names: Vec<_> = (0..=config.num_res_blocks).map(|i| module.at("resnets").at(i)).collect();
            let blocks = load_blocks(&names, cin, pair[1], loading)?;
            let resize = temporal.map(|t| Upsample::load(&module.at(name), [pair[1], cout], t, loading)).transpose()?;
            let has_shortcut = config.is_residual && temporal.is_some();
            let shortcut = has_shortcut.then(|| Shortcut::Repeated(size_factors(temporal)));
            stages.push(Stage::Level(Box::new(Level { blocks, resize: resize.map(Resize::Up), shortcut })));
        }
        let last = widths[widths.len() - 1];
        let norm_out = ChannelNorm::load(&scope.at("norm_out"), last, 3)?;
        let conv_out = load_conv_out(&scope.at("conv_out"), config, last, loading)?;
        Ok(Self { conv_in, stages, norm_out, conv_out })
    }

    /// The next chunk of a clip; f32 whatever the dtype of `x`.
    pub(super) fn forward(&self, x: &Tensor, history: &mut History) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x, None, history)?;
        for stage in &self.stages {
            x = match stage {
                Stage::Middle(middle) => middle.forward(&x, history)?,
                Stage::Level(level) => level.forward(x, history)?,
            };
        }
        // The result takes its input's type. Nothing is larger than this input, so what it was made of is dropped first.
        x = self.norm_out.silu(&x)?;
        x = x.to_dtype(Dtype::F32);
        x = self.conv_out.forward(&x, None, history)?;
        history.end_chunk();
        Ok(x)
    }
}

impl Level {
    fn forward(&self, x: Tensor, history: &mut History) -> Result<Tensor> {
        let around = self.shortcut.as_ref().map(|shortcut| (shortcut, x.clone()));
        let mut x = x;
        for block in &self.blocks {
            x = block.forward(&x, history)?;
        }
        x = match &self.resize {
            Some(Resize::Up(up)) => up.forward(&x, history)?,
            Some(Resize::Down(down)) => down.forward(&x, history)?,
            None => x,
        };
        Ok(match around {
            Some((Shortcut::Averaged(factors), before)) => add_averaged(&x, &before, *factors)?,
            Some((Shortcut::Repeated(factors), before)) => add_repeated(&x, &before, *factors)?,
            None => x,
        })
    }
}

/// By how much a level that changes the size (and the frame rate, when `temporal` says so) changes them.
fn size_factors(temporal: Option<bool>) -> SizeFactors {
    SizeFactors { time: if temporal == Some(true) { 2 } else { 1 }, side: if temporal.is_some() { 2 } else { 1 } }
}

fn load_blocks(names: &[Scope<'_>], cin: usize, cout: usize, loading: &mut Loading) -> Result<Vec<ResidualBlock>> {
    let input = |i: usize| if i == 0 { cin } else { cout };
    names.iter().enumerate().map(|(i, name)| ResidualBlock::load(name, input(i), cout, loading)).collect()
}

/// The first layer on pictures, whose patches we hold in another order than the file.
fn load_conv_in(scope: &Scope<'_>, config: &VaeConfig, cout: usize, loading: &mut Loading) -> Result<CausalConv> {
    let shape = [cout, config.in_channels, 3, 3, 3];
    let values = scope.tensor("weight", &shape, Dtype::F32)?.to_vec_f32();
    let rows = values.chunks_exact(27 * config.in_channels).flat_map(|row| in_our_order(config, row, 27));
    let weight = Tensor::from_vec(rows.collect(), &shape)?;
    CausalConv::pack(&weight, &scope.vector("bias", cout)?, loading)
}

/// The last layer to pictures, as [`load_conv_in`].
fn load_conv_out(scope: &Scope<'_>, config: &VaeConfig, cin: usize, loading: &mut Loading) -> Result<CausalConv> {
    let shape = [config.out_channels, cin, 3, 3, 3];
    let weight = in_our_order(config, &scope.tensor("weight", &shape, Dtype::F32)?.to_vec_f32(), 27 * cin);
    let bias = in_our_order(config, &scope.vector("bias", config.out_channels)?.to_vec_f32(), 1);
    let bias = Tensor::from_vec(bias, &[config.out_channels])?;
    CausalConv::pack(&Tensor::from_vec(weight, &shape)?, &bias, loading)
}

/// Entries of `entry` values, one per picture channel: diffusers flattens a patch in the order (colour, column, row), and
/// our kernels in the order (colour, row, column).
fn in_our_order(config: &VaeConfig, values: &[f32], entry: usize) -> Vec<f32> {
    let side = config.patch_side();
    let channels = values.len() / entry;
    let theirs = |ours: usize| {
        let (colour, row, column) = (ours / (side * side), ours / side % side, ours % side);
        (colour * side + column) * side + row
    };
    (0..channels).flat_map(|ours| &values[theirs(ours) * entry..][..entry]).copied().collect()
}
