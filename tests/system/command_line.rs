//! The commands that need no server.

use crate::harness::{ffprobe, file, run, zoetrope};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().expect("a readable path")
}

#[test]
fn the_demo_makes_a_playable_video_of_at_least_two_seconds_and_shows_its_usage() {
    let dir = TempDir::new().unwrap();
    let (out, data) = (file(&dir, "demo.mp4"), file(&dir, "data"));
    let output = run(&["demo", "--out", text(&out), "--data-dir", text(&data)]);
    let said = String::from_utf8_lossy(&output.stdout);
    for expected in ["diffuse", "interpolate", "apply_effects", "On the ledger", "ms of device time"] {
        assert!(said.contains(expected), "`{expected}` is missing from:\n{said}");
    }
    let frames_dir = file(&dir, "frames");
    run(&["interpolate", text(&out), "--factor", "1", "--out", text(&frames_dir)]);
    let frames = read_frames(&frames_dir);
    assert!(frames.len() >= 48, "{} frames", frames.len());
    assert_ne!(frames[0], frames[frames.len() - 1], "the frames differ from one another");
    if let Some(probe) = ffprobe(&out) {
        let seconds: f64 = probe["format"]["duration"].as_str().unwrap().parse().unwrap();
        assert!(seconds >= 2.0, "{seconds} s");
    }
}

#[test]
fn generate_gives_the_same_bytes_for_a_seed_and_keeps_a_given_picture_in_mind() {
    let dir = TempDir::new().unwrap();
    let frames = file(&dir, "frames");
    let small = ["--steps", "2", "--frames", "3", "--seconds", "0.5", "--fps", "8", "--prompt", "a red star moves up"];
    run(&[&["generate", "--seed", "1", "--out", text(&frames)][..], &small].concat());
    let picture = frames.join("frame_00001.png");
    let generate = |seed: &str, name: &str| {
        let out = file(&dir, name);
        run(&[&["generate", "--seed", seed, "--image", text(&picture), "--out", text(&out)][..], &small].concat());
        std::fs::read(out).unwrap()
    };
    let first = generate("7", "a.mp4");
    assert_eq!(first, generate("7", "b.mp4"));
    assert_ne!(first, generate("8", "c.mp4"));
}

#[test]
fn every_sampler_and_guidance_makes_a_video_of_its_own_and_the_same_one_again() {
    let dir = TempDir::new().unwrap();
    let small = "generate --steps 3 --frames 2 --seconds 0.25 --fps 8 --seed 7 --guidance 4 --out";
    let generate = |more: &str, name: &str| {
        let out = file(&dir, name);
        let args: Vec<&str> = small.split(' ').chain([text(&out)]).chain(more.split(' ')).collect();
        run(&[&args[..], &["--prompt", "a red star moves up"]].concat());
        read_frames(&out)
    };
    let ways = [
        "--sampler euler",
        "--sampler euler --eta 0.5",
        "--sampler unipc --solver-order 3 --solver-type bh1",
        "--sampler dpmpp-2m --schedule karras",
        "--sampler dpmpp-2m-sde --schedule exponential",
        "--sampler ddim --eta 1 --schedule beta",
        "--sampler ddpm --shift 5",
        "--sampler lcm",
        "--sampler euler --guidance-kind apg:parallel=0",
        "--sampler euler --guidance-kind cfg-zero --guidance-rescale 0.7",
        "--sampler euler --guidance-interval 0.4..0.9",
    ];
    let mut videos: Vec<_> = ways.iter().enumerate().map(|(i, way)| generate(way, &format!("frames{i}"))).collect();
    assert_eq!(videos[7], generate(ways[7], "again"), "a stochastic sampler repeats itself from its seed");
    videos.sort();
    videos.dedup();
    assert_eq!(videos.len(), ways.len());
}

#[test]
fn interpolate_doubles_the_frames_and_quality_compares_them() {
    let dir = TempDir::new().unwrap();
    let (frames, doubled) = (file(&dir, "frames"), file(&dir, "doubled"));
    run(&[
        "generate",
        "--prompt",
        "a blue circle",
        "--steps",
        "1",
        "--frames",
        "2",
        "--seconds",
        "0.5",
        "--fps",
        "8",
        "--seed",
        "1",
        "--out",
        text(&frames),
    ]);
    run(&["interpolate", text(&frames), "--factor", "2", "--out", text(&doubled)]);
    let (before, after) = (read_frames(&frames), read_frames(&doubled));
    assert_eq!(after.len(), before.len() * 2 - 1);
    let same = run(&["quality", text(&frames), text(&frames), "--json"]);
    let same: Value = serde_json::from_slice(&same.stdout).unwrap();
    assert_eq!((same["psnr_db"].as_f64(), same["ssim"].as_f64()), (Some(100.0), Some(1.0)));
}

#[test]
fn a_wrong_value_exits_with_3_and_says_what_would_be_right() {
    let dir = TempDir::new().unwrap();
    let out = file(&dir, "a.mp4");
    let generate =
        |field: &'static str, value: &'static str| ["generate", "--prompt", "a", field, value, "--out", "a.mp4"];
    let cases: [(&[&str], &str); 14] = [
        (&["generate", "--prompt", "a", "--size", "13x7", "--out", text(&out)], "even"),
        (&["generate", "--prompt", "", "--out", text(&out)], "prompt"),
        (&["generate", "--prompt", "a", "--sampler", "magic", "--out", text(&out)], "euler"),
        (&["generate", "--prompt", "a", "--device", "gpu", "--out", text(&out)], "cuda:0,cuda:1"),
        (&["generate", "--prompt", "a", "--device", "cuda:99", "--out", text(&out)], "there is no cuda:99 here"),
        (&["generate", "--prompt", "a", "--model", "no-such-model", "--out", text(&out)], "no model here"),
        (&["interpolate", "/no/such/file.mp4"], "no such file"),
        (&generate("--schedule", "cubic"), "karras"),
        (&generate("--eta", "2"), "eta"),
        (&generate("--solver-order", "7"), "solver_order"),
        (&generate("--guidance-kind", "magic"), "cfg-zero"),
        (&generate("--guidance-interval", "0.9..0.1"), "0.1..0.9"),
        (&generate("--guidance-rescale", "-1"), "guidance_rescale"),
        (&generate("--step-cache", "magic"), "first-block"),
    ];
    for (args, hint) in cases {
        let output = zoetrope().args(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert_eq!(output.status.code(), Some(3), "{args:?}: {said}");
        assert!(said.contains(hint), "{args:?}: {said}");
    }
    assert_eq!(zoetrope().arg("no-such-command").output().unwrap().status.code(), Some(2));
}

#[test]
fn every_command_explains_itself() {
    let commands = [
        "demo",
        "serve",
        "generate",
        "interpolate",
        "quality",
        "models",
        "bench",
        "push",
        "invoke",
        "functions",
        "usage",
        "tenants",
        "keys",
        "completions",
    ];
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for command in commands {
        assert!(help.contains(&format!("  {command} ")), "{command} is listed");
        run(&[command, "--help"]);
    }
    assert!(help.contains("Exit codes:"));
}

fn read_frames(dir: &Path) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}
