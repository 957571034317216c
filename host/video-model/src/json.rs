//! JSON as Python writes it: `-Infinity`, `Infinity` and `NaN` are no JSON, but stand in published scheduler configs.

use std::borrow::Cow;

const WORDS: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// `text` with `null` in the place of numbers that JSON does not have; strings are left alone.
pub(crate) fn without_infinities(text: &[u8]) -> Cow<'_, [u8]> {
    if !WORDS.iter().any(|word| text.windows(word.len()).any(|part| part == *word)) {
        return Cow::Borrowed(text);
    }
    let (mut out, mut rest, mut in_string) = (Vec::with_capacity(text.len()), text, false);
    while let Some((&byte, after)) = rest.split_first() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(word) = word {
            out.extend(b"null");
            rest = &rest[word.len()..];
            continue;
        }
        out.push(byte);
        rest = after;
        match byte {
            b'"' => in_string = !in_string,
            // The escaped byte may be a quote.
            b'\\' if in_string => {
                if let Some((&escaped, after)) = rest.split_first() {
                    out.push(escaped);
                    rest = after;
                }
            }
            _ => {}
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_infinities_become_null_and_strings_stay() {
        let text = br#"{"lambda_min_clipped": -Infinity, "a": [NaN, Infinity], "s": "NaN \" -Infinity \\"}"#;
        let expected = br#"{"lambda_min_clipped": null, "a": [null, null], "s": "NaN \" -Infinity \\"}"#;
        assert_eq!(without_infinities(text), expected.as_slice());
        assert!(matches!(without_infinities(b"{\"a\": 1}"), Cow::Borrowed(_)));
    }
}
