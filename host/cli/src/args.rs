//! The command line: names, defaults and help. What a command does stands in `commands/`.

use clap::{Args, Parser, Subcommand, ValueHint};
use std::net::SocketAddr;
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed: the host's or the network's fault
  2  the command line was wrong
  3  the request was refused (bad value, unknown name, no permission)
  4  the job ran and failed

Environment:
  ZOETROPE_URL, ZOETROPE_API_KEY   the server and the key of push, invoke, functions, usage, tenants, keys
  ZOETROPE_DEVICE                  what models run on, where --device does not say it
  ZOETROPE_LOG                     what is logged, like `info` or `server=debug`";

/// Serverless WebAssembly host for AI video: prompts become key frames, key frames become video, and tenants' own
/// components may change both.
#[derive(Debug, Parser)]
#[command(name = "zoetrope", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// Print machine-readable lines (JSON) instead of text and progress bars.
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a video through two sample components, on this machine, and show where the time went.
    #[command(after_help = "\
Examples:
  zoetrope demo
  zoetrope demo --prompt \"a crimson heart growing\" --out heart.mp4")]
    Demo(Demo),

    /// Serve the HTTP API and run jobs. The first start prints an operator's key.
    #[command(after_help = "\
Examples:
  zoetrope serve
  zoetrope serve --listen 0.0.0.0:8080 --data-dir /var/lib/zoetrope
  zoetrope serve --config zoetrope.toml")]
    Serve(Serve),

    /// Generate a video from a prompt (and pictures) on this machine, without a server.
    #[command(after_help = "\
Examples:
  zoetrope generate --prompt \"a blue circle moves left\" --out a.mp4
  zoetrope generate --prompt \"a red star grows\" --image first.png --seed 7 --out a.mp4
  zoetrope generate --prompt \"a green heart grows\" --seconds 4 --size 720x480 --out frames/
  zoetrope generate --prompt \"a red star grows\" --sampler dpmpp-2m --schedule karras --out a.mp4
  zoetrope generate --prompt \"a red star grows\" --guidance-kind apg --guidance-interval 0.1..0.9 --out a.mp4")]
    Generate(Box<Generate>),

    /// Put frames between the frames of a video.
    #[command(after_help = "\
Examples:
  zoetrope interpolate clip.mp4 --out smooth.mp4
  zoetrope interpolate clip.mp4 --fps 60 --out smooth.mp4
  zoetrope interpolate frames/ --factor 4 --out frames-x4/")]
    Interpolate(Interpolate),

    /// Compare two videos, or two folders of frames: PSNR and SSIM.
    #[command(after_help = "Example:\n  zoetrope quality original.mp4 copy.mp4 --json")]
    Quality(Quality),

    /// Models that requests can name: list, show, add, remove, verify.
    #[command(
        subcommand,
        after_help = "Examples:\n  zoetrope models list\n  zoetrope models add Wan-AI/Wan2.1-T2V-1.3B-Diffusers --name wan"
    )]
    Models(Models),

    /// Measure this machine: the model's stages, the sandbox.
    #[command(
        after_help = "Examples:\n  zoetrope bench model\n  zoetrope bench model --peers tests/bench/venv/bin/python\n  zoetrope bench sandbox --json"
    )]
    Bench(Bench),

    /// Upload a component as a function, or a new version of one.
    #[command(after_help = "Example:\n  zoetrope push my-effect target/wasm32-wasip2/release/my_effect.wasm")]
    Push(Push),

    /// Run a function on the server and fetch the video.
    #[command(after_help = "\
