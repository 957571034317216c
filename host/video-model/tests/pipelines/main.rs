//! Whole pipelines against diffusers: the folders that it wrote, through the engine, from the same noise and pictures, on the
//! CPU and on the device. The goldens are made by `tests/parity/pipelines.py`.

mod support;

use support::{Limits, follow_diffusers};
use video_model::Precision;
use video_model::devices::DeviceId;

/// Sums in another order, over some passes of networks of two blocks. Missing a quirk moves the latents by a percent or
/// more. Half a level is the rounding to bytes.
const F32: Limits = Limits { latents: 1e-3, levels: 0.5 };

/// Eight bits of mantissa through up to twelve passes, where guidance multiplies the difference of two passes by five; a
/// decoder of random weights then makes up to seven levels of a percent.
const BF16: Limits = Limits { latents: 2e-2, levels: 10.0 };

#[test]
fn text_to_video_in_f32_ends_where_diffusers_ends_with_each_sampler() {
    follow_diffusers(Precision::F32, DeviceId::Cpu, &F32, |name| name.starts_with("t2v"));
}

#[test]
fn image_to_video_in_f32_ends_where_diffusers_ends_with_each_sampler() {
    follow_diffusers(Precision::F32, DeviceId::Cpu, &F32, |name| name.starts_with("i2v"));
}

#[test]
fn first_and_last_frame_in_f32_end_where_diffusers_ends_with_each_sampler() {
    follow_diffusers(Precision::F32, DeviceId::Cpu, &F32, |name| name.starts_with("flf"));
}

#[test]
fn per_frame_noise_levels_in_f32_end_where_diffusers_ends_with_each_sampler() {
    follow_diffusers(Precision::F32, DeviceId::Cpu, &F32, |name| name.starts_with("ti2v"));
}

#[test]
fn every_pipeline_in_bf16_stays_close_to_diffusers_in_f32() {
    follow_diffusers(Precision::Bf16, DeviceId::Cpu, &BF16, |_| true);
}

/// Every kernel of a pipeline, run by the driver's stand-in: weights, memory, launches and recorded steps are those of a GPU.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod on_the_device {
    use super::support::{cases, folder_of, relative_rmse};
    use super::*;
    use kernels::{CudaDevice, Tensor};
    use standin::Standin;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use video_model::ModelFiles;
    use video_model::transformer::{Timestep, WanTransformer};

    const DEVICE: DeviceId = DeviceId::Cuda(0);

    /// The stand-in, for one test at a time: a fault of one would reset the device under the other.
    fn alone() -> (&'static Standin, MutexGuard<'static, ()>) {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        (Standin::load().expect("the stand-in driver"), turn)
    }

    #[test]
    fn pipelines_in_f32_end_where_diffusers_ends() {
        let _turn = alone();
        follow_diffusers(Precision::F32, DEVICE, &F32, |name| name.contains("unipc"));
    }

    #[test]
    fn pipelines_in_bf16_stay_close_to_diffusers_and_replay_their_steps() {
        let (standin, _turn) = alone();
        let before = standin.graph_launches();
        follow_diffusers(Precision::Bf16, DEVICE, &BF16, |_| true);
        assert!(standin.graph_launches() > before, "no step was recorded and replayed");
    }

    #[test]
    fn a_device_without_room_for_recorded_steps_runs_each_of_them_anew() {
        let (standin, _turn) = alone();
        let before = standin.graph_launches();
        // One region of the device's pool: weights and a step's tensors fit, and nothing beside them.
        standin.memory_bytes(0, 64 << 20);
        let run = || follow_diffusers(Precision::F32, DEVICE, &F32, |name| name == "t2v_5.euler");
        let ended = std::panic::catch_unwind(run);
        standin.memory_bytes(0, 4 << 30);
        assert!(ended.is_ok() && standin.graph_launches() == before);
    }

    /// Two jobs of different sizes take turns on one transformer, which keeps the rotation table of the last size only.
    #[test]
    fn a_recorded_pass_gives_its_own_answer_whatever_sizes_run_in_between() {
        let (_standin, _turn) = alone();
        let case = cases().into_iter().find(|case| case.name == "t2v_5.unipc").unwrap();
        let folder = folder_of(&case);
        let device = CudaDevice::open(0).unwrap();
        device.scope(|| {
            let files = ModelFiles::Folder(folder.path().to_owned());
            let model = WanTransformer::load(&files, "transformer", Precision::F32).unwrap();
            let config = model.config();
            let wave = |shape: &[usize], step: f32| {
                let values = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * step).sin()).collect();
                Tensor::from_vec(values, shape).unwrap()
            };
            let context = model.context(&wave(&[7, config.text_dim], 0.3), None, None).unwrap();
            let [_, ph, pw] = config.patch_size;
            let of_size = |h: usize, w: usize| wave(&[2, h * ph, w * pw, config.in_channels], 0.7);
            let (mine, other) = (of_size(2, 3), of_size(3, 4));
            let time = Timestep::Clip(700.0);
            let eager = |latent: &Tensor| model.forward(latent, time, &[&context], None, None).unwrap()[0].to_vec_f32();
            let expected = eager(&mine);
            eager(&other);
            let mut recorded = model.record(&device, &mine, time, &[&context], None).unwrap();
            for _ in 0..2 {
                eager(&other);
                let answers = model.replay(&mut recorded, &mine, time).unwrap().unwrap();
                assert_eq!(relative_rmse(&answers[0].to_vec_f32(), &expected), 0.0);
            }
            assert!(
                model.replay(&mut recorded, &other, time).unwrap().is_none(),
                "another size is not what was recorded"
            );
        });
    }
}
