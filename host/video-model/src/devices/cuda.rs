//! A CUDA device: steps are measured by events on its stream.

use super::{Device, DeviceFault, DeviceId, Timed, sensors::SensorBoard, sensors::Sensors};
use kernels::{Arena, CudaDevice, Error};
use pipeline::{StageError, StageResult};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// One CUDA device, and the threads and memory for what its steps do on the host.
pub struct CudaEngine {
    id: DeviceId,
    name: String,
    bus_id: String,
    /// Another one after each reset.
    device: Mutex<CudaDevice>,
    pool: ThreadPool,
    arena: Arena,
    sensors: Arc<SensorBoard>,
}

impl CudaEngine {
    /// Opens device `ordinal`; its host work runs on `threads`.
    pub fn open(ordinal: usize, threads: usize, sensors: Arc<SensorBoard>) -> StageResult<Self> {
        let id = DeviceId::Cuda(ordinal);
        let device = CudaDevice::open(ordinal).map_err(|e| StageError::invalid("device", format!("{id}: {e}")))?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(move |i| format!("{id}-{i}"))
            .build()
            .map_err(|e| StageError::Internal(format!("the device's threads did not start: {e}")))?;
        let (name, bus_id) = (device.info().name.clone(), device.info().bus_id.clone());
        Ok(Self { id, name, bus_id, device: Mutex::new(device), pool, arena: Arena::new(), sensors })
    }

    fn device(&self) -> CudaDevice {
        // The lock covers one assignment.
        self.device.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Device for CudaEngine {
    fn id(&self) -> DeviceId {
        self.id
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn timed(&self, step: &mut (dyn FnMut() + Send)) -> Timed {
        let (device, started) = (self.device(), Instant::now());
        match device.timed(|| self.pool.install(|| self.arena.scope(|| device.scope(step)))) {
            Ok(((), busy_ns)) => Timed { busy_ns, fault: None },
            // The events are lost with the context: the host's clock tells how long the operator's device was away.
            Err(error) => Timed { busy_ns: started.elapsed().as_nanos() as u64, fault: Some(fault(&error)) },
        }
    }

    fn scope(&self, work: &mut (dyn FnMut() + Send)) {
        self.device().scope(work);
    }

    fn free_bytes(&self) -> Option<u64> {
        self.device().free_bytes().ok().map(|(free, _)| free)
    }

    fn peak_bytes(&self) -> usize {
        self.device().peak_bytes()
    }

    fn scrub(&self) -> Result<(), DeviceFault> {
        self.device().scrub().map_err(|e| fault(&e))
    }

    fn trim(&self) {
        self.arena.trim();
        if let Err(error) = self.device().trim() {
            // The next step meets it too, and then the device is reset.
            tracing::warn!(device = %self.id, %error, "memory could not be given back");
        }
    }

    fn reset(&self) -> Result<(), DeviceFault> {
        let new = self.device().reset().map_err(|e| fault(&e))?;
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    fn sensors(&self) -> Option<Sensors> {
        self.sensors.read(&self.bus_id)
    }
}

fn fault(error: &Error) -> DeviceFault {
    DeviceFault(error.to_string())
}
