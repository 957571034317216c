//! How the noise is integrated away: what a request may choose about it, and what a model was trained on.

use crate::error::{StageError, StageResult};
use crate::limits;
use crate::noise_process::NoiseProcess;
use crate::request::{GenerationRequest, in_range, in_range_f32};
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The update rule that integrates the noise away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// First order. With eta above 0 it is ancestral: a part of the noise is drawn anew at every step.
    Euler,
    /// UniPC, predictor and corrector (arXiv 2302.04867).
    Unipc,
    /// DPM-Solver++, multistep (arXiv 2211.01095).
    #[serde(rename = "dpmpp-2m")]
    DpmSolver,
    /// The same as a stochastic equation.
    #[serde(rename = "dpmpp-2m-sde")]
    DpmSolverSde,
    /// DDIM (arXiv 2010.02502).
    Ddim,
    /// DDPM's ancestral sampling (arXiv 2006.11239): DDIM with eta 1.
    Ddpm,
    /// Multistep consistency sampling for distilled models (arXiv 2310.04378).
    Lcm,
}

impl Sampler {
    /// Every sampler.
    pub const ALL: [Self; 7] =
        [Self::Euler, Self::Unipc, Self::DpmSolver, Self::DpmSolverSde, Self::Ddim, Self::Ddpm, Self::Lcm];

    /// The name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Unipc => "unipc",
            Self::DpmSolver => "dpmpp-2m",
            Self::DpmSolverSde => "dpmpp-2m-sde",
            Self::Ddim => "ddim",
            Self::Ddpm => "ddpm",
            Self::Lcm => "lcm",
        }
    }

    /// Orders that it can run at; none when it has but one.
    pub fn orders(self) -> Option<RangeInclusive<u32>> {
        match self {
            Self::Unipc => Some(1..=3),
            Self::DpmSolver | Self::DpmSolverSde => Some(1..=2),
            Self::Euler | Self::Ddim | Self::Ddpm | Self::Lcm => None,
        }
    }

    /// Whether it looks at more than one of the network's answers.
    pub fn is_multistep(self) -> bool {
        self.orders().is_some()
    }

    /// Whether eta changes anything.
    pub fn takes_eta(self) -> bool {
        matches!(self, Self::Euler | Self::Ddim)
    }
}

impl std::str::FromStr for Sampler {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        by_name("sampler", &Self::ALL, Self::name, text)
    }
}

/// UniPC's B(h), which weighs the differences of predictions over a step of h in log signal-to-noise ratio.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SolverType {
    /// B(h) = h: for few steps.
    Bh1,
    /// B(h) = eʰ − 1.
    #[default]
    Bh2,
}

impl std::str::FromStr for SolverType {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        let name = |kind| match kind {
            Self::Bh1 => "bh1",
            Self::Bh2 => "bh2",
        };
        by_name("solver_type", &[Self::Bh1, Self::Bh2], name, text)
    }
}

/// How the noise levels of the steps are spread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SigmaSchedule {
    /// Evenly in time.
    #[default]
    Uniform,
    /// Evenly in σ^(1/7): more steps at little noise (arXiv 2206.00364).
    Karras,
    /// Evenly in ln σ.
    Exponential,
    /// By the quantiles of Beta(0.6, 0.6): more steps at both ends (arXiv 2407.12173).
    Beta,
}

impl SigmaSchedule {
    /// Every schedule.
    pub const ALL: [Self; 4] = [Self::Uniform, Self::Karras, Self::Exponential, Self::Beta];

    /// The name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
        }
    }
}

impl std::str::FromStr for SigmaSchedule {
    type Err = StageError;
    fn from_str(text: &str) -> StageResult<Self> {
        by_name("schedule", &Self::ALL, Self::name, text)
    }
}

/// What one integration does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SamplerSettings {
    /// Update rule.
    pub sampler: Sampler,
    /// Order of a multistep rule; others do not look at it.
    pub solver_order: u32,
    /// UniPC's B(h).
    pub solver_type: SolverType,
    /// Spread of the noise levels.
    pub schedule: SigmaSchedule,
    /// Steps, at least 1.
    pub steps: u32,
    /// Shift of the levels towards high noise: σ′ = s·σ / (1 + (s − 1)·σ). 1 shifts nothing.
    pub shift: f32,
    /// Share of the noise that is drawn anew at each step, from 0 to 1.
    pub eta: f32,
    /// What the model was trained on; not a request's to choose.
    pub process: NoiseProcess,
}

