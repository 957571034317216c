//! The sample components, built for `wasm32-wasip2` by this crate's build script and embedded as bytes.
//!
//! A constant that nobody uses takes no space in the binary.

macro_rules! component {
    ($file:literal) => {
        include_bytes!(concat!(env!("GUESTS_DIR"), "/", $file, ".wasm"))
    };
}

/// World `prompt-hook`: brings casual prompts into a model's vocabulary and adds a style.
pub const PROMPT_STYLE: &[u8] = component!("prompt_style");
/// World `frame-effect`: reproducible grain.
pub const FILM_GRAIN: &[u8] = component!("film_grain");
/// World `simple-effect`: bars for a target aspect ratio.
pub const LETTERBOX: &[u8] = component!("letterbox");
/// World `director`: several shots in one video.
pub const STORYBOARD: &[u8] = component!("storyboard");

/// Components that do what their configuration's `behaviour` says, all of it bad. For tests.
pub mod misbehaving {
    /// World `prompt-hook`.
    pub const HOOK: &[u8] = component!("misbehaving_hook");
    /// World `simple-effect`.
    pub const SIMPLE_EFFECT: &[u8] = component!("misbehaving_simple_effect");
    /// World `frame-effect`.
    pub const FRAME_EFFECT: &[u8] = component!("misbehaving_frame_effect");
    /// World `director`.
    pub const DIRECTOR: &[u8] = component!("misbehaving_director");
}
