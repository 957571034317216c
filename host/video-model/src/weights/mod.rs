//! Named tensors from safetensors and GGUF files, checked as they are taken: shape, type, finite values.
//!
//! Opening maps the files and reads their headers, nothing more. `Weights` may be shared between threads.

mod blocks;
pub mod dialect;
mod gguf;
mod open;
mod safetensors;
mod scope;
mod stored;
#[cfg(test)]
mod tests;

use crate::error::{ModelError, Result};
use half::bf16;
use kernels::{Dtype, Tensor};
use memmap2::Mmap;
pub use scope::Scope;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use stored::{Entry, StoredDtype, halves};

/// What follows a layer's name to call the scale of its `weight`, one or one a row: in int8 files, in 8-bit float files.
const SCALES: [&str; 2] = ["weight_scale", "scale_weight"];
/// Of other programs' arithmetic; ours scales activations by what they are.
const AUXILIARY: [&str; 4] = ["scale_input", "input_scale", "scaled_fp8", "comfy_quant"];

/// The bytes of one weight file.
pub(crate) enum WeightBytes {
    Mapped(Mmap),
    Slice(Cow<'static, [u8]>),
}

impl WeightBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Slice(bytes) => bytes,
        }
    }
}

struct Shard {
    name: String,
    bytes: WeightBytes,
    /// Whether dimensions of 1 may be missing from shapes.
    drops_ones: bool,
}

/// A matrix of whole numbers: row j's elements are `scales[j]` times `values`.
#[derive(Debug, Clone, PartialEq)]
pub struct Int8Matrix {
    /// Row by row.
    pub values: Vec<i8>,
    /// One a row.
    pub scales: Vec<f32>,
}

struct Located {
    shard: usize,
    entry: Entry,
    taken: AtomicBool,
}

/// The tensors of one part of a model. Loading marks each tensor that it takes; the rest can be reported.
pub struct Weights {
    /// For messages: the file, or the folder of several.
    origin: String,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Located>,
    metadata: BTreeMap<String, String>,
}

