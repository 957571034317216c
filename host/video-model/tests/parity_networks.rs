//! The networks against diffusers and transformers at tiny random configs (goldens of `tests/parity/networks.py`).
//!
//! Tolerances are relative root mean square errors. In f32 the orders of summation differ and nothing else does: some ten
//! roundings of 6e-8 per layer, amplified by norms, stay well below 1e-5. In bf16 each product reads operands with a
//! relative error of up to 2^-9 = 2e-3, which adds up as a random walk over the layers; 2e-2 is diffusers' own distance
//! between bf16 and f32.

// The errors are printed for the table in tests/parity/README.md.
#![allow(clippy::print_stdout)]

use kernels::{Dtype, Tensor, channels_first, channels_last, concat_channels};
use pipeline::StepCacheKind;
use std::path::Path;
use video_model::lora::{Adapters, LoraFile};
use video_model::text::Bert;
use video_model::transformer::{Context, StepCache, Timestep, TransformerConfig, WanTransformer};
use video_model::vae::{DecodeState, EncodeState, Tiling, WanVae};
use video_model::weights::Weights;
use video_model::{ModelFiles, Precision, VideoModel};

const F32_MAX: f64 = 1e-5;
const BF16_MAX: f64 = 2e-2;

struct Golden(Weights);

impl Golden {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens");
        let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        Self(Weights::from_bytes(name, bytes).unwrap())
    }

    fn config<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(self.0.metadata("config").unwrap()).unwrap()
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.0.tensor(name, self.0.shape(name).unwrap(), Dtype::F32).unwrap()
    }

    /// CLIP states, for models that look at a picture.
    fn image(&self) -> Option<Tensor> {
        self.0.shape("in.image").map(|_| self.tensor("in.image"))
    }

    /// A clip in our order of dimensions; torch has channels first.
    fn clip(&self, name: &str) -> Tensor {
        channels_last(&self.tensor(name)).unwrap()
    }
}

fn assert_close(what: &str, ours: &Tensor, reference: &Tensor, max: f64) {
    assert_eq!(ours.shape(), reference.shape(), "{what}");
    let (ours, reference) = (ours.to_vec_f32(), reference.to_vec_f32());
    let square_sum = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square_sum(&mut ours.iter().zip(&reference).map(|(a, b)| f64::from(a - b)));
    let relative = (error / square_sum(&mut reference.iter().map(|v| f64::from(*v)))).sqrt();
    println!("{what}: relative RMSE {relative:.1e}");
    assert!(relative <= max, "{what}: relative RMSE {relative:.1e} is over {max:.0e}");
}

fn transformer(name: &str, precision: Precision) -> (Golden, WanTransformer) {
    let golden = Golden::open(name);
    let config: TransformerConfig = golden.config();
    config.check(name).unwrap();
    let model = WanTransformer::from_weights(&golden.0.scope("weights"), config, precision).unwrap();
    (golden, model)
}

/// One value is for the clip, several are for its frames.
fn timestep(values: &[f32]) -> Timestep<'_> {
    match values {
        [clip] => Timestep::Clip(*clip),
        frames => Timestep::Frames(frames),
    }
}

fn check_transformer(name: &str, precision: Precision, max: f64) {
    let (golden, model) = transformer(name, precision);
    let context = model.context(&golden.tensor("in.text"), golden.image().as_ref(), None).unwrap();
    let timesteps = golden.tensor("in.timestep").to_vec_f32();
    let check_block = |blocks: usize, tokens: &Tensor| {
        assert_close(
            &format!("{name} {precision} after {blocks} blocks"),
            tokens,
            &golden.tensor(&format!("out.tokens.{blocks}")),
            max,
        );
    };
    let latent = golden.clip("in.latent");
    let velocity =
        model.forward_traced(&latent, timestep(&timesteps), &[&context], None, None, check_block).unwrap().remove(0);
    assert_close(
        &format!("{name} {precision} velocity"),
        &channels_first(&velocity).unwrap(),
        &golden.tensor("out.velocity"),
        max,
    );
    let unused: Vec<_> = golden.0.unused().into_iter().filter(|n| n.starts_with("weights.")).collect();
    assert!(unused.is_empty(), "not read: {unused:?}");
}

