//! Norms, rotations, element by element functions and rearrangements in float64.

use super::{Checker, DTYPES};
use crate::activation::Activation;
use crate::elementwise::{activate, add, clamp, embedding, guide, linear_combination, multiply};
use crate::error::Result;
use crate::layout::{channels_first, channels_last, concat_channels, patchify, slice_channels, unpatchify};
use crate::norm::{channel_norm_silu, layer_norm, layer_norm_modulate, rms_norm};
use crate::rope::{RopeTable, rms_norm_rope, rope};
use crate::tensor::{Dtype, Tensor};

const EPS: f32 = 1e-6;

pub(super) fn check(to: &mut Checker<'_>) -> Result<()> {
    for dtype in DTYPES {
        for [t, d] in [[1, 7], [5, 129], [64, 384], [3, 1536], [9, 5120]] {
            layer_norms(to, dtype, t, d)?;
            rms_norms(to, dtype, t, d)?;
        }
        rotations(to, dtype)?;
        functions(to, dtype)?;
        rearrangements(to, dtype)?;
    }
    Ok(())
}

/// Rows of `d` with mean 0 and variance 1.
fn normalised(x: &[f64], d: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        row.iter().map(|v| (v - mean) / (variance + f64::from(EPS)).sqrt()).collect()
    };
    x.chunks_exact(d).flat_map(row).collect()
}

/// Rows of `d` with mean square 1, times `weight`.
fn rms_normalised(x: &[f64], weight: &[f64], d: usize) -> Vec<f64> {
    let row = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / d as f64;
        row.iter().zip(weight).map(|(v, w)| v / (mean + f64::from(EPS)).sqrt() * w).collect()
    };
    x.chunks_exact(d).flat_map(row).collect()
}

fn layer_norms(to: &mut Checker<'_>, dtype: Dtype, t: usize, d: usize) -> Result<()> {
    let (x, xs) = to.inputs.f32(&[t, d])?;
    let ((scale, scales), (shift, shifts)) = (to.inputs.f32(&[d])?, to.inputs.f32(&[d])?);
    let normed = normalised(&xs, d);
    let expected: Vec<f64> = (0..t * d).map(|i| normed[i] * scales[i % d] + shifts[i % d]).collect();
    to.close(format!("layer_norm {t}x{d}"), dtype, &expected, || {
        layer_norm(&x, Some(&scale), Some(&shift), EPS, dtype)
    })?;
    let expected: Vec<f64> = (0..t * d).map(|i| normed[i] * (1.0 + scales[i % d]) + shifts[i % d]).collect();
    to.close(format!("layer_norm_modulate {t}x{d}"), dtype, &expected, || {
        layer_norm_modulate(&x, &scale, &shift, EPS, dtype)
    })
}

fn rms_norms(to: &mut Checker<'_>, dtype: Dtype, t: usize, d: usize) -> Result<()> {
    let ((x, xs), (weight, weights)) = (to.inputs.tensor(&[t, d], dtype)?, to.inputs.f32(&[d])?);
    let expected = rms_normalised(&xs, &weights, d);
    to.close(format!("rms_norm {t}x{d}"), dtype, &expected, || rms_norm(&x, &weight, EPS, dtype))?;
    let silu = |v: f64| v / (1.0 + (-v).exp());
    let row = |row: &[f64]| -> Vec<f64> {
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        row.iter().zip(&weights).map(|(v, w)| silu(v / norm * (d as f64).sqrt() * w)).collect()
    };
    let expected: Vec<f64> = xs.chunks_exact(d).flat_map(row).collect();
    to.close(format!("channel_norm_silu {t}x{d}"), dtype, &expected, || channel_norm_silu(&x, &weight, true))
}

fn rotations(to: &mut Checker<'_>, dtype: Dtype) -> Result<()> {
    for (heads, width, grid) in [(3, 64, [2, 3, 5]), (2, 128, [3, 1, 7]), (1, 12, [1, 4, 4])] {
        let (t, d) = (grid.iter().product::<usize>(), heads * width);
        let table = RopeTable::wan(width, grid)?;
        let ((x, xs), (weight, weights)) = (to.inputs.tensor(&[t, d], dtype)?, to.inputs.f32(&[d])?);
        to.close(format!("rope {t}x{d} {heads} heads"), dtype, &rotated(&xs, width, heads, grid), || {
            rope(&x, heads, &table)
        })?;
        let expected = rotated(&rms_normalised(&xs, &weights, d), width, heads, grid);
        to.close(format!("rms_norm_rope {t}x{d} {heads} heads"), dtype, &expected, || {
            rms_norm_rope(&x, &weight, EPS, heads, &table, dtype)
        })?;
    }
    Ok(())
}

/// Wan's rotation: of each head's pairs the first turn with time, then as many with height as with width.
fn rotated(x: &[f64], width: usize, heads: usize, [_, rows, columns]: [usize; 3]) -> Vec<f64> {
    let side = 2 * (width / 6);
    let sizes = [width - 2 * side, side, side];
    let mut out = x.to_vec();
    for (token, row) in out.chunks_exact_mut(heads * width).enumerate() {
        let position = [token / (rows * columns), token / columns % rows, token % columns];
        for (i, pair) in row.chunks_exact_mut(2).enumerate() {
            let (mut at, mut axis) = (2 * i % width, 0);
            while at >= sizes[axis] {
                at -= sizes[axis];
                axis += 1;
            }
            let angle = position[axis] as f64 * 1e4f64.powf(-(at as f64) / sizes[axis] as f64);
            let (sin, cos) = angle.sin_cos();
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
        }
    }
    out
}

