//! Weights that other programs read and write: safetensors files with whole tensors under their own names.

mod fit;
mod weights;
mod write;

pub use fit::fit;
pub use weights::{Tensor, Weights};
pub use write::{FloatFile, Shape};
