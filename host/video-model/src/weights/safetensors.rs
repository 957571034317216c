//! The safetensors header: 8 bytes of length, then JSON with each tensor's type, shape and place.
//!
//! Read by our own few lines so that a damaged file is reported by the name of the tensor at fault.
//! Format: <https://github.com/huggingface/safetensors#format>.

use super::stored::{Entry, Header, StoredDtype};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Longer headers are refused before they are parsed; the largest public checkpoints stay under 1 MiB.
const HEADER_BYTES_MAX: u64 = 16 << 20;
const LENGTH_BYTES: usize = 8;

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Reads the header of a whole file; the error says what is wrong with it.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!("{} bytes cannot hold a header", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(format!("its header would be {length} bytes long, {HEADER_BYTES_MAX} are allowed"));
    }
    let length = length as usize;
    let Some((header, data)) = rest.split_at_checked(length) else {
        return Err(format!("the file ends within its header ({} of {length} bytes)", rest.len()));
    };
    let mut raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    let metadata = match raw.remove("__metadata__") {
        Some(value) => serde_json::from_value(value).map_err(|e| format!("__metadata__: {e}"))?,
        None => BTreeMap::new(),
    };
    let mut entries = BTreeMap::new();
    for (name, value) in raw {
        let raw: RawEntry = serde_json::from_value(value).map_err(|e| format!("`{name}`: {e}"))?;
        let entry = check(raw, data.len(), LENGTH_BYTES + length).map_err(|e| format!("`{name}` {e}"))?;
        entries.insert(name, entry);
    }
    Ok(Header { entries, metadata })
}

fn check(raw: RawEntry, data_bytes: usize, data_start: usize) -> Result<Entry, String> {
    let (start, end) = raw.data_offsets;
    if start > end {
        return Err(format!("ends ({end}) before it starts ({start})"));
    }
    if end > data_bytes {
        return Err(format!("ends at byte {end}, the file's data at {data_bytes}: the file is cut off"));
    }
    let dtype = match raw.dtype.as_str() {
        "F32" => StoredDtype::F32,
        "F16" => StoredDtype::F16,
        "BF16" => StoredDtype::Bf16,
        "I8" => StoredDtype::I8,
        "F8_E4M3" => StoredDtype::F8E4M3,
        _ => StoredDtype::Other(raw.dtype),
    };
    let elements = raw.shape.iter().try_fold(1, |product: usize, &n| product.checked_mul(n));
    let is_known = !matches!(dtype, StoredDtype::Other(_));
    if is_known && elements.and_then(|n| dtype.bytes_of(n)) != Some(end - start) {
        return Err(format!("of shape {:?} does not fill its {} bytes", raw.shape, end - start));
    }
    // Both offsets are at most the file's length, so the sums cannot overflow.
    Ok(Entry { dtype, shape: raw.shape, bytes: data_start + start..data_start + end })
}
