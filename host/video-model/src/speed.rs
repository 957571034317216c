//! Networks and kernels by themselves, to be timed: in a pool of threads and an arena of their own, as the device runs them.

mod place;

use crate::error::{ModelError, Result};
use crate::files::ModelFiles;
use crate::precision::Precision;
use crate::transformer::{Timestep, WanTransformer};
use crate::vae::WanVae;
use crate::weights::Weights;
use kernels::{Activation, Arena, Dtype, PackedLinear, Tensor, channels_first, channels_last, peak};
pub use place::{Bound, Ceilings, Check, Extent, Place, Timing};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::path::Path;
use std::time::{Duration, Instant};

/// A network of a model folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// One velocity of `latent` [c, f, h, w] at `timestep` `[1]` under `text` [rows, text_dim], the text's embedding included.
    Transformer,
    /// The pictures of the normalised latents `z` [c, f, h, w].
    Vae,
}

impl Part {
    /// The folder's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "vae",
        }
    }
}

enum Network {
    Transformer { model: Box<WanTransformer>, latent: Tensor, timestep: f32, text: Tensor },
    Vae { model: Box<WanVae>, latent: Tensor },
}

/// One network with its input.
pub struct Runner {
    device: Device,
    network: Network,
}

impl Runner {
    /// Loads `part` of a model folder, and its input from the folder's `inputs.safetensors`.
    pub fn load(folder: &Path, part: Part, precision: Precision, threads: usize) -> Result<Self> {
        Self::load_at(&Place::parse("cpu")?, folder, "inputs.safetensors", part, precision, threads)
    }

    /// Loads `part` of a model folder to `place`, and its input from another file of the folder.
    pub fn load_at(
        place: &Place,
        folder: &Path,
        inputs: &str,
        part: Part,
        precision: Precision,
        threads: usize,
    ) -> Result<Self> {
        let device = Device::new(threads, place)?;
        let load = || Self::network(folder, inputs, part, precision);
        let network = place.device().map_or_else(load, |device| device.scope(load))?;
        Ok(Self { device, network })
    }

    fn network(folder: &Path, inputs: &str, part: Part, precision: Precision) -> Result<Network> {
        let files = ModelFiles::Folder(folder.to_owned());
        let inputs = Weights::from_bytes(inputs, files.read(inputs)?)?;
        let input = |name: &str| inputs.tensor(name, inputs.shape(name).unwrap_or_default(), Dtype::F32);
        Ok(match part {
            Part::Transformer => Network::Transformer {
                model: Box::new(WanTransformer::load(&files, "transformer", precision)?),
                latent: channels_last(&input("latent")?)?,
                timestep: input("timestep")?.to_vec_f32().first().copied().unwrap_or_default(),
                text: input("text")?,
            },
            Part::Vae => Network::Vae {
                model: Box::new(WanVae::load(&files, "vae", precision.activations())?),
                latent: channels_last(&input("z")?)?,
            },
        })
    }

    /// One run: its time (the wall's, or the device's own), and its result in torch's layout (channels first).
    pub fn run(&self) -> Result<(Duration, Tensor)> {
        self.device.run(|| {
            let started = Instant::now();
            let (output, elapsed) = match self.device.place.device() {
                None => (self.forward()?, started.elapsed()),
                Some(device) => {
                    let (output, ns) = device.timed(|| self.forward())?;
                    (output?, Duration::from_nanos(ns))
                }
            };
            Ok((elapsed, channels_first(&output)?.to_host()?))
        })
    }

    fn forward(&self) -> Result<Tensor> {
        match &self.network {
            Network::Transformer { model, latent, timestep, text } => {
                let context = model.context(text, None, None)?;
                let velocities = model.forward(latent, Timestep::Clip(*timestep), &[&context], None, None)?;
                velocities.into_iter().next().ok_or_else(|| ModelError::Input("no velocity".to_owned()))
            }
            Network::Vae { model, latent } => model.decode(latent),
        }
    }
}

/// Threads and memory.
struct Device {
    pool: ThreadPool,
    arena: Arena,
    place: Place,
}

impl Device {
    fn new(threads: usize, place: &Place) -> Result<Self> {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| ModelError::Input(format!("{threads} threads do not start: {error}")))?;
        Ok(Self { pool, arena: Arena::new(), place: place.clone() })
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(|| match self.place.device() {
            Some(device) => device.scope(work),
            None => self.arena.scope(work),
        })
    }
}

