//! `models`.

use super::generate::start;
use crate::failure::{CommandResult, Failure};
use crate::output::{Output, table};
use server::local::{EngineOptions, LocalEngine};
use server::{Config, ConfigFile};
use std::path::Path;

fn options(model: Option<&str>) -> EngineOptions {
    EngineOptions { model: model.map(str::to_owned), device: "auto".to_owned(), ..EngineOptions::default() }
}

/// Lists models.
pub fn list(config: Option<&Path>, output: Output) -> CommandResult {
    let refused = |error: server::ConfigError| Failure::refused(error.to_string());
    let config = Config::checked(ConfigFile::read(config).map_err(refused)?).map_err(refused)?;
    let mut rows = vec![["model", "family", "parameters", "MB", "size", "key frames"].map(str::to_owned).to_vec()];
    let mut infos = start(&options(None))?.models()?;
    for (name, path) in &config.models {
        let mut info = start(&options(path.to_str()))?.model_info()?;
        info.name.clone_from(name);
        infos.push(info);
    }
    for info in &infos {
        rows.push(vec![
            info.name.clone(),
            info.family.clone(),
            format!("{:.1} M", info.parameters as f64 / 1e6),
            format!("{:.1}", info.bytes as f64 / 1e6),
            info.defaults.native_size.to_string(),
            info.defaults.key_frames.to_string(),
        ]);
    }
    output.result(&serde_json::to_value(&infos).map_err(anyhow::Error::from)?, &table(&rows));
    Ok(())
}

/// Shows one model.
pub fn show(model: &str, output: Output) -> CommandResult {
    let engine: LocalEngine = start(&options(Some(model)))?;
    let info = engine.model_info()?;
    let defaults = &info.defaults;
    let sampling = &defaults.sampling;
    let rows = [
        ("model", info.name.clone()),
        ("family", info.family.clone()),
        ("parameters", format!("{:.2} M", info.parameters as f64 / 1e6)),
        ("weights", format!("{:.1} MB", info.bytes as f64 / 1e6)),
        ("diffuses", format!("{} key frames of {}", defaults.key_frames, defaults.native_size)),
        ("makes", format!("{} at {} fps, {} ms", defaults.size, defaults.fps, defaults.duration_ms)),
        (
            "sampling",
            format!(
                "{}, {} steps, guidance {}, shift {}",
                sampling.sampler.name(),
                sampling.steps,
                defaults.guidance,
                sampling.shift
            ),
        ),
    ];
    let rows: Vec<_> = rows.map(|(name, value)| vec![name.to_owned(), value]).into();
    output.result(&serde_json::to_value(&info).map_err(anyhow::Error::from)?, &table(&rows));
    Ok(())
}