fn check_vae(name: &str, dtype: Dtype, max: f64) {
    let golden = Golden::open(name);
    let vae = WanVae::from_weights(&golden.0.scope("weights"), golden.config(), dtype).unwrap();
    let latent = vae.encode(&golden.clip("in.video")).unwrap();
    assert_close(
        &format!("{name} {dtype:?} latent"),
        &channels_first(&latent).unwrap(),
        &golden.tensor("out.latent"),
        max,
    );
    let video = vae.decode(&golden.clip("in.latent")).unwrap();
    assert_close(
        &format!("{name} {dtype:?} video"),
        &channels_first(&video).unwrap(),
        &golden.tensor("out.video"),
        max,
    );
    let unused: Vec<_> = golden.0.unused().into_iter().filter(|n| n.starts_with("weights.")).collect();
    assert!(unused.is_empty(), "not read: {unused:?}");
}

fn check_tiles(name: &str, dtype: Dtype, max: f64) {
    let golden = Golden::open(name);
    let sizes: serde_json::Value = golden.config();
    let size = |key: &str| sizes[key].as_u64().unwrap() as usize;
    let tiling = Tiling { tile_px: size("tile_px"), stride_px: size("stride_px") };
    let vae = WanVae::from_weights(&golden.0.scope("weights"), golden.config(), dtype).unwrap();
    let (video, latent) = (golden.clip("in.video"), golden.clip("in.latent"));
    let mut state = EncodeState::tiled(tiling);
    let chunks = [0..1, 1..5].map(|frames| vae.encode_next(&mut state, &video.slice_outer(frames).unwrap()).unwrap());
    let encoded = channels_first(&Tensor::concat_outer(&chunks.each_ref()).unwrap()).unwrap();
    assert_close(&format!("{name} {dtype:?} latent"), &encoded, &golden.tensor("out.latent"), max);
    let mut state = DecodeState::tiled(tiling);
    let chunks = [0, 1].map(|i| vae.decode_next(&mut state, &latent.slice_outer(i..i + 1).unwrap()).unwrap());
    let decoded = channels_first(&Tensor::concat_outer(&chunks.each_ref()).unwrap()).unwrap();
    assert_close(&format!("{name} {dtype:?} video"), &decoded, &golden.tensor("out.video"), max);
}

#[test]
fn transformer_matches_diffusers_block_by_block() {
    check_transformer("transformer_tiny", Precision::F32, F32_MAX);
    check_transformer("transformer_tiny", Precision::Bf16, BF16_MAX);
}

#[test]
fn transformer_of_odd_sizes_without_cross_norm_matches_diffusers() {
    check_transformer("transformer_odd", Precision::F32, F32_MAX);
    check_transformer("transformer_odd", Precision::Bf16, BF16_MAX);
}

/// Weights are rounded to 127ths of each row's largest and activations to those of each token's: about a percent a product,
/// of which what a block adds to its tokens is a part. As much as bf16 may cost.
const INT8_MAX: f64 = 2e-2;

#[test]
fn transformers_in_int8_stay_within_two_percent() {
    for name in ["transformer_tiny", "transformer_odd", "transformer_i2v", "transformer_flf2v", "transformer_ti2v"] {
        check_transformer(name, Precision::Int8, INT8_MAX);
    }
}

#[test]
fn transformers_that_look_at_pictures_match_diffusers() {
    for name in ["transformer_i2v", "transformer_flf2v"] {
        check_transformer(name, Precision::F32, F32_MAX);
        check_transformer(name, Precision::Bf16, BF16_MAX);
    }
}

#[test]
fn transformer_with_a_timestep_for_each_frame_matches_diffusers() {
    check_transformer("transformer_ti2v", Precision::F32, F32_MAX);
    check_transformer("transformer_ti2v", Precision::Bf16, BF16_MAX);
}