/// The values of the tensor `name` of a safetensors file.
pub fn read_tensor(path: &Path, name: &str) -> Result<Vec<f32>> {
    let origin = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| ModelError::File { file: origin.clone(), source })?;
    let file = Weights::from_bytes(&origin, bytes)?;
    Ok(file.tensor(name, file.shape(name).unwrap_or_default(), Dtype::F32)?.to_vec_f32())
}

/// Root mean square of `value − reference` in parts of the reference's; none when their sizes differ.
pub fn relative_rmse(value: &[f32], reference: &[f32]) -> Option<f64> {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = squares(&mut value.iter().zip(reference).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = squares(&mut reference.iter().map(|v| f64::from(*v)));
    (value.len() == reference.len()).then(|| (error / size.max(f64::MIN_POSITIVE)).sqrt())
}

/// How near an operation comes to what the machine can multiply.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelSpeed {
    /// The operation and its shape.
    pub name: String,
    /// Median wall time.
    pub time: Duration,
    /// Operations per second of all threads.
    pub rate: f64,
    /// The rate in parts of `threads` times one core's measured peak for that type.
    pub share_of_peak: f64,
}

/// Times matrix products and attention at shapes of the sample model and of Wan 1.3B.
pub fn kernels(threads: usize, runs: u32) -> Result<Vec<KernelSpeed>> {
    let device = Device::new(threads, &Place::parse("cpu")?)?;
    device.run(|| {
        let peak = peak::multiply_rates();
        let mut measured = Vec::new();
        for (m, n, k) in [(1024, 1536, 384), (1024, 384, 1536), (1024, 1536, 1536), (1024, 8960, 1536)] {
            let (weight, flop) = (ramp(&[n, k])?, 2.0 * (m * n * k) as f64);
            let types = [
                ("f32", Dtype::F32, PackedLinear::new(&weight, None, Dtype::F32)?, peak.f32),
                ("bf16", Dtype::Bf16, PackedLinear::new(&weight, None, Dtype::Bf16)?, peak.bf16),
                ("int8", Dtype::Bf16, PackedLinear::int8(&weight, None)?, peak.int8),
            ];
            for (name, dtype, weight, peak) in types {
                let x = ramp(&[m, k])?.to_dtype(dtype);
                let run = || kernels::linear(&x, &weight, Activation::None, dtype);
                measured.push(timed(format!("linear {m}x{n}x{k} {name}"), flop, peak * threads as f64, runs, run)?);
            }
        }
        for (tokens, heads, width) in [(1024, 6, 64), (4096, 2, 128)] {
            let q = ramp(&[tokens, heads * width])?.to_dtype(Dtype::Bf16);
            let flop = 4.0 * (tokens * tokens * heads * width) as f64;
            let run = || kernels::attention(&q, &q, &q, heads, 1.0 / (width as f32).sqrt(), None, None);
            let name = format!("attention {tokens}x{tokens} {heads}x{width} bf16");
            measured.push(timed(name, flop, peak.bf16 * threads as f64, runs, run)?);
        }
        Ok(measured)
    })
}

fn timed(
    name: String,
    operations: f64,
    peak: f64,
    runs: u32,
    run: impl Fn() -> kernels::Result<Tensor>,
) -> Result<KernelSpeed> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let started = Instant::now();
        run()?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    let time = times[times.len() / 2];
    let rate = operations / time.as_secs_f64();
    Ok(KernelSpeed { name, time, rate, share_of_peak: rate / peak })
}

/// Values in −1..1 without a pattern that a kernel could profit from.
fn ramp(shape: &[usize]) -> Result<Tensor> {
    let value = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 8) as u16 as f32 / 32768.0 - 1.0;
    Ok(Tensor::from_vec((0..shape.iter().product()).map(value).collect(), shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_relative_and_needs_equal_sizes() {
        assert_eq!(relative_rmse(&[3.0, 4.0], &[3.0, 4.0]), Some(0.0));
        assert_eq!(relative_rmse(&[3.0, 5.0], &[0.0, 5.0]), Some(0.6));
        assert_eq!(relative_rmse(&[3.0], &[3.0, 4.0]), None);
    }

    #[test]
    fn kernels_are_timed_against_a_peak_that_is_positive() {
        let measured = kernels(1, 1).unwrap();
        assert!(measured.iter().all(|m| m.rate > 0.0 && m.share_of_peak > 0.0), "{measured:?}");
    }
}
