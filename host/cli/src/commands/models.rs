//! `models`.

use crate::args::{ModelPlace, Models};
use crate::failure::{CommandResult, Failure};
use crate::hub::checksums::{Checksums, Verdict};
use crate::hub::{self, HubId};
use crate::output::{Output, table};
use serde_json::json;
use server::model_list::{AddedModel, ModelList, ModelListError};
use server::models::{self, ChosenModel, ModelInfo};
use server::{Config, ConfigFile};
use std::path::{Path, PathBuf};

/// Runs one of the commands.
pub fn run(command: Models, output: Output) -> CommandResult {
    match command {
        Models::List { place } => list(&place, output),
        Models::Show { model, place } => show(&model, &place, output),
        Models::Add { source, name, place } => add(&source, name, &place, output),
        Models::Remove { name, place } => remove(&name, &place, output),
        Models::Verify { name, place } => verify(&name, &place, output),
    }
}

impl ModelPlace {
    /// The checked configuration: models that it names, and the data folder with the added ones.
    pub fn config(&self) -> Result<Config, Failure> {
        let refused = |error: server::ConfigError| Failure::refused(error.to_string());
        let mut file = ConfigFile::read(self.config.as_deref()).map_err(refused)?;
        file.data_dir = self.data_dir.clone().or(file.data_dir);
        Config::checked(file).map_err(refused)
    }
}

impl From<ModelListError> for Failure {
    fn from(error: ModelListError) -> Self {
        match error {
            ModelListError::Io { .. } | ModelListError::Damaged { .. } => Self::failed(error.to_string()),
            _ => Self::refused(error.to_string()),
        }
    }
}

fn list(place: &ModelPlace, output: Output) -> CommandResult {
    let mut rows = vec![["model", "family", "parameters", "weights", "size", "key frames"].map(str::to_owned).to_vec()];
    let mut values = Vec::new();
    let built_in = ChosenModel { name: models::DEFAULT_MODEL.to_owned(), folder: None };
    let others = place.config()?.all_models()?.into_iter();
    let others = others.map(|(name, folder)| ChosenModel { name, folder: Some(folder) });
    for model in std::iter::once(built_in).chain(others) {
        match models::describe(&model) {
            Ok(info) => {
                rows.push(row(&info));
                values.push(serde_json::to_value(&info).map_err(anyhow::Error::from)?);
            }
            // One broken folder must not hide the others.
            Err(error) => {
                rows.push(vec![model.name.clone(), format!("cannot be used: {error}")]);
                values.push(json!({ "name": model.name, "source": model.folder, "error": error.to_string() }));
            }
        }
    }
    output.result(&json!(values), &table(&rows));
    Ok(())
}

fn row(info: &ModelInfo) -> Vec<String> {
    vec![
        info.name.clone(),
        info.family.clone(),
        count(info.parameters),
        size(info.bytes),
        info.defaults.native_size.to_string(),
        info.defaults.key_frames.to_string(),
    ]
}

fn show(model: &str, place: &ModelPlace, output: Output) -> CommandResult {
    let info = models::describe(&place.config()?.choose_model(model)?)?;
    output.result(&serde_json::to_value(&info).map_err(anyhow::Error::from)?, &card(&info));
    Ok(())
}

/// A model for people to read.
fn card(info: &ModelInfo) -> String {
    let defaults = &info.defaults;
    let mut rows = vec![
        ("model".to_owned(), info.name.clone()),
        ("family".to_owned(), info.family.clone()),
        ("from".to_owned(), info.source.clone()),
    ];
    rows.extend(info.licence.clone().map(|licence| ("licence".to_owned(), licence)));
    rows.push(("parameters".to_owned(), count(info.parameters)));
    for part in &info.parts {
        let size = size(part.bytes);
        rows.push((
            format!("  {}", part.name),
            format!("{}, {size}, {}", count(part.parameters), part.dtypes.join(" + ")),
        ));
    }
    let sampling = &defaults.sampling;
    rows.extend([
        ("takes".to_owned(), info.takes.clone()),
        ("diffuses".to_owned(), format!("{} key frames of {}", defaults.key_frames, defaults.native_size)),
        ("memory".to_owned(), info.memory.to_string()),
        ("makes".to_owned(), format!("{} at {} fps, {} ms", defaults.size, defaults.fps, defaults.duration_ms)),
        (
            "sampling".to_owned(),
            format!("{} steps, guidance {}, shift {}", sampling.steps, defaults.guidance, sampling.shift),
        ),
    ]);
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name, value]).collect();
    table(&rows)
}

/// Bytes for people to read.
fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

/// Parameters in the unit in which models are named.
fn count(parameters: u64) -> String {
    match parameters {
        1_000_000_000.. => format!("{:.2} B", parameters as f64 / 1e9),
        _ => format!("{:.2} M", parameters as f64 / 1e6),
    }
}

