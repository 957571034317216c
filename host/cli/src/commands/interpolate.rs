//! `interpolate`.

use super::generate::start;
use crate::args::Interpolate;
use crate::failure::{CommandResult, Failure};
use crate::output::Output;
use crate::progress::StageBars;
use pipeline::{Lane, StageContext};
use server::local::{Between, Rate};

/// Puts frames between frames.
pub async fn run(args: Interpolate, output: Output) -> CommandResult {
    let between = match args.model.as_str() {
        "default" => Between::Network,
        "blend" => Between::Blend,
        other => return Err(Failure::refused(format!("there is no interpolator `{other}`: use `default` or `blend`"))),
    };
    if !args.input.exists() {
        return Err(Failure::refused(format!("{}: there is no such file or folder", args.input.display())));
    }
    let engine = start(&args.engine.options(None))?;
    let cx = StageContext { progress: StageBars::new(output), ..StageContext::unmetered(Lane(0)) };
    let rate = args.fps.map_or(Rate::Factor(args.factor), Rate::Fps);
    let made = engine.interpolate(&cx, &args.input, &args.out, rate, between).await?;
    let value = serde_json::json!({ "event": "done", "out": args.out, "result": made });
    let text = format!("{}: {} frames from {}, {} fps", args.out.display(), made.frames_out, made.frames_in, made.fps);
    output.result(&value, &text);
    Ok(())
}
