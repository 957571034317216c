//! The built-in model through the engine: parity, repeatability, pictures as key frames, bills, refusals.

use super::known::{Known, KnownEncoder};
use super::*;
use crate::devices::{CpuDevice, DeviceFault, Timed};
use crate::quality::compare;
use crate::transformer::Residency;
use futures::executor::block_on;
use pipeline::{CancelToken, GenerationRequest, GivenKeyFrame, Lane, Sampler};
use std::path::Path;
use std::sync::atomic::AtomicU64;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/goldens/default_model.safetensors");
/// The prompt of the golden.
const PROMPT: &str = "A red star moves left in the night sky";

fn engine(dtype: Precision, threads: usize) -> Arc<VideoEngine> {
    VideoEngine::start(EngineConfig { dtype, threads: Some(threads), ..EngineConfig::default() }).unwrap()
}

fn plan(engine: &VideoEngine, change: impl FnOnce(&mut GenerationRequest)) -> GenerationPlan {
    let mut request =
        GenerationRequest { prompt: PROMPT.into(), steps: Some(3), seed: Some(7), ..GenerationRequest::default() };
    change(&mut request);
    request.resolve(&engine.defaults(None).unwrap(), 0).unwrap()
}

fn cx() -> StageContext {
    StageContext::unmetered(Lane(0))
}

fn key_frames(engine: &VideoEngine, cx: &StageContext, plan: &GenerationPlan) -> StageResult<Vec<Frame>> {
    block_on(async {
        let conditioning = engine.condition(cx, plan).await?;
        Ok(engine.diffuse(cx, plan, &conditioning).await?.frames)
    })
}

fn relative_rmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |v: f32| f64::from(v).powi(2);
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / expected.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

/// A picture that is red towards the right and green towards the bottom.
fn gradient(width: u32, height: u32) -> Frame {
    let pixel = |i: u32| [(i % width * 255 / width) as u8, (i / width * 255 / height) as u8, 100];
    Frame::new(FrameSize { width, height }, (0..width * height).flat_map(pixel).collect()).unwrap()
}

#[test]
fn four_guided_steps_from_given_noise_end_where_diffusers_ends() {
    let engine = engine(Precision::F32, 2);
    let plan = plan(&engine, |r| (r.steps, r.guidance, r.sampler) = (Some(4), Some(3.0), Some(Sampler::Unipc)));
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("latents.safetensors");
    let options = DiffuseOptions { initial_noise: Some(GOLDEN.into()), dump_latents: Some(dump.clone()) };
    block_on(async {
        let conditioning = engine.condition(&cx(), &plan).await.unwrap();
        engine.diffuse_with(&cx(), &plan, &conditioning, options).await.unwrap()
    });
    let model = engine.first().registry.load(DEFAULT_MODEL, Residency::Resident).unwrap();
    let shape = diffusion::latent_shape(&model, &plan).unwrap();
    let read = |path: &Path| noise::load_latent(path, "latents", shape).unwrap();
    let (got, expected) = (read(&dump), read(Path::new(GOLDEN)));
    let relative = relative_rmse(&got, &expected);
    // Eight passes of the transformer in float32, sums in another order. Truncating a timestep wrongly gives 0.5 %.
    assert!(relative < 1e-3, "relative RMSE {relative}");
}

#[test]
fn the_same_plan_gives_the_same_bytes_on_any_number_of_threads_and_another_seed_another_video() {
    let (one, two) = (engine(Precision::Bf16, 1), engine(Precision::Bf16, 2));
    let plan_7 = plan(&one, |_| ());
    let first = key_frames(&one, &cx(), &plan_7).unwrap();
    assert_eq!(first.len(), 8);
    assert!(first == key_frames(&one, &cx(), &plan_7).unwrap(), "the same engine repeats itself");
    assert!(first == key_frames(&two, &cx(), &plan_7).unwrap(), "the number of threads changes nothing");
    let other_seed = key_frames(&one, &cx(), &plan(&one, |r| r.seed = Some(8))).unwrap();
    // Background, object and colour are the prompt's; where it moves is the seed's. Rounding alone stays above 50 dB.
    let closeness = compare(&first, &other_seed).unwrap().psnr_db;
    assert!(closeness < 40.0, "{closeness} dB");
    let other_prompt = plan(&one, |r| r.prompt = "a blue circle moves up on a white background".into());
    assert!(compare(&first, &key_frames(&one, &cx(), &other_prompt).unwrap()).unwrap().psnr_db < 30.0);
}

