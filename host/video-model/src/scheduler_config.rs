//! `scheduler/scheduler_config.json`: how a model's authors sample it.

use crate::error::{ModelError, Result};
use pipeline::{
    BetaSchedule, DiscreteProcess, NoiseProcess, Prediction, Sampler, SamplerSettings, SigmaSchedule, SolverType,
    TimestepSpacing,
};
use serde::Deserialize;
use serde_json::Value;

/// The file as diffusers writes it. What is absent has the default of its class.
#[derive(Debug, Deserialize)]
pub(crate) struct SchedulerConfig {
    #[serde(rename = "_class_name", default)]
    class_name: String,
    num_train_timesteps: Option<u32>,
    prediction_type: Option<String>,
    flow_shift: Option<f32>,
    shift: Option<f32>,
    eta: Option<f32>,
    solver_order: Option<u32>,
    solver_type: Option<String>,
    algorithm_type: Option<String>,
    #[serde(default)]
    stochastic_sampling: bool,
    #[serde(default)]
    use_karras_sigmas: Option<bool>,
    #[serde(default)]
    use_exponential_sigmas: Option<bool>,
    #[serde(default)]
    use_beta_sigmas: Option<bool>,
    beta_start: Option<f32>,
    beta_end: Option<f32>,
    beta_schedule: Option<String>,
    timestep_spacing: Option<String>,
    steps_offset: Option<u32>,
    set_alpha_to_one: Option<bool>,
    /// Everything else, looked through for what would change the result.
    #[serde(flatten)]
    other: serde_json::Map<String, Value>,
}

/// Keys that change the result in ways that are not built, unless they are absent, null or this.
const FIXED: [(&str, Option<bool>); 13] = [
    ("predict_x0", Some(true)),
    ("lower_order_final", Some(true)),
    ("euler_at_final", Some(false)),
    ("thresholding", Some(false)),
    ("clip_sample", Some(false)),
    ("rescale_betas_zero_snr", Some(false)),
    ("use_dynamic_shifting", Some(false)),
    ("invert_sigmas", Some(false)),
    ("use_lu_lambdas", Some(false)),
    ("trained_betas", None),
    ("shift_terminal", None),
    ("scale_factors", None),
    ("solver_p", None),
];

impl SchedulerConfig {
    /// The sampling that the file `file` describes, over `steps` steps, with `shift` when it names none.
    pub(crate) fn settings(&self, file: &str, steps: u32, shift: f32) -> Result<SamplerSettings> {
        self.check_fixed(file)?;
        if let Some(count) = self.num_train_timesteps.filter(|&count| count != 1000) {
            return unsupported(file, format!("num_train_timesteps {count}, not 1000,"));
        }
        let sampler = self.sampler(file)?;
        let flow =
            self.class_name.starts_with("FlowMatch") || self.prediction_type.as_deref() == Some("flow_prediction");
        let solver_order = self.solver_order.unwrap_or(SamplerSettings::ORDER);
        if sampler.orders().is_some_and(|orders| !orders.contains(&solver_order)) {
            return unsupported(file, format!("solver_order {solver_order} with {}", self.class_name));
        }
        let named_shift = if self.class_name.starts_with("FlowMatch") { self.shift } else { self.flow_shift };
        let eta = if self.class_name == "LTXEulerAncestralRFScheduler" { self.eta.unwrap_or(1.0) } else { 0.0 };
        Ok(SamplerSettings {
            solver_order,
            solver_type: match (sampler, self.solver_type.as_deref()) {
                // Names of other solvers' types mean the usual one, as in diffusers.
                (Sampler::Unipc, Some(kind)) if !["midpoint", "heun", "logrho"].contains(&kind) => {
                    kind.parse().or_else(|_| unsupported(file, format!("solver_type {kind}")))?
                }
                _ => SolverType::default(),
            },
            schedule: self.schedule(file)?,
            eta,
            process: if flow { NoiseProcess::Flow } else { NoiseProcess::Discrete(self.discrete(file)?) },
            ..SamplerSettings::new(sampler, steps, named_shift.unwrap_or(shift))
        })
    }

