//! Models from a hub: what to fetch, fetching it, and proving later that it is still whole.

pub mod checksums;
mod download;
mod files;

pub use download::{download, remove_files};

use crate::failure::Failure;
use std::fmt;
use std::str::FromStr;

/// Where models come from unless `HF_ENDPOINT` says otherwise.
pub const ENDPOINT_DEFAULT: &str = "https://huggingface.co";
const REVISION_DEFAULT: &str = "main";

/// `owner/name` or `owner/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `owner/name`.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl HubId {
    /// What to call the model when nobody says: the name in small letters, without the layout's.
    pub fn model_name(&self) -> String {
        let name = self.repository.split('/').next_back().unwrap_or_default().to_ascii_lowercase();
        name.strip_suffix("-diffusers").map_or(name.clone(), str::to_owned)
    }
}

impl FromStr for HubId {
    type Err = Failure;
    fn from_str(text: &str) -> Result<Self, Failure> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, REVISION_DEFAULT));
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && part.len() <= 96 && part.chars().all(allowed) && !part.starts_with('.')
        };
        let is_repository = repository.split('/').count() == 2 && repository.split('/').all(plain);
        let is_revision = !revision.is_empty() && revision.split('/').all(plain);
        if !is_repository || !is_revision {
            return Err(Failure::refused(format!(
                "`{text}` is neither a folder nor a hub's id like `Wan-AI/Wan2.1-T2V-1.3B-Diffusers` or `owner/name@revision`"
            )));
        }
        Ok(Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_an_owner_a_name_and_perhaps_a_revision() {
        let id: HubId = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers".parse().unwrap();
        assert_eq!((id.model_name().as_str(), id.revision.as_str()), ("wan2.1-t2v-1.3b", "main"));
        assert_eq!("a/b@refs/pr/1".parse::<HubId>().unwrap().to_string(), "a/b@refs/pr/1");
        for text in ["", "a", "a/b/c", "a/b@", "../b", "a/..", "a/b@../c", "a b/c", "https://x/y"] {
            assert!(text.parse::<HubId>().is_err(), "{text}");
        }
    }
}
