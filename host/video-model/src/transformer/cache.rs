//! Step caching: neighbouring steps do nearly the same, so most blocks of a step can be left out and what they did to the
//! tokens in an earlier step be added again. Off unless asked for: it trades quality for time.
//!
//! The rules are those of diffusers' `FirstBlockCacheConfig` (after TeaCache, arXiv 2411.19108) and `MagCacheConfig`
//! (arXiv 2506.09045). MagCache needs to know how the blocks' effect grows from step to step, which its authors measure once
//! a model. We measure it in the job itself: in the steps that are computed. Left-out steps are taken to grow as the last
//! computed ones did.

use crate::error::Result;
use kernels::{Dtype, Tensor, linear_combination};
use pipeline::StepCacheKind;

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
    rule: Rule,
    clips: Vec<Clip>,
    stats: StepCacheStats,
}

#[derive(Debug)]
enum Rule {
    /// Block 0 always runs; the others are left out while what it does is near to what it did when they last ran.
    FirstBlock { threshold: f32 },
    /// No block runs while the growth of what they do, multiplied up since they last ran, stays near 1.
    Magnitude {
        threshold: f32,
        skips_max: u32,
        /// Steps at the start that are always computed.
        retained: u32,
        /// Growth by step, when it was measured before.
        ratios: Option<Vec<f32>>,
    },
}

/// What is remembered of one context.
#[derive(Debug, Default)]
struct Clip {
    /// Step that comes next.
    step: u32,
    /// What block 0 did when the others last ran.
    head: Option<Tensor>,
    /// What the blocks that can be left out last did.
    tail: Option<Tensor>,
    /// Length of each token's `tail`, its step, and its growth per step since the computed step before.
    magnitude: Option<Magnitude>,
    /// Growth that is assumed since the last computed step, and the sum of its distances from 1 over `skipped` steps.
    growth: f32,
    error: f32,
    skipped: u32,
}

#[derive(Debug)]
struct Magnitude {
    step: u32,
    lengths: Vec<f32>,
    growth_per_step: f32,
}

impl StepCache {
    /// An empty memory for a denoising of `steps` steps; none when nothing is to be remembered.
    pub fn new(kind: StepCacheKind, steps: usize) -> Option<Self> {
        Self::with_ratios(kind, steps, None)
    }

    /// Like [`StepCache::new`], where MagCache uses the growth of each step that was measured in an earlier job.
    pub fn with_ratios(kind: StepCacheKind, steps: usize, ratios: Option<Vec<f32>>) -> Option<Self> {
        let rule = match kind {
            StepCacheKind::None => return None,
            StepCacheKind::FirstBlock { threshold } => Rule::FirstBlock { threshold },
            StepCacheKind::Mag { threshold, skips, retention } => {
                let retained = (retention * steps as f32 + 0.5) as u32;
                Rule::Magnitude { threshold, skips_max: skips, retained, ratios }
            }
        };
        Some(Self { rule, clips: Vec::new(), stats: StepCacheStats::default() })
    }

    /// What it has done so far.
    pub fn stats(&self) -> StepCacheStats {
        self.stats
    }

    /// Blocks that run before the decision.
    pub(super) fn head_blocks(&self) -> usize {
        match self.rule {
            Rule::FirstBlock { .. } => 1,
            Rule::Magnitude { .. } => 0,
        }
    }

    /// Decides for context `clip`: its tokens before block 0 and after the head's blocks → the tokens after the last block
    /// when the rest may be left out. Each step asks once.
    pub(super) fn shortcut(&mut self, clip: usize, before: &Tensor, after: &Tensor) -> Result<Option<Tensor>> {
        if self.clips.len() <= clip {
            self.clips.resize_with(clip + 1, Clip::default);
        }
        let memory = &mut self.clips[clip];
        let step = memory.step;
        memory.step += 1;
        let near = match &self.rule {
            Rule::FirstBlock { threshold } => memory.head_is_near(before, after, *threshold)?,
            Rule::Magnitude { threshold, skips_max, retained, ratios } => {
                let ratio = match (ratios, &memory.magnitude) {
                    (Some(ratios), _) => Some(ratios.get(step as usize).copied().unwrap_or(1.0)),
                    (None, measured) => measured.as_ref().map(|m| m.growth_per_step),
                };
                step >= *retained && memory.growth_is_small(ratio, *threshold, *skips_max)
            }
        };
        match memory.tail.as_ref().filter(|tail| near && tail.shape() == after.shape()) {
            Some(tail) => {
                self.stats.reused += 1;
                Ok(Some(linear_combination(&[(1.0, after), (1.0, tail)])?))
            }
            None => Ok(None),
        }
    }

    /// Remembers what the blocks after the head did to context `clip`, in the model's activation type.
    pub(super) fn remember(
        &mut self,
        clip: usize,
        after_head: &Tensor,
        after_all: &Tensor,
        dtype: Dtype,
    ) -> Result<()> {
        self.stats.computed += 1;
        let tail = difference(after_all, after_head)?;
        let memory = &mut self.clips[clip];
        if let Rule::Magnitude { ratios: None, .. } = self.rule {
            memory.measure(&tail);
        }
        memory.tail = Some(tail.to_dtype(dtype));
        Ok(())
    }
}

impl Clip {
    fn head_is_near(&mut self, before: &Tensor, after: &Tensor, threshold: f32) -> Result<bool> {
        let head = difference(after, before)?;
        let near = match &self.head {
            Some(earlier) if earlier.shape() == head.shape() => relative_distance(&head, earlier)? <= threshold,
            _ => false,
        };
        if !near {
            self.head = Some(head);
        }
        Ok(near)
    }

