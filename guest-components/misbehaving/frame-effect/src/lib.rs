//! A frame effect that breaks its contract as the configuration's `behaviour` says.

wit_bindgen::generate!({ world: "frame-effect", path: "../../../wit" });

use zoetrope::video::{config, frames};

struct Misbehaving;

impl Guest for Misbehaving {
    fn apply(video: &FrameList) -> Result<(), Error> {
        let size = video.size();
        match config::get("behaviour").as_deref() {
            Some("drop-frames") => video.keep(0, 1),
            Some("double-frames") => video.append(video),
            Some("hoard-handles") => hoard_handles(size),
            Some("hoard-frames") => hoard_frames(size),
            Some("read-outside") => video.read_rows(video.count(), 0, 1).map(drop),
            Some("read-far-outside") => video.read_rows(0, u32::MAX, u32::MAX).map(drop),
            Some("write-outside") => video.write_rows(0, size.height, &vec![0; size.width as usize * 3]),
            Some("write-half-row") => video.write_rows(0, 0, &[1, 2, 3, 4]),
            Some("impossible-list") => FrameList::create(frames::Size { width: 13, height: 7 }, 1, 24).map(drop),
            Some("spin-after-writing") => {
                video.write_rows(0, 0, &vec![255; size.width as usize * 3])?;
                loop {
                    std::hint::black_box(video.count());
                }
            }
            other => Err(Error::InvalidArgument(format!("unknown behaviour {other:?}"))),
        }
    }
}

/// Opens lists until the host says no, and hands on what it said.
fn hoard_handles(size: frames::Size) -> Result<(), Error> {
    let mut all = Vec::new();
    loop {
        all.push(FrameList::create(size, 1, 24)?);
    }
}

/// Asks for more pictures than any job may hold.
fn hoard_frames(size: frames::Size) -> Result<(), Error> {
    FrameList::create(size, u32::MAX, 24).map(drop)
}

export!(Misbehaving);
