//! The devices' part of `/metrics`. Our own measurement of a device's work stands beside what its vendor's tools say, so that
//! an operator can compare: with nobody else on a device, the rate of `device_busy_ms` cannot exceed the utilisation for long.

use super::metrics::gauge;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::fmt;
use video_model::device_queue::{Bill, STEP_MS, StepTimes};
use video_model::engine::DeviceReport;

type Labels = [(&'static str, String); 2];

/// A figure of each device, by name and help; those that say nothing are left out.
type Figure = (&'static str, &'static str, fn(&DeviceReport) -> Option<u64>);

const FIGURES: [Figure; 16] = [
    ("device_busy_ms", "Device time of all steps since this process started", |d| Some(d.queue.busy_ms)),
    ("device_billed_ms", "Of the busy time, what was billed to jobs", |d| Some(d.queue.billed_ms)),
    ("device_refunded_ms", "Of the busy time, what jobs got back because the device failed", |d| {
        Some(d.queue.refunded_ms)
    }),
    ("device_steps", "Steps that the device has run since this process started", |d| Some(d.queue.steps)),
    ("device_faults", "How often the device failed and was reset", |d| Some(d.queue.faults)),
    ("device_out_of_order", "1 when the device failed and could not be reset", |d| Some(d.is_out_of_order.into())),
    ("device_jobs", "Jobs placed on the device", |d| Some(d.jobs as u64)),
    ("device_sessions_waiting", "Sessions that wait for their first step", |d| Some(d.queue.waiting as u64)),
    ("device_sessions_active", "Sessions between their first and last step", |d| Some(d.queue.active as u64)),
    ("device_queue_oldest_age_ms", "How long the oldest waiting session has waited", |d| Some(d.queue.oldest_wait_ms)),
    ("device_queue_expected_ms", "What the steps ahead are expected to take", |d| Some(d.queue.expected_us / 1000)),
    ("device_utilisation_percent", "Time in which a kernel of any process ran, by NVML", |d| {
        Some(d.sensors?.utilisation_percent.into())
    }),
    ("device_memory_used_bytes", "Device memory in use by all processes, by NVML", |d| {
        Some(d.sensors?.memory_used_bytes)
    }),
    ("device_memory_total_bytes", "All memory of the device, by NVML", |d| Some(d.sensors?.memory_total_bytes)),
    ("device_temperature_celsius", "Temperature of the device, by NVML", |d| {
        d.sensors?.temperature_celsius.map(u64::from)
    }),
    ("device_power_milliwatts", "Power draw of the device, by NVML", |d| d.sensors?.power_milliwatts.map(u64::from)),
];

/// Adds the figures of the devices as they stand.
pub(super) fn register(registry: &mut Registry, devices: &[DeviceReport]) {
    for (name, help, figure) in FIGURES {
        let family = Family::<Labels, Gauge>::default();
        for device in devices {
            if let Some(value) = figure(device) {
                let labels = [("device", device.id.to_string()), ("name", device.name.clone())];
                family.get_or_create(&labels).set(gauge(value));
            }
        }
        registry.register(name, help, family);
    }
    let times = |d: &DeviceReport| {
        let (id, times) = (d.id, d.queue.step_times);
        let stages = Bill::ALL.into_iter().zip(times);
        stages.map(move |(bill, times)| ([("device", id.to_string()), ("stage", bill.stage.name().to_owned())], times))
    };
    let steps = StepSeconds(devices.iter().flat_map(times).collect());
    registry.register("device_step_seconds", "Device time of a step; of `interpolate`, of a frame", steps);
}

/// The queues' own counts as histograms.
#[derive(Debug)]
struct StepSeconds(Vec<(Labels, StepTimes)>);

impl EncodeMetric for StepSeconds {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, times) in &self.0 {
            let ends = STEP_MS.iter().map(|ms| *ms as f64 / 1e3).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = ends.zip(times.counts).collect();
            let count = times.counts.iter().sum();
            let mut encoder = encoder.encode_family(labels)?;
            encoder.encode_histogram::<Labels>(times.sum_ns as f64 / 1e9, count, &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use video_model::device_queue::QueueStats;
    use video_model::devices::{DeviceId, Sensors};

    fn report(ordinal: usize, sensors: Option<Sensors>) -> DeviceReport {
        let mut queue = QueueStats { busy_ms: 100, billed_ms: 70, refunded_ms: 30, faults: 1, ..QueueStats::default() };
        queue.step_times[2] = StepTimes { sum_ns: 12_000_000, ..StepTimes::default() };
        // Three steps of up to 5 ms, one that is longer than all classes.
        (queue.step_times[2].counts[2], queue.step_times[2].counts[STEP_MS.len()]) = (3, 1);
        let id = DeviceId::Cuda(ordinal);
        DeviceReport { id, name: "NVIDIA Z1".to_owned(), queue, jobs: 2, sensors, is_out_of_order: ordinal > 0 }
    }

    #[test]
    fn each_device_has_its_figures_and_only_those_with_sensors_have_what_sensors_say() {
        let sensors = Sensors {
            utilisation_percent: 97,
            memory_used_bytes: 1 << 36,
            memory_total_bytes: 1 << 37,
            temperature_celsius: Some(61),
            power_milliwatts: None,
        };
        let mut registry = Registry::with_prefix("zoetrope");
        register(&mut registry, &[report(0, Some(sensors)), report(1, None)]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "zoetrope_device_busy_ms{device=\"cuda:0\",name=\"NVIDIA Z1\"} 100",
            "zoetrope_device_billed_ms{device=\"cuda:1\",name=\"NVIDIA Z1\"} 70",
            "zoetrope_device_refunded_ms{device=\"cuda:1\",name=\"NVIDIA Z1\"} 30",
            "zoetrope_device_out_of_order{device=\"cuda:0\",name=\"NVIDIA Z1\"} 0",
            "zoetrope_device_out_of_order{device=\"cuda:1\",name=\"NVIDIA Z1\"} 1",
            "zoetrope_device_utilisation_percent{device=\"cuda:0\",name=\"NVIDIA Z1\"} 97",
            "zoetrope_device_memory_used_bytes{device=\"cuda:0\",name=\"NVIDIA Z1\"} 68719476736",
            "zoetrope_device_temperature_celsius{device=\"cuda:0\",name=\"NVIDIA Z1\"} 61",
            "# TYPE zoetrope_device_step_seconds histogram",
            "zoetrope_device_step_seconds_sum{device=\"cuda:0\",stage=\"interpolate\"} 0.012",
            "zoetrope_device_step_seconds_count{device=\"cuda:0\",stage=\"interpolate\"} 4",
            "zoetrope_device_step_seconds_bucket{le=\"0.002\",device=\"cuda:0\",stage=\"interpolate\"} 0",
            "zoetrope_device_step_seconds_bucket{le=\"0.005\",device=\"cuda:0\",stage=\"interpolate\"} 3",
            "zoetrope_device_step_seconds_bucket{le=\"20.0\",device=\"cuda:0\",stage=\"interpolate\"} 3",
            "zoetrope_device_step_seconds_bucket{le=\"+Inf\",device=\"cuda:0\",stage=\"interpolate\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("utilisation_percent{").count(), 1);
        assert_eq!(text.matches("power_milliwatts{").count(), 0, "what a device does not tell is not made up");
    }
}
