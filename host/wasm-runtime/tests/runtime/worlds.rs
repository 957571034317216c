//! Each world does its work through a sample component.

use crate::support::{DIFFUSE_GPU_MS, Host, INTERPOLATE_GPU_MS, SIZE, blamed, context, plain, request, video};
use guest_bundle::{FILM_GRAIN, LETTERBOX, PROMPT_STYLE, STORYBOARD};
use pipeline::{
    ApplyEffects, Direct, DirectorInput, Frame, FrameSize, GenerationRequest, GivenKeyFrame, Plan, Sampler, StageError,
};

#[tokio::test]
async fn prompt_style_brings_casual_words_into_the_vocabulary() {
    let host = Host::new();
    let cases = [
        ("A crimson sphere flies up!", "night", "a red circle moves up in the night sky, cinematic soft light"),
        ("a star", "studio", "a blue star grows on a white background, clean lighting"),
        ("  A  violet\nheart ", "meadow", "a purple heart moves right over a meadow, warm bright colour"),
        ("navy cube, on plain white", "night", "blue square moves up, on plain white, cinematic soft light"),
        ("a golden moon rises in space", "studio", "a yellow circle rises in the night sky, clean lighting"),
        ("a blue box slides left over a meadow", "night", "a blue box slides left over a meadow, cinematic soft light"),
        ("a sunset and two starlings", "night", "a sunset and two starlings, cinematic soft light"),
    ];
    for (prompt, style, expected) in cases {
        let hook = host.function("style", PROMPT_STYLE, &[("style", style)]);
        let planned = host.runtime.plan(&context(), &hook, request(prompt)).await.unwrap();
        assert_eq!(planned.prompt, expected);
    }
    assert!(host.log.texts().iter().any(|line| line.contains("\"a star\" became \"a blue star grows")));
}

#[tokio::test]
async fn a_prompt_hook_passes_what_it_does_not_touch_and_is_billed() {
    let host = Host::new();
    let hook = host.function("style", PROMPT_STYLE, &[]);
    let asked = GenerationRequest {
        prompt: "a red star".to_owned(),
        negative_prompt: "blur".to_owned(),
        model: Some("fake".to_owned()),
        size: Some(FrameSize { width: 32, height: 48 }),
        duration_ms: Some(1500),
        fps: Some(12),
        key_frames: Some(9),
        steps: Some(7),
        guidance: Some(2.5),
        shift: Some(1.5),
        seed: Some(u64::MAX),
        // The contract does not know these: they pass by the component.
        sampler: Some(Sampler::Unipc),
        solver_order: Some(3),
        solver_type: Some("bh1".parse().unwrap()),
        schedule: Some("uniform".parse().unwrap()),
        eta: Some(0.0),
        guidance_kind: Some("apg:momentum=-0.5".parse().unwrap()),
        guidance_rescale: Some(0.25),
        guidance_interval: Some("0.1..0.9".parse().unwrap()),
        step_cache: Some("first-block:0.05".parse().unwrap()),
        loras: vec!["style:0.8".parse().unwrap()],
    };
    let cx = context();
    let planned = host.runtime.plan(&cx, &hook, asked.clone()).await.unwrap();
    assert_eq!(planned, GenerationRequest { prompt: planned.prompt.clone(), ..asked });
    let usage = cx.meter.snapshot();
    assert!((1..1000).contains(&usage.plan_cpu_ms), "{usage:?}");
    assert_eq!((usage.effects_cpu_ms, usage.gpu_ms()), (0, 0));
}

#[tokio::test]
async fn a_components_own_refusal_reaches_the_tenant() {
    let host = Host::new();
    let hook = host.function("style", PROMPT_STYLE, &[("style", "disco")]);
    let message = blamed(host.runtime.plan(&context(), &hook, request("a star")).await);
    assert_eq!(message, "there is no style `disco`; choose one of night, meadow, studio");
}

