//! The only place of tch: tensors from Arrow, the model's variables, and what a step does with them.

mod blocks;
pub(crate) mod deterministic;
mod device;
mod lent;
mod local_sgd;
pub mod module;
mod overlap;
mod precision;
pub mod shim;
mod slices;
mod state;
mod step;
pub mod tensor;
mod trainer;
mod variables;

pub use shim::torch_version;
pub(crate) use state::TorchState;
pub use state::describe_devices;
pub use tch::Tensor;
pub use variables::created;

/// Threads that an operation may use.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(threads.max(1) as i32);
}