    /// Takes one more step into account; `ratio` is its growth, when something is known of it.
    fn growth_is_small(&mut self, ratio: Option<f32>, threshold: f32, skips_max: u32) -> bool {
        if let Some(ratio) = ratio {
            let growth = if self.skipped == 0 { 1.0 } else { self.growth };
            self.growth = growth * ratio;
            self.skipped += 1;
            self.error += (1.0 - self.growth).abs();
            if self.tail.is_some() && self.error <= threshold && self.skipped <= skips_max {
                return true;
            }
        }
        (self.error, self.skipped) = (0.0, 0);
        false
    }

    /// The mean growth of the tokens' lengths since the last computed step, spread evenly over the steps between.
    fn measure(&mut self, tail: &Tensor) {
        let width = tail.shape()[1];
        let length = |row: &[f32]| row.iter().map(|v| v * v).sum::<f32>().sqrt();
        let lengths: Vec<f32> = tail.to_vec_f32().chunks_exact(width).map(length).collect();
        let step = self.step - 1;
        // Nothing is known of the first step's growth: it counts as doubling, so that the next one is computed.
        let mut growth_per_step = 2.0;
        if let Some(earlier) = self.magnitude.as_ref().filter(|m| m.lengths.len() == lengths.len() && m.step < step) {
            let ratios = lengths.iter().zip(&earlier.lengths).map(|(now, before)| now / (before + 1e-8));
            let mean = ratios.sum::<f32>() / lengths.len() as f32;
            growth_per_step = mean.powf(1.0 / (step - earlier.step) as f32);
        }
        self.magnitude = Some(Magnitude { step, lengths, growth_per_step });
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One context of one token, whose blocks add `effects[step]`; which steps left them out.
    fn reused(kind: StepCacheKind, ratios: Option<Vec<f32>>, effects: &[f32]) -> Vec<bool> {
        let mut cache = StepCache::with_ratios(kind, effects.len(), ratios).unwrap();
        let x = Tensor::from_vec(vec![1.0, 2.0], &[1, 2]).unwrap();
        let moved = |by: f32| Tensor::from_vec(vec![1.0 + by, 2.0 - by], &[1, 2]).unwrap();
        let mut answer = Vec::new();
        for &effect in effects {
            // Half of the effect is the head's, where there is one.
            let after = if cache.head_blocks() == 1 { moved(effect / 2.0) } else { x.clone() };
            let shortcut = cache.shortcut(0, &x, &after).unwrap();
            answer.push(shortcut.is_some());
            if shortcut.is_none() {
                cache.remember(0, &after, &moved(effect), Dtype::F32).unwrap();
            }
        }
        let stats = cache.stats();
        assert_eq!(stats.reused as usize, answer.iter().filter(|r| **r).count());
        assert_eq!((stats.computed + stats.reused) as usize, effects.len());
        answer
    }

    #[test]
    fn first_block_compares_with_the_last_computed_step() {
        let kind = StepCacheKind::FirstBlock { threshold: 0.05 };
        // 4 % away, then 8 % away from the first step though 4 % from the second.
        assert_eq!(reused(kind, None, &[1.0, 1.04, 1.08, 1.1]), [false, true, false, true]);
    }

    #[test]
    fn magnitude_stops_at_its_error_and_its_number_of_skips() {
        let kind = |threshold, skips| StepCacheKind::Mag { threshold, skips, retention: 0.3 };
        let ratios = Some(vec![0.99; 10]);
        let steady = [1.0; 10];
        // Errors of 0.01, 0.01 + 0.0199, … are within 0.07 thrice (0.0596).
        let three = [false, false, false, true, true, true, false, true, true, true];
        assert_eq!(reused(kind(0.07, 9), ratios.clone(), &steady), three);
        let one = [false, false, false, true, false, true, false, true, false, true];
        assert_eq!(reused(kind(0.07, 1), ratios, &steady), one);
    }

    #[test]
    fn growth_is_measured_in_the_computed_steps() {
        let kind = StepCacheKind::Mag { threshold: 0.05, skips: 2, retention: 0.0 };
        assert_eq!(reused(kind, None, &[1.0, 1.0, 1.0, 1.0, 1.0]), [false, false, true, true, false]);
        assert_eq!(reused(kind, None, &[1.0, 1.2, 1.4, 1.6, 1.8]), [false; 5]);
        // The first two steps differ by 2 %: the third may be left out, the fourth would add up to 0.06.
        assert_eq!(reused(kind, None, &[1.0, 1.02, 1.04, 1.06]), [false, false, true, false]);
    }

    #[test]
    fn contexts_are_decided_apart() {
        let mut cache = StepCache::new(StepCacheKind::FirstBlock { threshold: 0.05 }, 2).unwrap();
        let tensor = |v: f32| Tensor::from_vec(vec![v; 4], &[2, 2]).unwrap();
        for clip in [0, 1] {
            assert!(cache.shortcut(clip, &tensor(0.0), &tensor(1.0)).unwrap().is_none());
            cache.remember(clip, &tensor(1.0), &tensor(3.0 + clip as f32), Dtype::F32).unwrap();
        }
        assert!(cache.shortcut(0, &tensor(0.0), &tensor(2.0)).unwrap().is_none());
        let second = cache.shortcut(1, &tensor(0.0), &tensor(1.01)).unwrap().unwrap();
        assert!((second.to_vec_f32()[0] - 4.01).abs() < 1e-6);
        assert!(StepCache::new(StepCacheKind::None, 2).is_none());
    }
}
