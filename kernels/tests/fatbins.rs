//! The compiled kernels that are in the repository: made from the present sources, and within the device's resources.

#[path = "../build/sources.rs"]
mod sources;

use serde_json::Value;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `(kernel, target, resources)` that the compiler reported.
fn reports() -> Vec<(String, String, Value)> {
    let text = std::fs::read_to_string(root().join("fatbins/manifest.json")).expect("scripts/fatbins has run");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let mut reports = Vec::new();
    for group in manifest.as_object().expect("groups").values() {
        for (kernel, targets) in group["kernels"].as_object().expect("kernels") {
            let targets = targets.as_object().expect("targets");
            reports.extend(targets.iter().map(|(target, used)| (kernel.clone(), target.clone(), used.clone())));
        }
    }
    reports
}

/// `(kernel, target)` of the lines `kernel target reason`.
fn spills_allowed() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("cuda/spills-allowed")).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            match (words.next(), words.next(), words.next()) {
                (Some(kernel), Some(target), Some(_reason)) => (kernel, target),
                _ => panic!("not `kernel target reason`: {line}"),
            }
        })
        .collect()
}

#[test]
fn every_fatbin_is_made_from_the_present_sources() {
    let groups = sources::groups(&root().join("cuda")).expect("the folder is there");
    let stale: Vec<_> =
        groups.iter().filter(|group| sources::fatbin(root(), group).expect("sources").is_none()).collect();
    assert!(!groups.is_empty() && stale.is_empty(), "run scripts/fatbins: {stale:?} changed since, or never compiled");
}

#[test]
fn no_kernel_spills_registers_or_has_more_than_its_launch_bounds_leave() {
    let reports = reports();
    assert!(!reports.is_empty());
    let allowed = spills_allowed();
    for (kernel, target, used) in reports {
        let number = |name: &str| used[name].as_u64().expect("a number");
        let spilled = number("spill_store_bytes") + number("spill_load_bytes");
        assert!(
            spilled == 0 || allowed.contains(&(kernel.clone(), target.clone())),
            "{kernel} spills {spilled} bytes on {target}"
        );
        assert!(number("registers") <= number("registers_at_most"), "{kernel} on {target}: {used}");
    }
}

#[test]
fn every_kernel_is_compiled_for_every_generation_of_devices() {
    let reports = reports();
    for (kernel, ..) in &reports {
        let mut targets: Vec<_> =
            reports.iter().filter(|(name, ..)| name == kernel).map(|(_, target, _)| target.as_str()).collect();
        targets.sort_unstable();
        assert_eq!(targets, ["sm_100", "sm_80", "sm_89", "sm_90a"], "{kernel}");
    }
}
