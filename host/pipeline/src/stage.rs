//! The stages: one trait each, one name each. The name is also the tracing span, the usage field and the WIT interface.

use crate::control::StageContext;
use crate::error::StageResult;
use crate::frames::{Frame, FrameSize, Frames, KeyFrames};
use crate::ids::{Digest, ObjectKey};
use crate::job::FunctionRef;
use crate::request::{GenerationPlan, GenerationRequest, GivenKeyFrame, ModelDefaults};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// The stations of a job, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Accepted; its quota is reserved.
    Admit,
    /// The tenant's prompt hook rewrites the request; or a director runs.
    Plan,
    /// Text and pictures become conditioning.
    Condition,
    /// Noise becomes key frames.
    Diffuse,
    /// Key frames become frames.
    Interpolate,
    /// The tenant's effects change the frames.
    ApplyEffects,
    /// Frames become a file.
    EncodeVideo,
    /// The file is put where it can be fetched.
    Store,
    /// The reservation is settled and the usage appended. Always runs.
    Record,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 9] = [
        Self::Admit,
        Self::Plan,
        Self::Condition,
        Self::Diffuse,
        Self::Interpolate,
        Self::ApplyEffects,
        Self::EncodeVideo,
        Self::Store,
        Self::Record,
    ];

    /// The stage's one name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Plan => "plan",
            Self::Condition => "condition",
            Self::Diffuse => "diffuse",
            Self::Interpolate => "interpolate",
            Self::ApplyEffects => "apply_effects",
            Self::EncodeVideo => "encode_video",
            Self::Store => "store",
            Self::Record => "record",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Stage {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| format!("no stage is called `{text}`"))
    }
}

/// Finds the bytes of a component version. Implemented over the control plane and the object store.
#[async_trait]
pub trait FunctionCatalog: Send + Sync {
    /// The component with this digest; `Unavailable` when it is not there.
    async fn component(&self, digest: &Digest) -> StageResult<Vec<u8>>;
}

/// `plan`: runs the tenant's prompt hook. Metered as `plan_cpu_ms`.
#[async_trait]
pub trait Plan: Send + Sync {
    /// The request as the hook returns it, checked like one from outside.
    async fn plan(
        &self,
        cx: &StageContext,
        hook: &FunctionRef,
        request: GenerationRequest,
    ) -> StageResult<GenerationRequest>;
}

/// What a director starts from.
#[derive(Debug, Clone)]
pub struct DirectorInput {
    /// The tenant's request.
    pub request: GenerationRequest,
    /// The director's own input, JSON text.
    pub input: String,
    /// Pictures that came with the request; their indices count key frames of the model's default number.
    pub given: Vec<GivenKeyFrame>,
}

/// Runs a tenant's director, which calls diffusion and interpolation itself. Its CPU time is metered as
/// `effects_cpu_ms`, its host calls as those of the stages that they reach.
#[async_trait]
pub trait Direct: Send + Sync {
    /// The frames that the director returned.
    async fn direct(&self, cx: &StageContext, director: &FunctionRef, input: DirectorInput) -> StageResult<Frames>;
}

/// Encoded prompts and pictures: opaque to everyone but the model that made it.
#[derive(Clone)]
pub struct Conditioning(Arc<dyn Any + Send + Sync>);

impl Conditioning {
    /// Wraps the model's own value.
    pub fn new<T: Send + Sync + 'static>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The model's own value; `None` when another model made it.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Conditioning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conditioning(..)")
    }
}

/// `condition`: text and pictures become conditioning. Metered as `condition_gpu_ms`.
#[async_trait]
pub trait Condition: Send + Sync {
    /// Encodes the prompts and given pictures of `plan`.
    async fn condition(&self, cx: &StageContext, plan: &GenerationPlan) -> StageResult<Conditioning>;
}

/// `diffuse`: conditioning becomes key frames. Metered as `diffuse_gpu_ms`.
#[async_trait]
pub trait Diffuse: Send + Sync {
    /// What the named model (none: the default) does by itself; `InvalidArgument` when there is no such model.
    fn defaults(&self, model: Option<&str>) -> StageResult<ModelDefaults>;

    /// `plan.key_frames` pictures of `plan.key_frame_size`. The same plan and conditioning give the same pixels.
    async fn diffuse(
        &self,
        cx: &StageContext,
        plan: &GenerationPlan,
        conditioning: &Conditioning,
    ) -> StageResult<KeyFrames>;
}

/// `interpolate`: key frames become frames. Metered as `interpolate_gpu_ms`.
#[async_trait]
pub trait Interpolate: Send + Sync {
    /// `frame_count` frames of `size`, evenly spread from the first key frame to the last.
    async fn interpolate(
        &self,
        cx: &StageContext,
        key_frames: KeyFrames,
        frame_count: u32,
        fps: u32,
        size: FrameSize,
    ) -> StageResult<Frames>;
}

/// `apply_effects`: one tenant effect changes the frames. Metered as `effects_cpu_ms`.
#[async_trait]
pub trait ApplyEffects: Send + Sync {
    /// The frames as the effect leaves them: as many, of the same size.
    async fn apply_effect(&self, cx: &StageContext, effect: &FunctionRef, frames: Frames) -> StageResult<Frames>;
}

/// A finished file and its previews.
#[derive(Debug, Clone)]
pub struct EncodedVideo {
    /// MP4, H.264, fast start.
    pub mp4: Vec<u8>,
    /// The first frame as WebP.
    pub thumbnail: Vec<u8>,
    /// A grid of frames as JPEG.
    pub spritesheet: Vec<u8>,
    /// Picture size.
    pub size: FrameSize,
    /// Number of frames.
    pub frame_count: u32,
    /// Length.
    pub duration_ms: u64,
}

/// `encode_video`: frames become a file. Metered as `encode_cpu_ms`.
#[async_trait]
pub trait EncodeVideo: Send + Sync {
    /// The frames as a file.
    async fn encode_video(&self, cx: &StageContext, frames: Frames) -> StageResult<EncodedVideo>;
}

/// Where a job's results lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredVideo {
    /// The MP4 file.
    pub video: ObjectKey,
    /// The first frame, WebP.
    pub thumbnail: ObjectKey,
    /// A grid of frames, JPEG.
    pub spritesheet: ObjectKey,
    /// Bytes of all three.
    pub stored_bytes: u64,
    /// Picture size.
    pub size: FrameSize,
    /// Number of frames.
    pub frame_count: u32,
    /// Length.
    pub duration_ms: u64,
}

/// `store`: results are put where they can be fetched, and given pictures are read back. Metered as `stored_bytes`.
#[async_trait]
pub trait Store: Send + Sync {
    /// Puts the results away.
    async fn store(&self, cx: &StageContext, video: EncodedVideo) -> StageResult<StoredVideo>;

    /// Reads and decodes a picture that the request came with.
    async fn given_image(&self, object: &ObjectKey) -> StageResult<Frame>;
}
