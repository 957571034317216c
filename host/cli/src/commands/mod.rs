//! One file a command, or a family of small ones.

pub mod account;
pub mod bench;
pub mod demo;
pub mod functions;
pub mod generate;
pub mod interpolate;
pub mod invoke;
pub mod models;
pub mod quality;
pub mod serve;
