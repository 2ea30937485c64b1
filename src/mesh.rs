//! Layer `mesh`.
