//! A job as it is stored: plain data, small, without pixels. Pictures are referred to by their object key.

use crate::ids::{Digest, FunctionName, ObjectKey};
use crate::request::GenerationRequest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One version of a tenant's function, with the configuration of this call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionRef {
    /// The function's name, for messages.
    pub name: FunctionName,
    /// The component that runs, fixed when the job was admitted.
    pub digest: Digest,
    /// What `zoetrope:video/config` answers inside the component.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
}

/// Which key frame a given picture stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyFramePosition {
    /// The first key frame: image-to-video.
    First,
    /// The last key frame.
    Last,
}

impl KeyFramePosition {
    /// The key frame's index among `key_frames`.
    pub fn index(self, key_frames: u32) -> u32 {
        match self {
            Self::First => 0,
            Self::Last => key_frames.saturating_sub(1),
        }
    }
}

/// A picture that the request came with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenImage {
    /// Which key frame it is.
    pub position: KeyFramePosition,
    /// Where the uploaded file lies.
    pub object: ObjectKey,
}

/// Who makes the frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Flow {
    /// The stages in their order, with the tenant's hook before them.
    Staged {
        /// Rewrites the request, if there is one.
        prompt_hook: Option<FunctionRef>,
    },
    /// A tenant's director calls diffusion and interpolation itself.
    Directed {
        /// The director.
        director: FunctionRef,
        /// Its own input, JSON text.
        input: String,
    },
}

/// Everything needed to run a job again from its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// What the tenant asked for.
    pub request: GenerationRequest,
    /// Pictures to start from or end at.
    #[serde(default)]
    pub images: Vec<GivenImage>,
    /// Who makes the frames.
    pub flow: Flow,
    /// Effects, applied in this order.
    #[serde(default)]
    pub effects: Vec<FunctionRef>,
}
