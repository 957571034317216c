//! A simple effect: black bars that give the picture another aspect ratio.
//!
//! Configuration: `aspect` is WIDTH:HEIGHT, like `16:9` (default `2.39:1`, the cinema's wide screen).

wit_bindgen::generate!({ world: "simple-effect", path: "../../wit" });

use zoetrope::video::config;

struct Letterbox;

impl Guest for Letterbox {
    fn apply(mut pixels: Vec<u8>, info: FrameInfo) -> Result<Vec<u8>, Error> {
        let text = config::get("aspect").unwrap_or_else(|| "2.39:1".to_owned());
        let aspect = parse(&text)
            .ok_or_else(|| Error::InvalidArgument(format!("`aspect` is `{text}`; write WIDTH:HEIGHT, like 16:9")))?;
        let (width, height) = (info.size.width as usize, info.size.height as usize);
        let (across, down) = bars(width, height, aspect);
        for (y, row) in pixels.chunks_exact_mut(width * 3).enumerate() {
            if y < down || y >= height - down {
                row.fill(0);
            } else {
                row[..across * 3].fill(0);
                row[(width - across) * 3..].fill(0);
            }
        }
        Ok(pixels)
    }
}

fn parse(text: &str) -> Option<f64> {
    let (width, height) = text.split_once(':')?;
    let aspect = width.trim().parse::<f64>().ok()? / height.trim().parse::<f64>().ok()?;
    (aspect.is_finite() && (0.1..=10.0).contains(&aspect)).then_some(aspect)
}

/// Width of the bars at the left and right, height of the bars at the top and bottom; one of them is 0.
fn bars(width: usize, height: usize, aspect: f64) -> (usize, usize) {
    let half = |all: usize, picture: f64| (all - (picture.round() as usize).min(all)) / 2;
    (half(width, height as f64 * aspect), half(height, width as f64 / aspect))
}

export!(Letterbox);
