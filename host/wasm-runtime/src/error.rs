//! What can go wrong outside a call: at start, and with an upload.

use thiserror::Error;

/// The runtime could not start.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// wasmtime refused the configuration or could not reserve its memory.
    #[error("the wasm engine did not start: {0}")]
    Engine(String),
    /// The cache of compiled components cannot be used.
    #[error("the cache of compiled components at `{path}` cannot be used: {message}")]
    Cache {
        /// The cache directory.
        path: String,
        /// What failed.
        message: String,
    },
}

/// Why an uploaded component was refused. `Display` is for the tenant: it says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValidationError {
    /// Larger than any component may be.
    #[error("the component has {bytes} bytes; at most {bytes_max} are taken: strip debug information, or split it")]
    TooLarge {
        /// Size of the upload.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not WebAssembly at all.
    #[error("this is not WebAssembly: {0}")]
    NotWasm(String),
    /// A module instead of a component.
    #[error(
        "this is a core module; build a component: in Rust, `cargo build --target wasm32-wasip2`; in other languages, \
         `wasm-tools component new`"
    )]
    CoreModule,
    /// Machine code instead of WebAssembly.
    #[error("this is precompiled machine code; upload the `.wasm` component that it was made from")]
    Precompiled,
    /// WebAssembly that does not validate or compile.
    #[error("the component is broken: {0}")]
    Broken(String),
    /// Within the byte limit, but made to be slow to compile.
    #[error("the component has {what}; at most {max} are taken")]
    TooComplex {
        /// What there is too much of, with its number.
        what: String,
        /// The limit.
        max: u64,
    },
    /// Compilation took longer than allowed.
    #[error("the component did not compile within {ms_max} ms; make it smaller")]
    CompileTime {
        /// The limit.
        ms_max: u64,
    },
    /// Nothing in it that Zoetrope would call.
    #[error(
        "the component exports nothing that Zoetrope calls: expected `plan` (world prompt-hook), `apply` (world \
         simple-effect or frame-effect) or `run` (world director); it exports {found}"
    )]
    NoKnownExport {
        /// What it exports.
        found: String,
    },
    /// More than one kind at a time.
    #[error("the component exports {found}; a function is of one world, so export only one of them")]
    SeveralKinds {
        /// The exports that Zoetrope knows.
        found: String,
    },
    /// An import that is not granted.
    #[error("the component imports `{import}`, which is not granted to functions of world {world}{hint}")]
    NotGranted {
        /// The import, with its version.
        import: String,
        /// The world that the component targets.
        world: &'static str,
        /// Who has it, if anyone.
        hint: &'static str,
    },
    /// The right name with the wrong type or version.
    #[error(
        "the component does not fit world {world}: {message}; build it against wit/zoetrope-video.wit of this version"
    )]
    WrongType {
        /// The world that the component targets.
        world: &'static str,
        /// Which item, and what is wrong with it.
        message: String,
    },
    /// Others are compiling.
    #[error("the compiler is busy with other components; try again in a minute")]
    Busy,
    /// The host's own fault.
    #[error("the component could not be checked: {0}")]
    Internal(String),
}
