//! `bench`.

use super::generate::start;
use crate::args::{Bench, BenchTarget};
use crate::failure::{CommandResult, Failure};
use crate::output::{Output, table};
use pipeline::FrameSize;
use server::bench::Measured;

const SANDBOX_FRAME: FrameSize = FrameSize { width: 1280, height: 720 };

/// Measures this machine.
pub async fn run(args: Bench, output: Output) -> CommandResult {
    output.note("Measuring; other work on this machine makes the figures worse.");
    let measured = match args.target {
        BenchTarget::Model => server::bench::model(&start(&args.engine.options(None))?, args.runs).await?,
        BenchTarget::Sandbox => {
            let (hook, simple, frame) = (guest_bundle::PROMPT_STYLE, guest_bundle::LETTERBOX, guest_bundle::FILM_GRAIN);
            let measuring = server::bench::sandbox(hook, simple, frame, SANDBOX_FRAME, args.runs);
            measuring.await.map_err(|error| Failure::failed(error.to_string()))?
        }
    };
    print(&measured, output)
}

fn print(measured: &[Measured], output: Output) -> CommandResult {
    let mut rows = vec![["", "median ms", "min ms", "runs"].map(str::to_owned).to_vec()];
    rows.extend(measured.iter().map(|m| {
        let ms = |us: u64| format!("{:.3}", us as f64 / 1000.0);
        vec![m.name.clone(), ms(m.median_us), ms(m.min_us), m.runs.to_string()]
    }));
    output.result(&serde_json::to_value(measured).map_err(anyhow::Error::from)?, &table(&rows));
    Ok(())
}
