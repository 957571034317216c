//! The whole program, driven from outside: the built binary, real HTTP, real components, real files.

mod bad_input;
mod command_line;
mod harness;
mod misbehaving;
mod openai_client;
mod restart;
mod tenants;
mod videos;
