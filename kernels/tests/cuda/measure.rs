use crate::support::bench;
use kernels::measure::{Extent, checks, timings};

#[test]
fn every_operation_on_the_device_is_right_to_what_float64_allows() {
    let bench = bench();
    let checks = checks(Some(&bench.device), 1, |_| ()).unwrap();
    let wrong: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    assert!(wrong.is_empty() && checks.len() > 100, "{} checks, wrong: {wrong:#?}", checks.len());
}

#[test]
fn every_operation_is_timed_by_the_devices_own_clock() {
    let bench = bench();
    let (ceilings, all) = timings(&bench.device, Extent::Tiny, "", 1, |_| ()).unwrap();
    assert!([ceilings.copy, ceilings.f32, ceilings.bf16, ceilings.int8].iter().all(|rate| *rate > 0.0), "{ceilings:?}");
    assert!(all.len() > 40 && all.iter().all(|t| t.median_us > 0.0 && t.share_of_ceiling > 0.0), "{all:#?}");
    let (_, some) = timings(&bench.device, Extent::Tiny, "warp_blend", 1, |_| ()).unwrap();
    assert_eq!(some.len(), 2);
}
