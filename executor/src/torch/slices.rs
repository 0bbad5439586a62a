//! Views of CPU tensors as slices of `f32`, without a copy.

use tch::{Device, Kind, Tensor};

use crate::Error;

/// Checks that [`floats`] may look at `tensor`.
pub(super) fn check(name: &str, tensor: &Tensor) -> Result<(), Error> {
    if tensor.kind() != Kind::Float {
        return Err(Error::Usage {
            what: format!("variable `{name}` is {:?}", tensor.kind()),
            try_this: "use f32 variables: parameter servers and optimizers hold nothing else yet".into(),
        });
    }
    if !tensor.is_contiguous() {
        return Err(Error::Usage {
            what: format!("variable `{name}` is not contiguous"),
            try_this: "create it with VarStore's own methods".into(),
        });
    }
    Ok(())
}

/// The elements of a contiguous CPU tensor of `f32`; an empty slice for any other.
pub(super) fn floats(tensor: &Tensor) -> &[f32] {
    if !viewable(tensor) {
        return &[];
    }
    // SAFETY: dense f32 storage on the CPU with numel elements, kept alive by the borrowed tensor.
    #[expect(unsafe_code, reason = "libtorch gives a raw pointer")]
    unsafe {
        std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel())
    }
}

/// As [`floats`], to write into.
pub(super) fn floats_mut(tensor: &mut Tensor) -> &mut [f32] {
    if !viewable(tensor) {
        return &mut [];
    }
    // SAFETY: as in `floats`; the trainer owns the only views and makes one at a time per tensor.
    #[expect(unsafe_code, reason = "libtorch gives a raw pointer")]
    unsafe {
        std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
    }
}

fn viewable(tensor: &Tensor) -> bool {
    tensor.kind() == Kind::Float && tensor.device() == Device::Cpu && tensor.is_contiguous() && tensor.numel() > 0
}
