//! `apply_effects`: one effect changes the frames of a job, all in one instance.

use super::wrong_kind;
use crate::bindings::frame_effect::FrameEffectPre;
use crate::bindings::simple_effect::{FrameInfo, SimpleEffectPre};
use crate::call::{Call, Terms};
use crate::host::error::from_guest;
use crate::host::frames::FrameList;
use crate::runtime::WasmRuntime;
use crate::state::CallState;
use crate::validate::World;
use async_trait::async_trait;
use pipeline::{
    ApplyEffects, Frame, FrameSize, Frames, FunctionRef, Stage, StageContext, StageError, StageResult, UsageField,
};
use wasmtime::Store;
use wasmtime::component::Resource;

#[async_trait]
impl ApplyEffects for WasmRuntime {
    async fn apply_effect(&self, cx: &StageContext, effect: &FunctionRef, frames: Frames) -> StageResult<Frames> {
        let world = self.load(effect).await?;
        let size = size_of(&frames)?;
        let count = frames.frames.len() as u32;
        let terms = Terms {
            field: UsageField::EffectsCpuMs,
            cpu_ms_max: self.limits.effect_cpu_ms_max,
            frame_bytes_max: size.rgb_bytes(),
        };
        let (call, mut store) = Call::open(self, cx, effect, terms).await?;
        cx.progress.report(Stage::ApplyEffects, 0, count);
        let run = Run { call: &call, cx, effect, store: &mut store };
        match world.as_ref() {
            World::SimpleEffect(pre) => run.frame_by_frame(pre, frames, size).await,
            World::FrameEffect(pre) => run.all_frames(pre, frames, size).await,
            World::PromptHook(_) | World::Director(_) => Err(wrong_kind(effect, &world, "simple or frame effect")),
        }
    }
}

fn size_of(frames: &Frames) -> StageResult<FrameSize> {
    let first = frames.frames.first().ok_or_else(|| StageError::Internal("no frames for an effect".to_owned()))?;
    Ok(first.size())
}

struct Run<'a> {
    call: &'a Call,
    cx: &'a StageContext,
    effect: &'a FunctionRef,
    store: &'a mut Store<CallState>,
}

impl Run<'_> {
    async fn frame_by_frame(
        self,
        pre: &SimpleEffectPre<CallState>,
        mut video: Frames,
        size: FrameSize,
    ) -> StageResult<Frames> {
        let store = &mut *self.store;
        let outcome = self.call.drive(pre.instantiate_async(&mut *store)).await;
        let instance = self.call.judge(outcome, store)?;
        let count = video.frames.len() as u32;
        for (index, frame) in (0..count).zip(&mut video.frames) {
            let info = FrameInfo { size: size.into(), index, count, fps: video.fps };
            let outcome = self.call.drive(instance.call_apply(&mut *store, frame.rgb(), info)).await;
            let pixels = self.call.judge(outcome, store)?;
            let failure = store.data().host_failure.clone();
            let pixels = pixels.map_err(|error| from_guest(self.effect.name.as_str(), self.cx, failure, error))?;
            let got = pixels.len();
            *frame = Frame::new(size, pixels).ok_or_else(|| {
                let want = size.rgb_bytes();
                self.call.blame(format!("returned {got} bytes for frame {index}; a frame of {size} has {want}"))
            })?;
            self.cx.progress.report(Stage::ApplyEffects, index + 1, count);
        }
        Ok(video)
    }

    async fn all_frames(self, pre: &FrameEffectPre<CallState>, video: Frames, size: FrameSize) -> StageResult<Frames> {
        let store = &mut *self.store;
        let (fps, count) = (video.fps, video.frames.len());
        let list = FrameList::new(store.data(), size, fps, video.frames)?;
        let list = store.data_mut().table.push(list).map_err(|error| StageError::Internal(error.to_string()))?;
        let rep = list.rep();
        let outcome = self.call.drive(async {
            let instance = pre.instantiate_async(&mut *store).await?;
            instance.call_apply(&mut *store, Resource::new_borrow(rep)).await
        });
        let applied = self.call.judge(outcome.await, store)?;
        let failure = store.data().host_failure.clone();
        applied.map_err(|error| from_guest(self.effect.name.as_str(), self.cx, failure, error))?;
        let list = store.data_mut().table.delete(list).map_err(|error| StageError::Internal(error.to_string()))?;
        if list.len() != count {
            return Err(self.call.blame(format!("left {} frames; {count} came in, and as many must go", list.len())));
        }
        self.cx.progress.report(Stage::ApplyEffects, count as u32, count as u32);
        Ok(Frames { frames: list.into_frames(), fps })
    }
}