/// Guidance as a batch of two: nothing of one context may reach the other.
#[test]
fn several_contexts_give_the_bits_that_each_gives_alone() {
    for name in ["transformer_tiny", "transformer_odd", "transformer_i2v", "transformer_ti2v"] {
        for precision in [Precision::F32, Precision::Bf16] {
            let (golden, model) = transformer(name, precision);
            let (latent, first) = (golden.clip("in.latent"), golden.tensor("in.text"));
            let second = kernels::linear_combination(&[(-0.5, &first)]).unwrap();
            let image = golden.image();
            let contexts = [&first, &second, &first].map(|text| model.context(text, image.as_ref(), None).unwrap());
            let timesteps = golden.tensor("in.timestep").to_vec_f32();
            let run =
                |contexts: &[&Context]| model.forward(&latent, timestep(&timesteps), contexts, None, None).unwrap();
            let together = run(&contexts.each_ref());
            for (context, velocity) in contexts.iter().zip(&together) {
                let bits = |t: &Tensor| t.to_vec_f32().into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert!(bits(&run(&[context])[0]) == bits(velocity), "{name} {precision}");
            }
            assert!(together[0].to_vec_f32() != together[1].to_vec_f32());
        }
    }
}

#[test]
fn contexts_and_timesteps_of_another_kind_are_refused() {
    let (golden, model) = transformer("transformer_i2v", Precision::F32);
    let (text, latent) = (golden.tensor("in.text"), golden.clip("in.latent"));
    assert!(model.context(&text, None, None).is_err(), "a picture is missing");
    let context = model.context(&text, golden.image().as_ref(), None).unwrap();
    let run = |timestep, contexts: &[&Context]| model.forward(&latent, timestep, contexts, None, None);
    assert!(run(Timestep::Clip(500.0), &[&context]).is_ok());
    assert!(run(Timestep::Frames(&[0.0, 500.0, 500.0]), &[&context]).is_err(), "three timesteps for two frames");
    assert!(run(Timestep::Clip(500.0), &[]).is_err());
    let (other, text_only) = transformer("transformer_tiny", Precision::F32);
    let foreign = text_only.context(&other.tensor("in.text"), None, None).unwrap();
    assert!(run(Timestep::Clip(500.0), &[&foreign]).is_err());
    assert!(text_only.context(&other.tensor("in.text"), golden.image().as_ref(), None).is_err());
}

fn lora(name: &str, config: &TransformerConfig) -> LoraFile {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens");
    LoraFile::open(&folder.join(format!("lora_{name}.safetensors")), config).unwrap()
}

/// The oracle adds the products to the weights; we never touch them.
#[test]
fn adapters_in_three_dialects_do_what_merging_them_does() {
    let expected = Golden::open("lora_velocity");
    for (precision, max) in [(Precision::F32, F32_MAX), (Precision::Bf16, BF16_MAX)] {
        let (golden, model) = transformer("transformer_i2v", precision);
        let (text, image, latent) = (golden.tensor("in.text"), golden.image(), golden.clip("in.latent"));
        let timesteps = golden.tensor("in.timestep").to_vec_f32();
        let files = ["peft", "original", "flat"].map(|name| lora(name, model.config()));
        assert_eq!(files[0].unused().len() + files[2].unused().len(), 0);
        assert_eq!(files[1].unused(), ["diffusion_model.blocks.0.self_attn.norm_q.diff"]);
        let cases: [(&str, &[(usize, f32)]); 5] = [
            ("none", &[]),
            ("peft", &[(0, 1.0)]),
            ("original", &[(1, 0.75)]),
            ("flat", &[(2, -0.5)]),
            ("all", &[(0, 0.5), (1, 1.0), (2, 1.25)]),
        ];
        for (case, choice) in cases {
            let choice: Vec<_> = choice.iter().map(|&(file, strength)| (&files[file], strength)).collect();
            let adapters = Adapters::new(&choice, precision.activations()).unwrap();
            let context = model.context(&text, image.as_ref(), Some(&adapters)).unwrap();
            let velocity = model.forward(&latent, timestep(&timesteps), &[&context], Some(&adapters), None).unwrap();
            let velocity = channels_first(&velocity[0]).unwrap();
            assert_close(&format!("lora {precision} {case}"), &velocity, &expected.tensor(&format!("out.{case}")), max);
        }
    }
}

