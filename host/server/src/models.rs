//! Models by name without an engine: the built-in one, those that `models add` made known, those of the configuration.

use crate::config::Config;
use crate::model_list::{ModelList, ModelListError};
use pipeline::{StageError, StageResult};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
pub use video_model::PartInfo;
use video_model::registry;
pub use video_model::registry::{DEFAULT_MODEL, ModelInfo};

/// The name of a model that was given as a folder.
const FOLDER_MODEL: &str = "local";

/// A model that an engine is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenModel {
    /// What requests call it.
    pub name: String,
    /// Its folder; none for the built-in model.
    pub folder: Option<PathBuf>,
}

impl Config {
    /// Folders by name: the data folder's added models, and the configuration's, which win.
    pub fn all_models(&self) -> Result<Vec<(String, PathBuf)>, ModelListError> {
        let added = ModelList::in_folder(&self.data_dir).read()?.into_iter().map(|(name, model)| (name, model.folder));
        let all: BTreeMap<String, PathBuf> = added.chain(self.models.iter().cloned()).collect();
        Ok(all.into_iter().collect())
    }

    /// The model that the user means: a folder's path, or a name.
    pub fn choose_model(&self, model: &str) -> StageResult<ChosenModel> {
        let models = self.all_models().map_err(|error| StageError::Internal(error.to_string()))?;
        if let Some((name, folder)) = models.iter().find(|(name, _)| name == model) {
            return Ok(ChosenModel { name: name.clone(), folder: Some(folder.clone()) });
        }
        if model == DEFAULT_MODEL {
            return Ok(ChosenModel { name: model.to_owned(), folder: None });
        }
        if Path::new(model).is_dir() {
            return Ok(ChosenModel { name: FOLDER_MODEL.to_owned(), folder: Some(model.into()) });
        }
        let names = models.iter().map(|(name, _)| name.as_str()).chain([DEFAULT_MODEL]).collect::<Vec<_>>().join(", ");
        let shown: String = model.chars().filter(|c| !c.is_control()).take(80).collect();
        let message = format!(
            "`{shown}` is no folder and no model here; choose one of: {names}; `zoetrope models add` makes more known"
        );
        Err(StageError::invalid("model", message))
    }
}

/// What a model is, by its small files and headers.
pub fn describe(model: &ChosenModel) -> StageResult<ModelInfo> {
    registry::describe(&model.name, model.folder.as_deref())
        .map_err(|error| StageError::invalid("model", format!("{}: {error}", model.name)))
}

/// Refuses a folder whose files are not all there or do not fit together.
pub fn check(folder: &Path) -> StageResult<()> {
    registry::check_folder(folder).map_err(|error| StageError::invalid("model", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_list::AddedModel;

    #[test]
    fn added_models_are_known_and_the_configuration_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::in_folder(dir.path());
        let added = |folder: &str| AddedModel { folder: folder.into(), source: folder.to_owned(), downloaded: false };
        let list = ModelList::in_folder(dir.path());
        list.add("a", added("/added/a")).unwrap();
        list.add("b", added("/added/b")).unwrap();
        config.models = vec![("b".to_owned(), "/named/b".into())];
        let folder = |name: &str| config.choose_model(name).unwrap().folder;
        assert_eq!(folder("a"), Some("/added/a".into()));
        assert_eq!(folder("b"), Some("/named/b".into()));
        assert_eq!(folder(DEFAULT_MODEL), None);
        let path = dir.path().to_str().unwrap();
        assert_eq!(config.choose_model(path).unwrap(), ChosenModel { name: "local".into(), folder: Some(path.into()) });
        let refused = config.choose_model("c").unwrap_err().to_string();
        assert!(refused.contains("a, b, default"), "{refused}");
    }
}