#[tokio::test]
async fn film_grain_is_reproducible_bounded_and_different_in_each_frame() {
    let host = Host::new();
    // Not a multiple of the rows that the effect asks for at a time.
    let size = FrameSize { width: 62, height: 50 };
    let mut runs = Vec::new();
    for seed in ["1", "1", "2"] {
        let effect = host.function("grain", FILM_GRAIN, &[("strength", "12"), ("seed", seed)]);
        let cx = context();
        let out = host.runtime.apply_effect(&cx, &effect, video(size, 3, 100)).await.unwrap();
        assert!((1..2000).contains(&cx.meter.snapshot().effects_cpu_ms));
        runs.push(out.frames);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    assert_ne!(runs[0][0], runs[0][1]);
    for frame in &runs[0] {
        assert!(frame.rgb().iter().all(|&value| value.abs_diff(100) <= 12));
        let changed = frame.rgb().iter().filter(|&&value| value != 100).count();
        assert!(changed > size.rgb_bytes() / 2, "only {changed} bytes changed");
    }
}

#[tokio::test]
async fn letterbox_paints_bars_and_leaves_the_picture() {
    let host = Host::new();
    let black_rows = |frame: &Frame| frame.rgb().chunks(64 * 3).filter(|row| row.iter().all(|&v| v == 0)).count();
    for (aspect, rows) in [("2:1", 32), ("1:1", 0), ("16:9", 28)] {
        let effect = host.function("bars", LETTERBOX, &[("aspect", aspect)]);
        let out = host.runtime.apply_effect(&context(), &effect, video(SIZE, 2, 9)).await.unwrap();
        assert_eq!(out.frames.iter().map(black_rows).collect::<Vec<_>>(), [rows, rows], "{aspect}");
        assert_eq!(out.frames[1].rgb()[32 * 64 * 3], 9, "the middle of the picture changed");
    }
    let effect = host.function("bars", LETTERBOX, &[("aspect", "1:2")]);
    let out = host.runtime.apply_effect(&context(), &effect, video(SIZE, 1, 9)).await.unwrap();
    let row = &out.frames[0].rgb()[..64 * 3];
    assert!(row[..16 * 3].iter().all(|&v| v == 0) && row[16 * 3..48 * 3].iter().all(|&v| v == 9));
    let effect = host.function("bars", LETTERBOX, &[("aspect", "wide")]);
    let message = blamed(host.runtime.apply_effect(&context(), &effect, video(SIZE, 1, 9)).await);
    assert!(message.contains("write WIDTH:HEIGHT, like 16:9"), "{message}");
}

fn story(prompt: &str, input: &str) -> DirectorInput {
    DirectorInput {
        request: GenerationRequest { seed: Some(100), ..request(prompt) },
        input: input.to_owned(),
        given: Vec::new(),
    }
}

#[tokio::test]
async fn storyboard_cuts_its_shots_together() {
    let host = Host::new();
    let director = host.function("story", STORYBOARD, &[]);
    let input = r#"{"shots": [{"prompt": "a red circle", "frames": 6}, {"prompt": "a blue star", "frames": 4, "continues": true}]}"#;
    let cx = context();
    let made = host.runtime.direct(&cx, &director, story("ignored", input)).await.unwrap();
    let first_bytes: Vec<u8> = made.frames.iter().map(|frame| frame.rgb()[0]).collect();
    // Five key frames of 100, 110, … 140; the second shot starts from the last picture of the first.
    assert_eq!(first_bytes, [100, 100, 110, 120, 130, 140, 140, 110, 120, 140]);
    assert_eq!(made.fps, 24);
    let diffused = host.engine.diffused.lock().unwrap().clone();
    assert_eq!(diffused, [("a red circle".to_owned(), 0), ("a blue star".to_owned(), 1)]);
    let usage = cx.meter.snapshot();
    assert_eq!(usage.gpu_ms(), 2 * (DIFFUSE_GPU_MS + INTERPOLATE_GPU_MS));
    assert!((1..1000).contains(&usage.effects_cpu_ms), "{usage:?}");
}

/// The contract knows no sampler: it passes by the component.
#[tokio::test]
async fn a_director_diffuses_as_the_request_says() {
    let host = Host::new();
    let director = host.function("story", STORYBOARD, &[]);
    let mut story = story("a red circle, then a blue star", "");
    story.request.sampler = Some(Sampler::Lcm);
    host.runtime.direct(&context(), &director, story).await.unwrap();
    assert_eq!(*host.engine.samplers.lock().unwrap(), [Sampler::Lcm; 2]);
}

#[tokio::test]
async fn storyboard_without_input_cuts_the_prompt_into_shots() {
    let host = Host::new();
    let director = host.function("story", STORYBOARD, &[]);
    let made = host.runtime.direct(&context(), &director, story("a red circle, then a blue star", "")).await.unwrap();
    let prompts: Vec<String> = host.engine.diffused.lock().unwrap().iter().map(|(prompt, _)| prompt.clone()).collect();
    assert_eq!(prompts, ["a red circle", "a blue star"]);
    assert_eq!(made.frames.len(), 48);
}

#[tokio::test]
async fn storyboard_ends_early_when_the_next_shot_would_overrun_the_budget() {
    let host = Host::new();
    let director = host.function("story", STORYBOARD, &[]);
    let mut cx = context();
    cx.gpu_budget_ms = 120;
    let input = r#"{"shots": [{"prompt": "one", "frames": 3}, {"prompt": "two", "frames": 3}, {"prompt": "three", "frames": 3}]}"#;
    let made = host.runtime.direct(&cx, &director, story("", input)).await.unwrap();
    assert_eq!(made.frames.len(), 6);
    assert_eq!(cx.meter.snapshot().gpu_ms(), 100);
    assert!(host.log.texts().iter().any(|line| line.contains("ending after 2")), "{:?}", host.log.texts());
}

#[tokio::test]
async fn a_director_starts_from_the_pictures_that_came_with_the_request() {
    let host = Host::new();
    let director = host.function("story", STORYBOARD, &[]);
    let mut input = story("a heart", "");
    input.given =
        vec![GivenKeyFrame { index: 4, frame: plain(SIZE, 8) }, GivenKeyFrame { index: 0, frame: plain(SIZE, 77) }];
    let made = host.runtime.direct(&context(), &director, input.clone()).await.unwrap();
    assert_eq!(made.frames[0].rgb()[0], 77);
    input.given[0].frame = plain(FrameSize { width: 32, height: 32 }, 8);
    let error = host.runtime.direct(&context(), &director, input).await.unwrap_err();
    assert!(error.to_string().contains("give them the same size"), "{error}");
}

#[tokio::test]
async fn bad_director_input_is_answered_with_an_example() {
    let host = Host::new();
    let director = host.function("story", STORYBOARD, &[]);
    for input in ["{", r#"{"shots": [{"text": "a star"}]}"#, r#"{"shots": [{"prompt": 3}]}"#] {
        let message = blamed(host.runtime.direct(&context(), &director, story("a star", input)).await);
        assert!(message.contains(r#"write {"shots": [{"prompt":"#), "{message}");
    }
    let long = " ".repeat(300 * 1024);
    let error = host.runtime.direct(&context(), &director, story("a star", &long)).await.unwrap_err();
    assert!(matches!(error, StageError::InvalidArgument { field: "input", .. }), "{error}");
}

#[tokio::test]
async fn a_function_in_the_wrong_place_is_named() {
    let host = Host::new();
    let grain = host.function("grain", FILM_GRAIN, &[]);
    let message = blamed(host.runtime.plan(&context(), &grain, request("a star")).await);
    assert_eq!(message, "it is a frame-effect; a prompt hook belongs here");
    let hook = host.function("style", PROMPT_STYLE, &[]);
    let message = blamed(host.runtime.apply_effect(&context(), &hook, video(SIZE, 1, 0)).await);
    assert_eq!(message, "it is a prompt-hook; a simple or frame effect belongs here");
    let message = blamed(host.runtime.direct(&context(), &hook, story("a star", "")).await);
    assert_eq!(message, "it is a prompt-hook; a director belongs here");
}

#[tokio::test]
async fn a_4k_frame_passes_through_both_kinds_of_effect() {
    let host = Host::new();
    let size = FrameSize { width: 3840, height: 2160 };
    let bars = host.function("bars", LETTERBOX, &[("aspect", "16:9")]);
    let out = host.runtime.apply_effect(&context(), &bars, video(size, 1, 50)).await.unwrap();
    assert!(out.frames[0].rgb().iter().all(|&value| value == 50));
    let grain = host.function("grain", FILM_GRAIN, &[("strength", "0")]);
    let out = host.runtime.apply_effect(&context(), &grain, video(size, 1, 50)).await.unwrap();
    assert!(out.frames[0].rgb().iter().all(|&value| value == 50));
}
