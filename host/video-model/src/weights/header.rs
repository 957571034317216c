//! The safetensors header: 8 bytes of length, then JSON with each tensor's type, shape and place.
//!
//! Read by our own few lines so that a damaged file is reported by the name of the tensor at fault.
//! Format: <https://github.com/huggingface/safetensors#format>.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// Longer headers are refused before they are parsed; the largest public checkpoints stay under 1 MiB.
const HEADER_BYTES_MAX: u64 = 64 << 20;
const LENGTH_BYTES: usize = 8;

/// Element types that weights are read from. Others are kept by name: a file may hold them as long as nobody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoredDtype {
    F32,
    F16,
    Bf16,
    Other(String),
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dtype: StoredDtype,
    pub(super) shape: Vec<usize>,
    /// Within the file.
    pub(super) bytes: Range<usize>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// What a file says about itself.
pub(super) struct Header {
    pub(super) entries: BTreeMap<String, Entry>,
    /// The strings under `__metadata__`.
    pub(super) metadata: BTreeMap<String, String>,
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
    let (dtype, element_bytes) = match raw.dtype.as_str() {
        "F32" => (StoredDtype::F32, Some(4)),
        "F16" => (StoredDtype::F16, Some(2)),
        "BF16" => (StoredDtype::Bf16, Some(2)),
        _ => (StoredDtype::Other(raw.dtype), None),
    };
    let needed = |width| raw.shape.iter().try_fold(width, |product: usize, &n| product.checked_mul(n));
    if let Some(width) = element_bytes
        && needed(width) != Some(end - start)
    {
        return Err(format!("of shape {:?} does not fill its {} bytes", raw.shape, end - start));
    }
    // Both offsets are at most the file's length, so the sums cannot overflow.
    Ok(Entry { dtype, shape: raw.shape, bytes: data_start + start..data_start + end })
}
