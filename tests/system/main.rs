//! The whole program, driven from outside: the built binary, real HTTP, real components, real files.

mod bad_input;
mod command_line;
mod fake_hub;
mod harness;
mod misbehaving;
mod models;
mod openai_client;
mod restart;
mod tenants;
mod videos;
