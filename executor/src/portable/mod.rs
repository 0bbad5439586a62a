//! Weights that other programs read and write: safetensors files with whole tensors under their own names.

mod fit;
mod values;
mod weights;
mod write;

pub use fit::fit;
pub use weights::{Tensor, Weights};
pub use write::{FloatFile, Shape};
