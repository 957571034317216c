//! A director: several shots, each diffused and interpolated by itself, cut together into one video.
//!
//! Its input is JSON:
//! `{"shots": [{"prompt": "a red circle moves up", "frames": 24}, {"prompt": "…", "continues": true}]}`.
//! `continues` starts a shot from the last picture of the one before. Without shots, the request's prompt is cut at
//! each " then ".

mod board;

wit_bindgen::generate!({ world: "director", path: "../../wit" });

use board::{Board, Shot};
use zoetrope::video::diffusion::{self, Given};
use zoetrope::video::logging::{Level, log};
use zoetrope::video::{interpolation, usage};

/// Frames per second when the request names none.
const FPS: u32 = 24;

struct Storyboard;

impl Guest for Storyboard {
    fn run(request: Request, input: String, given: Option<FrameList>) -> Result<FrameList, Error> {
        let fps = request.fps.unwrap_or(FPS);
        let board = Board::new(&request.prompt, &input, request.duration_ms.unwrap_or(2000), fps)
            .map_err(Error::InvalidArgument)?;
        let mut video: Option<FrameList> = None;
        let mut dearest_ms = 0;
        for (number, shot) in board.shots.iter().enumerate() {
            let before_ms = usage::remaining_gpu_ms();
            if let Some(video) = video.take_if(|_| before_ms < dearest_ms) {
                log(
                    Level::Warn,
                    &format!("{before_ms} GPU ms are left and a shot takes {dearest_ms}: ending after {number}"),
                );
                return Ok(video);
            }
            let start = if number == 0 { given.as_ref().map(|g| (g, 0)) } else { shot.start(&video) };
            match film(&request, shot, start, fps) {
                Ok(frames) => match &video {
                    Some(video) => video.append(&frames)?,
                    None => video = Some(frames),
                },
                // What was made so far is worth keeping.
                Err(Error::BudgetExhausted) if video.is_some() => break,
                Err(error) => return Err(error),
            }
            let used_ms = before_ms - usage::remaining_gpu_ms();
            log(Level::Info, &format!("shot {}: {} frames, {used_ms} GPU ms", number + 1, shot.frames));
            dearest_ms = dearest_ms.max(used_ms);
        }
        video.ok_or_else(|| Error::InvalidArgument("the storyboard has no shots".to_owned()))
    }
}

impl Shot {
    /// Where this shot starts, when it continues the one before.
    fn start<'a>(&self, video: &'a Option<FrameList>) -> Option<(&'a FrameList, u32)> {
        let video = video.as_ref().filter(|_| self.continues)?;
        Some((video, video.count() - 1))
    }
}

fn film(request: &Request, shot: &Shot, start: Option<(&FrameList, u32)>, fps: u32) -> Result<FrameList, Error> {
    let request = Request { prompt: shot.prompt.clone(), ..request.clone() };
    let given: Vec<Given<'_>> =
        start.into_iter().map(|(source, index)| Given { key_frame: 0, source, index }).collect();
    let key_frames = diffusion::generate(&request, &given)?;
    interpolation::in_between(&key_frames, shot.frames, fps, request.size)
}

export!(Storyboard);
