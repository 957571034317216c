//! Bounds on everything that comes from outside. All on by default; the unit is the name's last word.

/// Longest prompt, as UTF-8 bytes. Also holds for what a prompt hook returns.
pub const PROMPT_BYTES_MAX: usize = 8 * 1024;
/// Smallest side of a video.
pub const FRAME_SIDE_PX_MIN: u32 = 16;
/// Longer side of a video, at most: what H.264 level 5.2 encodes.
pub const FRAME_SIDE_PX_MAX: u32 = 3840;
/// Shorter side of a video, at most, likewise.
pub const FRAME_SHORT_SIDE_PX_MAX: u32 = 2160;
/// Largest side of an input picture, read from its header before anything is decoded.
pub const IMAGE_SIDE_PX_MAX: u32 = 8192;
/// Largest input picture in pixels, likewise.
pub const IMAGE_PX_MAX: u64 = 32 * 1024 * 1024;
/// Largest upload of a picture.
pub const IMAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Largest wasm component.
pub const COMPONENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Longest video.
pub const DURATION_MS_MAX: u32 = 60_000;
/// Highest frame rate.
pub const FPS_MAX: u32 = 120;
/// Most sampler steps.
pub const STEPS_MAX: u32 = 200;
/// Most adapters of one request.
pub const LORAS_MAX: usize = 8;
/// Largest strength of an adapter, to either side.
pub const LORA_STRENGTH_MAX: f32 = 10.0;
/// Most key frames of one diffusion.
pub const KEY_FRAMES_MAX: u32 = 257;
/// Most effects in one chain.
pub const EFFECTS_MAX: usize = 8;
/// Raw frames that one job may hold at a time.
pub const JOB_FRAMES_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Largest JSON input of a director.
pub const DIRECTOR_INPUT_BYTES_MAX: usize = 256 * 1024;

// A frame of the largest size must fit into a job several times over, or no job could ever use it.
const _: () = assert!((FRAME_SIDE_PX_MAX as u64).pow(2) * 3 * 16 <= JOB_FRAMES_BYTES_MAX);
const _: () = assert!(FRAME_SIDE_PX_MAX <= IMAGE_SIDE_PX_MAX);
