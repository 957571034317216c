//! Moving elements without arithmetic: channel order, patches, joining and cutting channels.
//!
//! These are pure copies, so they are their own reference.

pub(crate) mod cuda;

use crate::cuda::device_of;
use crate::error::{Result, argument_error, shape_error};
use crate::tensor::Tensor;

/// [c, d₁, d₂, …] → [d₁, d₂, …, c]: torch's channels-first order to ours.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    let &[c, ref rest @ ..] = x.shape() else { return shape_error("channels_last", "x has no dimensions") };
    let pixels: usize = rest.iter().product();
    let shape: Vec<usize> = rest.iter().copied().chain([c]).collect();
    if let Some(device) = device_of("channels_last", &[x])? {
        return cuda::transpose(&device, x, [c, pixels], &shape);
    }
    Ok(x.rearranged(&shape, |i| (i % c) * pixels + i / c))
}

/// [d₁, d₂, …, c] → [c, d₁, d₂, …]: the inverse of [`channels_last`].
pub fn channels_first(x: &Tensor) -> Result<Tensor> {
    let &[ref rest @ .., c] = x.shape() else { return shape_error("channels_first", "x has no dimensions") };
    let pixels: usize = rest.iter().product();
    let shape: Vec<usize> = [c].into_iter().chain(rest.iter().copied()).collect();
    if let Some(device) = device_of("channels_first", &[x])? {
        return cuda::transpose(&device, x, [pixels, c], &shape);
    }
    Ok(x.rearranged(&shape, |i| (i % pixels) * c + i / pixels))
}

/// Cuts a clip into patches: [f, h, w, c] → [tokens, c·pf·ph·pw], tokens frame by frame, row by row.
///
/// A token's values are in the order (c, pf, ph, pw), which is that of a flattened Conv3d weight: `patch_embed` with
/// kernel = stride is `patchify` and then `linear` with the weight reshaped to [n, c·pf·ph·pw].
pub fn patchify(x: &Tensor, patch: [usize; 3]) -> Result<Tensor> {
    const OP: &str = "patchify";
    let &[f, h, w, c] = x.shape() else { return shape_error(OP, format!("x is {:?}, needs [f, h, w, c]", x.shape())) };
    let [pf, ph, pw] = check_patch(OP, patch)?;
    if !f.is_multiple_of(pf) || !h.is_multiple_of(ph) || !w.is_multiple_of(pw) {
        return shape_error(OP, format!("{f}x{h}x{w} does not divide into patches of {pf}x{ph}x{pw}"));
    }
    let size = c * pf * ph * pw;
    let (frames, rows, columns) = (f / pf, h / ph, w / pw);
    let shape = [frames * rows * columns, size];
    if let Some(device) = device_of(OP, &[x])? {
        let extents = [frames, rows, columns, c, pf, ph, pw];
        let strides = [pf * h * w * c, ph * w * c, pw * c, 1, h * w * c, w * c, c];
        return cuda::permute(&device, x, extents, strides, &shape);
    }
    Ok(x.rearranged(&shape, |i| {
        let (token, at) = (i / size, i % size);
        let (channel, df, dy, dx) = (at / (pf * ph * pw), at / (ph * pw) % pf, at / pw % ph, at % pw);
        let (frame, y, x) =
            (token / (rows * columns) * pf + df, token / columns % rows * ph + dy, token % columns * pw + dx);
        ((frame * h + y) * w + x) * c + channel
    }))
}

/// Joins patches to a clip: [tokens, pf·ph·pw·c] → [f, h, w, c] for a grid of `[f / pf, h / ph, w / pw]` tokens.
///
/// A token's values are in the order (pf, ph, pw, c), as Wan's `proj_out` gives them: not the order of [`patchify`].
pub fn unpatchify(tokens: &Tensor, grid: [usize; 3], patch: [usize; 3]) -> Result<Tensor> {
    const OP: &str = "unpatchify";
    let [pf, ph, pw] = check_patch(OP, patch)?;
    let [frames, rows, columns] = grid;
    let size = match *tokens.shape() {
        [t, size] if t == frames * rows * columns && size.is_multiple_of(pf * ph * pw) => size,
        _ => return shape_error(OP, format!("{:?} does not fit grid {grid:?} and patch {patch:?}", tokens.shape())),
    };
    let c = size / (pf * ph * pw);
    let (h, w) = (rows * ph, columns * pw);
    let shape = [frames * pf, h, w, c];
    if let Some(device) = device_of(OP, &[tokens])? {
        let extents = [frames, pf, rows, ph, columns, pw, c];
        let strides = [rows * columns * size, ph * pw * c, columns * size, pw * c, size, c, 1];
        return cuda::permute(&device, tokens, extents, strides, &shape);
    }
    Ok(tokens.rearranged(&shape, |i| {
        let (channel, x, y, frame) = (i % c, i / c % w, i / (c * w) % h, i / (c * w * h));
        let token = (frame / pf * rows + y / ph) * columns + x / pw;
        token * size + ((frame % pf * ph + y % ph) * pw + x % pw) * c + channel
    }))
}

