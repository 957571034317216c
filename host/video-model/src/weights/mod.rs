//! Named tensors from safetensors files, checked as they are taken: shape, type, finite values.

pub mod dialect;
mod header;
#[cfg(test)]
mod tests;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use half::{bf16, f16};
use header::{Entry, StoredDtype};
use kernels::{Dtype, PackedLinear, Tensor};
use memmap2::Mmap;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Base names of weight files, in the order of preference: diffusers' models, transformers' models.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

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
    /// Weights from one safetensors file in memory; `name` appears in messages.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        let mut weights = Self::empty(name.to_owned());
        weights.add(name.to_owned(), WeightBytes::Slice(bytes.into()))?;
        Ok(weights)
    }

    pub(crate) fn open(files: &ModelFiles, subfolder: &str) -> Result<Self> {
        let path = |name: &str| if subfolder.is_empty() { name.to_owned() } else { format!("{subfolder}/{name}") };
        if let Some(single) = STEMS.iter().map(|stem| path(&format!("{stem}.safetensors"))).find(|p| files.contains(p))
        {
            let mut weights = Self::empty(files.name_of(&single));
            weights.add(files.name_of(&single), files.map(&single)?)?;
            return Ok(weights);
        }
        let indices = STEMS.iter().map(|stem| path(&format!("{stem}.safetensors.index.json")));
        if let Some(index) = indices.into_iter().find(|p| files.contains(p)) {
            return Self::open_sharded(files, subfolder, &index, path);
        }
        // A variant such as `diffusion_pytorch_model.fp16.safetensors`, when it is the only one.
        let is_variant = |name: &String| name.ends_with(".safetensors") && STEMS.iter().any(|s| name.starts_with(s));
        match files.list(subfolder).into_iter().filter(is_variant).collect::<Vec<_>>().as_slice() {
            [one] => {
                let mut weights = Self::empty(files.name_of(&path(one)));
                weights.add(files.name_of(&path(one)), files.map(&path(one))?)?;
                Ok(weights)
            }
            _ => Err(ModelError::NoWeights {
                folder: files.name_of(subfolder),
                expected: "diffusion_pytorch_model.safetensors, model.safetensors, or an index of shards".to_owned(),
            }),
        }
    }

    fn open_sharded(files: &ModelFiles, subfolder: &str, index: &str, path: impl Fn(&str) -> String) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let map = files.read_json::<Index>(index)?.weight_map;
        let mut weights = Self::empty(files.name_of(subfolder));
        for shard in map.values().collect::<BTreeSet<_>>() {
            // Shards lie beside their index; a name that leads elsewhere is not followed.
            if shard.contains(['/', '\\']) || !files.contains(&path(shard)) {
                return Err(ModelError::MissingShard { index: files.name_of(index), shard: shard.clone() });
            }
            weights.add(files.name_of(&path(shard)), files.map(&path(shard))?)?;
        }
        match map.keys().find(|name| !weights.tensors.contains_key(*name)) {
            Some(absent) => Err(weights.missing(absent)),
            None => Ok(weights),
        }
    }

    fn empty(origin: String) -> Self {
        Self { origin, shards: Vec::new(), tensors: BTreeMap::new(), metadata: BTreeMap::new() }
    }

    fn add(&mut self, name: String, bytes: WeightBytes) -> Result<()> {
        let header = header::parse(bytes.as_slice());
        let header = header.map_err(|detail| ModelError::Header { file: name.clone(), detail })?;
        let shard = self.shards.len();
        let located = |entry| Located { shard, entry, taken: AtomicBool::new(false) };
        self.tensors.extend(header.entries.into_iter().map(|(name, entry)| (name, located(entry))));
        self.metadata.extend(header.metadata);
        self.shards.push(Shard { name, bytes });
        Ok(())
    }

    /// The tensor `name` of exactly `shape`, converted to `dtype`; every element is checked to be finite.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        let located = self.located(name)?;
        let file = || self.shards[located.shard].name.clone();
        if located.entry.shape != shape {
            let (expected, found) = (shape.to_vec(), located.entry.shape.clone());
            return Err(ModelError::WrongShape { file: file(), tensor: name.to_owned(), expected, found });
        }
        let bytes = &self.shards[located.shard].bytes.as_slice()[located.entry.bytes.clone()];
        if (&located.entry.dtype, dtype) == (&StoredDtype::Bf16, Dtype::Bf16) {
            let values: Vec<bf16> = halves(bytes).map(bf16::from_bits).collect();
            self.check_finite(name, located, values.iter().map(|v| v.to_f32()))?;
            return Ok(Tensor::from_bf16(&values, shape)?);
        }
        let values = self.as_f32(name, located, bytes)?;
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
        let file = || self.shards[located.shard].name.clone();
        if located.entry.shape != shape {
            let (expected, found) = (shape.to_vec(), located.entry.shape.clone());
            return Err(ModelError::WrongShape { file: file(), tensor: name.to_owned(), expected, found });
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(ModelError::Input(format!("{}: `{name}` has no row {id}", file())));
        }
        let bytes = &self.shards[located.shard].bytes.as_slice()[located.entry.bytes.clone()];
        let row_bytes = bytes.len() / rows.max(1);
        let mut values = Vec::with_capacity(ids.len() * width);
        for &id in ids {
            let row = &bytes[id as usize * row_bytes..][..row_bytes];
            values.extend(self.as_f32(name, located, row)?);
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
            let bytes = &self.shards[located.shard].bytes.as_slice()[located.entry.bytes.clone()];
            hasher.update(format!("{name} {:?} {:?}\n", located.entry.dtype, located.entry.shape));
            hasher.update(&bytes[..bytes.len().min(SAMPLE_BYTES)]);
        }
        hasher.finalize().into()
    }

    /// The shape of tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|t| t.entry.shape.as_slice())
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
        untaken.map(|(name, _)| name.as_str()).collect()
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

    /// `bytes` of a tensor in f32.
    fn as_f32(&self, name: &str, located: &Located, bytes: &[u8]) -> Result<Vec<f32>> {
        Ok(match &located.entry.dtype {
            StoredDtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            StoredDtype::F16 => halves(bytes).map(|b| f16::from_bits(b).to_f32()).collect(),
            StoredDtype::Bf16 => halves(bytes).map(|b| bf16::from_bits(b).to_f32()).collect(),
            StoredDtype::Other(dtype) => {
                let file = self.shards[located.shard].name.clone();
                return Err(ModelError::UnsupportedDtype { file, tensor: name.to_owned(), dtype: dtype.clone() });
            }
        })
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

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b))
}

