//! `bench kernels` and `bench forward`.

use super::{kernels_table, titled};
use crate::args::Bench;
use crate::failure::{CommandResult, Failure};
use crate::output::Output;
use serde_json::json;
use server::bench::{DeviceTimings, KernelCheck, Network, Place};

/// Draws the inputs of `--check`.
const SEED: u64 = 1;

/// Times every operation, or with `--check` compares it with float64; fails when one is wrong.
pub(super) fn kernels(args: &Bench, output: Output) -> CommandResult {
    let place = Place::parse(&args.engine.device)?;
    if args.check {
        return check(&place, output);
    }
    if place.is_cpu() {
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        let measured = server::bench::kernels(args.engine.threads.unwrap_or(available).max(1), args.runs)?;
        output.result(&json!({ "device": place.name(), "cpu": &measured }), &kernels_table(&measured));
        return Ok(());
    }
    let measured = place.timings(args.tiny, &args.filter, args.runs)?;
    output.result(&json!(measured), &timings_text(&measured));
    Ok(())
}

fn check(place: &Place, output: Output) -> CommandResult {
    let checks = place.checks(SEED)?;
    let wrong = checks.iter().filter(|check| !check.passed).count();
    output.result(&json!({ "device": place.name(), "failed": wrong, "checks": &checks }), &checks_table(&checks));
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::failed(format!("{wrong} of {} operations are wrong on {}", checks.len(), place.name()))),
    }
}

fn checks_table(checks: &[KernelCheck]) -> String {
    let row = |check: &KernelCheck| {
        let verdict = if check.passed { "PASS" } else { "FAIL" };
        let error = |error: f64| format!("{error:.1e}");
        [check.name.clone(), error(check.relative_error), error(check.tolerance), verdict.to_owned()]
    };
    titled(["operation", "relative error to float64", "allowed", ""], checks.iter().map(row))
}

fn timings_text(measured: &DeviceTimings) -> String {
    let tera = |rate: f64| format!("{:.1}", rate / 1e12);
    let ceilings = &measured.ceilings;
    let head = format!(
        "{}: copy {:.0} GB/s; products in T operations/s: bf16 {}, f32 {}, int8 {}",
        measured.device,
        ceilings.copy / 1e9,
        tera(ceilings.bf16),
        tera(ceilings.f32),
        tera(ceilings.int8)
    );
    let rows = measured.timings.iter().map(|timing| {
        let (scale, unit) = if timing.unit == "bytes/s" { (1e9, "GB/s") } else { (1e12, "T/s") };
        let share = format!("{:.0} %", 100.0 * timing.share_of_ceiling);
        [
            timing.name.clone(),
            format!("{:.1}", timing.median_us),
            format!("{:.1}", timing.rate / scale),
            unit.to_owned(),
            share,
        ]
    });
    format!("{head}\n{}", titled(["operation", "median us", "rate", "", "of measured ceiling"], rows))
}

/// Times one forward of a transformer.
pub(super) fn forward(args: &Bench, output: Output) -> CommandResult {
    let Some(folder) = &args.model else { return Err(Failure::refused("forward needs --model FOLDER")) };
    let network = Network {
        folder: folder.clone(),
        inputs: args.inputs.clone(),
        dtype: args.engine.dtype.clone(),
        threads: args.engine.threads,
        reference: args.reference.clone(),
    };
    let figure = network.forward(&Place::parse(&args.engine.device)?, args.runs)?;
    let error = figure.relative_rmse.map_or_else(|| "-".to_owned(), |error| format!("{error:.1e}"));
    let ms = |ms: f64| format!("{ms:.1}");
    let row = [figure.device.clone(), ms(figure.median_ms), ms(figure.min_ms), figure.runs.to_string(), error];
    let text = titled(["", "median ms", "min ms", "runs", "relative RMSE to the reference"], [row]);
    output.result(&json!(figure), &text);
    Ok(())
}