/// A whole denoising under each rule: which steps are left out, and what every step answers.
#[test]
fn step_caches_leave_out_the_steps_that_diffusers_leaves_out() {
    let (golden, model) = transformer("step_cache", Precision::F32);
    let context = model.context(&golden.tensor("in.text"), None, None).unwrap();
    let kinds = [
        ("first_block", StepCacheKind::FirstBlock { threshold: 0.25 }),
        ("mag", StepCacheKind::Mag { threshold: 0.06, skips: 2, retention: 0.2 }),
    ];
    for (name, kind) in kinds {
        let skipped = golden.tensor(&format!("out.{name}.skipped")).to_vec_f32();
        let expected = golden.tensor(&format!("out.{name}.velocity"));
        let (steps, ratios) = (skipped.len(), golden.tensor("in.ratios").to_vec_f32());
        let mut cache = StepCache::with_ratios(kind, steps, Some(ratios)).unwrap();
        let mut latent = golden.clip("in.latent");
        for (step, skipped) in skipped.iter().enumerate() {
            let before = cache.stats().reused;
            let timestep = Timestep::Clip(1000.0 * (1.0 - step as f32 / steps as f32));
            let velocity = model.forward(&latent, timestep, &[&context], None, Some(&mut cache)).unwrap().remove(0);
            assert_eq!((cache.stats().reused - before) as f32, *skipped, "{name} step {step}");
            let expected = expected.slice_outer(step..step + 1).unwrap();
            let expected = channels_last(&expected.reshape(&expected.shape()[1..]).unwrap()).unwrap();
            // Each step starts from where the one before ended: their differences add up.
            assert_close(&format!("{name} step {step}"), &velocity, &expected, 10.0 * F32_MAX);
            latent = kernels::linear_combination(&[(1.0, &latent), (-1.0 / steps as f32, &velocity)]).unwrap();
        }
        assert_eq!(cache.stats().reused as f32, skipped.iter().sum::<f32>());
    }
}

/// Contexts of one call may decide differently; each must end where it would end alone.
#[test]
fn contexts_in_one_call_are_cached_apart() {
    let (golden, model) = transformer("step_cache", Precision::Bf16);
    let text = golden.tensor("in.text");
    let other = kernels::linear_combination(&[(-2.0, &text)]).unwrap();
    let contexts = [&text, &other].map(|text| model.context(text, None, None).unwrap());
    let kind = StepCacheKind::FirstBlock { threshold: 0.25 };
    let mut together = StepCache::new(kind, 12).unwrap();
    let mut alone = [(); 2].map(|()| StepCache::new(kind, 12).unwrap());
    for step in 0..12 {
        let timestep = Timestep::Clip(1000.0 - 80.0 * step as f32);
        let latent = kernels::linear_combination(&[(1.0 - 0.05 * step as f32, &golden.clip("in.latent"))]).unwrap();
        let both = model.forward(&latent, timestep, &contexts.each_ref(), None, Some(&mut together)).unwrap();
        for ((context, cache), velocity) in contexts.iter().zip(&mut alone).zip(&both) {
            let single = model.forward(&latent, timestep, &[context], None, Some(cache)).unwrap();
            assert!(single[0].to_vec_f32() == velocity.to_vec_f32(), "step {step}");
        }
    }
    let [first, second] = alone.map(|cache| cache.stats());
    assert_eq!(together.stats().reused, first.reused + second.reused);
    assert!(first.reused > 0 && second.reused > 0 && together.stats().computed > 2, "{first:?} {second:?}");
}

#[test]
fn vae_matches_diffusers_across_chunk_boundaries() {
    check_vae("vae_wan", Dtype::F32, F32_MAX);
    check_vae("vae_wan_two_blocks", Dtype::F32, F32_MAX);
    check_vae("vae_residual", Dtype::F32, F32_MAX);
    check_vae("vae_residual_two_blocks", Dtype::F32, F32_MAX);
}

#[test]
fn vae_in_tiles_matches_diffusers() {
    check_tiles("vae_tiles", Dtype::F32, F32_MAX);
    check_tiles("vae_residual_tiles", Dtype::F32, F32_MAX);
}

#[test]
fn vae_of_single_frames_matches_diffusers() {
    check_vae("vae_per_frame", Dtype::F32, F32_MAX);
}

#[test]
fn vae_in_bf16_stays_close() {
    check_vae("vae_wan", Dtype::Bf16, BF16_MAX);
    check_vae("vae_wan_two_blocks", Dtype::Bf16, BF16_MAX);
    check_vae("vae_per_frame", Dtype::Bf16, BF16_MAX);
    check_vae("vae_residual", Dtype::Bf16, BF16_MAX);
    check_vae("vae_residual_two_blocks", Dtype::Bf16, BF16_MAX);
    check_tiles("vae_tiles", Dtype::Bf16, BF16_MAX);
    check_tiles("vae_residual_tiles", Dtype::Bf16, BF16_MAX);
}

