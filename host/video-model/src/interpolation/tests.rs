//! Parity with an independent RIFE 4.25 (tests/parity/ifnet.py): random weights at tiny widths, and the shipped ones.

use super::*;
use crate::weights::Weights;
use safetensors::SafeTensors;

const TINY: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/ifnet_tiny.safetensors"));

const SHIPPED: &[u8] =
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/ifnet_default.safetensors"));
const SHIPPED_FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/default-model/interpolator");

struct Golden {
    file: SafeTensors<'static>,
    config: IfNetConfig,
    weights: Weights,
    /// Where the weights lie among the tensors of their file.
    scope: &'static str,
}

impl Golden {
    fn tiny() -> Self {
        Self::new(TINY, Weights::from_bytes("ifnet_tiny", TINY).unwrap(), "weights")
    }

    fn shipped() -> Self {
        Self::new(SHIPPED, ModelFiles::Folder(SHIPPED_FOLDER.into()).weights("").unwrap(), "")
    }

    fn new(bytes: &'static [u8], weights: Weights, scope: &'static str) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
        let config = serde_json::from_str(&metadata.metadata().clone().unwrap()["config"]).unwrap();
        Self { file: SafeTensors::deserialize(bytes).unwrap(), config, weights, scope }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.file.tensor(name).unwrap().data().to_vec();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// A stored picture, from planes of bytes to a frame.
    fn frame(&self, name: &str) -> Frame {
        let tensor = self.file.tensor(name).unwrap();
        let (height, width) = (tensor.shape()[1], tensor.shape()[2]);
        let plane = height * width;
        let rgb = (0..3 * plane).map(|i| tensor.data()[i % 3 * plane + i / 3]).collect();
        Frame::new(FrameSize { width: width as u32, height: height as u32 }, rgb).unwrap()
    }

    fn network(&self, dtype: Dtype) -> IfNet {
        IfNet::load(&self.weights.scope(self.scope), &self.config, dtype).unwrap()
    }
}

fn relative_rmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let error = squares(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    (error / squares(&mut expected.iter().copied())).sqrt()
}

/// Every fourth pixel from (2, 2) of [h, w, c], channels first: the golden's sampling.
fn sampled(x: &Tensor) -> Vec<f32> {
    let &[h, w, c] = x.shape() else { panic!("{:?}", x.shape()) };
    let values = x.to_vec_f32();
    let mut out = Vec::new();
    for channel in 0..c {
        for y in (2..h).step_by(4) {
            out.extend((2..w).step_by(4).map(|x| values[(y * w + x) * c + channel]));
        }
    }
    out
}

fn output_error(golden: &Golden, dtype: Dtype, t: f32) -> f64 {
    let network = golden.network(dtype);
    let (first, last) = (golden.frame("input.first"), golden.frame("input.last"));
    let prepare = |frame: &Frame| network.prepare(padded(frame).unwrap()).unwrap();
    let out = network.forward(&prepare(&first), &prepare(&last), t, |_, _| ()).unwrap();
    let (width, height, w) = (first.size().width as usize, first.size().height as usize, out.shape()[1]);
    let values = out.to_vec_f32();
    let planes: Vec<f32> = (0..3)
        .flat_map(|c| (0..height).flat_map(move |y| (0..width).map(move |x| (y * w + x) * 3 + c)))
        .map(|i| values[i])
        .collect();
    relative_rmse(&planes, &golden.floats(&format!("output.t{:02}", (t * 100.0).round())))
}

#[test]
fn ifnet_in_f32_agrees_with_the_oracle_at_two_times() {
    for t in [0.5, 0.3] {
        // Float32 in another order of sums: errors near 1e-5; a wrong detail is above 1e-2.
        let error = output_error(&Golden::tiny(), Dtype::F32, t);
        assert!(error < 1e-3, "t {t}: relative RMSE {error}");
    }
}

#[test]
fn ifnet_in_bf16_stays_close_to_the_oracle() {
    // Eight bits of mantissa in every convolution, and flows of several pixels that magnify them.
    let error = output_error(&Golden::tiny(), Dtype::Bf16, 0.5);
    assert!(error < 2e-2, "relative RMSE {error}");
}