Examples:
  zoetrope invoke film-grain --prompt \"a red star grows\" --config strength=20 --out a.mp4
  zoetrope invoke storyboard --prompt \"two shots\" --input board.json --out a.mp4")]
    Invoke(Invoke),

    /// List or remove functions on the server.
    #[command(subcommand)]
    Functions(Functions),

    /// What was used, from the server's ledger.
    #[command(after_help = "Examples:\n  zoetrope usage\n  zoetrope usage --by day --json")]
    Usage(Usage),

    /// Tenants (operator only).
    #[command(subcommand)]
    Tenants(Tenants),

    /// API keys (operator only).
    #[command(subcommand)]
    Keys(Keys),

    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  zoetrope completions bash > ~/.local/share/bash-completion/completions/zoetrope"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub struct Demo {
    /// What to show. The built-in model knows coloured shapes and simple motions.
    #[arg(long, default_value = "a big crimson star rising at night")]
    pub prompt: String,
    /// Where to write the video.
    #[arg(long, default_value = "demo.mp4", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// Folder of the database, objects and caches.
    #[arg(long, default_value = server::config::DATA_DIR_DEFAULT, value_hint = ValueHint::DirPath)]
    pub data_dir: PathBuf,
    /// Seed of the noise; the same seed gives the same video.
    #[arg(long)]
    pub seed: Option<u64>,
    /// What models run on: `auto` (a CUDA device, else the CPU), `cpu`, `cuda:0`, ….
    #[arg(long, env = "ZOETROPE_DEVICE", default_value = "auto")]
    pub device: String,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file; options given here win over it.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Address and port [default: 127.0.0.1:8080].
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Folder of the database, objects and caches [default: zoetrope-data].
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
    /// What models run on: `auto` (every CUDA device that works, else the CPU), `all`, `cpu`, or a list like `cuda:0,cuda:1`
    /// [default: auto].
    #[arg(long, env = "ZOETROPE_DEVICE")]
    pub device: Option<String>,
    /// What this process does [default: gateway,inference,encode].
    #[arg(long, value_delimiter = ',')]
    pub roles: Option<Vec<server::Role>>,
}

#[derive(Debug, Args)]
pub struct Generate {
    /// What to show.
    #[arg(long)]
    pub prompt: String,
    /// What to avoid.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub negative: String,
    /// A folder in diffusers layout, or a model's name; the built-in model by default.
    #[arg(long)]
    pub model: Option<String>,
    /// An adapter (LoRA): a safetensors file, with `:0.8` for another strength than 1. May be given several times.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub lora: Vec<String>,
    #[command(flatten)]
    pub place: ModelPlace,
    /// First key frame (PNG, JPEG, WebP).
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub image: Option<PathBuf>,
    /// Last key frame.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub last_image: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Seed of the noise; drawn and printed when not given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Size of the video, WIDTHxHEIGHT.
    #[arg(long)]
    pub size: Option<String>,
    /// Frames that the model makes (key frames).
    #[arg(long)]
    pub frames: Option<u32>,
    /// Length of the video in seconds.
    #[arg(long)]
    pub seconds: Option<f64>,
    /// Frames per second of the video.
    #[arg(long)]
    pub fps: Option<u32>,
    #[command(flatten)]
    pub engine: Engine,
    /// Initial latent: a safetensors file with the tensor `noise`, f32, in the model's own layout.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub noise: Option<PathBuf>,
    /// Write the final latent as the tensor `latents`.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub dump_latents: Option<PathBuf>,
    /// An .mp4 file, or a folder for numbered PNG frames.
    #[arg(long, value_hint = ValueHint::AnyPath)]
    pub out: PathBuf,
}

