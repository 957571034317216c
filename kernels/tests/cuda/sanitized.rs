//! Every kernel runs in one of these tests, and none goes beyond its memory.

use std::{collections::BTreeMap, path::Path, process::Command};

/// Runs all tests of operations once more, in a process under the address sanitizer; how often each kernel ran there.
fn launches_under_the_sanitizer() -> Option<BTreeMap<String, u64>> {
    let report = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launches-under-the-sanitizer");
    let _ = std::fs::remove_file(&report);
    let mut this = Command::new(std::env::current_exe().expect("this program has a path"));
    // What device:: tests is how memory is shared out, which is another way under the sanitizer.
    let this = standin::sanitized(&mut this)?.args(["--skip", "device::", "--skip", "sanitized::"]);
    let output = this.env("ZOETROPE_STANDIN_REPORT", &report).output().expect("this program starts");
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", words(&output.stdout), words(&output.stderr));
    let text = std::fs::read_to_string(&report).unwrap_or_default();
    let counted = text.lines().filter_map(|line| line.split_once(' '));
    Some(counted.map(|(kernel, launches)| (kernel.to_owned(), launches.parse().expect("a number"))).collect())
}

#[test]
fn every_kernel_runs_in_a_test_and_stays_within_its_memory() {
    let Some(launches) = launches_under_the_sanitizer() else { return };
    let unlaunched: Vec<_> =
        launches.iter().filter(|(_, launches)| **launches == 0).map(|(kernel, _)| kernel).collect();
    assert!(!launches.is_empty() && unlaunched.is_empty(), "no test launches {unlaunched:?}");
}
