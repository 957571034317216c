//! `zoetrope:video/config`.

use crate::bindings::interfaces::config;
use crate::state::CallState;

impl config::Host for CallState {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.config.get(&name).cloned())
    }
}
