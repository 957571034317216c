//! What a job used, in integers. `gpu` is the accelerator that ran the model, which may be the CPU engine.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// One counter of [`Usage`]; its name is the stage's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageField {
    /// CPU time inside the prompt hook.
    PlanCpuMs,
    /// Device time of the text and image encoders.
    ConditionGpuMs,
    /// Device time of denoising and decoding.
    DiffuseGpuMs,
    /// Device time of frame interpolation.
    InterpolateGpuMs,
    /// CPU time inside effect components and directors.
    EffectsCpuMs,
    /// CPU time of the video encoder.
    EncodeCpuMs,
    /// Bytes put into the object store.
    StoredBytes,
}

/// What one attempt of a job used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// CPU time inside the prompt hook.
    pub plan_cpu_ms: u64,
    /// Device time of the text and image encoders.
    pub condition_gpu_ms: u64,
    /// Device time of denoising and decoding.
    pub diffuse_gpu_ms: u64,
    /// Device time of frame interpolation.
    pub interpolate_gpu_ms: u64,
    /// CPU time inside effect components and directors.
    pub effects_cpu_ms: u64,
    /// CPU time of the video encoder.
    pub encode_cpu_ms: u64,
    /// Bytes put into the object store.
    pub stored_bytes: u64,
}

impl Usage {
    /// All device time: what quotas and budgets count.
    pub fn gpu_ms(&self) -> u64 {
        self.condition_gpu_ms + self.diffuse_gpu_ms + self.interpolate_gpu_ms
    }

    /// All CPU time.
    pub fn cpu_ms(&self) -> u64 {
        self.plan_cpu_ms + self.effects_cpu_ms + self.encode_cpu_ms
    }
}

/// Counts while the job runs. It is read after a failure too, so nothing used goes unrecorded.
#[derive(Debug, Default)]
pub struct UsageMeter {
    counters: [AtomicU64; 7],
}

impl UsageMeter {
    /// Adds to one counter.
    pub fn add(&self, field: UsageField, amount: u64) {
        self.counters[field as usize].fetch_add(amount, Ordering::SeqCst);
    }

    /// Takes back all device time counted so far, and tells how much it was: nobody pays for what a broken device did.
    pub fn take_gpu_ms(&self) -> u64 {
        let fields = [UsageField::ConditionGpuMs, UsageField::DiffuseGpuMs, UsageField::InterpolateGpuMs];
        fields.map(|field| self.counters[field as usize].swap(0, Ordering::SeqCst)).iter().sum()
    }

    /// The counters as they stand.
    pub fn snapshot(&self) -> Usage {
        let read = |field: UsageField| self.counters[field as usize].load(Ordering::SeqCst);
        Usage {
            plan_cpu_ms: read(UsageField::PlanCpuMs),
            condition_gpu_ms: read(UsageField::ConditionGpuMs),
            diffuse_gpu_ms: read(UsageField::DiffuseGpuMs),
            interpolate_gpu_ms: read(UsageField::InterpolateGpuMs),
            effects_cpu_ms: read(UsageField::EffectsCpuMs),
            encode_cpu_ms: read(UsageField::EncodeCpuMs),
            stored_bytes: read(UsageField::StoredBytes),
        }
    }
}
