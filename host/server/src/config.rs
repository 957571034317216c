//! What an operator may set. [`ConfigFile`] is the file as written, [`Config`] the checked values that the code uses.

use pipeline::StageError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;
use video_model::devices::DeviceChoice;

/// The configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not of the expected form.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A value is out of range or does not fit another.
    #[error("{field}: {message}")]
    Invalid {
        /// The key in the file, or the option.
        field: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// What a process does for the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves HTTP and admits jobs.
    Gateway,
    /// Owns a device and runs jobs.
    Inference,
    /// Encodes video.
    Encode,
}

impl FromStr for Role {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "gateway" => Ok(Self::Gateway),
            "inference" => Ok(Self::Inference),
            "encode" => Ok(Self::Encode),
            _ => Err(invalid("roles", format!("there is no role `{text}`: choose from gateway, inference, encode"))),
        }
    }
}

/// The configuration file, TOML. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// Address and port to listen on.
    pub listen: Option<SocketAddr>,
    /// Folder of the database, objects and caches.
    pub data_dir: Option<PathBuf>,
    /// What this process does.
    pub roles: Option<Vec<Role>>,
    /// Models by name: folders in diffusers layout.
    pub models: BTreeMap<String, PathBuf>,
    /// Adapters (LoRA) by name: safetensors files.
    pub loras: BTreeMap<String, PathBuf>,
    /// `f32`, `bf16` or `int8`.
    pub dtype: Option<String>,
    /// `auto`, `all`, `cpu`, `cuda:0` or a list like `cuda:0,cuda:1`.
    pub device: Option<String>,
    /// Threads of the CPU engine, or of each CUDA device's host work.
    pub device_threads: Option<usize>,
    /// Bytes of memory that models and jobs may take on each device.
    pub memory_bytes_max: Option<u64>,
    /// Jobs that run at a time.
    pub jobs_parallel_max: Option<u32>,
    /// Device milliseconds reserved for a job: its budget.
    pub job_gpu_budget_ms: Option<u64>,
    /// Bytes of encoded prompts kept in memory.
    pub prompt_cache_ram_bytes_max: Option<u64>,
    /// Bytes of encoded prompts kept in the data folder.
    pub prompt_cache_disk_bytes_max: Option<u64>,
}

/// Checked values.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Folder of the database, objects and caches.
    pub data_dir: PathBuf,
    /// What this process does.
    pub roles: Vec<Role>,
    /// Models by name: folders in diffusers layout.
    pub models: Vec<(String, PathBuf)>,
    /// Adapters (LoRA) by name: safetensors files.
    pub loras: Vec<(String, PathBuf)>,
    /// Arithmetic of the engine; none takes the engine's default.
    pub dtype: Option<String>,
    /// What models run on.
    pub device: DeviceChoice,
    /// Most devices to take where `device` leaves the choice to us.
    pub devices_max: usize,
    /// Threads of the CPU engine, or of each CUDA device's host work; none takes all.
    pub device_threads: Option<usize>,
    /// Bytes of memory that models and jobs may take on each device; none takes what is free at the start.
    pub memory_bytes_max: Option<u64>,
    /// Jobs that run at a time; none runs two for each device. A device's queue shares it among them, step by step.
    pub jobs_parallel_max: Option<u32>,
    /// Device milliseconds reserved for a job: its budget.
    pub job_gpu_budget_ms: u64,
    /// Bytes of encoded prompts kept in memory; 0 keeps none.
    pub prompt_cache_ram_bytes_max: u64,
    /// Bytes of encoded prompts kept in the data folder; 0 keeps none.
    pub prompt_cache_disk_bytes_max: u64,
}

/// Where data lies when nobody says otherwise.
pub const DATA_DIR_DEFAULT: &str = "zoetrope-data";
/// Where the server listens when nobody says otherwise: this machine only.
pub const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const JOBS_PARALLEL_MAX: u32 = 256;

impl ConfigFile {
    /// Reads a file; none gives the defaults.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.into(), source })
    }
}

