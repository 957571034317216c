//! The order of a video job and the nouns that its stages hand to one another.
//!
//! A job is a sequence of stages: `plan → condition → diffuse → interpolate → apply_effects → encode_video → store`,
//! with `record` after it whatever happened. Each stage is a trait in [`stage`]; [`life::run`] is the order.
//! The crates that implement the stages (`wasm-runtime`, `video-model`, `media`) depend on this one and not on each
//! other. There is no I/O here, no async runtime, no tensor, no HTTP status and no tenant's name.

pub mod clock;
pub mod control;
pub mod error;
pub mod frames;
pub mod guidance;
pub mod ids;
pub mod job;
pub mod life;
pub mod limits;
pub mod lora;
pub mod noise_process;
mod options;
pub mod pictures;
pub mod request;
pub mod sampling;
pub mod stage;
pub mod step_cache;
pub mod usage;

pub use clock::{Clock, ManualClock, SystemClock};
pub use control::{CancelToken, DeviceSlot, NoProgress, Progress, StageContext};
pub use error::{StageError, StageResult};
pub use frames::{Frame, FrameSize, Frames, KeyFrames};
pub use guidance::{GuidanceInterval, GuidanceKind, GuidanceSettings};
pub use ids::{Digest, FunctionName, JobId, Lane, ObjectKey, TenantId};
pub use job::{Flow, FunctionRef, GivenImage, JobSpec, KeyFramePosition};
pub use lora::{LoraChoice, LoraExpert};
pub use noise_process::{BetaSchedule, DiscreteProcess, NoiseProcess, Prediction, TimestepSpacing};
pub use pictures::{PicturesTaken, Taken};
pub use request::{GenerationPlan, GenerationRequest, GivenKeyFrame, ModelDefaults};
pub use sampling::{Sampler, SamplerSettings, SigmaSchedule, SolverType};
pub use stage::{
    ApplyEffects, Condition, Conditioning, Diffuse, Direct, DirectorInput, EncodeVideo, EncodedVideo, FunctionCatalog,
    Interpolate, Plan, Stage, Store, StoredVideo,
};
pub use step_cache::StepCacheKind;
pub use usage::{Usage, UsageField, UsageMeter};
