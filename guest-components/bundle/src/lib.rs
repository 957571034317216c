//! Sample components.
