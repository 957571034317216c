//! What each kind of function may import: one linker per grant set.

use crate::bindings::director::Director;
use crate::bindings::frame_effect::FrameEffect;
use crate::bindings::prompt_hook::PromptHook;
use crate::bindings::simple_effect::SimpleEffect;
use crate::error::RuntimeError;
use crate::host::wasi;
use crate::state::CallState;
use std::fmt;
use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};

/// The world that a component is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FunctionKind {
    /// Rewrites a request.
    PromptHook,
    /// Changes one frame at a time.
    SimpleEffect,
    /// Changes all frames through a handle.
    FrameEffect,
    /// Makes the whole video.
    Director,
}

impl FunctionKind {
    /// The world's name in `wit/zoetrope-video.wit`.
    pub const fn world(self) -> &'static str {
        match self {
            Self::PromptHook => "prompt-hook",
            Self::SimpleEffect => "simple-effect",
            Self::FrameEffect => "frame-effect",
            Self::Director => "director",
        }
    }

    /// Whether functions of this kind may import an interface, given without its version.
    pub(crate) fn grants(self, interface: &str) -> bool {
        let ours: &[&str] = match self {
            Self::PromptHook | Self::SimpleEffect => &["types", "logging", "config"],
            Self::FrameEffect => &["types", "logging", "config", "frames"],
            Self::Director => &["types", "logging", "config", "frames", "diffusion", "interpolation", "usage"],
        };
        match interface.strip_prefix("zoetrope:video/") {
            Some(name) => ours.contains(&name),
            None => wasi::INTERFACES.contains(&interface),
        }
    }
}

impl fmt::Display for FunctionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.world())
    }
}

/// One linker for each kind.
pub(crate) struct Linkers {
    prompt_hook: Linker<CallState>,
    simple_effect: Linker<CallState>,
    frame_effect: Linker<CallState>,
    director: Linker<CallState>,
}

impl Linkers {
    pub(crate) fn new(engine: &Engine) -> Result<Self, RuntimeError> {
        let failed = |error: wasmtime::Error| RuntimeError::Engine(format!("{error:#}"));
        let mut linkers = Self {
            prompt_hook: Linker::new(engine),
            simple_effect: Linker::new(engine),
            frame_effect: Linker::new(engine),
            director: Linker::new(engine),
        };
        PromptHook::add_to_linker::<_, HasSelf<_>>(&mut linkers.prompt_hook, |state| state).map_err(failed)?;
        SimpleEffect::add_to_linker::<_, HasSelf<_>>(&mut linkers.simple_effect, |state| state).map_err(failed)?;
        FrameEffect::add_to_linker::<_, HasSelf<_>>(&mut linkers.frame_effect, |state| state).map_err(failed)?;
        Director::add_to_linker::<_, HasSelf<_>>(&mut linkers.director, |state| state).map_err(failed)?;
        for linker in
            [&mut linkers.prompt_hook, &mut linkers.simple_effect, &mut linkers.frame_effect, &mut linkers.director]
        {
            wasi::add_to_linker(linker).map_err(failed)?;
        }
        Ok(linkers)
    }

    pub(crate) fn get(&self, kind: FunctionKind) -> &Linker<CallState> {
        match kind {
            FunctionKind::PromptHook => &self.prompt_hook,
            FunctionKind::SimpleEffect => &self.simple_effect,
            FunctionKind::FrameEffect => &self.frame_effect,
            FunctionKind::Director => &self.director,
        }
    }
}