/// Joins tensors along the last dimension; the others and the dtypes must agree.
pub fn concat_channels(parts: &[&Tensor]) -> Result<Tensor> {
    const OP: &str = "concat_channels";
    let Some(first) = parts.first() else { return argument_error(OP, "needs at least one tensor") };
    let outer = |t: &Tensor| t.shape()[..t.shape().len() - 1].to_vec();
    if let Some(odd) = parts.iter().find(|p| outer(p) != outer(first)) {
        return shape_error(OP, format!("{:?} and {:?} differ before the last dimension", first.shape(), odd.shape()));
    }
    Tensor::concat_inner(OP, parts)
}

/// Channels `start..start + count` of the last dimension.
pub fn slice_channels(x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    let &[ref outer @ .., c] = x.shape() else { return shape_error("slice_channels", "x has no dimensions") };
    if start.checked_add(count).is_none_or(|end| end > c) {
        return argument_error("slice_channels", format!("{count} channels from {start} are not within {c}"));
    }
    let shape: Vec<usize> = outer.iter().copied().chain([count]).collect();
    x.slice_inner(&shape, start..start + count)
}

fn check_patch(op: &'static str, patch: [usize; 3]) -> Result<[usize; 3]> {
    if patch.contains(&0) {
        return argument_error(op, format!("patch {patch:?} has a zero"));
    }
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

    fn counting(shape: &[usize]) -> Tensor {
        Tensor::from_vec((0..shape.iter().product()).map(|i| i as f32).collect(), shape).unwrap()
    }

    #[test]
    fn channel_orders_are_inverse() {
        let x = counting(&[3, 2, 4]);
        let last = channels_last(&x).unwrap();
        assert_eq!(last.shape(), &[2, 4, 3]);
        assert_eq!(last.to_vec_f32()[..4], [0.0, 8.0, 16.0, 1.0]);
        let back = channels_first(&last).unwrap();
        assert_eq!((back.shape(), back.to_vec_f32()), (x.shape(), x.to_vec_f32()));
    }

    #[test]
    fn patches_hold_channels_first_and_unpatchify_reads_channels_last() {
        let x = counting(&[1, 2, 4, 2]);
        let tokens = patchify(&x, [1, 2, 2]).unwrap();
        assert_eq!(tokens.shape(), &[2, 8]);
        assert_eq!(tokens.to_vec_f32()[..8], [0.0, 2.0, 8.0, 10.0, 1.0, 3.0, 9.0, 11.0]);
        let clip = unpatchify(&counting(&[2, 8]), [1, 1, 2], [1, 2, 2]).unwrap();
        assert_eq!(clip.shape(), &[1, 2, 4, 2]);
        assert_eq!(clip.to_vec_f32()[..8], [0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 11.0]);
        assert!(patchify(&x, [1, 2, 3]).is_err());
        assert!(patchify(&x, [0, 2, 2]).is_err());
        assert!(unpatchify(&tokens, [1, 1, 1], [1, 2, 2]).is_err());
    }

    #[test]
    fn channels_are_joined_and_cut_per_pixel() {
        let (a, b) = (counting(&[2, 2]), counting(&[2, 1]));
        let joined = concat_channels(&[&a, &b]).unwrap();
        assert_eq!((joined.shape(), joined.to_vec_f32()), (&[2, 3][..], vec![0.0, 1.0, 0.0, 2.0, 3.0, 1.0]));
        assert_eq!(slice_channels(&joined, 0, 2).unwrap().to_vec_f32(), a.to_vec_f32());
        assert_eq!(slice_channels(&joined, 2, 1).unwrap().to_vec_f32(), b.to_vec_f32());
        assert!(slice_channels(&joined, 2, 2).is_err());
        assert!(concat_channels(&[&a, &counting(&[3, 1])]).is_err());
        assert!(concat_channels(&[&a, &b.to_dtype(Dtype::Bf16)]).is_err());
    }
}
