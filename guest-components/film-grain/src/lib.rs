//! A frame effect: grain like that of film. The same seed gives the same grain, frame by frame.
//!
//! Configuration: `strength` is the largest change of a pixel, 0 to 64 (default 10); `seed` is any number (default 0).

wit_bindgen::generate!({ world: "frame-effect", path: "../../wit" });

use zoetrope::video::config;

/// Rows per host call: few calls, and a tile that stays in the cache.
const ROWS: u32 = 32;

struct FilmGrain;

impl Guest for FilmGrain {
    fn apply(video: &FrameList) -> Result<(), Error> {
        let strength = number("strength", 10)?;
        if strength > 64 {
            return Err(Error::InvalidArgument(format!("`strength` is {strength}; use 0 to 64")));
        }
        let seed = number("seed", 0)?;
        let size = video.size();
        for index in 0..video.count() {
            for first in (0..size.height).step_by(ROWS as usize) {
                let mut pixels = video.read_rows(index, first, ROWS.min(size.height - first))?;
                let start = mix(seed ^ mix(u64::from(index) << 32 | u64::from(first)));
                add_grain(&mut pixels, start, strength as i32);
                video.write_rows(index, first, &pixels)?;
            }
        }
        Ok(())
    }
}

/// Adds one value to all three channels of each pixel: grain is in the silver, not in the dye. The sum of two uniform
/// values has a triangular distribution, which looks softer than a flat one.
fn add_grain(pixels: &mut [u8], start: u64, strength: i32) {
    let mut state = start | 1;
    for pixel in pixels.chunks_exact_mut(3) {
        // xorshift64: fast, and nobody can see its weaknesses.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum = (state & 0xff) as i32 + (state >> 32 & 0xff) as i32 - 255;
        let grain = sum * strength / 255;
        for channel in pixel {
            *channel = (i32::from(*channel) + grain).clamp(0, 255) as u8;
        }
    }
}

/// Spreads the bits of a counter (the finaliser of SplitMix64), so that neighbouring tiles do not look alike.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn number(name: &str, default: u64) -> Result<u64, Error> {
    let Some(text) = config::get(name) else { return Ok(default) };
    text.parse().map_err(|_| Error::InvalidArgument(format!("`{name}` is `{text}`; use a whole number from 0")))
}

export!(FilmGrain);
