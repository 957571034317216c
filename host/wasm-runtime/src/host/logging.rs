//! `zoetrope:video/logging`.

use crate::bindings::interfaces::logging::{Host, Level};
use crate::function_log::LogLevel;
use crate::state::CallState;

impl Host for CallState {
    fn log(&mut self, level: Level, message: String) -> wasmtime::Result<()> {
        self.log.line(level.into(), &message);
        Ok(())
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
        }
    }
}
