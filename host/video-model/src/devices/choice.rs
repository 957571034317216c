//! Which devices an operator wants, and which the machine has.

use super::{CpuDevice, CudaEngine, Device, DeviceId, SensorBoard};
use kernels::Absent;
use pipeline::{StageError, StageResult};
use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::sync::Arc;

/// What `--device` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Every CUDA device that works, else the CPU.
    #[default]
    Auto,
    /// Every CUDA device; an error when there is none.
    All,
    /// These, in this order.
    These(Vec<DeviceId>),
}

impl FromStr for DeviceChoice {
    type Err = StageError;

    fn from_str(text: &str) -> StageResult<Self> {
        match text {
            "auto" => return Ok(Self::Auto),
            "all" => return Ok(Self::All),
            _ => {}
        }
        let ids = text.split(',').map(|part| device_id(part.trim())).collect::<StageResult<Vec<_>>>()?;
        match ids.iter().enumerate().find(|(i, id)| ids[..*i].contains(id)) {
            Some((_, twice)) => Err(refused(format!("{twice} is named twice"))),
            None => Ok(Self::These(ids)),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::All => f.write_str("all"),
            Self::These(ids) => {
                let ids: Vec<String> = ids.iter().map(DeviceId::to_string).collect();
                f.write_str(&ids.join(","))
            }
        }
    }
}

fn device_id(text: &str) -> StageResult<DeviceId> {
    let ordinal = || text.strip_prefix("cuda:")?.parse().ok().map(DeviceId::Cuda);
    match text {
        "cpu" => Ok(DeviceId::Cpu),
        _ => ordinal().ok_or_else(|| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
            refused(format!(
                "`{shown}` is no device: use `auto`, `all`, `cpu`, `cuda:0` or a list like `cuda:0,cuda:1`"
            ))
        }),
    }
}

fn refused(message: String) -> StageError {
    StageError::invalid("device", message)
}

/// The devices that a machine has.
pub trait Machine {
    /// How many CUDA devices there are, or why none.
    fn cuda_count(&self) -> Result<usize, Absent>;

    /// Makes a device ready.
    fn open(&self, id: DeviceId) -> StageResult<Arc<dyn Device>>;
}

/// The machine that the program runs on.
pub struct ThisMachine {
    threads: Option<usize>,
    sensors: Arc<SensorBoard>,
}

impl ThisMachine {
    /// Each device gets so many threads; none takes all cores for the CPU engine, and shares them out among CUDA devices.
    pub fn new(threads: Option<usize>) -> Self {
        Self { threads, sensors: Arc::new(SensorBoard::open()) }
    }
}

impl Machine for ThisMachine {
    fn cuda_count(&self) -> Result<usize, Absent> {
        kernels::probe()
    }

    fn open(&self, id: DeviceId) -> StageResult<Arc<dyn Device>> {
        match id {
            DeviceId::Cpu => Ok(Arc::new(CpuDevice::new(self.threads)?)),
            DeviceId::Cuda(ordinal) => {
                let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
                let threads = self.threads.unwrap_or(cores / self.cuda_count().unwrap_or(1));
                Ok(Arc::new(CudaEngine::open(ordinal, threads, Arc::clone(&self.sensors))?))
            }
        }
    }
}

impl DeviceChoice {
    /// Opens the chosen devices, at most `devices_max` where the choice is left to us.
    pub fn open(&self, machine: &dyn Machine, devices_max: usize) -> StageResult<Vec<Arc<dyn Device>>> {
        let cuda = |count| (0..count).map(DeviceId::Cuda);
        let devices: Vec<_> = match (self, machine.cuda_count()) {
            (Self::Auto, Err(why)) => {
                tracing::info!(device = "cpu", %why, "no CUDA device: models run on the CPU");
                return Ok(vec![machine.open(DeviceId::Cpu)?]);
            }
            (Self::Auto, Ok(count)) => return working(machine, cuda(count), devices_max),
            (Self::All, Err(why)) => return Err(refused(format!("there is no CUDA device: {why}"))),
            (Self::All, Ok(count)) => {
                cuda(count).take(devices_max).map(|id| machine.open(id)).collect::<StageResult<_>>()?
            }
            (Self::These(ids), count) => {
                ids.iter().map(|id| chosen(machine, *id, &count)).collect::<StageResult<_>>()?
            }
        };
        devices.iter().for_each(announce);
        Ok(devices)
    }
}

