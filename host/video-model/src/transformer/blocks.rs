//! The blocks of a transformer: all in memory, or read from the mapped weight files one after another.
//!
//! A streamed block is packed while the one before it runs, so two are in memory at a time, and its bytes are those that a
//! resident one has. What streaming costs is reading and packing every weight in each pass.

use super::block::Block;
use super::config::TransformerConfig;
use crate::error::Result;
use crate::precision::Precision;
use crate::weights::{Scope, Weights};
use kernels::{Arena, CudaDevice};
use std::ops::Range;
use std::sync::Arc;

/// Where the blocks of a transformer are between passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Residency {
    /// In memory, packed once.
    #[default]
    Resident,
    /// In their files, which stay mapped.
    Streamed,
}

pub(super) enum BlockStore {
    Resident(Vec<Block>),
    Streamed(StreamedBlocks),
}

pub(super) struct StreamedBlocks {
    weights: Arc<Weights>,
    config: TransformerConfig,
    precision: Precision,
}

impl BlockStore {
    /// Packs all blocks of the model in `scope`.
    pub(super) fn resident(scope: &Scope<'_>, config: &TransformerConfig, precision: Precision) -> Result<Self> {
        let blocks = scope.at("blocks");
        let load = |i| Block::load(&blocks.at(i), config, precision);
        Ok(Self::Resident((0..config.num_layers).map(load).collect::<Result<_>>()?))
    }

    /// Leaves them where they are, after packing each once: a file that is damaged is refused now, not in the middle of a
    /// job.
    pub(super) fn streamed(weights: Arc<Weights>, config: &TransformerConfig, precision: Precision) -> Result<Self> {
        let blocks = StreamedBlocks { weights, config: config.clone(), precision };
        (0..config.num_layers).try_for_each(|i| blocks.load(i).map(drop))?;
        Ok(Self::Streamed(blocks))
    }

    pub(super) fn is_resident(&self) -> bool {
        matches!(self, Self::Resident(_))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Resident(blocks) => blocks.len(),
            Self::Streamed(blocks) => blocks.config.num_layers,
        }
    }

    /// Calls `work` with each block of `range` in order, until one fails.
    pub(super) fn each(&self, range: Range<usize>, mut work: impl FnMut(usize, &Block) -> Result<()>) -> Result<()> {
        match self {
            Self::Resident(blocks) => range.into_iter().try_for_each(|i| work(i, &blocks[i])),
            Self::Streamed(blocks) => blocks.each(range, work),
        }
    }
}

impl StreamedBlocks {
    fn load(&self, index: usize) -> Result<Block> {
        Block::load(&self.weights.scope("").at("blocks").at(index), &self.config, self.precision)
    }

    fn each(&self, range: Range<usize>, mut work: impl FnMut(usize, &Block) -> Result<()>) -> Result<()> {
        let mut loaded = None;
        for index in range.clone() {
            let block = match loaded.take() {
                Some(block) => block?,
                None => self.load(index)?,
            };
            if index + 1 == range.end {
                return work(index, &block);
            }
            // The next block is packed by whichever thread of the pool is free first, in the memory of this one.
            let (arena, device) = (Arena::current(), CudaDevice::current());
            let next = &mut loaded;
            rayon::in_place_scope(|pool| {
                pool.spawn(move |_| {
                    let load = || match &device {
                        Some(device) => device.scope(|| self.load(index + 1)),
                        None => self.load(index + 1),
                    };
                    *next = Some(arena.map_or_else(load, |arena| arena.scope(load)));
                });
                work(index, &block)
            })?;
        }
        Ok(())
    }
}
