//! The control plane against its promises. Each test has a database file of its own and a clock that it moves itself.

mod fixture;
mod functions;
mod keys;
mod ledger;
mod queue;
mod quotas;
mod schema;
mod simulation;
