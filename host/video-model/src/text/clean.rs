//! Prompts as Wan's training saw them: entities resolved, typography made plain, white space folded.
//!
//! The reference is diffusers' `prompt_clean` with ftfy installed, as Wan's own code always has it: `html.unescape` twice,
//! then single spaces. Of ftfy's repairs this has the ones that typed or pasted text needs (quotes, ligatures, character
//! width, control characters, composed accents); text that was decoded with a wrong character set is left as it is.

use std::borrow::Cow;
use unicode_normalization::UnicodeNormalization;

/// The prompt that a text encoder of the Wan family sees.
pub fn clean_prompt(prompt: &str) -> String {
    let text = unescape(&unescape(&unnest(prompt))).chars().flat_map(plain).nfc().collect::<String>();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// ftfy resolves entities to the bottom in a text that cannot be markup.
fn unnest(prompt: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(prompt);
    if prompt.contains('<') {
        return text;
    }
    // Each pass shortens the text, so this ends.
    loop {
        let shorter = unescape(&text).into_owned();
        if shorter.len() >= text.len() {
            return text;
        }
        text = Cow::Owned(shorter);
    }
}

/// One character without its typographic dress; nothing for one that only controls a device.
fn plain(c: char) -> impl Iterator<Item = char> {
    let plain: Cow<'static, str> = match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => "'".into(),
        '\u{201c}'..='\u{201f}' => "\"".into(),
        'ŉ' => "'n".into(),
        'Ĳ' | 'ĳ' | 'Ǆ'..='ǌ' | 'Ǳ'..='ǳ' | 'ﬀ'..='ﬆ' | '\u{3000}' | '\u{ff01}'..='\u{ffef}' => {
            c.nfkc().collect::<String>().into()
        }
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' => "".into(),
        '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => "".into(),
        _ => c.to_string().into(),
    };
    plain.chars().collect::<Vec<_>>().into_iter()
}

/// Names are no longer than this, their semicolon apart.
const NAME_CHARS_MAX: usize = 32;

/// Python's `html.unescape`, once: HTML 5's rules for valid and invalid character references.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        rest = match after.strip_prefix('#') {
            Some(number) => numeric(number, &mut out),
            None => named(after, &mut out),
        }
        .unwrap_or_else(|| {
            out.push('&');
            after
        });
    }
    out.push_str(rest);
    out.into()
}

/// Reads what follows `&#`; the text behind the reference, or nothing when there is no number.
fn numeric<'a>(text: &'a str, out: &mut String) -> Option<&'a str> {
    let (digits, radix) = match text.strip_prefix(['x', 'X']) {
        Some(hexadecimal) => (hexadecimal, 16),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_ascii() || !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    // A number too large for the type is too large for Unicode as well.
    out.extend(referred(u32::from_str_radix(&digits[..end], radix).unwrap_or(u32::MAX)));
    Some(digits[end..].strip_prefix(';').unwrap_or(&digits[end..]))
}

/// What browsers read in place of 0x80 to 0x9F: Windows' code page 1252.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', //
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// The character that a number refers to; none for control characters and for code points that never are characters.
fn referred(number: u32) -> Option<char> {
    match number {
        0 => Some('\u{fffd}'),
        0x80..=0x9f => Some(WINDOWS_1252[number as usize - 0x80]),
        1..=8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => None,
        _ => match char::from_u32(number) {
            Some(_) if number & 0xfffe == 0xfffe => None,
            c => Some(c.unwrap_or('\u{fffd}')),
        },
    }
}

/// Reads a name after `&`: the longest that HTML knows, which old ones are without a semicolon too.
fn named<'a>(text: &'a str, out: &mut String) -> Option<&'a str> {
    let ends = |c: char| matches!(c, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
    let name = text.char_indices().take(NAME_CHARS_MAX).find(|(_, c)| ends(*c));
    let end =
        name.map_or_else(|| text.char_indices().nth(NAME_CHARS_MAX).map_or(text.len(), |(at, _)| at), |(at, _)| at);
    let closed = end + usize::from(end > 0 && text[end..].starts_with(';'));
    // Keys of the table have their `&`; the shortest names have two letters.
    let reference = format!("&{}", &text[..closed]);
    let longest =
        (3..=reference.len()).rev().find_map(|len| Some((len, htmlize::ENTITIES.get(&reference.as_bytes()[..len])?)));
    let (len, expansion) = longest?;
    out.push_str(std::str::from_utf8(expansion).ok()?);
    Some(&text[len - 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        prompt: String,
        unescaped: String,
        /// Absent where ftfy repairs more than we do.
        clean: Option<String>,
    }

    /// Made by `tests/parity/encoders.py` with Python's `html` and diffusers.
    const GOLDEN: &str = include_str!("../../../../tests/parity/goldens/prompts.json");

    #[test]
    fn entities_are_resolved_as_python_does() {
        for case in serde_json::from_str::<Vec<Case>>(GOLDEN).unwrap() {
            assert_eq!(unescape(&case.prompt), case.unescaped, "{:?}", case.prompt);
        }
    }

    #[test]
    fn prompts_are_cleaned_as_diffusers_does() {
        for case in serde_json::from_str::<Vec<Case>>(GOLDEN).unwrap() {
            if let Some(clean) = case.clean {
                assert_eq!(clean_prompt(&case.prompt), clean, "{:?}", case.prompt);
            }
        }
    }
}
