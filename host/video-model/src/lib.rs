//! video-model
