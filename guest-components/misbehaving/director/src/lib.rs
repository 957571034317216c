//! A director that breaks its contract as the configuration's `behaviour` says.

wit_bindgen::generate!({ world: "director", path: "../../../wit" });

use zoetrope::video::diffusion::{self, Given};
use zoetrope::video::{config, frames, interpolation, usage};

struct Misbehaving;

impl Guest for Misbehaving {
    fn run(request: Request, _input: String, _given: Option<FrameList>) -> Result<FrameList, Error> {
        let size = frames::Size { width: 64, height: 64 };
        match config::get("behaviour").as_deref() {
            Some("ignore-errors") => loop {
                // Neither a cancelled job nor a spent budget stops it.
                drop(diffusion::generate(&request, &[]));
            },
            Some("spend-all") => loop {
                diffusion::generate(&request, &[])?;
            },
            Some("return-nothing") => {
                let list = FrameList::create(size, 1, 24)?;
                list.keep(0, 0)?;
                Ok(list)
            }
            Some("ask-for-millions") => {
                let keys = diffusion::generate(&request, &[])?;
                interpolation::in_between(&keys, u32::MAX, 24, None)
            }
            Some("ask-at-no-rate") => {
                let keys = diffusion::generate(&request, &[])?;
                interpolation::in_between(&keys, 8, 0, None)
            }
            Some("give-outside") => {
                let source = FrameList::create(size, 1, 24)?;
                diffusion::generate(&request, &[Given { key_frame: 10_000, source: &source, index: 0 }])
            }
            Some("give-missing-picture") => {
                let source = FrameList::create(size, 1, 24)?;
                diffusion::generate(&request, &[Given { key_frame: 0, source: &source, index: 7 }])
            }
            Some("say-unavailable") => Err(Error::Unavailable("try again".to_owned())),
            Some("spin-with-budget") => loop {
                std::hint::black_box(usage::remaining_gpu_ms());
            },
            other => Err(Error::InvalidArgument(format!("unknown behaviour {other:?}"))),
        }
    }
}

export!(Misbehaving);
