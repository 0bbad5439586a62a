//! Views of CPU tensors as slices of `f32`, without a copy.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};
use tfos_ps::memory::{Source, stream};

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

/// Variables that nobody changes for a while, so that another thread may copy them.
#[derive(Debug)]
pub(super) struct Frozen {
    /// Keeps the memory; a tensor is only a handle.
    tensors: Mutex<Vec<Tensor>>,
    /// Elements before each.
    starts: Vec<usize>,
}

impl Frozen {
    pub(super) fn new(variables: &[Tensor]) -> Self {
        let mut starts = vec![];
        let mut at = 0;
        for variable in variables {
            starts.push(at);
            at += variable.numel();
        }
        Self { tensors: Mutex::new(variables.iter().map(Tensor::shallow_clone).collect()), starts }
    }

    /// Views of the tensors that have elements in `range`, and where each begins.
    fn within(&self, range: &Range<usize>) -> Vec<(usize, &[f32])> {
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let found = tensors.iter().zip(&self.starts).skip(first).take_while(|(_, start)| **start < range.end);
        found
            .map(|(tensor, start)| {
                let view = floats(tensor);
                // SAFETY: the memory is that of a tensor which `self` keeps, so it lives as long as `self`; who made this says
                // that nobody writes to it while it is copied.
                #[expect(unsafe_code, reason = "the lock guards the handle, not the memory, which is only read")]
                let view = unsafe { std::slice::from_raw_parts(view.as_ptr(), view.len()) };
                (*start, view)
            })
            .collect()
    }
}

impl Source for Frozen {
    fn copy(&self, range: Range<usize>, to: &mut [f32]) {
        for (start, values) in self.within(&range) {
            let (from, until) = (range.start.max(start), range.end.min(start + values.len()));
            if from < until {
                stream(&values[from - start..until - start], &mut to[from - range.start..until - range.start]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_frozen_variables_is_copied() {
        let sizes = [3i64, 0, 1, 6];
        let mut next = 0.0;
        let tensors: Vec<Tensor> = sizes
            .map(|n| {
                let values: Vec<f32> = (0..n).map(|i| next + i as f32).collect();
                next += n as f32;
                Tensor::from_slice(&values)
            })
            .into();
        let frozen = Frozen::new(&tensors);
        for start in 0..10 {
            for end in start..=10 {
                let mut copied = vec![-1.0; end - start];
                frozen.copy(start..end, &mut copied);
                assert_eq!(copied, (start..end).map(|i| i as f32).collect::<Vec<_>>());
            }
        }
    }
}
