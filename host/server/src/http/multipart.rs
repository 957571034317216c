//! Forms as client libraries write them: nested values by brackets (`input_reference[image_url]`), lists as `name[]`.

use super::body::malformed;
use super::error::ApiError;
use super::fields::Fields;
use axum::extract::{FromRequest, Multipart, Request};
use serde_json::{Map, Value};

const PARTS_MAX: usize = 128;
const NESTING_MAX: usize = 3;

/// The parts of a form: files by name, and everything else as one JSON object.
pub(super) async fn fields(request: Request) -> Result<Fields, ApiError> {
    let mut form = Multipart::from_request(request, &()).await.map_err(|e| malformed(e.body_text()))?;
    let mut values = Map::new();
    let mut files = Vec::new();
    let mut parts = 0;
    while let Some(part) = form.next_field().await.map_err(|e| malformed(e.body_text()))? {
        parts += 1;
        if parts > PARTS_MAX {
            return Err(malformed(format!("the form has more than {PARTS_MAX} parts")));
        }
        let name = part.name().unwrap_or_default().to_owned();
        let is_file = part.file_name().is_some();
        let bytes = part.bytes().await.map_err(|e| malformed(e.body_text()))?;
        if is_file {
            files.push((name, bytes.to_vec()));
        } else {
            let text = String::from_utf8(bytes.to_vec())
                .map_err(|_| ApiError::invalid(&name, format!("{name}: the text is not UTF-8")))?;
            insert(&mut values, &name, text)?;
        }
    }
    let mut fields = Fields::new(values);
    for (name, bytes) in files {
        fields.add_file(name, bytes)?;
    }
    Ok(fields)
}

/// Puts `text` where the bracketed name says.
fn insert(values: &mut Map<String, Value>, name: &str, text: String) -> Result<(), ApiError> {
    let wrong = || ApiError::invalid(name, format!("`{name}` is not a field name, or is given twice"));
    let (first, rest) = name.split_at(name.find('[').unwrap_or(name.len()));
    let mut keys = Vec::new();
    let mut rest = rest;
    while !rest.is_empty() {
        let (key, after) = rest.strip_prefix('[').and_then(|r| r.split_once(']')).ok_or_else(wrong)?;
        keys.push(key);
        rest = after;
    }
    if first.is_empty() || keys.len() > NESTING_MAX {
        return Err(wrong());
    }
    let slot = values.entry(first).or_insert(Value::Null);
    put(slot, &keys, text).ok_or_else(wrong)
}

fn put(slot: &mut Value, keys: &[&str], text: String) -> Option<()> {
    match keys {
        [] if slot.is_null() => *slot = Value::String(text),
        [] => return None,
        [""] => {
            if slot.is_null() {
                *slot = Value::Array(Vec::new());
            }
            slot.as_array_mut()?.push(Value::String(text));
        }
        [key, rest @ ..] => {
            if slot.is_null() {
                *slot = Value::Object(Map::new());
            }
            put(slot.as_object_mut()?.entry(*key).or_insert(Value::Null), rest, text)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(parts: &[(&str, &str)]) -> Result<Value, ApiError> {
        let mut values = Map::new();
        for (name, text) in parts {
            insert(&mut values, name, (*text).to_owned())?;
        }
        Ok(Value::Object(values))
    }

    #[test]
    fn brackets_nest_and_lists_grow() {
        let parts = [("a", "1"), ("b[]", "x"), ("b[]", "y"), ("c[d]", "2"), ("c[e][f]", "3")];
        let expected = json!({ "a": "1", "b": ["x", "y"], "c": { "d": "2", "e": { "f": "3" } } });
        assert_eq!(read(&parts).unwrap(), expected);
    }

    #[test]
    fn names_that_make_no_sense_are_refused() {
        for parts in [
            &[("a", "1"), ("a", "2")][..],
            &[("a", "1"), ("a[b]", "2")],
            &[("a[b]", "1"), ("a[]", "2")],
            &[("", "1")],
            &[("[a]", "1")],
            &[("a[", "1")],
            &[("a]b", "1"), ("a]b", "1")],
            &[("a[b]c", "1")],
            &[("a[b][c][d][e]", "1")],
        ] {
            assert!(read(parts).is_err(), "{parts:?}");
        }
    }
}