impl SamplerSettings {
    /// Order of multistep rules unless something else is asked for.
    pub const ORDER: u32 = 2;

    /// `sampler` over `steps` steps with everything else as it is usually left.
    pub fn new(sampler: Sampler, steps: u32, shift: f32) -> Self {
        Self {
            sampler,
            solver_order: Self::ORDER,
            solver_type: SolverType::default(),
            schedule: SigmaSchedule::default(),
            steps,
            shift,
            eta: 0.0,
            process: NoiseProcess::default(),
        }
    }

    /// These settings with what `request` says in their place. A field that the chosen sampler does not look at is
    /// refused: silence would hide a mistake.
    pub(crate) fn with(self, request: &GenerationRequest) -> StageResult<Self> {
        let sampler = request.sampler.unwrap_or(self.sampler);
        // A model's own order and eta belong to its own sampler.
        let own = if sampler == self.sampler { self } else { Self { solver_order: Self::ORDER, eta: 0.0, ..self } };
        let schedule = request.schedule.unwrap_or(own.schedule);
        own.check_order(request, sampler)?;
        own.check_applies(request, sampler, schedule)?;
        Ok(Self {
            sampler,
            solver_order: request.solver_order.unwrap_or(own.solver_order),
            solver_type: request.solver_type.unwrap_or(own.solver_type),
            schedule,
            steps: in_range("steps", request.steps.unwrap_or(own.steps), 1, limits::STEPS_MAX, "steps")?,
            shift: in_range_f32("shift", request.shift.unwrap_or(own.shift), 0.01, 100.0)?,
            eta: in_range_f32("eta", request.eta.unwrap_or(own.eta), 0.0, 1.0)?,
            process: own.process,
        })
    }

    fn check_order(&self, request: &GenerationRequest, sampler: Sampler) -> StageResult<()> {
        let refuse = |message: String| Err(StageError::invalid("solver_order", message));
        match (request.solver_order, sampler.orders()) {
            (Some(_), None) => refuse(format!("`{}` has one order only; leave this out", sampler.name())),
            (Some(order), Some(orders)) if !orders.contains(&order) => {
                let (min, max) = orders.into_inner();
                refuse(format!("{order} is out of range: between {min} and {max} with `{}`", sampler.name()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what the chosen sampler would not look at.
    fn check_applies(&self, request: &GenerationRequest, sampler: Sampler, schedule: SigmaSchedule) -> StageResult<()> {
        let name = sampler.name();
        let refuse = |field, message: String| Err(StageError::invalid(field, message));
        let is_flow = self.process == NoiseProcess::Flow;
        let spread = schedule != SigmaSchedule::Uniform;
        if request.solver_type.is_some() && sampler != Sampler::Unipc {
            return refuse("solver_type", format!("only `unipc` looks at this; leave it out with `{name}`"));
        }
        if request.eta.is_some_and(|eta| eta != 0.0) && !sampler.takes_eta() {
            return refuse("eta", format!("`{name}` does not look at this; choose `euler` or `ddim`, or leave it out"));
        }
        if request.shift.is_some() && !is_flow {
            return refuse("shift", "this model is no flow model: its noise schedule has no shift".to_owned());
        }
        if request.shift.is_some() && spread && sampler.is_multistep() {
            let message = format!("`{name}` spreads `{}` levels without a shift; leave it out", schedule.name());
            return refuse("shift", message);
        }
        if request.schedule.is_some()
            && spread
            && !is_flow
            && matches!(sampler, Sampler::Ddim | Sampler::Ddpm | Sampler::Lcm)
        {
            return refuse("schedule", format!("`{name}` visits the levels of training; choose `uniform`"));
        }
        Ok(())
    }
}

fn by_name<T: Copy>(field: &'static str, all: &[T], name: impl Fn(T) -> &'static str, text: &str) -> StageResult<T> {
    all.iter().copied().find(|&kind| name(kind) == text).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|&kind| format!("`{}`", name(kind))).collect();
        StageError::invalid(field, format!("choose one of {}", names.join(", ")))
    })
}
