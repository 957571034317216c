//! How much memory there is.

use pipeline::{StageError, StageResult};
use std::path::Path;

/// Bytes that this process may still take without swapping: of the machine's memory and of its control group's limit, the
/// smaller. `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_bytes(&text, "MemAvailable"));
    match (machine, group_bytes(Path::new("/sys/fs/cgroup"))) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// A line of `/proc/meminfo`, which counts in kibibytes.
fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// What is left of the limits of this process's control group (version 2) and of the groups that it is in; files' pages
/// that can be dropped count as free. `root` is where groups are mounted; in a container it is often the own group.
fn group_bytes(root: &Path) -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let groups = Path::new(own).ancestors().map(|path| root.join(path));
    groups.filter_map(|group| left_in(&group)).min()
}

fn left_in(group: &Path) -> Option<u64> {
    let number = |file: &str| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    // No limit reads `max`.
    let (limit, current) = (number("memory.max")?, number("memory.current")?);
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
    Some(limit.saturating_sub(current.saturating_sub(droppable.unwrap_or(0))))
}

/// `12GB`, `512MB`, `8GiB` or a number of bytes.
pub fn parse_bytes(text: &str) -> StageResult<u64> {
    let refused =
        || StageError::invalid("memory", format!("`{text}` is no amount of memory: write 12GB, 512MB or 8GiB"));
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(refused()),
    };
    let number: f64 = text[..digits].parse().map_err(|_| refused())?;
    match number * unit as f64 {
        bytes if (1.0..1e18).contains(&bytes) => Ok(bytes as u64),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read_with_their_unit() {
        for (text, bytes) in [("12GB", 12_000_000_000), ("1.5GiB", 3 << 29), ("512 mb", 512_000_000), ("1000", 1000)] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "12XB", "-1GB", "0", "1e3GB", "1.2.3GB"] {
            assert!(parse_bytes(text).unwrap_err().to_string().contains("12GB"), "{text}");
        }
    }

    #[test]
    fn the_smaller_of_machine_and_group_is_what_there_is() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   1000 kB\nSwapFree: 1 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable"), Some(1_024_000));
        assert_eq!(meminfo_bytes(text, "Mem"), None);
        let group = tempfile::tempdir().unwrap();
        assert_eq!(left_in(group.path()), None);
        let write = |file: &str, text: &str| std::fs::write(group.path().join(file), text).unwrap();
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(left_in(group.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(left_in(group.path()), Some(300));
        write("memory.stat", "anon 5\ninactive_file 200\n");
        assert_eq!(left_in(group.path()), Some(500));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes().unwrap() > 1 << 20);
    }
}
