//! `demo`: the whole product on one machine. A tenant is made, two components are deployed, a job goes through the
//! queue, and its time goes to the ledger: what `serve` does, without HTTP.

use crate::args::Demo;
use crate::failure::{CommandResult, ExitCode, Failure};
use crate::output::{Output, table};
use crate::progress::{StageBars, explain};
use control::{JobRecord, JobState, UsageRecord};
use pipeline::{FunctionName, GenerationRequest, Stage, StoredVideo, TenantId};
use serde_json::json;
use server::worker::Worker;
use server::{Config, FlowSubmission, FunctionCall, Platform, Submission, control};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

const HOOK: &str = "prompt-style";
const EFFECT: &str = "film-grain";

/// Makes the demo video.
pub async fn run(args: Demo, output: Output) -> CommandResult {
    output.note(&format!(
        "Zoetrope demo: one prompt, two WebAssembly components, one video.\n  prompt       \"{}\"\n  data folder  {}\n",
        args.prompt,
        args.data_dir.display()
    ));
    let device = args.device.parse()?;
    // One job has use for one device.
    let config = Config { device, devices_max: 1, ..Config::in_folder(&args.data_dir) };
    let platform = Platform::open(config).await.map_err(failed)?;
    let tenant = demo_tenant(&platform).await?;
    deploy(&platform, &tenant, HOOK, guest_bundle::PROMPT_STYLE, output).await?;
    deploy(&platform, &tenant, EFFECT, guest_bundle::FILM_GRAIN, output).await?;

    let bars = StageBars::new(output);
    let (stop, stopped) = watch::channel(false);
    let worker = tokio::spawn(Worker::new(platform.clone(), bars.clone()).run(stopped));
    let job = platform.submit(submission(&tenant, &args)).await.map_err(refused)?.job;
    let job = platform.wait(&tenant, &job.id).await.map_err(failed)?;
    stop.send_replace(true);
    worker.await.map_err(failed)?.map_err(failed)?;

    let video = finished(&job)?;
    let bytes = platform.objects.get(&video.video).await.map_err(failed)?;
    std::fs::write(&args.out, &bytes).map_err(|error| Failure::failed(format!("{}: {error}", args.out.display())))?;
    let records = platform.jobs.usage_of_job(&tenant, &job.id).await.map_err(failed)?;
    report(&args.out, video, &job, &records, &bars, output);
    platform.jobs.close().await;
    Ok(())
}

fn failed(error: impl Display) -> Failure {
    Failure::failed(error.to_string())
}

fn refused(error: impl Display) -> Failure {
    Failure::refused(error.to_string())
}

async fn demo_tenant(platform: &Arc<Platform>) -> Result<TenantId, Failure> {
    let tenant: TenantId = "demo".parse().map_err(failed)?;
    if platform.jobs.tenant(&tenant).await.map_err(failed)?.is_none() {
        platform.jobs.create_tenant(&tenant, control::Quotas::default()).await.map_err(failed)?;
    }
    Ok(tenant)
}

async fn deploy(platform: &Platform, tenant: &TenantId, name: &str, component: &[u8], output: Output) -> CommandResult {
    let function: FunctionName = name.parse().map_err(failed)?;
    let published = platform.publish(tenant, &function, component.to_vec()).await.map_err(failed)?;
    let version = published.version;
    let what = format!("{} {}", version.kind, if published.is_new { "deployed" } else { "is there" });
    output.note(&format!("  {name:<12} version {}, {what} ({} KiB)", version.version, version.size_bytes / 1024));
    Ok(())
}

fn submission(tenant: &TenantId, args: &Demo) -> Submission {
    let call = |name: &str| FunctionCall {
        name: name.parse().expect("a fixed name is valid"),
        version: None,
        config: BTreeMap::new(),
    };
    let request = GenerationRequest { prompt: args.prompt.clone(), seed: args.seed, ..GenerationRequest::default() };
    Submission {
        flow: FlowSubmission::Staged { prompt_hook: Some(call(HOOK)) },
        effects: vec![call(EFFECT)],
        ..Submission::plain(tenant.clone(), request)
    }
}

fn finished(job: &JobRecord) -> Result<&StoredVideo, Failure> {
    match &job.state {
        JobState::Completed(video) => Ok(video),
        JobState::Failed(failure) => {
            Err(Failure { code: ExitCode::JobFailed, message: format!("{}: {}", failure.code, failure.message) })
        }
        JobState::Queued | JobState::Running => Err(Failure::failed("the job did not finish")),
    }
}

fn report(out: &Path, video: &StoredVideo, job: &JobRecord, records: &[UsageRecord], bars: &StageBars, output: Output) {
    let walls = bars.wall_ms();
    let mut rows = vec![["stage", "seconds", ""].map(str::to_owned).to_vec()];
    rows.extend(walls.iter().map(|(stage, ms)| {
        vec![stage.name().to_owned(), format!("{:.2}", *ms as f64 / 1000.0), explain(*stage).to_owned()]
    }));
    let admitted_ms = job.completed_ms.unwrap_or(job.created_ms) - job.created_ms;
    rows.push(vec![
        "total".to_owned(),
        format!("{:.2}", admitted_ms as f64 / 1000.0),
        "from the queue to the ledger".to_owned(),
    ]);
    let usage: Vec<_> = records.iter().map(|record| json!({ "seq": record.seq, "model": record.model, "device": record.device, "usage": record.usage })).collect();
    let mut text = format!("\n{}\n\nOn the ledger (job {}, tenant {}):\n", table(&rows), job.id, job.tenant);
    for record in records {
        let u = &record.usage;
        text += &format!(
            "  {} on {}: condition {} ms, diffuse {} ms, interpolate {} ms of device time;\n  plan {} ms, effects {} ms, encode {} ms of CPU time; {} bytes stored\n",
            record.model,
            record.device,
            u.condition_gpu_ms,
            u.diffuse_gpu_ms,
            u.interpolate_gpu_ms,
            u.plan_cpu_ms,
            u.effects_cpu_ms,
            u.encode_cpu_ms,
            u.stored_bytes
        );
    }
    text += &format!(
        "\n{}: {} frames of {}, {:.2} s. Try another: zoetrope demo --prompt \"a blue circle moving left\"",
        out.display(),
        video.frame_count,
        video.size,
        video.duration_ms as f64 / 1000.0
    );
    let stages: BTreeMap<&str, u64> = walls.iter().map(|(stage, ms): (&Stage, &u64)| (stage.name(), *ms)).collect();
    let value = json!({
        "event": "done", "out": out, "job": job.id, "frames": video.frame_count, "size": video.size.to_string(),
        "duration_ms": video.duration_ms, "wall_ms": stages, "total_ms": admitted_ms, "usage": usage,
    });
    output.result(&value, &text);
}
