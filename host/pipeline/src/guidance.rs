//! How the prompt's answer is set against the negative prompt's.

use crate::error::{StageError, StageResult};
use crate::options::Options;
use crate::request::{GenerationRequest, in_range_f32};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Strongest guidance that is taken.
const SCALE_MAX: f32 = 50.0;
/// Most steps that CFG-Zero* may leave out.
const ZERO_STEPS_MAX: u32 = 10;
/// Largest norm threshold of APG.
const NORM_MAX: f32 = 1e6;

/// How the two answers are combined. As text: `cfg`, `cfg-zero`, `cfg-zero:steps=2`, `apg`,
/// `apg:momentum=-0.5,norm=15,parallel=0`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GuidanceKind {
    /// Classifier-free guidance (arXiv 2207.12598).
    #[default]
    Cfg,
    /// CFG-Zero* (arXiv 2503.18886): the negative answer is scaled to fit the positive one, the first steps are left out.
    CfgZero {
        /// Steps at the start that move nothing.
        zero_steps: u32,
    },
    /// Adaptive projected guidance (arXiv 2410.02416): the part of the difference that lies along the positive answer,
    /// which saturates colours, is turned down.
    Apg {
        /// Share of the differences so far that is added to each new one, −1 to 1; 0 adds none.
        momentum: f32,
        /// The difference is cut to this Euclidean norm over the whole latent; 0 cuts nothing.
        norm: f32,
        /// How much of the parallel part stays, 0 to 1.
        parallel: f32,
    },
}

impl GuidanceKind {
    const HINT: &str = "choose `cfg`, `cfg-zero`, `cfg-zero:steps=2`, `apg` or `apg:momentum=-0.5,norm=15,parallel=0`";

    fn checked(self) -> StageResult<Self> {
        let fits = match self {
            Self::Cfg => true,
            Self::CfgZero { zero_steps } => zero_steps <= ZERO_STEPS_MAX,
            Self::Apg { momentum, norm, parallel } => {
                (-1.0..=1.0).contains(&momentum) && (0.0..=NORM_MAX).contains(&norm) && (0.0..=1.0).contains(&parallel)
            }
        };
        if fits {
            return Ok(self);
        }
        let message = format!(
            "`{self}` is out of range: steps 0 to {ZERO_STEPS_MAX}, momentum -1 to 1, norm 0 to {NORM_MAX}, parallel 0 to 1"
        );
        Err(StageError::invalid("guidance_kind", message))
    }
}

impl FromStr for GuidanceKind {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        let mut options = Options::parse("guidance_kind", Self::HINT, text);
        let kind = match options.name() {
            "cfg" => Self::Cfg,
            "cfg-zero" => Self::CfgZero { zero_steps: options.take("steps", 1)? },
            "apg" => Self::Apg {
                momentum: options.take("momentum", 0.0)?,
                norm: options.take("norm", 15.0)?,
                parallel: options.take("parallel", 1.0)?,
            },
            _ => return Err(options.refuse()),
        };
        options.nothing_left()?;
        kind.checked()
    }
}

impl fmt::Display for GuidanceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cfg => f.write_str("cfg"),
            Self::CfgZero { zero_steps } => write!(f, "cfg-zero:steps={zero_steps}"),
            Self::Apg { momentum, norm, parallel } => {
                write!(f, "apg:momentum={momentum},norm={norm},parallel={parallel}")
            }
        }
    }
}

/// The part of the schedule that is guided (arXiv 2404.07724), in fractions of its steps. As text: `0.1..0.9`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuidanceInterval {
    /// The first guided step is ⌊start · steps⌋.
    pub start: f32,
    /// Step ⌊end · steps⌋ is the first that is not guided any more.
    pub end: f32,
}

impl GuidanceInterval {
    fn checked(self) -> StageResult<Self> {
        // Written so that NaN fails too.
        if self.start >= 0.0 && self.end > self.start && self.end <= 1.0 {
            return Ok(self);
        }
        let message = format!("{self} is no part of the schedule: give two fractions from 0 to 1, like 0.1..0.9");
        Err(StageError::invalid("guidance_interval", message))
    }
}

impl Default for GuidanceInterval {
    fn default() -> Self {
        Self { start: 0.0, end: 1.0 }
    }
}

impl FromStr for GuidanceInterval {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        let ends = text.split_once("..").and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let (start, end) = ends.ok_or_else(|| {
            StageError::invalid("guidance_interval", "write the guided part as START..END, like 0.1..0.9")
        })?;
        Self { start, end }.checked()
    }
}

impl fmt::Display for GuidanceInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Guidance of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GuidanceSettings {
    /// Strength; 1 and less is no guidance.
    pub scale: f32,
    /// How the answers are combined.
    pub kind: GuidanceKind,
    /// How far the result's standard deviation is taken back to the positive answer's (arXiv 2305.08891), 0 to 1.
    pub rescale: f32,
    /// The guided part of the schedule.
    pub interval: GuidanceInterval,
}

impl GuidanceSettings {
    /// Plain classifier-free guidance over the whole schedule.
    pub fn cfg(scale: f32) -> Self {
        Self { scale, kind: GuidanceKind::Cfg, rescale: 0.0, interval: GuidanceInterval::default() }
    }

    /// Whether the negative prompt is looked at in any step: as in diffusers, only for a scale above 1.
    pub fn is_guided(&self) -> bool {
        self.scale > 1.0
    }

    /// Plain guidance at `scale` with what `request` says in its place.
    pub(crate) fn of(request: &GenerationRequest, scale: f32) -> StageResult<Self> {
        Ok(Self {
            scale: in_range_f32("guidance", request.guidance.unwrap_or(scale), 0.0, SCALE_MAX)?,
            kind: request.guidance_kind.unwrap_or_default().checked()?,
            rescale: in_range_f32("guidance_rescale", request.guidance_rescale.unwrap_or(0.0), 0.0, 1.0)?,
            interval: request.guidance_interval.unwrap_or_default().checked()?,
        })
    }
}

crate::options::text_in_serde!(GuidanceKind, GuidanceInterval);
