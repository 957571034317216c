//! Step caching: neighbouring steps do nearly the same, so most blocks of a step can be left out and what they did to the
//! tokens in an earlier step be added again. Off unless asked for: it trades quality for time.

use crate::error::Result;
use kernels::{Dtype, Tensor, linear_combination};

/// When a step's blocks are left out.
#[derive(Debug, Clone, PartialEq)]
pub enum StepCacheRule {
    /// Block 0 always runs; the others are left out while what block 0 does to the tokens differs from what it did when they
    /// last ran by at most `threshold` (relative mean absolute difference; 0.05 is usual). The first-block cache of ParaAttention,
    /// after TeaCache (arXiv 2411.19108).
    FirstBlock {
        /// Largest relative difference.
        threshold: f32,
    },
}

/// How often blocks were left out, counted for each context of each step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepCacheStats {
    /// Passes through all blocks.
    pub computed: u32,
    /// Passes that took an earlier one's blocks.
    pub reused: u32,
}

/// The memory of one denoising through one transformer. A context is known by its place in the calls.
#[derive(Debug)]
pub struct StepCache {
    rule: StepCacheRule,
    clips: Vec<Clip>,
    stats: StepCacheStats,
}

/// What is remembered of one context, in the model's activation type.
#[derive(Debug, Default)]
struct Clip {
    /// What the blocks before the decision did when the others last ran.
    head: Option<Tensor>,
    /// What the blocks after it did.
    tail: Option<Tensor>,
}

impl StepCache {
    /// An empty memory.
    pub fn new(rule: StepCacheRule) -> Self {
        Self { rule, clips: Vec::new(), stats: StepCacheStats::default() }
    }

    /// What it has done so far.
    pub fn stats(&self) -> StepCacheStats {
        self.stats
    }

    /// Blocks that run before the decision.
    pub(super) fn head_blocks(&self) -> usize {
        match self.rule {
            StepCacheRule::FirstBlock { .. } => 1,
        }
    }

    /// Decides for context `clip`: its tokens before block 0 and after the head's blocks → the tokens after the last block
    /// when the rest may be left out.
    pub(super) fn shortcut(&mut self, clip: usize, before: &Tensor, after: &Tensor) -> Result<Option<Tensor>> {
        if self.clips.len() <= clip {
            self.clips.resize_with(clip + 1, Clip::default);
        }
        let StepCacheRule::FirstBlock { threshold } = self.rule;
        let memory = &mut self.clips[clip];
        let head = difference(after, before)?;
        let near = match &memory.head {
            Some(earlier) if earlier.shape() == head.shape() => relative_distance(&head, earlier)? <= threshold,
            _ => false,
        };
        match memory.tail.as_ref().filter(|tail| near && tail.shape() == after.shape()) {
            Some(tail) => {
                self.stats.reused += 1;
                Ok(Some(linear_combination(&[(1.0, after), (1.0, tail)])?))
            }
            None => {
                memory.head = Some(head);
                Ok(None)
            }
        }
    }

    /// Remembers what the blocks after the head did to context `clip`.
    pub(super) fn remember(
        &mut self,
        clip: usize,
        after_head: &Tensor,
        after_all: &Tensor,
        dtype: Dtype,
    ) -> Result<()> {
        self.stats.computed += 1;
        self.clips[clip].tail = Some(difference(after_all, after_head)?.to_dtype(dtype));
        Ok(())
    }
}

fn difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(linear_combination(&[(1.0, a), (-1.0, b)])?)
}

/// mean |a − b| / mean |b|.
fn relative_distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    let absolute = |x: &Tensor| x.to_vec_f32().iter().map(|v| f64::from(v.abs())).sum::<f64>();
    Ok((absolute(&difference(a, b)?) / absolute(b)) as f32)
}
