//! Logs: readable lines on a terminal, JSON elsewhere. `ZOETROPE_LOG` chooses what is shown (`info` by default).

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging to standard error. Called once, by the program; a second call changes nothing.
pub fn init(default_filter: &str) {
    let filter = EnvFilter::try_from_env("ZOETROPE_LOG").unwrap_or_else(|_| EnvFilter::new(default_filter));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let outcome = if std::io::stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    };
    // Only a second call can fail, and then logging is set up already.
    drop(outcome);
}