#[test]
fn bert_matches_transformers_and_needs_no_padding() {
    let golden = Golden::open("bert_tiny");
    let bert = Bert::from_weights(&golden.0.scope("weights"), &golden.config()).unwrap();
    let used = golden.tensor("in.mask").to_vec_f32().iter().filter(|m| **m == 1.0).count();
    let ids: Vec<u32> = golden.tensor("in.token_ids").to_vec_f32().iter().map(|id| *id as u32).collect();
    let reference = golden.tensor("out.states").slice_outer(0..used).unwrap();
    assert_close("bert states", &bert.states(&ids[..used]).unwrap(), &reference, F32_MAX);
    assert!(bert.states(&[]).is_err());
    assert!(bert.states(&[99]).is_err());
}

/// The goldens of `tests/parity/default_model.py` have a batch dimension.
fn unbatched(golden: &Golden, name: &str) -> Tensor {
    let tensor = golden.tensor(name);
    tensor.reshape(&tensor.shape()[1..]).unwrap()
}

fn default_model(precision: Precision) -> VideoModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("default-model/weights");
    VideoModel::load(&ModelFiles::Folder(folder), precision).unwrap()
}

/// Red rises left to right, green top to bottom, blue is 0: the script's picture, [1, h, w, 3].
fn gradient_picture(width: usize, height: usize) -> Tensor {
    let ramp = |i: usize, n: usize| 2.0 * i as f32 / (n - 1) as f32 - 1.0;
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [ramp(x, width), ramp(y, height), 0.0]));
    Tensor::from_vec(pixels.collect(), &[1, height, width, 3]).unwrap()
}

fn check_default_model(precision: Precision, max: f64) {
    let golden = Golden::open("default_model");
    let model = default_model(precision);
    let close = |what: &str, ours: &Tensor, reference: &Tensor| {
        assert_close(&format!("default {precision} {what}"), ours, reference, max)
    };
    let states = golden.tensor("text_states");
    let width = model.text_encoder.width();
    let states = [0, 1]
        .map(|i| states.slice_outer(i..i + 1).unwrap().reshape(&[model.text_encoder.text_length(), width]).unwrap());
    for (prompt, expected) in [golden.0.metadata("prompt").unwrap(), ""].into_iter().zip(&states) {
        close("text states", &model.text_encoder.encode(prompt).unwrap(), expected);
    }
    let (size, frames) = (model.config.defaults.size, model.config.defaults.key_frames as usize);
    let (width, height) = (size.width as usize, size.height as usize);
    let grey = model.vae.encode(&Tensor::zeros(&[1, height, width, 3], Dtype::F32).unwrap()).unwrap();
    close("grey latents", &channels_first(&grey).unwrap(), &unbatched(&golden, "grey_latents"));
    let picture = model.vae.encode(&gradient_picture(width, height)).unwrap();
    close("picture latents", &channels_first(&picture).unwrap(), &unbatched(&golden, "picture_latents"));

    let clip = |name: &str| channels_last(&unbatched(&golden, name)).unwrap();
    assert_eq!(clip("noise").shape()[0], frames);
    let text = model.experts[0].transformer.context(&states[0], None, None).unwrap();
    let input = concat_channels(&[&clip("noise"), &clip("condition")]).unwrap();
    for timestep in [999.0, 500.0] {
        let step = Timestep::Clip(timestep);
        let velocity = model.experts[0].transformer.forward(&input, step, &[&text], None, None).unwrap().remove(0);
        close(&format!("velocity at {timestep}"), &velocity, &clip(&format!("velocity_{timestep}")));
    }
    let first = model.vae.decode(&clip("latents").slice_outer(0..1).unwrap()).unwrap();
    let first = channels_first(&first.reshape(&[height, width, 3]).unwrap()).unwrap();
    // The picture is stored in half precision: 2^-11 of each value.
    assert_close(&format!("default {precision} first picture"), &first, &golden.tensor("frame_0"), max.max(5e-4));
}

#[test]
fn default_model_matches_diffusers() {
    check_default_model(Precision::F32, F32_MAX);
}

#[test]
fn default_model_in_bf16_stays_close() {
    check_default_model(Precision::Bf16, BF16_MAX);
}
