//! The same input gives the same bits: on the second run, and on any number of threads.

use kernels::Tensor;
use std::path::Path;
use video_model::transformer::Timestep;
use video_model::{ModelFiles, Precision, VideoModel};

/// Text, one transformer pass and one decoded frame, as bit patterns.
fn run(model: &VideoModel, threads: usize) -> Vec<u32> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let size = model.config.defaults.size.width as usize / model.vae.config().spatial_factor();
        let channels = model.experts[0].transformer.config().in_channels;
        let states = model.text_encoder.encode("a red star moves left in the night sky").unwrap();
        let text = model.experts[0].transformer.context(&states, None, None).unwrap();
        let latent = waves(&[4, size, size, channels]);
        let velocity = model.experts[0]
            .transformer
            .forward(&latent, Timestep::Clip(500.0), &[&text], None, None)
            .unwrap()
            .remove(0);
        let picture = model.vae.decode(&waves(&[1, size, size, model.vae.config().z_dim])).unwrap();
        let latent = model.vae.encode(&picture).unwrap();
        [states, velocity, picture, latent].iter().flat_map(|t| t.to_vec_f32()).map(f32::to_bits).collect()
    })
}

fn waves(shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin() * 1.5).collect();
    Tensor::from_vec(values, shape).unwrap()
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let files = ModelFiles::Folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("default-model/weights"));
    for precision in [Precision::F32, Precision::Bf16] {
        let model = VideoModel::load(&files, precision).unwrap();
        let alone = run(&model, 1);
        assert!(alone == run(&model, 1), "{precision:?}: a second run differs");
        assert!(alone == run(&model, 3), "{precision:?}: three threads differ from one");
    }
}
