//! Generated from `wit/`: one module per world. The director's imports are all there are, so the other worlds use its
//! modules; there is one Rust type for each WIT type.

#![allow(missing_docs, reason = "generated code, documented in the WIT files")]

pub(crate) mod director {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "director",
        imports: {
            "zoetrope:video/diffusion.generate": async | trappable,
            "zoetrope:video/interpolation.in-between": async | trappable,
            default: trappable,
        },
        exports: { default: async },
        with: { "zoetrope:video/frames.frame-list": crate::host::frames::FrameList },
        trappable_error_type: { "zoetrope:video/types.error" => crate::host::HostError },
    });
}

pub(crate) mod prompt_hook {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "prompt-hook",
        imports: { default: trappable },
        exports: { default: async },
        with: { "zoetrope:video": crate::bindings::director::zoetrope::video },
    });
}

pub(crate) mod simple_effect {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "simple-effect",
        imports: { default: trappable },
        exports: { default: async },
        with: { "zoetrope:video": crate::bindings::director::zoetrope::video },
    });
}

pub(crate) mod frame_effect {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "frame-effect",
        imports: { default: trappable },
        exports: { default: async },
        with: { "zoetrope:video": crate::bindings::director::zoetrope::video },
    });
}

pub(crate) use director::zoetrope::video as interfaces;
pub(crate) use interfaces::types as wit;
