//! The walks beside what the arena counts, and the refusal of what does not fit.

use super::transformer::Step;
use super::*;
use crate::transformer::{Context, Timestep, WanTransformer};
use crate::vae::{DecodeState, EncodeState, WanVae};
use crate::weights::Weights;
use kernels::{Arena, Dtype, Tensor};
use std::path::Path;

/// How far the arena's peak may be from the estimate.
const TOLERANCE: f64 = 0.15;

fn assert_near(what: &str, estimate: u64, counted: usize) {
    let ratio = estimate as f64 / counted as f64;
    assert!((ratio - 1.0).abs() <= TOLERANCE, "{what}: estimate {estimate}, counted {counted} ({ratio:.3})");
}

fn golden(name: &str) -> Weights {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens");
    Weights::from_bytes(name, std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap()).unwrap()
}

fn config<T: serde::de::DeserializeOwned>(weights: &Weights) -> T {
    serde_json::from_str(weights.metadata("config").unwrap()).unwrap()
}

fn default_model() -> ModelFiles {
    ModelFiles::Folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("default-model/weights"))
}

fn seeded(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(crate::noise::gaussian(seed, shape.iter().product()), shape).unwrap()
}

fn noise(shape: &[usize]) -> Tensor {
    seeded(7, shape)
}

fn work(guided: bool) -> Workload {
    Workload { size: FrameSize { width: 832, height: 480 }, key_frames: 33, guided, step_cache: false, pictures: 0 }
}

/// On one thread, as the estimate leaves out what tasks need beside each other: a few hundred kB a thread.
fn peak_of(run: impl FnOnce() + Send) -> usize {
    let arena = Arena::new();
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| arena.scope(run));
    arena.peak_bytes()
}

#[test]
fn a_denoise_step_stays_within_15_percent_of_its_estimate() {
    let default = default_model();
    let wide: (TransformerConfig, Weights) =
        (default.read_json("transformer/config.json").unwrap(), default.weights("transformer").unwrap());
    let golden = |name| (config(&golden(name)), golden(name));
    let cases = [
        (wide, "", [4, 32, 48]),
        (golden("transformer_tiny"), "weights", [9, 40, 60]),
        (golden("transformer_odd"), "weights", [8, 40, 60]),
    ];
    for ((config, weights), scope, latent) in &cases {
        for (precision, guided) in [(Precision::F32, false), (Precision::Bf16, false), (Precision::Bf16, true)] {
            let model = WanTransformer::from_weights(&weights.scope(scope), config.clone(), precision).unwrap();
            let [f, h, w] = *latent;
            let (text, input) = (noise(&[12, config.text_dim]), noise(&[f, h, w, config.in_channels]));
            let counted = peak_of(|| {
                let contexts: Vec<Context> =
                    (0..1 + usize::from(guided)).map(|_| model.context(&text, None, None).unwrap()).collect();
                let contexts: Vec<&Context> = contexts.iter().collect();
                model.forward(&input, Timestep::Clip(500.0), &contexts, None, None).unwrap();
            });
            let work = work(guided);
            let step = Step { config, precision, work: &work, latent: *latent, text_rows: 12, image_rows: 0 };
            assert_near(&format!("{} wide, {precision}, guided {guided}", config.width()), step.peak_bytes(), counted);
        }
    }
}

#[test]
fn pictures_stay_within_15_percent_of_their_estimate() {
    for (name, [h, w]) in [("vae_wan", [20, 30]), ("vae_wan_two_blocks", [40, 30])] {
        let weights = golden(name);
        let config: VaeConfig = config(&weights);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let vae = WanVae::from_weights(&weights.scope("weights"), config.clone(), dtype).unwrap();
            let side = config.spatial_factor();
            let picture = [h * side, w * side];
            let decoded = peak_of(|| {
                let mut state = DecodeState::default();
                for _ in 0..3 {
                    vae.decode_next(&mut state, &noise(&[1, h, w, config.z_dim])).unwrap();
                }
            });
            assert_near(
                &format!("{name} decoding, {dtype:?}"),
                vae::decode_bytes(&config, dtype, picture, None),
                decoded,
            );
            let encoded = peak_of(|| {
                let mut state = EncodeState::default();
                for frames in [1, config.temporal_factor(), config.temporal_factor()] {
                    // Cut out, since a tensor made of a vector lies outside of the arena.
                    let pictures = noise(&[1 + frames, picture[0], picture[1], 3]).slice_outer(1..1 + frames).unwrap();
                    vae.encode_next(&mut state, &pictures).unwrap();
                }
            });
            assert_near(&format!("{name} encoding, {dtype:?}"), vae::encode_bytes(&config, dtype, picture), encoded);
        }
    }
}

#[test]
fn packed_weights_have_the_bytes_that_their_headers_promise() {
    let weights = Weights::from_bytes("w", safetensors_of(&[("w.weight", &[70, 45]), ("w.bias", &[70])])).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        let packed = precision.linear(&weights.scope(""), "w", 45, 70).unwrap();
        let estimate = super::weights::linear(70, 45, precision) + super::weights::vector(&[70]);
        assert_eq!(packed.stored_bytes() as u64, estimate, "{precision}");
    }
}

