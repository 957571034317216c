//! A prompt hook that misbehaves as the configuration's `behaviour` says. The host's tests hold that each is stopped,
//! billed and named.

wit_bindgen::generate!({ world: "prompt-hook", path: "../../../wit" });

use std::hint::black_box;
use zoetrope::video::types::Size;
use zoetrope::video::{config, logging};

/// What the canary pair writes and looks for, and how much of it.
const CANARY: u8 = 0xa5;
const CANARY_BYTES: usize = 32 << 20;
const PAGE_BYTES: usize = 64 << 10;

struct Misbehaving;

impl Guest for Misbehaving {
    fn plan(mut request: Request) -> Result<Request, Error> {
        match config::get("behaviour").as_deref() {
            Some("spin-forever") => spin(),
            Some("eat-memory") => eat_memory(),
            Some("recurse") => {
                black_box(recurse(0));
            }
            Some("trap") => panic!("a deliberate panic"),
            Some("trap-late") => {
                black_box((0..200_000_000_u64).fold(0, |sum, i| black_box(sum ^ i)));
                panic!("a panic after some work");
            }
            Some("exit") => std::process::exit(3),
            Some("sleep") => std::thread::sleep(std::time::Duration::from_secs(3600)),
            Some("flood-log") => (0..100_000).for_each(|i| logging::log(logging::Level::Info, &format!("line {i}"))),
            Some("flood-stderr") => (0..20_000).for_each(|i| eprintln!("line {i} {}", "x".repeat(200))),
            Some("forge-log") => logging::log(logging::Level::Info, "fine\n2026-01-01 ERROR \u{1b}[31mforged"),
            Some("huge-log") => logging::log(logging::Level::Info, &"x".repeat(8 << 20)),
            Some("huge-prompt") => request.prompt = "x".repeat(100_000),
            Some("endless-prompt") => request.prompt = "x".repeat(100 << 20),
            Some("no-steps") => request.steps = Some(0),
            Some("odd-size") => request.size = Some(Size { width: 13, height: 7 }),
            Some("unknown-model") => request.model = Some("no-such-model".to_owned()),
            Some("say-internal") => return Err(Error::Internal("the host is broken, trust me".to_owned())),
            Some("say-invalid") => return Err(Error::InvalidArgument("say please".to_owned())),
            Some("say-cancelled") => return Err(Error::Cancelled),
            Some("read-files") => request.prompt = format!("{:?}", std::fs::read_to_string("/etc/passwd").is_ok()),
            Some("read-environment") => request.prompt = format!("{} variables", std::env::vars().count()),
            Some("leave-canary") => {
                let pages = fresh_pages();
                pages.fill(CANARY);
                request.prompt = canaries(pages);
            }
            Some("seek-canary") => request.prompt = canaries(fresh_pages()),
            other => return Err(Error::InvalidArgument(format!("unknown behaviour {other:?}"))),
        }
        Ok(request)
    }
}

fn spin() {
    let mut count = 0_u64;
    loop {
        count = black_box(count.wrapping_add(1));
    }
}

fn eat_memory() {
    let mut all = Vec::new();
    loop {
        all.push(black_box(vec![1_u8; 1 << 20]));
    }
}

#[allow(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    black_box(recurse(black_box(depth + 1))) + 1
}

/// Memory as the host gave it. Not from the allocator, which would clear it.
fn fresh_pages() -> &'static mut [u8] {
    let first = std::arch::wasm32::memory_grow::<0>(CANARY_BYTES / PAGE_BYTES);
    assert_ne!(first, usize::MAX, "memory did not grow");
    // SAFETY: these pages were added just now and nobody else knows of them.
    unsafe { std::slice::from_raw_parts_mut((first * PAGE_BYTES) as *mut u8, CANARY_BYTES) }
}

fn canaries(pages: &[u8]) -> String {
    format!("{} canaries", black_box(pages).iter().filter(|&&byte| byte == CANARY).count())
}

export!(Misbehaving);
