//! A simple effect that breaks its contract as the configuration's `behaviour` says.

wit_bindgen::generate!({ world: "simple-effect", path: "../../../wit" });

use zoetrope::video::config;

struct Misbehaving;

impl Guest for Misbehaving {
    fn apply(mut pixels: Vec<u8>, info: FrameInfo) -> Result<Vec<u8>, Error> {
        match config::get("behaviour").as_deref() {
            Some("too-few-bytes") => pixels.truncate(pixels.len() / 2),
            Some("too-many-bytes") => pixels.push(0),
            Some("far-too-many-bytes") => pixels.resize(100 << 20, 0),
            Some("no-bytes") => pixels.clear(),
            Some("trap-on-second") => assert!(info.index == 0, "a deliberate panic on frame {}", info.index),
            other => return Err(Error::InvalidArgument(format!("unknown behaviour {other:?}"))),
        }
        Ok(pixels)
    }
}

export!(Misbehaving);