fn add(source: &str, name: Option<String>, place: &ModelPlace, output: Output) -> CommandResult {
    let (data_dir, list) = data_dir(place)?;
    let folder = Path::new(source);
    let (name, model) = if folder.is_dir() {
        let folder = std::fs::canonicalize(folder).map_err(|error| Failure::refused(format!("{source}: {error}")))?;
        let name = name.unwrap_or_else(|| name_of_folder(&folder));
        let source = folder.display().to_string();
        list.check_name(&name, &source)?;
        models::check(&folder)?;
        (name, AddedModel { folder, source, downloaded: false })
    } else {
        let id: HubId = source.parse()?;
        let name = name.unwrap_or_else(|| id.model_name());
        list.check_name(&name, &id.to_string())?;
        output.note(&format!("Fetching {id} into {}", data_dir.display()));
        let downloaded = hub::download(&id, &data_dir, output)?;
        models::check(&downloaded.folder)?;
        let written = downloaded.checksums.write(&data_dir, &name);
        written
            .map_err(|error| Failure::failed(format!("{}: {error}", Checksums::path(&data_dir, &name).display())))?;
        output.note(&format!("Commit {}; every file has the checksum that the hub names", downloaded.commit));
        (name, AddedModel { folder: downloaded.folder, source: id.to_string(), downloaded: true })
    };
    list.add(&name, model.clone())?;
    let info = models::describe(&ChosenModel { name: name.clone(), folder: Some(model.folder) })?;
    let text = format!("{}\n\n  zoetrope generate --model {name} --prompt \"…\" --out a.mp4", card(&info));
    output.result(&serde_json::to_value(&info).map_err(anyhow::Error::from)?, &text);
    Ok(())
}

/// A folder's name in the form that models have.
fn name_of_folder(folder: &Path) -> String {
    let name = folder.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let name = name.strip_suffix("-diffusers").map_or(name.clone(), str::to_owned);
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}

fn data_dir(place: &ModelPlace) -> Result<(PathBuf, ModelList), Failure> {
    let data_dir = place.config()?.data_dir;
    let list = ModelList::in_folder(&data_dir);
    Ok((data_dir, list))
}

fn remove(name: &str, place: &ModelPlace, output: Output) -> CommandResult {
    let (data_dir, list) = data_dir(place)?;
    let removed = list.remove(name)?;
    drop(std::fs::remove_file(Checksums::path(&data_dir, name)));
    let repository = |model: &AddedModel| model.folder.ancestors().nth(2).map(Path::to_owned);
    let is_shared = list.read()?.values().any(|other| repository(other) == repository(&removed));
    let text = match removed.downloaded && !is_shared {
        true => {
            hub::remove_files(&removed.folder, &data_dir)
                .map_err(|error| Failure::failed(format!("{name} is off the list; its files stay: {error}")))?;
            format!("{name} and its downloaded files are gone")
        }
        false => format!("{name} is off the list; its files stay in {}", removed.folder.display()),
    };
    output.result(
        &json!({ "name": name, "folder": removed.folder, "files_removed": removed.downloaded && !is_shared }),
        &text,
    );
    Ok(())
}

fn verify(name: &str, place: &ModelPlace, output: Output) -> CommandResult {
    let (data_dir, list) = data_dir(place)?;
    let model = list.get(name)?;
    models::check(&model.folder)?;
    let Some(sums) = Checksums::read(&data_dir, name)? else {
        let text = format!("{name}: its files fit together; no checksums were kept, because it was not downloaded");
        output.result(&json!({ "name": name, "checksums": false, "whole": true }), &text);
        return Ok(());
    };
    let mut damaged = Vec::new();
    for (file, sum) in &sums.files {
        match Checksums::verify(&model.folder, file, sum, |_| ()) {
            Verdict::Whole => output.note(&format!("  {file}: whole")),
            Verdict::Changed => damaged.push(format!("{file}: not what was downloaded")),
            Verdict::Missing(error) => damaged.push(format!("{file}: {error}")),
        }
    }
    if !damaged.is_empty() {
        let message = format!("{}; remove the model and add it again", damaged.join("; "));
        return Err(Failure::failed(format!("{name}: {message}")));
    }
    let text = format!("{name}: {} files are what was downloaded", sums.files.len());
    output.result(&json!({ "name": name, "checksums": true, "whole": true, "files": sums.files.len() }), &text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_lends_its_name_in_the_form_that_models_have() {
        let name = |path: &str| name_of_folder(Path::new(path));
        assert_eq!(name("/srv/Wan2.1-T2V-1.3B-Diffusers"), "wan2.1-t2v-1.3b");
        assert_eq!(name("/srv/My model (1)"), "my-model--1-");
    }

    #[test]
    fn parameters_are_counted_in_the_unit_of_the_models_name() {
        assert_eq!((count(1_300_000_000), count(14_288_000)), ("1.30 B".to_owned(), "14.29 M".to_owned()));
    }
}