#[test]
fn the_shipped_interpolator_agrees_with_the_oracle() {
    let golden = Golden::shipped();
    for t in [0.5, 0.25] {
        // As above: the order of float32 sums, and eight bits of mantissa.
        for (dtype, limit) in [(Dtype::F32, 1e-3), (Dtype::Bf16, 2e-2)] {
            let error = output_error(&golden, dtype, t);
            assert!(error < limit, "{dtype:?} at {t}: relative RMSE {error}");
        }
    }
}

#[test]
fn every_block_agrees_with_the_oracle() {
    let golden = Golden::tiny();
    let network = golden.network(Dtype::F32);
    let prepare = |name: &str| network.prepare(padded(&golden.frame(name)).unwrap()).unwrap();
    let mut block = 0;
    let trace = |flows: &[Tensor; 2], mask: &Tensor| {
        let flow = kernels::concat_channels(&[&flows[0], &flows[1]]).unwrap();
        let mask = kernels::resize_bilinear(mask, flow.shape()[0], flow.shape()[1]).unwrap();
        for (name, got) in [("flow", &flow), ("mask", &mask)] {
            let error = relative_rmse(&sampled(got), &golden.floats(&format!("block.{block}.{name}")));
            assert!(error < 1e-3, "{name} after block {block}: relative RMSE {error}");
        }
        block += 1;
    };
    network.forward(&prepare("input.first"), &prepare("input.last"), 0.5, trace).unwrap();
    assert_eq!(block, 5);
}

#[test]
fn pictures_of_different_sizes_are_refused() {
    let golden = Golden::tiny();
    let interpolator = Interpolator { network: golden.network(Dtype::F32), parameters: 0 };
    let small = Frame::new(FrameSize { width: 16, height: 16 }, vec![0; 768]).unwrap();
    let (a, b) = (interpolator.prepare(&small).unwrap(), interpolator.prepare(&golden.frame("input.first")).unwrap());
    assert!(matches!(interpolator.between(&a, &b, 0.5), Err(ModelError::Input(_))));
    assert_eq!(interpolator.between(&a, &a, 0.5).unwrap().size(), small.size());
}

#[test]
fn blending_is_the_weighted_mean() {
    let size = FrameSize { width: 1, height: 1 };
    let (a, b) = (Frame::new(size, vec![0, 100, 255]).unwrap(), Frame::new(size, vec![100, 100, 0]).unwrap());
    assert_eq!(blend(&a, &b, 0.25).rgb(), [25, 100, 191]);
}

/// A textured disc that moves by (8, -4) pixels from time 0 to 1 over a still background.
fn moving_disc(time: f32) -> Frame {
    let size = FrameSize { width: 128, height: 96 };
    let value = |i: u32| {
        let (x, y, c) = ((i / 3 % size.width) as f32, (i / 3 / size.width) as f32, (i % 3) as f32);
        let (u, v) = (x - 8.0 * time, y + 4.0 * time);
        let distance = ((u - 57.6).powi(2) + (v - 52.8).powi(2)).sqrt();
        let background = 0.4 + 0.3 * (0.05 * x + 0.03 * y + c).sin();
        let disc = 0.6 + 0.25 * (0.19 * u + 0.12 * v + 2.0 * c).sin() * (0.16 * v - 0.07 * u + c).sin();
        background + (disc - background) * (26.9 - distance + 0.5).clamp(0.0, 1.0)
    };
    let rgb = (0..size.width * size.height * 3).map(|i| (value(i) * 255.0).round() as u8).collect();
    Frame::new(size, rgb).unwrap()
}

#[test]
fn the_shipped_interpolator_beats_blending_by_more_than_3_db() {
    let interpolator = Interpolator::load(&ModelFiles::Folder(SHIPPED_FOLDER.into()), Dtype::Bf16).unwrap();
    let (first, last) = (moving_disc(0.0), moving_disc(1.0));
    let prepared = [&first, &last].map(|frame| interpolator.prepare(frame).unwrap());
    for t in [0.25, 0.5, 0.7] {
        let truth = [moving_disc(t)];
        let psnr_db = |frame: Frame| crate::quality::compare(&truth, &[frame]).unwrap().psnr_db;
        let made = psnr_db(interpolator.between(&prepared[0], &prepared[1], t).unwrap());
        let blended = psnr_db(blend(&first, &last, t));
        assert!(made > blended + 3.0, "t {t}: {made} dB, blending {blended} dB");
    }
}
