//! The built-in applications.

mod columns;
pub mod digits;
pub mod mnist;
pub mod networks;
pub mod torchscript;

use std::sync::Arc;

use crate::Application;

/// All of them, as `tfos apps` lists them.
pub fn all() -> Vec<Arc<dyn Application>> {
    vec![Arc::new(mnist::Mnist), Arc::new(torchscript::TorchScript)]
}