/// Those that open; the CPU when none does.
fn working(
    machine: &dyn Machine,
    ids: impl Iterator<Item = DeviceId>,
    devices_max: usize,
) -> StageResult<Vec<Arc<dyn Device>>> {
    let mut devices = Vec::new();
    for id in ids {
        if devices.len() == devices_max {
            break;
        }
        match machine.open(id) {
            Ok(device) => devices.push(device),
            Err(why) => tracing::warn!(device = %id, %why, "this device is left out"),
        }
    }
    devices.iter().for_each(announce);
    if devices.is_empty() {
        tracing::warn!(device = "cpu", "no CUDA device works: models run on the CPU");
        devices.push(machine.open(DeviceId::Cpu)?);
    }
    Ok(devices)
}

fn chosen(machine: &dyn Machine, id: DeviceId, count: &Result<usize, Absent>) -> StageResult<Arc<dyn Device>> {
    match (id, count) {
        (DeviceId::Cuda(_), Err(why)) => Err(refused(format!("there is no {id} here: {why}"))),
        (DeviceId::Cuda(ordinal), Ok(count)) if ordinal >= *count => {
            let there = if *count == 1 { "only cuda:0".to_owned() } else { format!("cuda:0 to cuda:{}", count - 1) };
            Err(refused(format!("there is no {id} here: this machine has {there}")))
        }
        _ => machine.open(id),
    }
}

fn announce(device: &Arc<dyn Device>) {
    let free_gb = device.free_bytes().map(|bytes| bytes / 1_000_000_000);
    tracing::info!(device = %device.id(), name = device.name(), free_gb, "models run on this device");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With so many CUDA devices, of which one may be broken. All of them are the CPU in truth, and only counted.
    struct Fake {
        cuda: Result<usize, Absent>,
        broken: Option<usize>,
    }

    impl Machine for Fake {
        fn cuda_count(&self) -> Result<usize, Absent> {
            self.cuda.clone()
        }

        fn open(&self, id: DeviceId) -> StageResult<Arc<dyn Device>> {
            match id {
                DeviceId::Cuda(ordinal) if self.broken == Some(ordinal) => Err(refused("broken".to_owned())),
                _ => Ok(Arc::new(CpuDevice::new(Some(1))?)),
            }
        }
    }

    fn opened(choice: &str, cuda: Result<usize, Absent>, broken: Option<usize>) -> StageResult<usize> {
        choice.parse::<DeviceChoice>()?.open(&Fake { cuda, broken }, usize::MAX).map(|devices| devices.len())
    }

    #[test]
    fn choices_are_read_and_written_alike() {
        for text in ["auto", "all", "cpu", "cuda:0", "cuda:1,cuda:0", "cpu,cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:0,", "auto,cpu"] {
            let refused = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(refused.contains("use `auto`"), "{text}: {refused}");
        }
        assert!("cpu,cpu".parse::<DeviceChoice>().unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn auto_takes_all_cuda_devices_that_open_and_else_the_cpu() {
        assert_eq!(opened("auto", Ok(3), None), Ok(3));
        assert_eq!(opened("auto", Ok(3), Some(1)), Ok(2));
        assert_eq!(opened("auto", Ok(1), Some(0)), Ok(1), "the CPU");
        for why in [Absent::NoDriver, Absent::NoDevice, Absent::DriverTooOld { found: 12040, needed: 13000 }] {
            assert_eq!(opened("auto", Err(why), None), Ok(1));
        }
        let one = DeviceChoice::Auto.open(&Fake { cuda: Ok(8), broken: Some(0) }, 1).unwrap();
        assert_eq!(one.len(), 1, "a single job needs a single device");
    }

    #[test]
    fn what_was_asked_for_and_is_not_there_is_an_error_that_says_what_is() {
        let error = |choice, cuda| opened(choice, cuda, None).unwrap_err().to_string();
        assert!(error("cuda:7", Ok(2)).contains("cuda:0 to cuda:1"));
        assert!(error("cuda:0,cuda:1", Ok(1)).contains("only cuda:0"));
        assert!(error("cuda:0", Err(Absent::NoDriver)).contains("no NVIDIA driver"));
        assert!(error("all", Err(Absent::NoDevice)).contains("no CUDA device"));
        let old = error("cuda:0", Err(Absent::DriverTooOld { found: 12040, needed: 13000 }));
        assert!(old.contains("12.4") && old.contains("13.0"), "{old}");
        assert!(opened("cuda:0", Ok(1), Some(0)).is_err(), "no silent fall back");
        assert_eq!(opened("cpu", Err(Absent::NoDriver), None), Ok(1));
    }
}
