//! After its first pass a network takes nothing of size from the system: tensors and scratch come from the arena.
//!
//! What is counted are allocations of more than 4 KiB through the program's allocator, on any thread; the arena's own maps do
//! not pass through it and are counted apart. What remains below are lists of shapes, handles and tasks.

#![allow(unsafe_code, reason = "an allocator that counts is an unsafe trait's implementation")]

use kernels::{Arena, Tensor};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use video_model::transformer::{Timestep, WanTransformer};
use video_model::vae::{DecodeState, WanVae};
use video_model::{ModelFiles, Precision};

const SMALL_BYTES_MAX: usize = 4096;

struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LARGE: AtomicUsize = AtomicUsize::new(0);
static LARGEST_BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    if COUNTS.load(Ordering::Relaxed) && bytes > SMALL_BYTES_MAX {
        LARGE.fetch_add(1, Ordering::Relaxed);
        LARGEST_BYTES.fetch_max(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `step` three times in one arena and counts from the second on.
fn assert_steady(what: &str, mut step: impl FnMut() + Send) {
    let arena = Arena::new();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        arena.scope(&mut step);
        let growths = arena.growths();
        LARGE.store(0, Ordering::Relaxed);
        LARGEST_BYTES.store(0, Ordering::Relaxed);
        COUNTS.store(true, Ordering::Relaxed);
        (0..2).for_each(|_| arena.scope(&mut step));
        COUNTS.store(false, Ordering::Relaxed);
        assert_eq!(arena.growths(), growths, "{what}: the arena grew");
    });
    let (large, largest) = (LARGE.load(Ordering::Relaxed), LARGEST_BYTES.load(Ordering::Relaxed));
    assert_eq!(large, 0, "{what}: allocations of more than {SMALL_BYTES_MAX} bytes, up to {largest}");
    assert!(arena.peak_bytes() > 1 << 20, "{what} does not use the arena");
}

fn noise(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(video_model::noise::gaussian(seed, shape.iter().product()), shape).unwrap()
}

/// One test, since the counter is the program's.
#[test]
fn passes_after_the_first_allocate_nothing_large() {
    let files = ModelFiles::Folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("default-model/weights"));
    for precision in [Precision::Bf16, Precision::Int8, Precision::F32] {
        let transformer = WanTransformer::load(&files, "transformer", precision).unwrap();
        let config = transformer.config();
        let context = |seed| transformer.context(&noise(seed, &[32, config.text_dim]), None, None).unwrap();
        let (prompt, negative) = (context(1), context(2));
        let latent = noise(3, &[4, 16, 16, config.in_channels]);
        assert_steady(&format!("transformer, {precision}"), || {
            let pass = transformer.forward(&latent, Timestep::Clip(700.0), &[&prompt, &negative], None, None);
            assert_eq!(pass.unwrap().len(), 2);
        });
        let vae = WanVae::load(&files, "vae", precision.activations()).unwrap();
        let (mut state, latent) = (DecodeState::default(), noise(4, &[1, 16, 16, vae.config().z_dim]));
        assert_steady(&format!("VAE, {precision}"), || {
            vae.decode_next(&mut state, &latent).unwrap();
        });
    }
}
