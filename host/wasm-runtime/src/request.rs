//! A request on its way into a component and back.

use crate::bindings::wit::{Request, Size};
use pipeline::{FrameSize, GenerationRequest};

pub(crate) fn to_wit(request: &GenerationRequest) -> Request {
    Request {
        prompt: request.prompt.clone(),
        negative_prompt: request.negative_prompt.clone(),
        model: request.model.clone(),
        size: request.size.map(Size::from),
        duration_ms: request.duration_ms,
        fps: request.fps,
        key_frames: request.key_frames,
        steps: request.steps,
        guidance: request.guidance,
        shift: request.shift,
        seed: request.seed,
    }
}

/// Unchecked: whoever uses the request resolves it. What the contract does not know passes by the component: it stays as
/// it is in `asked`, the request that the component was given.
pub(crate) fn from_wit(request: Request, asked: &GenerationRequest) -> GenerationRequest {
    GenerationRequest {
        prompt: request.prompt,
        negative_prompt: request.negative_prompt,
        model: request.model,
        size: request.size.map(|size| FrameSize { width: size.width, height: size.height }),
        duration_ms: request.duration_ms,
        fps: request.fps,
        key_frames: request.key_frames,
        steps: request.steps,
        guidance: request.guidance,
        shift: request.shift,
        seed: request.seed,
        ..asked.clone()
    }
}
