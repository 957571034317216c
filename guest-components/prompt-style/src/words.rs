//! Casual words and the vocabulary's words for them.

/// What a word of the vocabulary says about the scene.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Shape,
    Colour,
    Motion,
    Background,
}

/// Phrases of the vocabulary, by what they say. Longer phrases of the same start stand first.
const VOCABULARY: [(Says, &[&str]); 4] = [
    (Says::Shape, &["circle", "ball", "disc", "square", "box", "triangle", "star", "heart"]),
    (Says::Colour, &["red", "orange", "yellow", "green", "blue", "purple"]),
    (
        Says::Motion,
        &[
            "stays still",
            "does not move",
            "rests in place",
            "moves to the left",
            "moves left",
            "slides left",
            "moves to the right",
            "moves right",
            "slides right",
            "moves up",
            "rises",
            "floats up",
            "moves down",
            "falls",
            "sinks down",
            "grows",
            "gets bigger",
            "expands",
        ],
    ),
    (Says::Background, &["white background", "plain white", "night", "meadow", "grassy field"]),
];

/// What people write, and the vocabulary's words for it. Every phrase is matched as whole words.
const SYNONYMS: [(&str, &[&str]); 18] = [
    ("circle", &["sphere", "orb", "dot", "bubble", "moon", "sun", "coin", "round thing"]),
    ("square", &["cube", "block", "rectangle", "tile", "brick"]),
    ("triangle", &["pyramid", "cone", "wedge", "tent"]),
    ("star", &["starfish", "asterisk", "sparkle"]),
    ("heart", &["love symbol", "valentine"]),
    ("red", &["crimson", "scarlet", "ruby", "maroon", "cherry"]),
    ("orange", &["amber", "tangerine", "coral", "peach"]),
    ("yellow", &["golden", "gold", "lemon", "mustard"]),
    ("green", &["emerald", "lime", "olive", "jade", "mint"]),
    ("blue", &["azure", "navy", "cyan", "turquoise", "teal", "indigo"]),
    ("purple", &["violet", "lilac", "magenta", "lavender", "plum"]),
    (
        "moves up",
        &["goes up", "flies up", "rising", "floating up", "moving up", "climbs", "ascends", "soars", "lifts off"],
    ),
    ("moves down", &["goes down", "falling", "moving down", "drops", "dropping", "descends", "sinks", "sinking"]),
    ("moves left", &["goes left", "flies left", "moving left", "sliding left", "drifts left", "goes to the left"]),
    (
        "moves right",
        &["goes right", "flies right", "moving right", "sliding right", "drifts right", "goes to the right"],
    ),
    ("grows", &["growing", "gets larger", "inflates", "swells", "zooms in", "expanding"]),
    ("stays still", &["standing still", "stands still", "motionless", "hovers", "waits", "does nothing"]),
    ("in the night sky", &["in space", "in the dark", "under the stars", "among the stars", "at midnight"]),
];

/// The prompt in lower case with one space between words and every synonym replaced. Punctuation stays where it is.
pub fn normalise(prompt: &str) -> String {
    let mut text = prompt.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    text.truncate(text.trim_end_matches(['.', '!', '?', ' ']).len());
    for (word, synonyms) in SYNONYMS {
        for synonym in synonyms {
            text = replace_words(&text, synonym, word);
        }
    }
    text
}

/// The end of the first phrase that says `what`, as a byte offset.
pub fn position(text: &str, what: Says) -> Option<std::ops::Range<usize>> {
    let phrases = VOCABULARY.iter().find(|(says, _)| *says == what).map_or(&[][..], |(_, phrases)| *phrases);
    phrases.iter().filter_map(|phrase| find_words(text, phrase, 0)).min_by_key(|range| range.start)
}

fn replace_words(text: &str, from: &str, to: &str) -> String {
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    while let Some(range) = find_words(text, from, done) {
        out.push_str(&text[done..range.start]);
        out.push_str(to);
        done = range.end;
    }
    out.push_str(&text[done..]);
    out
}

/// `phrase` in `text` from byte `start`, where no letter or digit touches it.
fn find_words(text: &str, phrase: &str, start: usize) -> Option<std::ops::Range<usize>> {
    let free = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
    text[start..].match_indices(phrase).find_map(|(at, _)| {
        let range = start + at..start + at + phrase.len();
        let whole = free(text[..range.start].chars().next_back()) && free(text[range.end..].chars().next());
        whole.then_some(range)
    })
}