/// A module's weights: names relative to a prefix, as the nested modules of a checkpoint have them.
#[derive(Debug, Clone)]
pub struct Scope<'w> {
    weights: &'w Weights,
    prefix: String,
}

impl<'w> Scope<'w> {
    /// The module `name` (or a list's index) within this one.
    pub fn at(&self, name: impl fmt::Display) -> Scope<'w> {
        Scope { weights: self.weights, prefix: self.full(name) }
    }

    /// Whether the module has a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.weights.tensors.contains_key(&self.full(name))
    }

    /// Like [`Weights::tensor`], for `name` within this module.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        self.weights.tensor(&self.full(name), shape, dtype)
    }

    /// A vector in f32: a bias or the weight of a norm.
    pub fn vector(&self, name: &str, len: usize) -> Result<Tensor> {
        self.tensor(name, &[len], Dtype::F32)
    }

    /// The linear layer `name` with `weight` `[outputs, inputs]` and `bias` `[outputs]`, packed for products in `dtype`.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize, dtype: Dtype) -> Result<PackedLinear> {
        let layer = self.at(name);
        let weight = layer.tensor("weight", &[outputs, inputs], dtype)?;
        let bias = layer.vector("bias", outputs)?;
        Ok(PackedLinear::new(&weight, Some(&bias), dtype)?)
    }

    fn full(&self, name: impl fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}