impl Config {
    /// Checks the values of a file.
    pub fn checked(file: ConfigFile) -> Result<Self, ConfigError> {
        let roles = file.roles.unwrap_or_else(|| vec![Role::Gateway, Role::Inference, Role::Encode]);
        if roles.is_empty() {
            return Err(invalid("roles", "name at least one of gateway, inference, encode".to_owned()));
        }
        if roles.contains(&Role::Inference) != roles.contains(&Role::Encode) {
            return Err(invalid(
                "roles",
                "`inference` and `encode` run in one process: name both or neither".to_owned(),
            ));
        }
        let jobs_parallel_max = file.jobs_parallel_max;
        if jobs_parallel_max.is_some_and(|jobs| !(1..=JOBS_PARALLEL_MAX).contains(&jobs)) {
            return Err(invalid("jobs_parallel_max", format!("choose between 1 and {JOBS_PARALLEL_MAX}")));
        }
        let job_gpu_budget_ms = file.job_gpu_budget_ms.unwrap_or(10 * 60 * 1000);
        if job_gpu_budget_ms == 0 {
            return Err(invalid(
                "job_gpu_budget_ms",
                "a job without a budget can never run: set more than 0".to_owned(),
            ));
        }
        let device = file.device.as_deref().map(str::parse).transpose();
        let device: Option<DeviceChoice> = device.map_err(|error: StageError| invalid("device", message_of(error)))?;
        let device = device.unwrap_or_default();
        Ok(Self {
            listen: file.listen.unwrap_or(LISTEN_DEFAULT),
            data_dir: file.data_dir.unwrap_or_else(|| DATA_DIR_DEFAULT.into()),
            roles,
            models: file.models.into_iter().collect(),
            loras: file.loras.into_iter().collect(),
            dtype: file.dtype,
            device,
            devices_max: usize::MAX,
            device_threads: file.device_threads,
            memory_bytes_max: file.memory_bytes_max,
            jobs_parallel_max,
            job_gpu_budget_ms,
            prompt_cache_ram_bytes_max: file.prompt_cache_ram_bytes_max.unwrap_or(256 << 20),
            prompt_cache_disk_bytes_max: file.prompt_cache_disk_bytes_max.unwrap_or(1 << 30),
        })
    }

    /// The defaults with another data folder.
    pub fn in_folder(data_dir: &Path) -> Self {
        let file = ConfigFile { data_dir: Some(data_dir.to_owned()), ..ConfigFile::default() };
        Self::checked(file).expect("the defaults are valid")
    }

    /// Whether this process serves HTTP.
    pub fn is_gateway(&self) -> bool {
        self.roles.contains(&Role::Gateway)
    }

    /// Whether this process runs jobs.
    pub fn runs_jobs(&self) -> bool {
        self.roles.contains(&Role::Inference)
    }
}

/// The part of an error that does not name the field again.
fn message_of(error: StageError) -> String {
    match error {
        StageError::InvalidArgument { message, .. } => message,
        other => other.to_string(),
    }
}

fn invalid(field: &'static str, message: String) -> ConfigError {
    ConfigError::Invalid { field, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_valid() {
        let file: ConfigFile = toml::from_str(include_str!("../../../deploy/zoetrope.toml")).unwrap();
        let config = Config::checked(file).unwrap();
        assert!(config.is_gateway() && config.runs_jobs());
        let defaults = Config::checked(ConfigFile::default()).unwrap();
        let prompt_cache = |c: &Config| (c.prompt_cache_ram_bytes_max, c.prompt_cache_disk_bytes_max);
        assert_eq!(prompt_cache(&config), prompt_cache(&defaults), "the example shows the defaults");
        assert_eq!((&config.device, config.device.to_string().as_str()), (&defaults.device, "auto"));
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        assert!(toml::from_str::<ConfigFile>("listn = \"127.0.0.1:1\"").is_err());
    }

    #[test]
    fn values_that_cannot_work_are_refused_with_their_key() {
        let refused = |text: &str| Config::checked(toml::from_str(text).unwrap()).unwrap_err().to_string();
        assert!(refused("roles = []").starts_with("roles:"));
        assert!(refused("roles = [\"inference\"]").starts_with("roles:"));
        assert!(refused("jobs_parallel_max = 0").starts_with("jobs_parallel_max:"));
        assert!(refused("job_gpu_budget_ms = 0").starts_with("job_gpu_budget_ms:"));
        let device = refused("device = \"gpu\"");
        assert!(device.starts_with("device: `gpu`") && device.contains("cuda:0"), "{device}");
    }
}
