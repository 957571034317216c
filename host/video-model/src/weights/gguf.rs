//! The GGUF header: named values, then each tensor's name, shape, type and place.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian. Read by our own
//! lines because a file is hostile until it has been read: nothing is allocated by a count that the file claims.

use super::blocks::BlockFormat;
use super::stored::{Entry, Header, StoredDtype};

const MAGIC: &[u8; 4] = b"GGUF";
/// Names, values and shapes end within this; the largest public files stay under 32 MiB.
const HEADER_BYTES_MAX: usize = 64 << 20;
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT_DEFAULT: usize = 32;
const ALIGNMENT_MAX: usize = 1 << 20;
/// The largest public video models have 1,300.
const TENSORS_MAX: u64 = 1 << 16;
/// ggml has four; converters write a video model's first convolution with five.
const DIMS_MAX: u32 = 8;
/// Arrays within arrays.
const DEPTH_MAX: u32 = 4;
/// Converters note the shape of a tensor that had to be flattened under this prefix and its name.
const SHAPE_KEY: &str = "comfy.gguf.orig_shape.";

/// Whether a file claims to be GGUF.
pub(super) fn is_gguf(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// Reads the header of a whole file; the error says what is wrong with it.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { rest: &file[..file.len().min(HEADER_BYTES_MAX)] };
    if cursor.take(MAGIC.len())? != MAGIC {
        return Err("it does not start with `GGUF`".to_owned());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version => return Err(format!("version {version} is not read; 2 and 3 are")),
    }
    let (tensors, values) = (cursor.u64()?, cursor.u64()?);
    cursor.expect(values)?;
    if tensors > TENSORS_MAX {
        return Err(format!("it would have {tensors} tensors, {TENSORS_MAX} are allowed"));
    }
    let mut header = Header::default();
    let (mut shapes, mut alignment) = (Vec::new(), ALIGNMENT_DEFAULT);
    for _ in 0..values {
        let key = cursor.string()?;
        match (cursor.value()?, key.strip_prefix(SHAPE_KEY)) {
            (Value::Text(text), _) => drop(header.metadata.insert(key, text)),
            (Value::Whole(value), _) if key == ALIGNMENT_KEY => alignment = value as usize,
            (Value::List(list), Some(tensor)) => shapes.push((tensor.to_owned(), list)),
            _ => {}
        }
    }
    if !alignment.is_power_of_two() || alignment > ALIGNMENT_MAX {
        return Err(format!("{ALIGNMENT_KEY} is {alignment}"));
    }
    let mut infos = Vec::new();
    for _ in 0..tensors {
        infos.push(cursor.tensor()?);
    }
    let header_bytes = file.len().min(HEADER_BYTES_MAX) - cursor.rest.len();
    let data_start = header_bytes.next_multiple_of(alignment);
    for info in infos {
        let name = info.name.clone();
        let entry = info.place(data_start, file.len()).map_err(|e| format!("`{name}` {e}"))?;
        if header.entries.insert(name.clone(), entry).is_some() {
            return Err(format!("`{name}` is there twice"));
        }
    }
    for (name, shape) in shapes {
        restore_shape(&mut header, &name, &shape)?;
    }
    Ok(header)
}

/// Gives a flattened tensor the shape that its converter noted.
fn restore_shape(header: &mut Header, name: &str, shape: &[usize]) -> Result<(), String> {
    let Some(entry) = header.entries.get_mut(name) else { return Ok(()) };
    if elements(shape) != elements(&entry.shape) {
        return Err(format!("`{name}` of shape {:?} cannot have been {shape:?}", entry.shape));
    }
    entry.shape = shape.to_vec();
    Ok(())
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1, |product: usize, &n| product.checked_mul(n))
}

struct Info {
    name: String,
    shape: Vec<usize>,
    dtype: StoredDtype,
    offset: u64,
}

