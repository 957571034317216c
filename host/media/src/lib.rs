//! Files: pictures in, video out, and the store where both lie.
//!
//! * [`picture`] decodes uploads (PNG, JPEG, WebP) behind caps that hold before a pixel is decoded, and encodes previews.
//! * [`video`] writes H.264 in fast-start MP4 and reads any video that openh264 or a local ffmpeg can decode.
//! * [`frames_dir`] reads and writes folders of numbered PNG frames.
//! * [`objects`] is the object store in a folder: content-addressed, atomic, never outside its root.
//! * [`stages`] plugs all of it into the pipeline as `encode_video` and `store`.
//!
//! There is no prompt here, no tensor and no HTTP status.

mod cpu_clock;
pub mod frames_dir;
pub mod objects;
pub mod picture;
pub mod stages;
pub mod video;

pub use objects::{FolderStore, ObjectError};
pub use picture::{PictureError, decode_picture, encode_png};
pub use stages::{JobStorage, VideoEncoder};
pub use video::{EncodeSettings, FrameRate, Mp4Encoder, VideoError, VideoReader, encode_mp4};