/// How the noise is integrated away. What is left out is the model's choice.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Sampler steps.
    #[arg(long, allow_negative_numbers = true)]
    pub steps: Option<u32>,
    /// `euler`, `unipc`, `dpmpp-2m`, `dpmpp-2m-sde`, `ddim`, `ddpm` or `lcm`.
    #[arg(long)]
    pub sampler: Option<String>,
    /// Order of `unipc` (1 to 3) or `dpmpp-2m` (1 or 2).
    #[arg(long)]
    pub solver_order: Option<u32>,
    /// B(h) of `unipc`: `bh1` or `bh2`.
    #[arg(long)]
    pub solver_type: Option<String>,
    /// Spread of the noise levels: `uniform`, `karras`, `exponential` or `beta`.
    #[arg(long)]
    pub schedule: Option<String>,
    /// Shift of the noise levels towards high noise; 1 shifts nothing.
    #[arg(long)]
    pub shift: Option<f32>,
    /// Share of the noise that `euler` and `ddim` draw anew at each step, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    pub eta: Option<f32>,
    /// Strength of guidance; 1 switches it off.
    #[arg(long)]
    pub guidance: Option<f32>,
    /// `cfg`, `cfg-zero`, `cfg-zero:steps=2`, `apg` or `apg:momentum=-0.5,norm=15,parallel=0`.
    #[arg(long)]
    pub guidance_kind: Option<String>,
    /// How far guidance is taken back to the prompt's own contrast, 0 to 1.
    #[arg(long, allow_negative_numbers = true)]
    pub guidance_rescale: Option<f32>,
    /// Guided part of the steps, like 0.1..0.9; the others take half the time.
    #[arg(long, value_name = "START..END")]
    pub guidance_interval: Option<String>,
    /// Reuse a step's work in the next one: `none`, `first-block:0.05` or `mag:0.06`. Faster, and not quite the same video.
    #[arg(long)]
    pub step_cache: Option<String>,
}

#[derive(Debug, Args, Clone)]
pub struct Engine {
    /// Arithmetic: `bf16`, `f32` or `int8`.
    #[arg(long)]
    pub dtype: Option<String>,
    /// What the networks run on: `auto` (a CUDA device, else the CPU), `cpu`, `cuda:0`, ….
    #[arg(long, env = "ZOETROPE_DEVICE", default_value = "auto")]
    pub device: String,
    /// Threads of the CPU engine; all cores by default.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Memory that the model and its work may take, like `12GB`; what is free by default.
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
}

#[derive(Debug, Args)]
pub struct Interpolate {
    /// A video, or a folder of numbered PNG frames.
    #[arg(value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// An .mp4 file, or a folder for numbered PNG frames.
    #[arg(long, default_value = "interpolated.mp4", value_hint = ValueHint::AnyPath)]
    pub out: PathBuf,
    /// Frames per second wanted; the length stays.
    #[arg(long, conflicts_with = "factor")]
    pub fps: Option<u32>,
    /// How many times as many frames.
    #[arg(long, default_value_t = 2)]
    pub factor: u32,
    /// `default`, or `blend` for plain cross-fading (the baseline to compare with).
    #[arg(long, default_value = "default")]
    pub model: String,
    #[command(flatten)]
    pub engine: Engine,
}

#[derive(Debug, Args)]
pub struct Quality {
    /// The reference: a video or a folder of frames.
    pub reference: PathBuf,
    /// What is compared with it.
    pub other: PathBuf,
}

/// Which models there are besides the built-in one.
#[derive(Debug, Args, Clone)]
pub struct ModelPlace {
    /// Configuration file that names more models.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Folder of the database, objects and caches, and of added models [default: zoetrope-data].
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Models {
    /// The models that this installation knows: built in, added, named in the configuration.
    List {
        #[command(flatten)]
        place: ModelPlace,
    },
    /// One model: family, parts, sizes, what it takes and makes.
    Show {
        /// A name, or a folder in diffusers layout.
        model: String,
        #[command(flatten)]
        place: ModelPlace,
    },
    /// Make a model known to `serve` and `generate --model`: a folder, or a hub's id, which is downloaded.
    #[command(after_help = "\
Examples:
  zoetrope models add Wan-AI/Wan2.1-T2V-1.3B-Diffusers
  zoetrope models add Wan-AI/Wan2.1-T2V-1.3B-Diffusers@main --name wan
  zoetrope models add /srv/models/my-finetune --data-dir /var/lib/zoetrope

A folder is in diffusers' layout and stays where it is; its files are checked by their headers.
A download keeps to the files that are needed, goes on where it was interrupted, and is checked by SHA-256.

Environment:
  HF_TOKEN      a token, for gated and private models
  HF_ENDPOINT   another hub than https://huggingface.co")]
    Add {
        /// A folder, or `owner/name` with an optional `@revision`.
        #[arg(value_hint = ValueHint::DirPath)]
        source: String,
        /// What requests call it; by default the last part of its source in small letters.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        place: ModelPlace,
    },
    /// Take a model off the list. What was downloaded goes; a folder of yours stays.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        place: ModelPlace,
    },
    /// Check an added model: headers, and every file's checksum if it was downloaded.
    Verify {
        /// Its name.
        name: String,
        #[command(flatten)]
        place: ModelPlace,
    },
}