    fn sampler(&self, file: &str) -> Result<Sampler> {
        Ok(match self.class_name.as_str() {
            // New noise at each step is what consistency sampling does.
            "FlowMatchEulerDiscreteScheduler" if self.stochastic_sampling => Sampler::Lcm,
            "FlowMatchEulerDiscreteScheduler" | "EulerDiscreteScheduler" => Sampler::Euler,
            "UniPCMultistepScheduler" => Sampler::Unipc,
            "DPMSolverMultistepScheduler" => {
                match (self.algorithm_type.as_deref().unwrap_or("dpmsolver++"), self.solver_type.as_deref()) {
                    (_, Some("heun")) => return unsupported(file, "solver_type heun".to_owned()),
                    ("dpmsolver++", _) => Sampler::DpmSolver,
                    ("sde-dpmsolver++", _) => Sampler::DpmSolverSde,
                    (other, _) => return unsupported(file, format!("algorithm_type {other}")),
                }
            }
            "DDIMScheduler" => Sampler::Ddim,
            "DDPMScheduler" => Sampler::Ddpm,
            "LCMScheduler" | "FlowMatchLCMScheduler" => Sampler::Lcm,
            other => return unsupported(file, format!("scheduler {other}")),
        })
    }

    fn schedule(&self, file: &str) -> Result<SigmaSchedule> {
        let chosen = [
            (self.use_karras_sigmas, SigmaSchedule::Karras),
            (self.use_exponential_sigmas, SigmaSchedule::Exponential),
            (self.use_beta_sigmas, SigmaSchedule::Beta),
        ];
        let mut chosen = chosen.into_iter().filter(|(on, _)| on.unwrap_or(false)).map(|(_, schedule)| schedule);
        match (chosen.next(), chosen.next()) {
            (schedule, None) => Ok(schedule.unwrap_or_default()),
            _ => Err(ModelError::config(file.to_owned(), "choose one of use_karras_sigmas, …_exponential_…, …_beta_…")),
        }
    }

    fn discrete(&self, file: &str) -> Result<DiscreteProcess> {
        let standard = DiscreteProcess::default();
        let process = DiscreteProcess {
            betas: match self.beta_schedule.as_deref().unwrap_or("linear") {
                "linear" => BetaSchedule::Linear,
                "scaled_linear" => BetaSchedule::ScaledLinear,
                other => return unsupported(file, format!("beta_schedule {other}")),
            },
            prediction: match self.prediction_type.as_deref().unwrap_or("epsilon") {
                "epsilon" => Prediction::Epsilon,
                "v_prediction" => Prediction::Velocity,
                "sample" => Prediction::Sample,
                other => return unsupported(file, format!("prediction_type {other}")),
            },
            spacing: match self.timestep_spacing.as_deref() {
                Some("linspace") => TimestepSpacing::Linspace,
                Some("leading") => TimestepSpacing::Leading,
                Some("trailing") => TimestepSpacing::Trailing,
                None if self.class_name.starts_with("DD") => TimestepSpacing::Leading,
                None => TimestepSpacing::Linspace,
                Some(other) => return unsupported(file, format!("timestep_spacing {other}")),
            },
            beta_start: self.beta_start.unwrap_or(standard.beta_start),
            beta_end: self.beta_end.unwrap_or(standard.beta_end),
            steps_offset: self.steps_offset.unwrap_or(0).min(999),
            ends_clean: self.set_alpha_to_one.unwrap_or(true),
        };
        // Written so that NaN fails too.
        if !(process.beta_start > 0.0 && process.beta_start <= process.beta_end && process.beta_end < 1.0) {
            return Err(ModelError::config(file.to_owned(), "0 < beta_start ≤ beta_end < 1 is needed"));
        }
        // DDIM and DDPM clip the picture to −1..=1 unless they are told not to.
        if self.class_name.starts_with("DD") && !self.other.contains_key("clip_sample") {
            return unsupported(file, "clip_sample, which is on when it is not given,".to_owned());
        }
        Ok(process)
    }

