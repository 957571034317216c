//! The routes against their promises, in one process. Only `devices` has a worker and runs the model.

mod access;
mod bad_input;
mod content;
mod devices;
mod functions;
mod harness;
mod usage;
mod videos;