#[test]
fn the_bf16_engine_stays_close_to_the_f32_engine() {
    let (exact, fast) = (engine(Precision::F32, 2), engine(Precision::Bf16, 2));
    let plan = plan(&exact, |r| r.guidance = Some(1.0));
    let (a, b) = (key_frames(&exact, &cx(), &plan).unwrap(), key_frames(&fast, &cx(), &plan).unwrap());
    // Eight bits of mantissa through three passes of the transformer and the decoder.
    let quality = compare(&a, &b).unwrap();
    assert!(quality.psnr_db > 30.0, "{quality:?}");
}

#[test]
fn given_pictures_reach_the_transformer_as_in_the_reference() {
    let engine = engine(Precision::F32, 2);
    let mut plan = plan(&engine, |r| r.guidance = Some(1.0));
    // The golden's picture: red from −1 to 1 left to right, green top to bottom, blue 0; here in 256 levels.
    let level = |i: u32| (f64::from(i) / 127.0 * 255.0).round() as u8;
    let rgb = (0..128 * 128).flat_map(|i| [level(i % 128), level(i / 128), 128]).collect();
    plan.given = vec![GivenKeyFrame { index: 0, frame: Frame::new(plan.key_frame_size, rgb).unwrap() }];
    let conditioning = block_on(engine.condition(&cx(), &plan)).unwrap();
    let model = &conditioning.get::<PromptConditioning>().unwrap().model;
    let (given, size) = (vec![(0, plan.given[0].frame.clone())], plan.key_frame_size);
    let shape = diffusion::latent_shape(model, &plan).unwrap();
    let mut encoder = KnownEncoder::new(crate::Conditioning::Mask1, given, size, shape).unwrap();
    let Some(Known::Beside(known)) = encoder.step(&model.vae).unwrap() else { panic!("nothing is known") };
    let known = kernels::channels_first(&known).unwrap().to_vec_f32();
    let [z, frames, height, width] =
        diffusion::latent_shape(&engine.first().registry.load(DEFAULT_MODEL, Residency::Resident).unwrap(), &plan)
            .unwrap();
    let shape = [1 + z, frames, height, width];
    let expected = noise::load_latent(Path::new(GOLDEN), "condition", shape).unwrap();
    // The picture's 256 levels; a mask or a channel in the wrong place is off by more than a tenth.
    let error = relative_rmse(&known, &expected);
    assert!(error < 2e-2, "relative RMSE {error}");

    let text_only = GenerationPlan { given: Vec::new(), ..plan.clone() };
    let with = key_frames(&engine, &cx(), &plan).unwrap();
    assert!(with != key_frames(&engine, &cx(), &text_only).unwrap(), "the picture changes the video");
}

#[test]
fn every_stage_is_billed_to_its_own_counter_and_the_sum_is_the_busy_time() {
    let engine = engine(Precision::Bf16, 2);
    let plan = plan(&engine, |_| ());
    let cx = cx();
    let frames = block_on(async {
        let conditioning = engine.condition(&cx, &plan).await.unwrap();
        let key_frames = engine.diffuse(&cx, &plan, &conditioning).await.unwrap();
        engine.interpolate(&cx, key_frames, plan.frame_count, plan.fps, plan.size).await.unwrap()
    });
    assert_eq!((frames.frames.len(), frames.fps), (48, 24));
    assert!(frames.frames.iter().all(|frame| frame.size() == plan.size));
    let (usage, stats) = (cx.meter.snapshot(), engine.devices()[0].queue);
    assert!(usage.diffuse_gpu_ms > 0 && usage.interpolate_gpu_ms > 0, "{usage:?}");
    assert_eq!((usage.gpu_ms(), stats.billed_ms), (stats.busy_ms, stats.busy_ms));
    // Both prompts; pictures known, three denoise steps, eight decoded frames; 48 frames.
    assert_eq!(stats.steps, 1 + 1 + 3 + 8 + 48);
}

#[test]
fn key_frames_appear_unchanged_among_the_frames() {
    let engine = engine(Precision::Bf16, 2);
    let keys: Vec<Frame> =
        [40, 64, 100].map(|height| crate::picture::cover(&gradient(64, height), gradient(64, 64).size())).into();
    let size = keys[0].size();
    let cx = cx();
    let run = engine.interpolate(&cx, KeyFrames { frames: keys.clone() }, 5, 24, size);
    assert_send_future(&run);
    let frames = block_on(run).unwrap().frames;
    assert!([0, 2, 4].into_iter().zip(&keys).all(|(i, key)| frames[i] == *key));
    assert!(frames[1] != keys[0] && frames[1] != keys[1]);
    let between = block_on(engine.between(&cx, keys[0].clone(), keys[1].clone(), vec![0.5])).unwrap();
    assert!(between[0] == frames[1], "a pair on its own gives the same frame");
}

