//! `bench`.

mod device;

use super::generate::start;
use crate::args::{Bench, BenchTarget};
use crate::failure::{CommandResult, Failure};
use crate::output::{Output, table};
use pipeline::FrameSize;
use serde_json::json;
use server::bench::{Comparison, KernelFigure, Measured, Saving};
use server::local::EngineOptions;

const SANDBOX_FRAME: FrameSize = FrameSize { width: 1280, height: 720 };

/// Measures this machine.
pub async fn run(args: Bench, output: Output) -> CommandResult {
    output.note("Measuring; other work on this machine makes the figures worse.");
    match args.target {
        BenchTarget::Model => model(args, output).await,
        BenchTarget::Kernels => device::kernels(&args, output),
        BenchTarget::Forward => device::forward(&args, output),
        BenchTarget::Sandbox => {
            let (hook, simple, frame) = (guest_bundle::PROMPT_STYLE, guest_bundle::LETTERBOX, guest_bundle::FILM_GRAIN);
            let measuring = server::bench::sandbox(hook, simple, frame, SANDBOX_FRAME, args.runs);
            let measured = measuring.await.map_err(|error| Failure::failed(error.to_string()))?;
            output.result(&json!(measured), &stages_table(&measured));
            Ok(())
        }
    }
}

async fn model(args: Bench, output: Output) -> CommandResult {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.engine.threads.unwrap_or(available).max(1);
    let comparisons = match &args.peers {
        Some(python) => server::bench::compare_with_peers(python, threads, args.runs)?,
        None => Vec::new(),
    };
    let kernels = server::bench::kernels(threads, args.runs)?;
    let options = args.engine.options(None);
    let engine = start(&options)?;
    let stages = server::bench::model(&engine, args.runs).await?;
    let int8 = start(&EngineOptions { dtype: Some("int8".to_owned()), ..options })?;
    let savings = server::bench::savings(&engine, &int8, args.runs).await?;
    let all = json!({ "stages": &stages, "savings": &savings, "kernels": &kernels, "peers": &comparisons });
    let mut tables = vec![stages_table(&stages), savings_table(&savings), kernels_table(&kernels)];
    tables.extend(comparisons.iter().map(comparison_table));
    output.result(&all, &tables.join("\n\n"));
    Ok(())
}

fn titled<const N: usize>(titles: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let titles = titles.map(str::to_owned).to_vec();
    table(&std::iter::once(titles).chain(rows.into_iter().map(Vec::from)).collect::<Vec<_>>())
}

fn stages_table(measured: &[Measured]) -> String {
    let ms = |us: u64| format!("{:.3}", us as f64 / 1000.0);
    let row = |m: &Measured| [m.name.clone(), ms(m.median_us), ms(m.min_us), m.runs.to_string()];
    titled(["", "median ms", "min ms", "runs"], measured.iter().map(row))
}

fn savings_table(savings: &[Saving]) -> String {
    let row = |s: &Saving| {
        let error = format!("{:.2e}", s.latents_relative_rmse);
        [
            s.name.clone(),
            format!("{:.1}", s.median_ms),
            format!("{:.2}x", s.speedup),
            error,
            format!("{:.1}", s.psnr_db),
        ]
    };
    titled(["saving", "median ms", "speed", "latents' relative RMSE", "PSNR dB"], savings.iter().map(row))
}

fn kernels_table(kernels: &[KernelFigure]) -> String {
    let row = |k: &KernelFigure| {
        let (ms, rate) = (k.median_us as f64 / 1000.0, k.giga_operations_per_second);
        [k.name.clone(), format!("{ms:.3}"), format!("{rate:.0}"), format!("{:.0} %", k.percent_of_peak)]
    };
    titled(["kernel", "median ms", "G operations/s", "of measured peak"], kernels.iter().map(row))
}

fn comparison_table(comparison: &Comparison) -> String {
    let rows = comparison.contenders.iter().map(|c| {
        let error = c.relative_rmse.map_or_else(|| "-".to_owned(), |error| format!("{error:.1e}"));
        let ms = |ms: f64| format!("{ms:.1}");
        [c.name.clone(), ms(c.median_ms), ms(c.min_ms), format!("{:.2}", c.times_ours), error]
    });
    let titles = ["", "median ms", "min ms", "times ours (bf16)", "relative RMSE to torch f32"];
    let mut text = format!("{}, {} threads\n{}", comparison.name, comparison.threads, titled(titles, rows));
    comparison.absent.iter().for_each(|absent| text.push_str(&format!("\nabsent: {absent}")));
    text
}
