//! The stages that components run in, one file each.

mod apply_effects;
mod direct;
mod plan;

use crate::validate::World;
use pipeline::{FunctionRef, StageError};

/// A function was named where one of another kind belongs.
fn wrong_kind(function: &FunctionRef, world: &World, wanted: &str) -> StageError {
    let message = format!("it is a {}; a {wanted} belongs here", world.kind());
    StageError::Function { function: function.name.to_string(), message }
}