impl Weights {
    /// Weights from one file in memory, safetensors or GGUF; `name` appears in messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let mut weights = Self::as_stored(name, bytes)?;
        weights.speak_diffusers();
        Ok(weights)
    }

    /// Like [`Weights::from_bytes`], with the names that the file has.
    pub(crate) fn as_stored(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let mut weights = Self::empty(name.to_owned());
        weights.add(name.to_owned(), WeightBytes::Slice(bytes.into()))?;
        Ok(weights)
    }

    fn empty(origin: String) -> Self {
        Self { origin, shards: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() }
    }

    fn add(&mut self, name: String, bytes: WeightBytes) -> Result<()> {
        let file = bytes.as_slice();
        let (format, header) = match gguf::is_gguf(file) {
            true => ("GGUF", gguf::parse(file)),
            false => ("safetensors", safetensors::parse(file)),
        };
        let header = header.map_err(|detail| ModelError::Header { file: name.clone(), format, detail })?;
        let shard = self.shards.len();
        let located = |entry| Located { shard, entry, taken: AtomicBool::new(false) };
        self.tensors.extend(header.entries.into_iter().map(|(name, entry)| (name, located(entry))));
        self.metadata.extend(header.metadata);
        self.shards.push(Shard { name, bytes, drops_ones: format == "GGUF" });
        Ok(())
    }

    /// Gives tensors in Wan's original dialect the names that the networks ask for.
    fn speak_diffusers(&mut self) {
        if dialect::is_original(self.names()) {
            let tensors = std::mem::take(&mut self.tensors).into_iter();
            let renamed = tensors.map(|(name, tensor)| (dialect::to_diffusers(&name).unwrap_or(name), tensor));
            self.tensors = renamed.collect();
        }
    }

    /// The tensor `name` of exactly `shape`, converted to `dtype` and scaled; every element is checked to be finite.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        let located = self.located(name)?;
        self.check_shape(name, located, shape)?;
        let bytes = self.bytes_of(located);
        if (&located.entry.dtype, dtype) == (&StoredDtype::Bf16, Dtype::Bf16) {
            let values: Vec<bf16> = halves(bytes).map(bf16::from_bits).collect();
            self.check_finite(name, located, values.iter().map(|v| v.to_f32()))?;
            return Ok(Tensor::from_bf16(&values, shape)?);
        }
        let mut values = self.as_f32(name, located, bytes)?;
        if let Some(scales) = self.scales(name, located)? {
            scale_rows(&mut values, &scales);
        }
        self.check_finite(name, located, values.iter().copied())?;
        // A single number without dimensions becomes one with one.
        let shape = if shape.is_empty() { &[1] } else { shape };
        Ok(Tensor::from_vec(values, shape)?.to_dtype(dtype))
    }

    /// Rows `ids` of the matrix `name` of exactly `shape`, in f32: only they are read and converted, so that a table of a
    /// whole vocabulary never leaves the file.
    pub fn rows(&self, name: &str, shape: [usize; 2], ids: &[u32]) -> Result<Tensor> {
        let [rows, width] = shape;
        let located = self.located(name)?;
        self.check_shape(name, located, &shape)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(ModelError::Input(format!("{}: `{name}` has no row {id}", self.file_of(located))));
        }
        let (bytes, scales) = (self.bytes_of(located), self.scales(name, located)?);
        let row_bytes = bytes.len() / rows.max(1);
        let mut values = Vec::with_capacity(ids.len() * width);
        for &id in ids {
            let row = &bytes[id as usize * row_bytes..][..row_bytes];
            let scale = scales.as_deref().map_or(1.0, |s| s[if s.len() == 1 { 0 } else { id as usize }]);
            values.extend(self.as_f32(name, located, row)?.into_iter().map(|value| value * scale));
        }
        self.check_finite(name, located, values.iter().copied())?;
        Ok(Tensor::from_vec(values, &[ids.len(), width])?)
    }

    /// A name for the weights by what they hold: names, types, shapes and the first bytes of every tensor, however they
    /// are spread over files. Cheap: it reads a page of each tensor.
    pub fn digest(&self) -> [u8; 32] {
        const SAMPLE_BYTES: usize = 4096;
        let mut hasher = Sha256::new();
        for (name, located) in &self.tensors {
            let bytes = self.bytes_of(located);
            hasher.update(format!("{name} {:?} {:?}\n", located.entry.dtype, located.entry.shape));
            hasher.update(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
        }
        hasher.finalize().into()
    }

    /// The matrix `name` [rows, columns] as the whole numbers in which it is stored, with one scale a row. None when it
    /// is stored in another way: take it as a [`Weights::tensor`] then.
    pub fn int8(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<Option<Int8Matrix>> {
        let located = self.located(name)?;
        self.check_shape(name, located, &[rows, columns])?;
        if located.entry.dtype != StoredDtype::I8 {
            return Ok(None);
        }
        let Some(mut scales) = self.scales(name, located)? else { return Ok(None) };
        let first = scales.first().copied().unwrap_or(1.0);
        scales.resize(rows, first);
        Ok(Some(Int8Matrix { values: self.bytes_of(located).iter().map(|b| b.cast_signed()).collect(), scales }))
    }

    /// The scales that lie beside a scaled tensor: one, or one a row.
    fn scales(&self, name: &str, located: &Located) -> Result<Option<Vec<f32>>> {
        if !located.entry.dtype.is_scaled() {
            return Ok(None);
        }
        let beside = name.strip_suffix("weight").unwrap_or(name);
        let Some(scale_name) = SCALES.iter().map(|s| format!("{beside}{s}")).find(|s| self.tensors.contains_key(s))
        else {
            return match located.entry.dtype {
                // Eight-bit floats have a size of their own.
                StoredDtype::F8E4M3 => Ok(None),
                _ => Err(self.unsupported(name, located, "I8 without a scale beside it".to_owned())),
            };
        };
        let scale = self.located(&scale_name)?;
        let count: usize = scale.entry.shape.iter().product();
        let rows = located.entry.shape.first().copied().unwrap_or(1);
        let leads = scale.entry.shape.first().is_none_or(|first| *first == count);
        if count != 1 && (count != rows || !leads) {
            let (file, found) = (self.file_of(scale), scale.entry.shape.clone());
            return Err(ModelError::ScaleShape { file, tensor: scale_name, found, rows });
        }
        let values = self.tensor(&scale_name, &scale.entry.shape.clone(), Dtype::F32)?;
        Ok(Some(values.to_vec_f32()))
    }

    fn check_shape(&self, name: &str, located: &Located, expected: &[usize]) -> Result<()> {
        let found = &located.entry.shape;
        // ggml has four dimensions and forgets those of one: there, shapes are compared without them.
        let without_ones = |shape: &[usize]| shape.iter().copied().filter(|n| *n != 1).collect::<Vec<_>>();
        let fits =
            found == expected || self.shards[located.shard].drops_ones && without_ones(found) == without_ones(expected);
        if fits {
            return Ok(());
        }
        let (file, tensor) = (self.file_of(located), name.to_owned());
        Err(ModelError::WrongShape { file, tensor, expected: expected.to_vec(), found: found.clone() })
    }

    fn bytes_of(&self, located: &Located) -> &[u8] {
        &self.shards[located.shard].bytes.as_slice()[located.entry.bytes.clone()]
    }

    fn file_of(&self, located: &Located) -> String {
        self.shards[located.shard].name.clone()
    }

    fn unsupported(&self, name: &str, located: &Located, dtype: String) -> ModelError {
        ModelError::UnsupportedDtype { file: self.file_of(located), tensor: name.to_owned(), dtype }
    }

    /// The shape of tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.entry.shape.as_slice())
    }

    /// The type in which tensor `name` is stored, like `BF16` or `Q4_K`, if there is one.
    pub fn stored_dtype(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|t| t.entry.dtype.to_string())
    }

    /// The bytes of tensor `name` in its file; 0 when there is none.
    pub fn stored_bytes(&self, name: &str) -> usize {
        self.tensors.get(name).map_or(0, |t| t.entry.bytes.len())
    }

    /// Whether tensor `name` only helps to read another: a scale, or a mark that there are scales.
    pub fn is_auxiliary(name: &str) -> bool {
        let last = name.rsplit('.').next().unwrap_or(name);
        SCALES.contains(&last) || AUXILIARY.contains(&last)
    }

    /// Checks that there is a tensor `name` of `shape` in a type that is read, by the files' headers alone.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let located = self.located(name)?;
        self.check_shape(name, located, shape)?;
        match &located.entry.dtype {
            StoredDtype::Other(dtype) => Err(self.unsupported(name, located, dtype.clone())),
            _ => self.scales(name, located).map(drop),
        }
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A string of the files' `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Tensors that nobody has taken: a sign that the config describes another model.
    pub fn unused(&self) -> Vec<&str> {
        let untaken = self.tensors.iter().filter(|(_, t)| !t.taken.load(Ordering::Relaxed));
        untaken.map(|(name, _)| name.as_str()).filter(|name| !Self::is_auxiliary(name)).collect()
    }

    /// Logs tensors that nobody has taken.
    pub fn warn_of_unused(&self) {
        let unused = self.unused();
        if let Some(first) = unused.first() {
            tracing::warn!(weights = %self.origin, count = unused.len(), first, "tensors that the config does not ask for");
        }
    }

    /// The tensors whose names start with `prefix` and a dot; all of them when it is empty.
    pub fn scope(&self, prefix: &str) -> Scope<'_> {
        Scope { weights: self, prefix: prefix.to_owned() }
    }

    /// `bytes` of a tensor in f32, unscaled.
    fn as_f32(&self, name: &str, located: &Located, bytes: &[u8]) -> Result<Vec<f32>> {
        let dtype = &located.entry.dtype;
        dtype.to_f32(bytes).ok_or_else(|| self.unsupported(name, located, dtype.to_string()))
    }

    fn located(&self, name: &str) -> Result<&Located> {
        let located = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        located.taken.store(true, Ordering::Relaxed);
        Ok(located)
    }

    fn missing(&self, name: &str) -> ModelError {
        ModelError::MissingTensor { file: self.origin.clone(), tensor: name.to_owned() }
    }

    fn check_finite(&self, name: &str, located: &Located, mut values: impl Iterator<Item = f32>) -> Result<()> {
        let mut last = 0.0;
        match values.position(|value| {
            last = value;
            !value.is_finite()
        }) {
            None => Ok(()),
            Some(index) => {
                let file = self.shards[located.shard].name.clone();
                Err(ModelError::NotFinite { file, tensor: name.to_owned(), index, value: last })
            }
        }
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({}: {} tensors)", self.origin, self.tensors.len())
    }
}

/// Multiplies each row, or the whole tensor, by its scale.
fn scale_rows(values: &mut [f32], scales: &[f32]) {
    let row = values.len().checked_div(scales.len()).unwrap_or(0).max(1);
    for (row, scale) in values.chunks_exact_mut(row).zip(scales) {
        row.iter_mut().for_each(|value| *value *= scale);
    }
}
