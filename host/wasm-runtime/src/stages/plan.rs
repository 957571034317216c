//! `plan`: a prompt hook rewrites the request.

use super::wrong_kind;
use crate::call::{Call, Terms};
use crate::host::error::from_guest;
use crate::request::{from_wit, to_wit};
use crate::runtime::WasmRuntime;
use crate::validate::World;
use async_trait::async_trait;
use pipeline::{FunctionRef, GenerationRequest, Plan, StageContext, StageError, StageResult, UsageField};

#[async_trait]
impl Plan for WasmRuntime {
    async fn plan(
        &self,
        cx: &StageContext,
        hook: &FunctionRef,
        request: GenerationRequest,
    ) -> StageResult<GenerationRequest> {
        let world = self.load(hook).await?;
        let World::PromptHook(pre) = world.as_ref() else { return Err(wrong_kind(hook, &world, "prompt hook")) };
        let cpu_ms_max = self.limits.plan_cpu_ms_max;
        let terms = Terms { field: UsageField::PlanCpuMs, cpu_ms_max, frame_bytes_max: 0 };
        let (call, mut store) = Call::open(self, cx, hook, terms).await?;
        let asked = to_wit(&request);
        let outcome = call.drive(async {
            let instance = pre.instantiate_async(&mut store).await?;
            instance.call_plan(&mut store, &asked).await
        });
        let planned = call.judge(outcome.await, &store)?;
        let failure = store.data().host_failure.clone();
        let planned = from_wit(planned.map_err(|error| from_guest(hook.name.as_str(), cx, failure, error))?, &request);
        self.check(&planned).map_err(|error| match error {
            StageError::InvalidArgument { .. } => call.blame(format!("returned an impossible request: {error}")),
            other => other,
        })?;
        Ok(planned)
    }
}

impl WasmRuntime {
    /// Checks what a hook returned like a request from outside.
    fn check(&self, request: &GenerationRequest) -> Result<(), StageError> {
        let defaults = self.services.diffuse.defaults(request.model.as_deref())?;
        request.resolve(&defaults, 0).map(drop)
    }
}
