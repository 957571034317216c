//! What a style adds to a prompt that leaves something open.

use crate::words::{Says, position};

/// One look.
pub struct Style {
    name: &'static str,
    colour: &'static str,
    motion: &'static str,
    background: &'static str,
    finish: &'static str,
}

/// Every style, the default first.
pub const STYLES: [Style; 3] = [
    Style {
        name: "night",
        colour: "yellow",
        motion: "moves up",
        background: "in the night sky",
        finish: "cinematic soft light",
    },
    Style {
        name: "meadow",
        colour: "red",
        motion: "moves right",
        background: "over a meadow",
        finish: "warm bright colour",
    },
    Style {
        name: "studio",
        colour: "blue",
        motion: "grows",
        background: "on a white background",
        finish: "clean lighting",
    },
];

/// The style with this name; the first one for none.
pub fn find(name: Option<&str>) -> Result<&'static Style, String> {
    let Some(name) = name else { return Ok(&STYLES[0]) };
    STYLES.iter().find(|style| style.name == name).ok_or_else(|| {
        let names: Vec<_> = STYLES.iter().map(|style| style.name).collect();
        format!("there is no style `{name}`; choose one of {}", names.join(", "))
    })
}

impl Style {
    /// A normalised prompt with a colour and a motion for its shape, a background and this style's finish.
    /// A prompt without a shape is for another kind of model: it only gets the finish.
    pub fn apply(&self, prompt: &str) -> String {
        let mut text = prompt.to_owned();
        if let Some(shape) = position(&text, Says::Shape) {
            if position(&text, Says::Motion).is_none() {
                text.insert_str(shape.end, &format!(" {}", self.motion));
            }
            if position(&text, Says::Colour).is_none() {
                text.insert_str(shape.start, &format!("{} ", self.colour));
            }
            if position(&text, Says::Background).is_none() {
                text.push_str(&format!(" {}", self.background));
            }
        }
        format!("{text}, {}", self.finish)
    }
}