fn assert_send_future<T>(_: &(impl Future<Output = T> + Send)) {}

#[test]
fn a_cancelled_job_uses_no_device_time_and_a_small_budget_ends_early() {
    let engine = engine(Precision::Bf16, 2);
    let plan = plan(&engine, |r| r.steps = Some(200));
    let cancelled = StageContext { cancel: CancelToken::default(), ..cx() };
    cancelled.cancel.cancel();
    assert_eq!(key_frames(&engine, &cancelled, &plan), Err(StageError::Cancelled));
    assert_eq!(cancelled.meter.snapshot().gpu_ms(), 0);
    let poor = StageContext { gpu_budget_ms: 20, ..cx() };
    assert_eq!(key_frames(&engine, &poor, &plan), Err(StageError::BudgetExhausted { budget_ms: 20 }));
    assert!(poor.meter.snapshot().gpu_ms() >= 20);
}

#[test]
fn what_a_model_cannot_do_is_refused_by_the_name_of_the_field() {
    fn field<T: std::fmt::Debug>(result: StageResult<T>) -> &'static str {
        match result {
            Err(StageError::InvalidArgument { field, .. }) => field,
            other => panic!("not refused: {other:?}"),
        }
    }
    let engine = engine(Precision::Bf16, 1);
    let good = plan(&engine, |_| ());
    assert_eq!(field(engine.defaults(Some("/etc"))), "model");
    assert_eq!(field(key_frames(&engine, &cx(), &GenerationPlan { model: "nope".into(), ..good.clone() })), "model");
    let odd = FrameSize { width: 130, height: 128 };
    assert_eq!(field(key_frames(&engine, &cx(), &GenerationPlan { key_frame_size: odd, ..good.clone() })), "size");
    let given = vec![GivenKeyFrame { index: 8, frame: gradient(16, 16) }];
    assert_eq!(field(key_frames(&engine, &cx(), &GenerationPlan { given, ..good.clone() })), "input_reference");
    let conditioning = block_on(engine.condition(&cx(), &good)).unwrap();
    let options = DiffuseOptions { initial_noise: Some("/nowhere".into()), ..DiffuseOptions::default() };
    assert_eq!(field(block_on(engine.diffuse_with(&cx(), &good, &conditioning, options))), "noise");
    let (a, b) = (gradient(16, 16), gradient(16, 18));
    assert_eq!(field(block_on(engine.between(&cx(), a.clone(), b, vec![0.5]))), "key_frames");
    assert_eq!(field(block_on(engine.between(&cx(), a.clone(), a, vec![f32::NAN]))), "times");
    let none = KeyFrames { frames: Vec::new() };
    assert_eq!(field(block_on(engine.interpolate(&cx(), none, 5, 24, odd))), "key_frames");
    assert!(block_on(engine.diffuse(&cx(), &good, &Conditioning::new(1))).is_err());
    assert_eq!("bf17".parse::<Precision>().unwrap_err().code(), "invalid_argument");
}

