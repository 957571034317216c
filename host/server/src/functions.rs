//! Deploying functions: validate, store the component, publish a version.

use crate::platform::Platform;
use control_plane::{ControlError, FunctionKind, Published};
use media::ObjectError;
use pipeline::{FunctionName, TenantId};
use thiserror::Error;
use wasm_runtime::ValidationError;

/// Why a component was not deployed.
#[derive(Debug, Error)]
pub enum PublishError {
    /// It is not a component that Zoetrope can run.
    #[error(transparent)]
    Component(#[from] ValidationError),
    /// The control plane refused or failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The object store failed.
    #[error("the object store failed")]
    Objects(#[from] ObjectError),
}

impl Platform {
    /// Makes `component` the newest version of a function. Publishing the same bytes again changes nothing.
    pub async fn publish(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        component: Vec<u8>,
    ) -> Result<Published, PublishError> {
        let valid = self.runtime.validate(&component).await?;
        let size_bytes = component.len() as u64;
        self.components.put(component).await?;
        let kind = stored_kind(valid.kind);
        Ok(self.jobs.publish_function(tenant, name, kind, valid.digest, size_bytes).await?)
    }

    /// Removes a function, and its components that no other function needs.
    pub async fn unpublish(&self, tenant: &TenantId, name: &FunctionName) -> Result<(), PublishError> {
        for digest in self.jobs.delete_function(tenant, name).await? {
            self.components.delete(&digest).await?;
        }
        Ok(())
    }
}

/// The runtime knows worlds, the control plane records kinds; neither depends on the other.
fn stored_kind(kind: wasm_runtime::FunctionKind) -> FunctionKind {
    match kind {
        wasm_runtime::FunctionKind::PromptHook => FunctionKind::PromptHook,
        wasm_runtime::FunctionKind::SimpleEffect => FunctionKind::SimpleEffect,
        wasm_runtime::FunctionKind::FrameEffect => FunctionKind::FrameEffect,
        wasm_runtime::FunctionKind::Director => FunctionKind::Director,
    }
}
