//! Large pictures are looked at in two sizes and in both directions of time.
//!
//! At half size a motion is half as many pixels, so the network finds motions that it never met in training; at full size
//! it finds what is small. The third answer is that nothing moves. Around each pixel an answer counts the more the better
//! its two pictures, moved to t, agree. The mean over both directions takes away what the network finds one way round
//! only: a clip and its reverse get the same frames. Together 0.5 dB on the clip bikes, for two and a half times the work.

use super::network::{IfNet, Prepared, SIDE_MULTIPLE, enlarge, reduce};
use crate::error::Result;
use kernels::{Tensor, linear_combination};
use pipeline::FrameSize;

/// Pictures whose shorter side is below this are looked at once: at half size too little of them would be left.
const SHORT_SIDE_PX_MIN: u32 = 256;
/// Agreement is compared over cells of 2⁴ = 16 pixels, interpolated between them.
const CELL_HALVINGS: u32 = 4;
/// How firmly the better answer is taken. Looked up on the clip bikes: among 15, 30 and 60 its results differ by 0.04 dB.
const FIRMNESS: f32 = 30.0;

/// A picture at one or two sizes.
#[derive(Debug, Clone)]
pub(super) struct PreparedScales {
    full: Prepared,
    half: Option<Prepared>,
}

fn is_large(size: FrameSize) -> bool {
    size.width.min(size.height) >= SHORT_SIDE_PX_MIN
}

/// Sides of the padded picture are multiples of this.
pub(super) fn side_multiple(size: FrameSize) -> usize {
    if is_large(size) { 2 * SIDE_MULTIPLE } else { SIDE_MULTIPLE }
}

/// Prepares a padded picture [h, w, 3] whose content is of `size`.
pub(super) fn prepare(network: &IfNet, padded: Tensor, size: FrameSize) -> Result<PreparedScales> {
    let half = if is_large(size) { Some(network.prepare(reduce(&padded, 2)?)?) } else { None };
    Ok(PreparedScales { full: network.prepare(padded)?, half })
}

/// The frame at `t`, [h, w, 3], padded and not clamped.
pub(super) fn between(network: &IfNet, first: &PreparedScales, last: &PreparedScales, t: f32) -> Result<Tensor> {
    let Some(there) = in_two_sizes(network, first, last, t)? else {
        return network.forward(&first.full, &last.full, t, |_, _| ());
    };
    let Some(back) = in_two_sizes(network, last, first, 1.0 - t)? else { return Ok(there) };
    Ok(linear_combination(&[(0.5, &there), (0.5, &back)])?)
}

/// The frame at `t` from both sizes; `None` for pictures that have only one.
fn in_two_sizes(network: &IfNet, first: &PreparedScales, last: &PreparedScales, t: f32) -> Result<Option<Tensor>> {
    let (Some(first_half), Some(last_half)) = (&first.half, &last.half) else { return Ok(None) };
    let full = network.find(&first.full, &last.full, t, |_, _| ())?;
    let half = network.find(first_half, last_half, t, |_, _| ())?.doubled()?;
    let (at_full, at_half) = (full.warp(&first.full, &last.full)?, half.warp(&first.full, &last.full)?);
    let still = first.full.cross_fade(&last.full, t)?;
    let answers = [
        Answer { picture: full.blend(&at_full)?, doubt: doubt(&at_full.0, &at_full.1)? },
        Answer { picture: half.blend(&at_half)?, doubt: doubt(&at_half.0, &at_half.1)? },
        Answer { picture: still, doubt: doubt(first.full.image(), last.full.image())? },
    ];
    Ok(Some(weighed(&answers)?))
}

/// One way to make the frame.
struct Answer {
    /// [h, w, 3].
    picture: Tensor,
    /// How little its two pictures agree around each pixel: h · w values.
    doubt: Vec<f32>,
}

/// The mean of the answers, each pixel's weights a softmax of their doubts.
fn weighed(answers: &[Answer]) -> Result<Tensor> {
    let shape = answers[0].picture.shape().to_vec();
    let channels = shape.last().copied().unwrap_or(1);
    let pictures: Vec<Vec<f32>> = answers.iter().map(|answer| answer.picture.to_vec_f32()).collect();
    let mut mean = vec![0.0; pictures[0].len()];
    for (at, pixel) in mean.chunks_exact_mut(channels).enumerate() {
        let least = answers.iter().map(|answer| answer.doubt[at]).fold(f32::INFINITY, f32::min);
        let mut total = 0.0;
        for (answer, picture) in answers.iter().zip(&pictures) {
            let weight = (FIRMNESS * (least - answer.doubt[at])).exp();
            total += weight;
            pixel.iter_mut().zip(&picture[at * channels..]).for_each(|(sum, value)| *sum += weight * value);
        }
        pixel.iter_mut().for_each(|sum| *sum /= total);
    }
    Ok(Tensor::from_vec(mean, &shape)?)
}

/// The disagreement of two pictures [h, w, 3] around each pixel.
fn doubt(first: &Tensor, last: &Tensor) -> Result<Vec<f32>> {
    let mut map = Tensor::from_vec(disagreement(first, last), &[first.shape()[0], first.shape()[1], 1])?;
    for _ in 0..CELL_HALVINGS {
        map = reduce(&map, 2)?;
    }
    Ok(enlarge(&map, 1 << CELL_HALVINGS)?.to_vec_f32())
}

/// Mean absolute difference of each pixel over its channels.
fn disagreement(first: &Tensor, last: &Tensor) -> Vec<f32> {
    let channels = first.shape()[2];
    let differences: Vec<f32> = first.to_vec_f32().iter().zip(last.to_vec_f32()).map(|(a, b)| (a - b).abs()).collect();
    differences.chunks_exact(channels).map(|pixel| pixel.iter().sum::<f32>() / channels as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture 128 wide and 64 high, one grey in its left half and one in its right.
    fn halves(left: f32, right: f32) -> Tensor {
        let values = (0..64 * 128).flat_map(|i| [if i % 128 < 64 { left } else { right }; 3]).collect();
        Tensor::from_vec(values, &[64, 128, 3]).unwrap()
    }

    #[test]
    fn where_its_pictures_agree_better_an_answer_counts_more() {
        let answer = |grey: f32, other: Tensor| Answer {
            picture: halves(grey, grey),
            doubt: doubt(&halves(0.5, 0.5), &other).unwrap(),
        };
        // The first answer's pictures agree on the left, the second's on the right.
        let mean = weighed(&[answer(0.2, halves(0.5, 0.0)), answer(0.8, halves(0.0, 0.5))]).unwrap().to_vec_f32();
        assert!((mean[0] - 0.2).abs() < 1e-3 && (mean[127 * 3] - 0.8).abs() < 1e-3, "{} {}", mean[0], mean[127 * 3]);
    }
}
