//! What a tenant's component may use. All on by default; the unit is the name's last word but `max`.

use pipeline::limits::{COMPONENT_BYTES_MAX, FRAME_SHORT_SIDE_PX_MAX, FRAME_SIDE_PX_MAX, JOB_FRAMES_BYTES_MAX};

/// Bounds of one call and of the runtime as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// CPU time of one prompt hook call, in milliseconds.
    pub plan_cpu_ms_max: u64,
    /// CPU time of one effect over all frames of a job, in milliseconds.
    pub effect_cpu_ms_max: u64,
    /// CPU time of one director, without its host calls, in milliseconds.
    pub director_cpu_ms_max: u64,
    /// How many times longer than its CPU limit a call may take by the clock, outside the engine's host calls.
    /// Ends components that sleep; room for a busy machine.
    pub wall_per_cpu_max: u32,
    /// Longest single host call into the engine (diffusion, interpolation), in milliseconds.
    pub engine_call_ms_max: u64,
    /// All linear memories of one call together, in bytes.
    pub memory_bytes_max: usize,
    /// Elements of one table.
    pub table_elements_max: usize,
    /// Stack of the component's code, in bytes.
    pub stack_bytes_max: usize,
    /// Handles (frame lists, streams, pollables) that one call may hold at a time.
    pub handles_max: usize,
    /// Frames behind the handles of one call, in bytes.
    pub frames_bytes_max: u64,
    /// Log lines of one call.
    pub log_lines_max: u32,
    /// Bytes of one log line.
    pub log_line_bytes_max: usize,
    /// Bytes that one `wasi:random` call gives.
    pub random_bytes_max: u64,
    /// Calls that run at a time; more wait for their turn.
    pub calls_max: u32,
    /// An uploaded component, in bytes.
    pub component_bytes_max: usize,
    /// Functions in all modules of a component.
    pub component_functions_max: u32,
    /// Largest function body of a component, in bytes: compile time grows faster than a body does.
    pub component_function_bytes_max: usize,
    /// Depth of components within components.
    pub component_nesting_max: u32,
    /// Longest wait for a compilation, in milliseconds.
    pub compile_ms_max: u64,
    /// Compiled components kept in memory, in bytes of code.
    pub loaded_bytes_max: usize,
    /// Compiled components kept in the cache directory, in bytes.
    pub aot_cache_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            plan_cpu_ms_max: 5_000,
            effect_cpu_ms_max: 60_000,
            director_cpu_ms_max: 60_000,
            wall_per_cpu_max: 10,
            engine_call_ms_max: 3_600_000,
            memory_bytes_max: 256 << 20,
            table_elements_max: 65_536,
            stack_bytes_max: 512 << 10,
            handles_max: 1_024,
            frames_bytes_max: JOB_FRAMES_BYTES_MAX,
            log_lines_max: 1_000,
            log_line_bytes_max: 1_024,
            random_bytes_max: 64 << 10,
            calls_max: 32,
            component_bytes_max: COMPONENT_BYTES_MAX,
            component_functions_max: 200_000,
            component_function_bytes_max: 1 << 20,
            component_nesting_max: 8,
            compile_ms_max: 60_000,
            loaded_bytes_max: 512 << 20,
            aot_cache_bytes_max: 4 << 30,
        }
    }
}

/// What a component may hand over in one call besides a frame: names, prompts, log lines.
pub(crate) const HANDOVER_BYTES_MAX: usize = 1 << 20;
/// The largest frame.
pub(crate) const FRAME_BYTES_MAX: usize = FRAME_SIDE_PX_MAX as usize * FRAME_SHORT_SIDE_PX_MAX as usize * 3;
/// Length of an epoch: how often running code is looked at, in milliseconds.
pub(crate) const EPOCH_MS: u64 = 10;

// A frame-by-frame effect holds the frame that came and the one that goes.
const _: () = assert!(FRAME_BYTES_MAX * 4 < 256 << 20);