fn functions(to: &mut Checker<'_>, dtype: Dtype) -> Result<()> {
    let shape = [7, 13, 11];
    let ((a, x), (b, y)) = (to.inputs.scaled(&shape, dtype, 4.0)?, to.inputs.scaled(&shape, dtype, 4.0)?);
    let both = |f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> { x.iter().zip(&y).map(|(x, y)| f(*x, *y)).collect() };
    to.close("add".to_owned(), dtype, &both(&|x, y| x + y), || add(&a, &b))?;
    to.close("multiply".to_owned(), dtype, &both(&|x, y| x * y), || multiply(&a, &b))?;
    to.close("guide".to_owned(), dtype, &both(&|x, y| x + 5.0 * (y - x)), || guide(&a, &b, 5.0))?;
    to.close("linear_combination".to_owned(), dtype, &both(&|x, y| 0.5 * x - 1.25 * y + 3.0 * x), || {
        linear_combination(&[(0.5, &a), (-1.25, &b), (3.0, &a)])
    })?;
    for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::LeakyRelu(0.2)] {
        let expected: Vec<f64> = x.iter().map(|x| f64::from(activation.at(*x as f32))).collect();
        to.close(format!("activate {activation:?}"), dtype, &expected, || Ok(activate(&a, activation)))?;
    }
    if dtype == Dtype::F32 {
        let expected: Vec<f64> = x.iter().map(|x| x.clamp(-1.0, 2.0)).collect();
        to.close("clamp".to_owned(), dtype, &expected, || clamp(linear_combination(&[(1.0, &a)])?, -1.0, 2.0))?;
        to.close("to bf16".to_owned(), Dtype::Bf16, &x, || Ok(a.to_dtype(Dtype::Bf16)))
    } else {
        copied(to, "to f32", &x, || Ok(a.to_dtype(Dtype::F32)))
    }
}

/// Compares to the last bit.
fn copied(to: &mut Checker<'_>, name: &str, expected: &[f64], run: impl Fn() -> Result<Tensor>) -> Result<()> {
    to.within(name.to_owned(), 0.0, expected, run)
}

fn rearrangements(to: &mut Checker<'_>, dtype: Dtype) -> Result<()> {
    let name = |op: &str| format!("{op} {}", super::dtype_name(dtype));
    let [f, h, w, c] = [2, 4, 6, 5];
    let (x, xs) = to.inputs.tensor(&[f, h, w, c], dtype)?;
    let picked =
        |count: usize, from: &dyn Fn(usize) -> usize| -> Vec<f64> { (0..count).map(|i| xs[from(i)]).collect() };
    let pixels = f * h * w;
    let expected = picked(xs.len(), &|i| i % pixels * c + i / pixels);
    copied(to, &name("channels_first"), &expected, || channels_first(&x))?;
    // x taken as [c', …] with the frames as its channels.
    let expected = picked(xs.len(), &|i| i % f * (h * w * c) + i / f);
    copied(to, &name("channels_last"), &expected, || channels_last(&x))?;
    let expected = picked(pixels * 3, &|i| i / 3 * c + 1 + i % 3);
    copied(to, &name("slice_channels"), &expected, || slice_channels(&x, 1, 3))?;
    let (y, ys) = to.inputs.tensor(&[f, h, w, 3], dtype)?;
    let expected: Vec<f64> = xs.chunks_exact(c).zip(ys.chunks_exact(3)).flat_map(|(x, y)| [x, y].concat()).collect();
    copied(to, &name("concat_channels"), &expected, || concat_channels(&[&x, &y]))?;
    copied(to, &name("slice_outer"), &xs[h * w * c..], || x.slice_outer(1..2))?;
    copied(to, &name("concat_outer"), &[&xs[..], &xs].concat(), || Tensor::concat_outer(&[&x, &x]))?;
    // Patches of one frame, two rows and two columns: a token's values in the order (channel, row, column).
    let token = |i: usize| (i / (4 * c), i % (4 * c));
    let corner = |token: usize| (token / (h / 2 * w / 2) * h + token / (w / 2) % (h / 2) * 2) * w + token % (w / 2) * 2;
    let expected = picked(xs.len(), &|i| {
        let (token, at) = token(i);
        (corner(token) + at % 4 / 2 * w + at % 2) * c + at / 4
    });
    copied(to, &name("patchify"), &expected, || patchify(&x, [1, 2, 2]))?;
    // The way back takes them in the order (row, column, channel).
    let mut expected = vec![0.0; xs.len()];
    for (i, value) in xs.iter().enumerate() {
        let (token, at) = token(i);
        expected[(corner(token) + at / c / 2 * w + at / c % 2) * c + at % c] = *value;
    }
    let tokens = x.reshape(&[f * h * w / 4, 4 * c])?;
    copied(to, &name("unpatchify"), &expected, || unpatchify(&tokens, [f, h / 2, w / 2], [1, 2, 2]))?;
    let (table, rows) = to.inputs.tensor(&[9, 11], dtype)?;
    let ids = [3, 0, 8, 3, 5];
    let expected: Vec<f64> = ids.iter().flat_map(|&id| rows[id as usize * 11..][..11].to_vec()).collect();
    copied(to, &name("embedding"), &expected, || embedding(&table, &ids))
}
