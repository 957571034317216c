//! `serve`.

use crate::args::Serve;
use crate::failure::{CommandResult, Failure};
use crate::output::Output;
use pipeline::NoProgress;
use serde_json::json;
use server::{Config, ConfigFile, Platform};
use std::sync::Arc;

/// Serves until the process is asked to stop.
pub async fn run(args: Serve, output: Output) -> CommandResult {
    let refused = |error: server::ConfigError| Failure::refused(error.to_string());
    let mut file = ConfigFile::read(args.config.as_deref()).map_err(refused)?;
    file.listen = args.listen.or(file.listen);
    file.data_dir = args.data_dir.or(file.data_dir);
    file.device = args.device.or(file.device);
    file.roles = args.roles.or(file.roles);
    let mut config = Config::checked(file).map_err(refused)?;
    config.models = config.all_models()?;
    let platform = Platform::open(config).await.map_err(|error| Failure::failed(error.to_string()))?;
    let first = platform.jobs.ensure_operator_key().await.map_err(|error| Failure::failed(error.to_string()))?;
    if let Some(key) = first {
        let text = format!(
            "First start. This operator key is shown once; only its hash is stored:\n\n  export ZOETROPE_API_KEY={}\n",
            key.expose()
        );
        output.result(&json!({ "event": "operator_key", "key": key.expose() }), &text);
    }
    server::serve::run(platform, Arc::new(NoProgress), |address| {
        output.result(&json!({ "event": "listening", "address": address }), &format!("Listening on http://{address}"));
    })
    .await
    .map_err(|error| Failure::failed(format!("{error:#}")))
}
