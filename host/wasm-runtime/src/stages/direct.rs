//! A director makes the whole video.

use super::wrong_kind;
use crate::call::{Call, Terms};
use crate::host::error::from_guest;
use crate::host::frames::FrameList;
use crate::limits::FRAME_BYTES_MAX;
use crate::request::to_wit;
use crate::runtime::WasmRuntime;
use crate::state::CallState;
use crate::validate::World;
use async_trait::async_trait;
use pipeline::limits::DIRECTOR_INPUT_BYTES_MAX;
use pipeline::{
    Direct, DirectorInput, FrameSize, Frames, FunctionRef, GivenKeyFrame, StageContext, StageError, StageResult,
    UsageField,
};
use wasmtime::component::Resource;

#[async_trait]
impl Direct for WasmRuntime {
    async fn direct(&self, cx: &StageContext, director: &FunctionRef, input: DirectorInput) -> StageResult<Frames> {
        if input.input.len() > DIRECTOR_INPUT_BYTES_MAX {
            let message = format!("{} bytes long; at most {DIRECTOR_INPUT_BYTES_MAX} are taken", input.input.len());
            return Err(StageError::invalid("input", message));
        }
        let world = self.load(director).await?;
        let World::Director(pre) = world.as_ref() else { return Err(wrong_kind(director, &world, "director")) };
        let cpu_ms_max = self.limits.director_cpu_ms_max;
        let terms = Terms { field: UsageField::EffectsCpuMs, cpu_ms_max, frame_bytes_max: FRAME_BYTES_MAX };
        let (call, mut store) = Call::open(self, cx, director, terms).await?;
        let given = given_list(store.data_mut(), input.given)?;
        let (request, text) = (to_wit(&input.request), input.input);
        store.data_mut().asked = input.request;
        let outcome = call.drive(async {
            let instance = pre.instantiate_async(&mut store).await?;
            instance.call_run(&mut store, &request, &text, given).await
        });
        let made = call.judge(outcome.await, &store)?;
        let failure = store.data().host_failure.clone();
        let list = made.map_err(|error| from_guest(director.name.as_str(), cx, failure, error))?;
        let list = store.data_mut().table.delete(list).map_err(|error| StageError::Internal(error.to_string()))?;
        finished(&call, list)
    }
}

/// The request's pictures as one list, in the order of their key frames.
fn given_list(state: &mut CallState, mut given: Vec<GivenKeyFrame>) -> StageResult<Option<Resource<FrameList>>> {
    given.sort_by_key(|picture| picture.index);
    let Some(size) = given.first().map(|picture| picture.frame.size()) else { return Ok(None) };
    if given.iter().any(|picture| picture.frame.size() != size) {
        return Err(StageError::invalid("images", "a director gets its pictures as one list: give them the same size"));
    }
    let list = FrameList::new(state, size, 1, given.into_iter().map(|picture| picture.frame).collect())?;
    let list = state.table.push(list).map_err(|error| StageError::Internal(error.to_string()))?;
    Ok(Some(list))
}

/// The director's frames, when they make a video.
fn finished(call: &Call, list: FrameList) -> StageResult<Frames> {
    if list.len() == 0 {
        return Err(call.blame("returned a video without frames"));
    }
    let size = list.size();
    FrameSize::checked(size.width, size.height)
        .map_err(|error| call.blame(format!("returned frames that are no video: {error}")))?;
    let fps = list.fps();
    Ok(Frames { frames: list.into_frames(), fps })
}