#[test]
fn streamed_blocks_give_the_bytes_of_resident_ones() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let load = |residency| WanTransformer::load_with(&default_model(), "transformer", precision, residency);
        let velocities = [Residency::Resident, Residency::Streamed].map(|residency| {
            let model = load(residency).unwrap();
            let config = model.config();
            let context = |seed| model.context(&seeded(seed, &[32, config.text_dim]), None, None).unwrap();
            let (prompt, negative) = (context(1), context(2));
            let latent = seeded(3, &[2, 8, 6, config.in_channels]);
            let arena = Arena::new();
            // Twice, since the first pass also makes the contexts' keys and values.
            [(); 2].map(|()| {
                let pass = || model.forward(&latent, Timestep::Clip(700.0), &[&prompt, &negative], None, None);
                let both = arena.scope(|| pass().unwrap());
                both.iter().flat_map(Tensor::to_vec_f32).map(f32::to_bits).collect::<Vec<_>>()
            })
        });
        assert!(velocities[0] == velocities[1], "{precision}");
        assert!(velocities[0][0] == velocities[0][1], "{precision}");
    }
}

/// A file of zeros.
fn safetensors_of(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let zeros: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| vec![0; 4 * shape.iter().product::<usize>()]).collect();
    let views = tensors.iter().zip(&zeros).map(|((name, shape), bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap();
        (name.to_string(), view)
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn what_is_short_of_memory_streams_its_blocks_then_is_refused_with_need_and_have() {
    let memory = ModelMemory::read(&default_model(), Precision::Bf16).unwrap();
    let work = Workload { size: FrameSize { width: 128, height: 128 }, key_frames: 8, ..work(true) };
    let [resident, streamed, tiled] = Placement::ALL.map(|placement| memory.estimate(&work, placement()));
    assert!(streamed.peak_bytes < resident.peak_bytes && resident.weights_bytes > 10_000_000, "{resident}");
    let (placement, estimate) = memory.place(&work, u64::MAX).unwrap();
    assert_eq!((placement, estimate), (Placement::default(), resident));
    let (placement, _) = memory.place(&work, resident.peak_bytes - 1).unwrap();
    assert_eq!(placement.residency, Residency::Streamed);
    let least = streamed.peak_bytes.min(tiled.peak_bytes);
    let refused = memory.place(&work, least - 1).unwrap_err().to_string();
    assert!(refused.contains("8 key frames of 128x128 need") && refused.contains("--dtype int8"), "{refused}");
}

/// Bytes of this process's own pages in memory; those of mapped files, which the system may drop, are left out.
#[cfg(target_os = "linux")]
fn own_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// The real sizes. Every 50 ms a thread looks how much memory the process has.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "minutes, and gigabytes: tests/bench/random_wan.py FOLDER, then RANDOM_WAN=FOLDER [RANDOM_WAN_FRAMES=33]"]
#[allow(clippy::print_stdout, reason = "the figures are what one runs it for")]
fn a_random_model_of_wans_size_stays_within_15_percent_of_its_estimate() {
    use crate::engine::{EngineConfig, VideoEngine};
    use pipeline::{Condition, Diffuse, GenerationRequest, Lane, StageContext};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    static PEAK: AtomicU64 = AtomicU64::new(0);
    static OVER: AtomicBool = AtomicBool::new(false);
    let folder = std::env::var("RANDOM_WAN").unwrap();
    let frames = std::env::var("RANDOM_WAN_FRAMES").map_or(33, |text| text.parse().unwrap());
    let memory = std::env::var("RANDOM_WAN_MEMORY").ok().map(|text| parse_bytes(&text).unwrap());
    let models = vec![("wan".to_owned(), folder.into())];
    let config = EngineConfig { models, memory_bytes_max: memory, ..EngineConfig::default() };
    let engine = VideoEngine::start(config).unwrap();
    let size = Some(FrameSize { width: 832, height: 480 });
    let (prompt, model) = ("a red ball".to_owned(), Some("wan".to_owned()));
    let request =
        GenerationRequest { prompt, model, size, key_frames: Some(frames), steps: Some(2), ..Default::default() };
    let plan = request.resolve(&engine.defaults(Some("wan")).unwrap(), 7).unwrap();
    let (placement, estimate) = engine.admit(&plan).unwrap();
    println!("{frames} frames: estimate {estimate}, {placement}");
    let start = std::time::Instant::now();
    let watch = std::thread::spawn(|| {
        while !OVER.load(Ordering::Relaxed) {
            PEAK.fetch_max(own_bytes(), Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let cx = StageContext::unmetered(Lane(0));
    let key_frames = futures::executor::block_on(async {
        let conditioning = engine.condition(&cx, &plan).await.unwrap();
        println!("{:.0?}: loaded, conditioned, {:.2} GB", start.elapsed(), PEAK.load(Ordering::Relaxed) as f64 / 1e9);
        engine.diffuse(&cx, &plan, &conditioning).await.unwrap()
    });
    OVER.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    let (peak, arena) = (PEAK.load(Ordering::Relaxed), engine.arena_peak_bytes());
    let gb = |bytes: u64| bytes as f64 / 1e9;
    println!("{:.0?}: peak {:.2} GB, of it arena {:.2} GB", start.elapsed(), gb(peak), gb(arena as u64));
    assert_eq!(key_frames.frames.len(), frames as usize);
    assert_near("the process's own pages", estimate.peak_bytes, peak as usize);
}
