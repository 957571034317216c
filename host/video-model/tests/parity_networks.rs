//! The networks against diffusers and transformers at tiny random configs (goldens of `tests/parity/networks.py`).
//!
//! Tolerances are relative root mean square errors. In f32 the orders of summation differ and nothing else does: some ten
//! roundings of 6e-8 per layer, amplified by norms, stay well below 1e-5. In bf16 each product reads operands with a
//! relative error of up to 2^-9 = 2e-3, which adds up as a random walk over the layers; 2e-2 is diffusers' own distance
//! between bf16 and f32.

use kernels::{Dtype, Tensor, channels_first, channels_last};
use std::path::Path;
use video_model::text::Bert;
use video_model::transformer::WanTransformer;
use video_model::vae::WanVae;
use video_model::weights::Weights;

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

fn check_transformer(name: &str, dtype: Dtype, max: f64) {
    let golden = Golden::open(name);
    let model = WanTransformer::from_weights(&golden.0.scope("weights"), golden.config(), dtype).unwrap();
    let text = model.text_context(&golden.tensor("in.text")).unwrap();
    let timestep = golden.tensor("in.timestep").to_vec_f32()[0];
    let check_block = |blocks: usize, tokens: &Tensor| {
        assert_close(
            &format!("{name} {dtype:?} after {blocks} blocks"),
            tokens,
            &golden.tensor(&format!("out.tokens.{blocks}")),
            max,
        );
    };
    let velocity = model.forward_traced(&golden.clip("in.latent"), timestep, &text, check_block).unwrap();
    assert_close(
        &format!("{name} {dtype:?} velocity"),
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

#[test]
fn transformer_matches_diffusers_block_by_block() {
    check_transformer("transformer_tiny", Dtype::F32, F32_MAX);
    check_transformer("transformer_tiny", Dtype::Bf16, BF16_MAX);
}

#[test]
fn transformer_of_odd_sizes_without_cross_norm_matches_diffusers() {
    check_transformer("transformer_odd", Dtype::F32, F32_MAX);
    check_transformer("transformer_odd", Dtype::Bf16, BF16_MAX);
}

#[test]
fn vae_matches_diffusers_across_chunk_boundaries() {
    check_vae("vae_wan", Dtype::F32, F32_MAX);
    check_vae("vae_wan_two_blocks", Dtype::F32, F32_MAX);
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