#[derive(Debug, Args)]
pub struct Bench {
    /// What to measure.
    #[arg(value_enum, default_value_t = BenchTarget::Model)]
    pub target: BenchTarget,
    /// Repetitions; the median is printed.
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// With `kernels`: compare each with float64 instead of timing it; fails when one is wrong.
    #[arg(long)]
    pub check: bool,
    /// With `kernels`: time only those whose names contain this.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub filter: String,
    /// With `kernels`: sizes that are just large enough to run, to try the measurement itself.
    #[arg(long)]
    pub tiny: bool,
    /// With `forward`: a model folder; its transformer runs.
    #[arg(long, value_hint = ValueHint::DirPath, required_if_eq("target", "forward"))]
    pub model: Option<PathBuf>,
    /// With `forward`: a file of the folder with the tensors `latent`, `timestep` and `text`.
    #[arg(long, default_value = "inputs.safetensors")]
    pub inputs: String,
    /// With `forward`: a safetensors file whose tensor `output` is what should come out, to tell the difference.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub reference: Option<PathBuf>,
    /// With `model`: a Python with other frameworks (see tests/bench), to run the same networks beside ours.
    #[arg(long, value_name = "PYTHON", value_hint = ValueHint::ExecutablePath)]
    pub peers: Option<PathBuf>,
    #[command(flatten)]
    pub engine: Engine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchTarget {
    /// Stages of the built-in model, what step caches and int8 save and cost, kernels beside the machine's peak.
    Model,
    /// Start of an instance, frames through an effect.
    Sandbox,
    /// Each operation of a device beside what the device can copy and multiply; with --check beside float64.
    Kernels,
    /// One forward of a model's transformer.
    Forward,
}

#[derive(Debug, Args)]
pub struct Remote {
    /// The server.
    #[arg(long, env = "ZOETROPE_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// The API key.
    #[arg(long, env = "ZOETROPE_API_KEY", hide_env_values = true)]
    pub key: Option<String>,
}

#[derive(Debug, Args)]
pub struct Push {
    /// The function's name: a-z, 0-9 and `-`.
    pub name: String,
    /// The component, a .wasm file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub component: PathBuf,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Args)]
pub struct Invoke {
    /// The function's name.
    pub name: String,
    /// What to show.
    #[arg(long)]
    pub prompt: String,
    /// Configuration of this call, NAME=VALUE; may be repeated.
    #[arg(long = "config", value_name = "NAME=VALUE")]
    pub config: Vec<String>,
    /// A director's input: a JSON file.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub input: Option<PathBuf>,
    /// Seed of the noise.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where to write the video.
    #[arg(long, default_value = "out.mp4", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum Functions {
    /// Your functions.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Remove a function and its versions.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub struct Usage {
    /// Group by `total`, `day`, `model` or `tenant` (operators).
    #[arg(long, default_value = "total")]
    pub by: String,
    #[command(flatten)]
    pub remote: Remote,
}

#[derive(Debug, Subcommand)]
pub enum Tenants {
    /// All tenants.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a tenant.
    Create {
        /// Its id: a-z, 0-9 and `-`.
        id: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Make a key for a tenant; it is shown once.
    Create {
        /// The tenant.
        tenant: String,
        /// What it is for.
        #[arg(long, default_value = "cli")]
        label: String,
        #[command(flatten)]
        remote: Remote,
    },
}