/// A file of adapters for one layer of the built-in model, with a key that belongs to no layer.
fn lora_file(path: &Path, width: usize, outputs: usize) {
    let values =
        |count: usize| (0..count).flat_map(|i| (0.3 * (i as f32 * 0.7).sin()).to_le_bytes()).collect::<Vec<_>>();
    let (down, up) = (values(2 * width), values(2 * outputs));
    let view =
        |shape: Vec<usize>, bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap();
    let tensors = [
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", view(vec![2, width], &down)),
        ("transformer.blocks.0.attn1.to_q.lora_B.weight", view(vec![outputs, 2], &up)),
        ("lora_te_encoder.lora_up.weight", view(vec![outputs, 2], &up)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[test]
fn an_adapter_changes_the_video_by_its_strength_and_says_what_it_could_not_use() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["style", "broken"].map(|name| (name.to_owned(), folder.path().join(format!("{name}.safetensors"))));
    let config =
        EngineConfig { dtype: Precision::F32, threads: Some(2), loras: files.to_vec(), ..EngineConfig::default() };
    let engine = VideoEngine::start(config).unwrap();
    let width = engine.first().registry.load(DEFAULT_MODEL, Residency::Resident).unwrap().config.transformer.width();
    lora_file(&files[0].1, width, width);
    lora_file(&files[1].1, width, width + 1);
    assert_eq!(engine.defaults(None).unwrap().loras, ["broken", "style"]);

    let with = |loras: &[&str]| plan(&engine, |r| r.loras = loras.iter().map(|lora| lora.parse().unwrap()).collect());
    let video = |plan: &GenerationPlan| key_frames(&engine, &cx(), plan);
    let none = video(&with(&[])).unwrap();
    let style = with(&["style"]);
    assert!(video(&style).unwrap() != none);
    assert!(video(&with(&["style:0"])).unwrap() == none);
    assert!(video(&with(&[])).unwrap() == none, "the shared weights have changed");
    let warnings = engine.warnings(&style);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("style.safetensors") && warnings[0].contains("lora_te_encoder.lora_up.weight"));
    assert!(engine.warnings(&with(&[])).is_empty());

    let broken = video(&with(&["broken"])).unwrap_err();
    assert!(matches!(broken, StageError::InvalidArgument { field: "loras", .. }), "{broken:?}");
    assert!(
        broken.to_string().contains("broken.safetensors") && broken.to_string().contains("to_q.lora_B"),
        "{broken}"
    );
    let twice = video(&with(&["style@high"])).unwrap_err();
    assert!(twice.to_string().contains("one transformer"), "{twice}");
}

#[test]
fn a_job_that_does_not_fit_is_refused_before_it_starts_with_need_and_have() {
    let start = |memory_bytes_max| {
        let config =
            EngineConfig { threads: Some(1), memory_bytes_max: Some(memory_bytes_max), ..EngineConfig::default() };
        VideoEngine::start(config).unwrap()
    };
    let small = start(1_000_000);
    let plan = plan(&small, |_| ());
    let cx = cx();
    let refused = block_on(small.condition(&cx, &plan)).map(drop).unwrap_err();
    assert!(matches!(refused, StageError::InvalidArgument { field: "memory", .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("8 key frames of 128x128 need 0.0") && text.contains("there are 0.00 GB"), "{text}");
    assert!(small.first().registry.loaded(DEFAULT_MODEL, Residency::Resident).unwrap().is_none(), "nothing was loaded");
    assert_eq!(small.devices()[0].queue.steps, 0, "nothing ran");

    // With memory for all but the blocks they are streamed, and the frames are the same.
    let (_, estimate) = start(u64::MAX).admit(&plan).unwrap();
    let short = start(estimate.peak_bytes - 1);
    let (placement, _) = short.admit(&plan).unwrap();
    assert_eq!(placement.residency, Residency::Streamed);
    let roomy = engine(Precision::Bf16, 1);
    assert!(key_frames(&short, &cx, &plan).unwrap() == key_frames(&roomy, &cx, &plan).unwrap());
}

/// The CPU engine with a fault to come; it counts what it was asked.
struct Flaky {
    cpu: CpuDevice,
    /// Steps until one breaks it.
    good_steps: AtomicU64,
    resets: AtomicU64,
}

impl Flaky {
    fn new(good_steps: u64) -> Arc<Self> {
        let cpu = CpuDevice::new(Some(2)).unwrap();
        Arc::new(Self { cpu, good_steps: good_steps.into(), resets: 0.into() })
    }
}

impl Device for Flaky {
    fn id(&self) -> DeviceId {
        DeviceId::Cuda(0)
    }
    fn name(&self) -> &str {
        "flaky"
    }
    fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed {
        let timed = self.cpu.timed(step);
        let breaks = self.good_steps.fetch_sub(1, Ordering::SeqCst) == 0;
        Timed { fault: breaks.then(|| DeviceFault("broken on purpose".to_owned())), ..timed }
    }
    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        self.cpu.scope(work);
    }
    fn free_bytes(&self) -> Option<u64> {
        self.cpu.free_bytes()
    }
    fn peak_bytes(&self) -> usize {
        self.cpu.peak_bytes()
    }
    fn scrub(&self) -> Result<(), DeviceFault> {
        Ok(())
    }
    fn trim(&self) {}
    fn reset(&self) -> Result<(), DeviceFault> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.good_steps.store(u64::MAX, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_device_fault_costs_the_job_nothing_and_its_next_run_makes_the_same_video() {
    // Two prompts, pictures known, one denoise step: then it breaks.
    let flaky = Flaky::new(3);
    let engine = VideoEngine::on(vec![flaky.clone()], EngineConfig::default()).unwrap();
    let plan = plan(&engine, |_| ());
    let first = cx();
    assert_eq!(key_frames(&engine, &first, &plan), Err(StageError::DeviceFailed { own_step: true }));
    assert_eq!(first.meter.snapshot().gpu_ms(), 0);
    assert_eq!(flaky.resets.load(Ordering::SeqCst), 1);
    assert!(engine.first().registry.loaded(DEFAULT_MODEL, Residency::Streamed).unwrap().is_none(), "weights are gone");
    let second = cx();
    let frames = key_frames(&engine, &second, &plan).unwrap();
    assert!(frames == key_frames(&super::tests::engine(Precision::Bf16, 2), &cx(), &plan).unwrap());
    let stats = engine.devices()[0].queue;
    assert_eq!(stats.billed_ms, second.meter.snapshot().gpu_ms());
    assert_eq!((stats.billed_ms + stats.refunded_ms, stats.faults), (stats.busy_ms, 1));
    assert!(stats.refunded_ms > 0);
}

#[test]
fn conditioning_that_was_lost_with_the_device_is_refused_and_refunded() {
    let flaky = Flaky::new(1);
    let engine = VideoEngine::on(vec![flaky], EngineConfig::default()).unwrap();
    let (plan, between, breaks) = (plan(&engine, |_| ()), cx(), cx());
    let conditioning = block_on(engine.condition(&between, &plan)).unwrap();
    let other = GenerationPlan { prompt: "another prompt".into(), ..plan.clone() };
    assert_eq!(key_frames(&engine, &breaks, &other), Err(StageError::DeviceFailed { own_step: true }));
    let lost = block_on(engine.diffuse(&between, &plan, &conditioning)).map(drop);
    assert_eq!(lost, Err(StageError::DeviceFailed { own_step: false }));
    assert_eq!(between.meter.snapshot().gpu_ms(), 0);
    let stats = engine.devices()[0].queue;
    assert_eq!((stats.billed_ms, stats.refunded_ms), (0, stats.busy_ms));
}

#[test]
fn jobs_spread_over_the_devices_and_each_stays_on_its_own() {
    let devices: Vec<Arc<dyn Device>> = vec![Flaky::new(u64::MAX), Flaky::new(u64::MAX)];
    let engine = VideoEngine::on(devices, EngineConfig::default()).unwrap();
    let plan = plan(&engine, |r| r.steps = Some(1));
    let jobs = [cx(), cx()];
    let made = jobs.each_ref().map(|cx| block_on(engine.condition(cx, &plan)).unwrap());
    assert_eq!(engine.devices().iter().map(|device| device.jobs).collect::<Vec<_>>(), [1, 1]);
    let mut frames = Vec::new();
    for (cx, conditioning) in jobs.iter().zip(&made) {
        let keys = block_on(engine.diffuse(cx, &plan, conditioning)).unwrap();
        frames.push(block_on(engine.interpolate(cx, keys, plan.frame_count, plan.fps, plan.size)).unwrap().frames);
    }
    assert!(frames[0] == frames[1], "the same video from each");
    let used = jobs.each_ref().map(|cx| cx.meter.snapshot().gpu_ms());
    let billed: Vec<u64> = engine.devices().iter().map(|device| device.queue.billed_ms).collect();
    assert_eq!(billed, used, "every stage of a job was on one device");
    drop(jobs);
    assert!(engine.devices().iter().all(|device| device.jobs == 0));
}

#[test]
fn a_device_that_is_out_of_order_gets_no_jobs() {
    struct Lost(Arc<Flaky>);
    impl Device for Lost {
        fn id(&self) -> DeviceId {
            DeviceId::Cuda(1)
        }
        fn name(&self) -> &str {
            "lost"
        }
        fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed {
            self.0.timed(step)
        }
        fn scope(&self, work: &mut (dyn FnMut() + Send)) {
            self.0.scope(work);
        }
        fn free_bytes(&self) -> Option<u64> {
            None
        }
        fn peak_bytes(&self) -> usize {
            0
        }
        fn scrub(&self) -> Result<(), DeviceFault> {
            Ok(())
        }
        fn trim(&self) {}
        fn reset(&self) -> Result<(), DeviceFault> {
            Err(DeviceFault("it is gone".to_owned()))
        }
    }
    let devices: Vec<Arc<dyn Device>> = vec![Arc::new(Lost(Flaky::new(0))), Flaky::new(u64::MAX)];
    let engine = VideoEngine::on(devices, EngineConfig::default()).unwrap();
    let plan = plan(&engine, |r| r.steps = Some(1));
    assert_eq!(key_frames(&engine, &cx(), &plan), Err(StageError::DeviceFailed { own_step: true }));
    assert!(engine.devices()[0].is_out_of_order && engine.has_working_device());
    for _ in 0..2 {
        let cx = cx();
        key_frames(&engine, &cx, &plan).unwrap();
        assert_eq!(engine.device_name(&cx), "flaky");
    }
}
