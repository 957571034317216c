//! `zoetrope:video/diffusion`.

use crate::bindings::interfaces::diffusion::{Given, Host};
use crate::bindings::wit::Request;
use crate::host::frames::FrameList;
use crate::host::{EngineAccess, HostError};
use crate::request::from_wit;
use crate::state::CallState;
use pipeline::limits::FPS_MAX;
use pipeline::{GenerationPlan, GivenKeyFrame, KeyFrames, StageError, StageResult};
use wasmtime::component::Resource;

impl Host for CallState {
    async fn generate(&mut self, request: Request, given: Vec<Given>) -> Result<Resource<FrameList>, HostError> {
        let request = from_wit(request, &self.asked);
        let defaults = self.engine.services.diffuse.defaults(request.model.as_deref())?;
        let mut plan = request.resolve(&defaults, self.asked.seed.unwrap_or(0))?;
        plan.given = self.given_key_frames(&plan, given)?;
        let engine = self.engine.clone();
        let key_frames = engine.call(engine.key_frames(&plan)).await?;
        let list = FrameList::new(self, plan.key_frame_size, nominal_fps(&plan), key_frames.frames)?;
        Ok(self.table.push(list)?)
    }
}

impl EngineAccess {
    async fn key_frames(&self, plan: &GenerationPlan) -> StageResult<KeyFrames> {
        self.cx.check_may_continue()?;
        let conditioning = self.services.condition.condition(&self.cx, plan).await?;
        self.cx.check_may_continue()?;
        self.services.diffuse.diffuse(&self.cx, plan, &conditioning).await
    }
}

impl CallState {
    fn given_key_frames(&self, plan: &GenerationPlan, given: Vec<Given>) -> Result<Vec<GivenKeyFrame>, HostError> {
        let mut pictures = Vec::with_capacity(given.len().min(plan.key_frames as usize));
        for Given { key_frame, source, index } in given {
            if key_frame >= plan.key_frames {
                let message = format!("there is no key frame {key_frame}; this request has {}", plan.key_frames);
                return Err(StageError::invalid("given", message).into());
            }
            // One picture a key frame: the list's length is the component's to choose.
            pictures.retain(|other: &GivenKeyFrame| other.index != key_frame);
            let frame = self.table.get(&source)?.picture(index)?;
            pictures.push(GivenKeyFrame { index: key_frame, frame: frame.as_ref().clone() });
        }
        Ok(pictures)
    }
}

/// Key frames in a second of the video that they are for.
fn nominal_fps(plan: &GenerationPlan) -> u32 {
    let rate = u64::from(plan.key_frames) * u64::from(plan.fps) / u64::from(plan.frame_count.max(1));
    rate.clamp(1, u64::from(FPS_MAX)) as u32
}
