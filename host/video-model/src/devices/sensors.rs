//! What the vendor's management library (NVML) says about the devices: an operator's second opinion on their use. Where the
//! library is absent there is nothing to say, and that is no error.

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use std::ffi::OsStr;

/// One device's sensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sensors {
    /// Percent of the last moments in which a kernel ran, this process's or another's.
    pub utilisation_percent: u32,
    /// Memory in use, by all processes.
    pub memory_used_bytes: u64,
    /// All of its memory.
    pub memory_total_bytes: u64,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Power draw.
    pub power_milliwatts: Option<u32>,
}

/// The library, where there is one.
#[derive(Debug, Default)]
pub struct SensorBoard(Option<Nvml>);

impl SensorBoard {
    /// Looks for the library.
    pub fn open() -> Self {
        // The name without a number is there only where one develops.
        let [driver, development] = ["libnvidia-ml.so.1", "libnvidia-ml.so"].map(OsStr::new);
        let found = Nvml::builder().lib_path(driver).init();
        Self::from(found.or_else(|_| Nvml::builder().lib_path(development).init()))
    }

    /// The same with another file, for tests.
    pub fn open_library(path: &OsStr) -> Self {
        Self::from(Nvml::builder().lib_path(path).init())
    }

    fn from(found: Result<Nvml, NvmlError>) -> Self {
        if let Err(why) = &found {
            tracing::debug!(%why, "no device sensors");
        }
        Self(found.ok())
    }

    /// What the device at a place of the PCI bus (`domain:bus:device.function`) says; `None` when it says nothing.
    pub fn read(&self, bus_id: &str) -> Option<Sensors> {
        let device = self.0.as_ref()?.device_by_pci_bus_id(bus_id).ok()?;
        let memory = device.memory_info().ok()?;
        Some(Sensors {
            utilisation_percent: device.utilization_rates().ok()?.gpu,
            memory_used_bytes: memory.used,
            memory_total_bytes: memory.total,
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            power_milliwatts: device.power_usage().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn without_the_library_there_are_no_sensors_and_no_error() {
        let board = SensorBoard::open_library(OsStr::new("/nowhere/libnvidia-ml.so.1"));
        assert_eq!(board.read("00000000:01:00.0"), None);
    }

    /// The few functions that are asked for, as the vendor's library has them.
    const STANDIN: &str = r#"
        #include <string.h>
        struct memory { unsigned version; unsigned long long total, reserved, free, used; };
        static int device;
        int nvmlInit_v2(void) { return 0; }
        int nvmlShutdown(void) { return 0; }
        int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** found) {
            if (strcmp(id, "00000000:17:00.0") != 0) return 6;
            *found = &device;
            return 0;
        }
        int nvmlDeviceGetUtilizationRates(void* d, unsigned* rates) { rates[0] = 97; rates[1] = 40; return d != &device; }
        int nvmlDeviceGetMemoryInfo_v2(void* d, struct memory* m) { m->total = 1000; m->used = 600; return d != &device; }
        int nvmlDeviceGetTemperature(void* d, int sensor, unsigned* t) { *t = 61 + sensor; return d != &device; }
        int nvmlDeviceGetPowerUsage(void* d, unsigned* mw) { *mw = 0; return d ? 3 : 0; }
    "#;

    #[test]
    fn the_librarys_answers_are_those_of_the_device_at_that_place_on_the_bus() {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("nvml.c"), folder.path().join("libnvidia-ml.so.1"));
        std::fs::write(&source, STANDIN).unwrap();
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.unwrap().success());
        let board = SensorBoard::open_library(library.as_os_str());
        let sensors = Sensors {
            utilisation_percent: 97,
            memory_used_bytes: 600,
            memory_total_bytes: 1000,
            temperature_celsius: Some(61),
            // Not every device measures it.
            power_milliwatts: None,
        };
        assert_eq!(board.read("00000000:17:00.0"), Some(sensors));
        assert_eq!(board.read("00000000:18:00.0"), None);
    }
}
