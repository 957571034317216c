//! Progress of a job: bars on a terminal, one line a stage elsewhere, JSON lines when asked for.

use crate::output::Output;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use pipeline::{Progress, Stage};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Shows how far each stage is, and remembers how long each took.
pub struct StageBars {
    output: Output,
    screen: Option<MultiProgress>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bars: BTreeMap<Stage, ProgressBar>,
    wall_ms: BTreeMap<Stage, u64>,
}

impl StageBars {
    /// Bars that fit `output` and the terminal.
    pub fn new(output: Output) -> Arc<Self> {
        let screen = (!output.is_json() && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Arc::new(Self { output, screen, state: Mutex::default() })
    }

    /// Milliseconds by stage, in the stages' order.
    pub fn wall_ms(&self) -> BTreeMap<Stage, u64> {
        self.lock().wall_ms.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {prefix:<14} {bar:32.cyan/blue} {pos:>4}/{len:<4} {elapsed:>4}  {msg}")
        .expect("a fixed template is valid")
        .progress_chars("━╸─")
}

/// What a stage does, for someone who does not know its name.
pub fn explain(stage: Stage) -> &'static str {
    match stage {
        Stage::Admit => "the job enters the queue",
        Stage::Plan => "a component rewrites the prompt",
        Stage::Condition => "the prompt becomes numbers",
        Stage::Diffuse => "noise becomes key frames",
        Stage::Interpolate => "key frames become motion",
        Stage::ApplyEffects => "a component changes the frames",
        Stage::EncodeVideo => "frames become H.264",
        Stage::Store => "the file is put away",
        Stage::Record => "the time used goes to the ledger",
    }
}

impl Progress for StageBars {
    fn report(&self, stage: Stage, done: u32, total: u32) {
        let Some(screen) = &self.screen else { return };
        let mut state = self.lock();
        let bar = state.bars.entry(stage).or_insert_with(|| {
            let bar = screen.add(ProgressBar::new(u64::from(total)).with_style(style()).with_prefix(stage.name()));
            bar.set_message(explain(stage));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        bar.set_length(u64::from(total));
        bar.set_position(u64::from(done));
    }

    fn finished(&self, stage: Stage, wall_ms: u64) {
        let mut state = self.lock();
        *state.wall_ms.entry(stage).or_default() += wall_ms;
        if let Some(bar) = state.bars.get(&stage) {
            bar.set_position(bar.length().unwrap_or(0));
            bar.finish();
        } else if self.output.is_json() {
            self.output.json(&json!({ "event": "stage", "stage": stage, "wall_ms": wall_ms }));
        } else if self.screen.is_none() {
            self.output.note(&format!("  {:<14} {:>7.2} s  {}", stage.name(), wall_ms as f64 / 1000.0, explain(stage)));
        }
    }
}
