//! Steps that reuse what the transformer answered a step ago: faster, and not quite the same video.

use crate::error::{StageError, StageResult};
use crate::options::Options;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Most steps in a row that may be answered from the cache.
const SKIPS_MAX: u32 = 20;

/// What a step may reuse. As text: `none`, `first-block:0.05`, `mag:0.06`, `mag:threshold=0.06,skips=3,retention=0.2`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StepCacheKind {
    /// Nothing: every step runs every block.
    #[default]
    None,
    /// The other blocks' residual, while the first block's differs from the last computed one by less than `threshold`.
    FirstBlock {
        /// Mean absolute change, relative to the mean absolute residual; more is faster and less exact. 0 to 1.
        threshold: f32,
    },
    /// The whole residual, while the error that the known decay of its magnitude predicts stays below `threshold`
    /// (MagCache, arXiv 2506.09045).
    Mag {
        /// Accumulated error, 0 to 1.
        threshold: f32,
        /// Most skipped steps in a row.
        skips: u32,
        /// Share of the schedule, from its start, that is always computed: 0 to 1.
        retention: f32,
    },
}

impl StepCacheKind {
    const HINT: &str = "choose `none`, `first-block:0.05` or `mag:threshold=0.06,skips=3,retention=0.2`";

    /// The same, when its numbers are in range.
    pub(crate) fn checked(self) -> StageResult<Self> {
        let share = 0.0..=1.0;
        let fits = match self {
            Self::None => true,
            Self::FirstBlock { threshold } => share.contains(&threshold),
            Self::Mag { threshold, skips, retention } => {
                share.contains(&threshold) && skips <= SKIPS_MAX && share.contains(&retention)
            }
        };
        if fits {
            return Ok(self);
        }
        let message = format!("`{self}` is out of range: threshold and retention 0 to 1, skips 0 to {SKIPS_MAX}");
        Err(StageError::invalid("step_cache", message))
    }
}

impl FromStr for StepCacheKind {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        let mut options = Options::parse("step_cache", Self::HINT, text);
        let kind = match options.name() {
            "none" => Self::None,
            "first-block" => Self::FirstBlock { threshold: options.take_first("threshold", 0.05)? },
            "mag" => Self::Mag {
                threshold: options.take_first("threshold", 0.06)?,
                skips: options.take("skips", 3)?,
                retention: options.take("retention", 0.2)?,
            },
            _ => return Err(options.refuse()),
        };
        options.nothing_left()?;
        kind.checked()
    }
}

impl fmt::Display for StepCacheKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::FirstBlock { threshold } => write!(f, "first-block:{threshold}"),
            Self::Mag { threshold, skips, retention } => {
                write!(f, "mag:threshold={threshold},skips={skips},retention={retention}")
            }
        }
    }
}

crate::options::text_in_serde!(StepCacheKind);
