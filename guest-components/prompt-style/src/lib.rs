//! A prompt hook. Casual prompts ("A crimson ball flies up!") become captions in the words that the default model was
//! trained on, and what a prompt leaves open (colour, motion, background) is filled in from a style.
//!
//! Configuration: `style` is one of the names in [`style::STYLES`]; without it, the first one.

mod style;
mod words;

wit_bindgen::generate!({ world: "prompt-hook", path: "../../wit" });

use zoetrope::video::{config, logging};

struct PromptStyle;

impl Guest for PromptStyle {
    fn plan(mut request: Request) -> Result<Request, Error> {
        let name = config::get("style");
        let style = style::find(name.as_deref()).map_err(Error::InvalidArgument)?;
        let prompt = style.apply(&words::normalise(&request.prompt));
        logging::log(logging::Level::Info, &format!("\"{}\" became \"{prompt}\"", request.prompt));
        request.prompt = prompt;
        Ok(request)
    }
}

export!(PromptStyle);