impl Info {
    fn place(self, data_start: usize, file_bytes: usize) -> Result<Entry, String> {
        let (dtype, shape) = (self.dtype, self.shape);
        if let StoredDtype::Blocks(format) = &dtype
            && !shape.last().is_some_and(|row| row.is_multiple_of(format.elements()))
        {
            return Err(format!("has rows of {:?}, not in whole blocks of {}", shape.last(), format.elements()));
        }
        // The length of a type that nobody knows is not known either.
        let bytes = match &dtype {
            StoredDtype::Other(_) => Some(0),
            known => elements(&shape).and_then(|n| known.bytes_of(n)),
        };
        let start = usize::try_from(self.offset).ok().and_then(|offset| data_start.checked_add(offset));
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => Ok(Entry { dtype, shape, bytes: start..end }),
            (_, Some(end)) => Err(format!("ends at byte {end}, the file at {file_bytes}: the file is cut off")),
            _ => Err(format!("of shape {shape:?} at {} is larger than any file", self.offset)),
        }
    }
}

/// The values that are used; others are skipped.
enum Value {
    Text(String),
    Whole(u64),
    List(Vec<usize>),
    Other,
}

struct Cursor<'f> {
    rest: &'f [u8],
}

impl<'f> Cursor<'f> {
    fn take(&mut self, bytes: usize) -> Result<&'f [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or("the file ends within its header")?;
        self.rest = rest;
        Ok(taken)
    }

    /// Refuses a count of things that cannot all be there; each takes at least the 8 bytes of a length.
    fn expect(&self, count: u64) -> Result<(), String> {
        let fits = count <= self.rest.len() as u64 / 8;
        fits.then_some(()).ok_or_else(|| "the file ends within its header".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take(4).map(|b| b.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take(8).map(|b| b.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn length(&mut self) -> Result<usize, String> {
        let length = self.u64()?;
        usize::try_from(length).map_err(|_| format!("a length of {length}"))
    }

    fn string(&mut self) -> Result<String, String> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        match kind {
            4 | 5 => self.u32().map(|value| Value::Whole(value.into())),
            10 | 11 => self.u64().map(Value::Whole),
            8 => {
                let length = self.length()?;
                Ok(Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned()))
            }
            9 => self.array(0),
            kind => self.take(scalar_bytes(kind)?).map(|_| Value::Other),
        }
    }

    fn array(&mut self, depth: u32) -> Result<Value, String> {
        let (kind, length) = (self.u32()?, self.length()?);
        if matches!(kind, 8 | 9) {
            self.expect(length as u64)?;
        }
        match kind {
            // Shapes are short; a longer list is skipped like any other.
            4 | 5 if length <= DIMS_MAX as usize => {
                let numbers: Result<_, String> = (0..length).map(|_| self.u32().map(|n| n as usize)).collect();
                numbers.map(Value::List)
            }
            8 => {
                for _ in 0..length {
                    let bytes = self.length()?;
                    self.take(bytes)?;
                }
                Ok(Value::Other)
            }
            9 if depth < DEPTH_MAX => {
                for _ in 0..length {
                    self.array(depth + 1)?;
                }
                Ok(Value::Other)
            }
            9 => Err(format!("arrays nested deeper than {DEPTH_MAX}")),
            kind => {
                let bytes = length.checked_mul(scalar_bytes(kind)?).ok_or("an array longer than any file")?;
                self.take(bytes).map(|_| Value::Other)
            }
        }
    }

    fn tensor(&mut self) -> Result<Info, String> {
        let name = self.string()?;
        let dims = self.u32()?;
        if dims > DIMS_MAX {
            return Err(format!("`{name}` has {dims} dimensions"));
        }
        // The innermost comes first.
        let mut shape = (0..dims).map(|_| self.length()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let dtype = match self.u32()? {
            0 => StoredDtype::F32,
            1 => StoredDtype::F16,
            30 => StoredDtype::Bf16,
            code => BlockFormat::from_code(code)
                .map_or_else(|| StoredDtype::Other(format!("ggml type {code}")), StoredDtype::Blocks),
        };
        Ok(Info { name, shape, dtype, offset: self.u64()? })
    }
}

fn scalar_bytes(kind: u32) -> Result<usize, String> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        other => Err(format!("a value of unknown type {other}")),
    }
}
