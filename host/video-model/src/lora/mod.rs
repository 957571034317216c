//! Low-rank adapters (LoRA, arXiv 2106.09685): small corrections to linear layers, chosen per request.
//!
//! The model's weights are shared between requests and stay as they are. A layer with an adapter computes
//! `W·x + up·(down·x)`: the second product is as narrow as the adapter's rank.

mod adapters;
mod file;
mod keys;
mod layers;
mod library;

pub use adapters::{Adapters, LayerAdapters, LowRank};
pub use file::LoraFile;
pub use library::{LoraLibrary, LoraSet};
