//! Mixed precision: libtorch's autocast has a thread compute matrix products and convolutions in bf16, while variables,
//! gradients, optimizer and checkpoints stay f32.
//!
//! It is on for the thread of a node function that trains, so a model needs to know nothing of it, and off during the
//! backward pass, which follows the types of the forward pass by itself. Scoring and inference are f32.

use std::ffi::{c_char, c_int};

use tch::Device;

use super::shim::{self, Text};
use crate::Error;

unsafe extern "C" {
    fn tfos_autocast(cuda: bool, on: bool, text: *mut c_char, capacity: usize) -> c_int;
}

/// For this thread; whether it was on before.
fn set(device: Device, on: bool) -> Result<bool, Error> {
    let mut text = Text::new();
    let (room, capacity) = text.room();
    // SAFETY: the text outlives the call.
    match unsafe { tfos_autocast(device != Device::Cpu, on, room, capacity) } {
        was @ (0 | 1) => Ok(was == 1),
        _ => Err(Error::Other(Box::new(shim::Error::Torch { text: text.read() }))),
    }
}

/// From here on this thread computes in bf16 on `device`.
pub(super) fn begin_thread(device: Device) -> Result<(), Error> {
    set(device, true).map(drop)
}

/// Full precision until this is dropped; then what there was before.
#[derive(Debug)]
pub(super) struct Full(Option<Device>);

impl Full {
    pub(super) fn begin(device: Device) -> Result<Self, Error> {
        Ok(Self(set(device, false)?.then_some(device)))
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        if let Some(device) = self.0
            && let Err(error) = set(device, true)
        {
            tracing::warn!(%error, "computing goes on in f32");
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    #[test]
    fn products_are_bf16_and_variables_and_gradients_stay_f32() {
        // Of a thread, as it is for a node.
        let thread = std::thread::spawn(|| {
            let ones = |rows: i64, columns: i64| Tensor::ones([rows, columns], (Kind::Float, Device::Cpu));
            let weight = (ones(64, 8) * 1.001).detach().set_requires_grad(true);
            begin_thread(Device::Cpu).unwrap();
            let product = ones(4, 64).matmul(&weight);
            assert_eq!(product.kind(), Kind::BFloat16);
            let loss = product.mean(Kind::Float);
            {
                let _full = Full::begin(Device::Cpu).unwrap();
                assert_eq!(ones(4, 64).matmul(&weight).kind(), Kind::Float);
                loss.backward();
            }
            assert_eq!((weight.kind(), weight.grad().kind()), (Kind::Float, Kind::Float));
            // 1.001 is no bf16.
            assert_eq!(loss.double_value(&[]), 64.0);
            // A variable that has changed is not remembered as it was.
            let _ = tch::no_grad(|| weight.shallow_clone().fill_(2.0));
            let again = ones(4, 64).matmul(&weight);
            assert_eq!((again.kind(), again.double_value(&[0, 0])), (Kind::BFloat16, 128.0));
        });
        thread.join().unwrap();
    }
}
