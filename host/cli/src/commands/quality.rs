//! `quality`.

use crate::args::Quality;
use crate::failure::CommandResult;
use crate::output::Output;
use serde_json::json;

/// Compares two videos.
pub fn run(args: &Quality, output: Output) -> CommandResult {
    let (quality, frames) = server::local::quality(&args.reference, &args.other)?;
    let value = json!({ "frames": frames, "psnr_db": quality.psnr_db, "ssim": quality.ssim });
    output.result(&value, &format!("{frames} frames: PSNR {:.2} dB, SSIM {:.4}", quality.psnr_db, quality.ssim));
    Ok(())
}
