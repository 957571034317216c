//! Passes of a device that are recorded once and replayed: hundreds of launches become one.

use super::{Context, Timestep, WanTransformer};
use crate::error::Result;
use crate::lora::Adapters;
use kernels::{CudaDevice, CudaGraph, RopeTable, Tensor};
use std::sync::Arc;

/// A pass of one transformer over inputs of one shape, with the contexts and adapters that it was recorded with.
///
/// Its memory (what lies between the layers) is its own for as long as it lives. The transformer, the contexts and the
/// adapters must live as long: a replay reads their weights where they were.
#[derive(Debug)]
pub struct RecordedPass {
    graph: CudaGraph,
    latent: Tensor,
    waves: Tensor,
    answers: Vec<Tensor>,
    /// The transformer keeps the last grid's table only; jobs of other sizes run between replays.
    _rope: Arc<RopeTable>,
}

impl WanTransformer {
    /// Records [`WanTransformer::forward`] on `device` without a step cache, for any latent and timestep of these shapes.
    ///
    /// The same pass must have run before: what is made when first needed (keys and values of the contexts, plans of
    /// products) cannot be made while recording. Streamed blocks cannot be recorded either.
    pub fn record(
        &self,
        device: &CudaDevice,
        latent: &Tensor,
        timestep: Timestep<'_>,
        contexts: &[&Context],
        adapters: Option<&Adapters>,
    ) -> Result<RecordedPass> {
        let grid = self.grid(latent)?;
        let waves = self.time.waves(timestep, grid[0])?.tensor()?;
        let latent = latent.duplicate()?;
        let rope = self.rope_table(grid)?;
        rope.copy_to(device)?;
        let (answers, graph) = device.capture(|| {
            // An error of ours ends the recording as one of the device's would; it is told as it is afterwards.
            Ok(self.pass(&latent, &waves, &rope, contexts, adapters, None, &mut |_, _| ()))
        })?;
        Ok(RecordedPass { graph, latent, waves, answers: answers?, _rope: rope })
    }

    /// Whether passes can be recorded at all.
    pub fn is_recordable(&self) -> bool {
        self.blocks.is_resident()
    }

    /// What [`WanTransformer::forward`] gives for another latent and timestep. None when the shapes are not those that were
    /// recorded. The answers are overwritten by the next replay.
    pub fn replay(
        &self,
        recorded: &mut RecordedPass,
        latent: &Tensor,
        timestep: Timestep<'_>,
    ) -> Result<Option<Vec<Tensor>>> {
        let waves = self.time.waves(timestep, self.grid(latent)?[0])?;
        if latent.shape() != recorded.latent.shape() || waves.groups != recorded.waves.shape()[0] {
            return Ok(None);
        }
        recorded.latent.overwrite(latent)?;
        recorded.waves.write_f32(&waves.values)?;
        recorded.graph.launch()?;
        Ok(Some(recorded.answers.clone()))
    }
}
