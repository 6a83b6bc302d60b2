//! The model: what a file's dimensions are, and the forward pass over them.

pub(crate) mod attention;
pub(crate) mod batch;
pub(crate) mod delta;
pub(crate) mod drafter;
pub(crate) mod experts;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod shape;
pub(crate) mod supported;
pub(crate) mod text;
pub(crate) mod vision;
