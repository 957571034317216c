//! What a component says: `zoetrope:video/logging`, and its standard output and error. Bounded, one line at a time,
//! with control characters escaped, so that no component can forge a line or flood a disk.

use bytes::Bytes;
use pipeline::{FunctionName, Lane};
use std::sync::{Arc, Mutex, PoisonError};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For the developer.
    Debug,
    /// For the record; standard output.
    Info,
    /// Something to look at; standard error.
    Warn,
    /// Something failed.
    Error,
}

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Whose job the function ran for.
    pub lane: Lane,
    /// The function.
    pub function: &'a FunctionName,
    /// How much it matters.
    pub level: LogLevel,
    /// The text: one line, at most `log_line_bytes_max` bytes before escaping.
    pub text: &'a str,
}

/// Receives the lines of all functions. Called from worker threads; must return quickly.
pub trait LogSink: Send + Sync {
    /// Takes one line.
    fn line(&self, line: &LogLine<'_>);
}

/// Hands lines to `tracing` under the target `function_log`.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingLog;

impl LogSink for TracingLog {
    fn line(&self, line: &LogLine<'_>) {
        let (function, lane, text) = (line.function.as_str(), line.lane.0, line.text);
        match line.level {
            LogLevel::Debug => tracing::debug!(target: "function_log", function, lane, "{text}"),
            LogLevel::Info => tracing::info!(target: "function_log", function, lane, "{text}"),
            LogLevel::Warn => tracing::warn!(target: "function_log", function, lane, "{text}"),
            LogLevel::Error => tracing::error!(target: "function_log", function, lane, "{text}"),
        }
    }
}

/// The log of one call.
pub(crate) struct FunctionLog {
    pub(crate) sink: Arc<dyn LogSink>,
    pub(crate) function: FunctionName,
    pub(crate) lane: Lane,
    pub(crate) lines_max: u32,
    pub(crate) line_bytes_max: usize,
    pub(crate) state: Mutex<LogState>,
}

#[derive(Default)]
pub(crate) struct LogState {
    lines: u32,
    dropped: u64,
    /// Unfinished lines of standard output and standard error.
    partial: [Vec<u8>; 2],
    /// The last line of standard error, for the message of a trap: a panic stands there.
    last_words: String,
}

impl FunctionLog {
    /// Takes one line from the component.
    pub(crate) fn line(&self, level: LogLevel, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&mut state, level, text);
    }

    /// The end of the call: unfinished lines are written and dropped ones are reported.
    pub(crate) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in [Stream::Out, Stream::Err] {
            self.write_partial(&mut state, stream);
        }
        if state.dropped > 0 {
            let text = format!("{} lines over the limit of {} were dropped", state.dropped, self.lines_max);
            self.sink.line(&LogLine { lane: self.lane, function: &self.function, level: LogLevel::Warn, text: &text });
            state.dropped = 0;
        }
    }

    /// The panic message of a Rust component, or whatever else it wrote to standard error last.
    pub(crate) fn last_words(&self) -> String {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).last_words.clone()
    }

    fn bytes(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            match byte {
                b'\n' => self.write_partial(&mut state, stream),
                b'\r' => {}
                _ => state.partial[stream as usize].push(byte),
            }
            if state.partial[stream as usize].len() >= self.line_bytes_max {
                self.write_partial(&mut state, stream);
            }
        }
    }

    fn write_partial(&self, state: &mut LogState, stream: Stream) {
        let bytes = std::mem::take(&mut state.partial[stream as usize]);
        let text = String::from_utf8_lossy(&bytes);
        // Rust's runtime adds a hint about backtraces after the message that matters.
        if text.trim().is_empty() || text.starts_with("note: run with `RUST_BACKTRACE") {
            return;
        }
        if let Stream::Err = stream {
            state.last_words = escaped(clipped(&text, 300));
        }
        self.write(state, stream.level(), &text);
    }

    fn write(&self, state: &mut LogState, level: LogLevel, text: &str) {
        if state.lines >= self.lines_max {
            state.dropped += 1;
            return;
        }
        state.lines += 1;
        let text = escaped(clipped(text, self.line_bytes_max));
        self.sink.line(&LogLine { lane: self.lane, function: &self.function, level, text: &text });
    }
}

/// The start of `text`, at most `bytes_max` bytes of it.
pub(crate) fn clipped(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// `text` with control characters escaped.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[derive(Clone, Copy)]
pub(crate) enum Stream {
    Out,
    Err,
}

impl Stream {
    fn level(self) -> LogLevel {
        match self {
            Self::Out => LogLevel::Info,
            Self::Err => LogLevel::Warn,
        }
    }
}

/// Standard output or error of a component, written to its log.
#[derive(Clone)]
pub(crate) struct LogStream {
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) stream: Stream,
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this, and it is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.bytes(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(4096)
    }
}
