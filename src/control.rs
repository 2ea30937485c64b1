//! Layer `control`.

pub mod zds;
