//! The director's input, read and checked.

use serde::Deserialize;

/// More shots than anyone needs in a minute.
const SHOTS_MAX: usize = 64;

/// All shots, in order; at least one.
pub struct Board {
    pub shots: Vec<Shot>,
}

/// One shot with every choice made.
pub struct Shot {
    pub prompt: String,
    pub frames: u32,
    pub continues: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Input {
    shots: Vec<InputShot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputShot {
    prompt: String,
    frames: Option<u32>,
    #[serde(default)]
    continues: bool,
}

impl Board {
    /// Shots from the input, else from the prompt; those without a length share the request's duration.
    pub fn new(prompt: &str, input: &str, duration_ms: u32, fps: u32) -> Result<Self, String> {
        let mut shots = parse(input)?.shots;
        if shots.is_empty() {
            shots = prompt.split(" then ").map(InputShot::from_prompt).collect();
        }
        if shots.len() > SHOTS_MAX {
            return Err(format!("{} shots; at most {SHOTS_MAX} fit", shots.len()));
        }
        let all_frames = (u64::from(duration_ms) * u64::from(fps) / 1000) as u32;
        let share = (all_frames / shots.len() as u32).max(1);
        Ok(Self { shots: shots.into_iter().map(|shot| shot.resolve(share)).collect() })
    }
}

impl InputShot {
    fn from_prompt(part: &str) -> Self {
        Self { prompt: part.trim().trim_matches(',').trim().to_owned(), frames: None, continues: false }
    }

    fn resolve(self, frames: u32) -> Shot {
        Shot { prompt: self.prompt, frames: self.frames.unwrap_or(frames), continues: self.continues }
    }
}

fn parse(input: &str) -> Result<Input, String> {
    if input.trim().is_empty() {
        return Ok(Input::default());
    }
    serde_json::from_str(input).map_err(|error| {
        format!("the input is not a storyboard ({error}); write {{\"shots\": [{{\"prompt\": \"…\", \"frames\": 24}}]}}")
    })
}
