//! `zoetrope:video/usage`.

use crate::bindings::interfaces::usage;
use crate::state::CallState;

impl usage::Host for CallState {
    fn remaining_gpu_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(self.engine.cx.gpu_remaining_ms())
    }
}