    fn check_fixed(&self, file: &str) -> Result<()> {
        for (key, harmless) in FIXED {
            let value = self.other.get(key).filter(|value| !value.is_null());
            if let Some(value) = value.filter(|value| harmless.is_none() || value.as_bool() != harmless) {
                return unsupported(file, format!("{key} {value}"));
            }
        }
        let ends_at_zero = self.other.get("final_sigmas_type").is_none_or(|kind| kind == "zero");
        let small_variance = self.other.get("variance_type").is_none_or(|kind| kind.is_null() || kind == "fixed_small");
        match (ends_at_zero, small_variance) {
            (true, true) => Ok(()),
            (false, _) => unsupported(file, "final_sigmas_type other than zero".to_owned()),
            (true, false) => unsupported(file, "variance_type other than fixed_small".to_owned()),
        }
    }
}

fn unsupported<T>(file: &str, what: String) -> Result<T> {
    Err(ModelError::Unsupported(format!("{what} ({file})")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<SamplerSettings> {
        serde_json::from_value::<SchedulerConfig>(config).unwrap().settings("scheduler_config.json", 50, 3.0)
    }

    #[test]
    fn published_wan_schedulers_are_taken() {
        let unipc = read(json!({
            "_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "prediction_type": "flow_prediction",
            "use_flow_sigmas": true, "solver_order": 3, "solver_type": "bh1", "disable_corrector": [], "sample_max_value": 1.0,
            "thresholding": false, "trained_betas": null, "final_sigmas_type": "zero", "use_karras_sigmas": false,
        }));
        let unipc = unipc.unwrap();
        assert_eq!((unipc.sampler, unipc.shift, unipc.solver_order), (Sampler::Unipc, 5.0, 3));
        assert_eq!((unipc.solver_type, unipc.process), (SolverType::Bh1, NoiseProcess::Flow));
        let euler = read(json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8.0 })).unwrap();
        assert_eq!((euler.sampler, euler.shift, euler.schedule), (Sampler::Euler, 8.0, SigmaSchedule::Uniform));
        let lcm = read(json!({ "_class_name": "FlowMatchLCMScheduler", "use_beta_sigmas": true })).unwrap();
        assert_eq!((lcm.sampler, lcm.shift, lcm.schedule), (Sampler::Lcm, 3.0, SigmaSchedule::Beta));
    }

    #[test]
    fn the_classic_process_of_stable_diffusion_is_taken() {
        let ddim = read(json!({
            "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1, "prediction_type": "epsilon",
        }));
        let NoiseProcess::Discrete(process) = ddim.unwrap().process else { panic!("not a flow") };
        assert_eq!((process.betas, process.steps_offset), (BetaSchedule::ScaledLinear, 1));
        assert_eq!((process.spacing, process.ends_clean), (TimestepSpacing::Leading, false));
        let dpm = read(json!({ "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++",
            "use_karras_sigmas": true, "prediction_type": "v_prediction" }));
        let dpm = dpm.unwrap();
        assert_eq!((dpm.sampler, dpm.schedule), (Sampler::DpmSolverSde, SigmaSchedule::Karras));
    }

    #[test]
    fn what_would_sample_otherwise_is_refused_by_its_key() {
        let unipc = |key: &str, value: Value| {
            let mut config = json!({ "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction" });
            config[key] = value;
            read(config)
        };
        for (key, value) in [
            ("num_train_timesteps", json!(500)),
            ("solver_order", json!(4)),
            ("solver_type", json!("magic")),
            ("predict_x0", json!(false)),
            ("thresholding", json!(true)),
            ("final_sigmas_type", json!("sigma_min")),
            ("use_dynamic_shifting", json!(true)),
            ("trained_betas", json!([0.1])),
            ("prediction_type", json!("magic")),
            ("_class_name", json!("HeunDiscreteScheduler")),
        ] {
            let said = unipc(key, value.clone()).unwrap_err().to_string();
            let expected = if key == "_class_name" { "HeunDiscreteScheduler" } else { key };
            assert!(said.contains(expected) && said.contains("scheduler_config.json"), "{key}: {said}");
        }
        let clipping = read(json!({ "_class_name": "DDIMScheduler" })).unwrap_err().to_string();
        assert!(clipping.contains("clip_sample"), "{clipping}");
        let two = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": true, "use_beta_sigmas": true });
        assert!(read(two).unwrap_err().to_string().contains("choose one"));
    }
}
