//! The routes against their promises, in one process and without a worker: nothing here runs the model.

mod access;
mod bad_input;
mod content;
mod functions;
mod harness;
mod usage;
mod videos;
