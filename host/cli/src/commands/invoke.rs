//! `invoke`: runs a function on the server, shows its progress, fetches the video.

use crate::args::Invoke;
use crate::failure::{CommandResult, ExitCode, Failure};
use crate::output::Output;
use crate::remote::Client;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(300);

/// Submits, waits, downloads.
pub fn run(args: &Invoke, output: Output) -> CommandResult {
    let client = Client::new(&args.remote)?;
    let job = client.post(&format!("/v1/functions/{}/invocations", args.name), &body(args)?)?;
    let id = job["id"].as_str().ok_or_else(|| Failure::failed("the server's answer has no job id"))?.to_owned();
    let video = wait(&client, job, &id)?;
    if video["status"] != "completed" {
        let reason = video["error"]["message"].as_str().unwrap_or("no reason given");
        return Err(Failure { code: ExitCode::JobFailed, message: format!("{id} failed: {reason}") });
    }
    let bytes = client.get_bytes(&format!("/v1/videos/{id}/content"))?;
    std::fs::write(&args.out, &bytes).map_err(|error| Failure::failed(format!("{}: {error}", args.out.display())))?;
    output.result(&video, &format!("{} ({} bytes, {id})", args.out.display(), bytes.len()));
    Ok(())
}

fn body(args: &Invoke) -> Result<Value, Failure> {
    let mut config = Map::new();
    for entry in &args.config {
        let (name, value) = entry
            .split_once('=')
            .ok_or_else(|| Failure::refused(format!("--config {entry}: write NAME=VALUE, like strength=20")))?;
        config.insert(name.to_owned(), Value::from(value));
    }
    let mut body = json!({ "prompt": args.prompt, "config": config });
    if let Some(path) = &args.input {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::refused(format!("{}: {e}", path.display())))?;
        body["input"] = serde_json::from_str(&text)
            .map_err(|error| Failure::refused(format!("{}: not JSON: {error}", path.display())))?;
    }
    if let Some(seed) = args.seed {
        body["seed"] = seed.into();
    }
    Ok(body)
}

fn wait(client: &Client, mut video: Value, id: &str) -> Result<Value, Failure> {
    let style =
        ProgressStyle::with_template("  {msg:<12} {bar:32.cyan/blue} {pos:>3} %").expect("a fixed template is valid");
    let bar = ProgressBar::new(100).with_style(style);
    while video["status"] == "queued" || video["status"] == "in_progress" {
        bar.set_message(video["status"].as_str().unwrap_or("").replace('_', " "));
        bar.set_position(video["progress"].as_u64().unwrap_or(0));
        std::thread::sleep(POLL);
        video = client.get(&format!("/v1/videos/{id}"))?;
    }
    bar.finish_and_clear();
    Ok(video)
}
