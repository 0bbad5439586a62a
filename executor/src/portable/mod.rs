//! Weights that other programs read and write: safetensors files with whole tensors under their own names.

mod values;
mod weights;
mod write;

pub use weights::{Tensor, Weights};
pub use write::{FloatFile, Shape};
