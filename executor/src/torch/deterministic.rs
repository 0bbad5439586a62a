//! What makes libtorch compute the same bits from the same inputs on CPUs of one kind.

use tch::Tensor;

use super::{set_threads, shim};
use crate::Error;

/// Where libtorch's own memory begins, in multiples of bytes.
const ALIGNMENT: usize = 64;

/// For the thread that computes: operations with one order of their own, or an error; and one thread, because several
/// divide a sum by their number.
pub(super) fn begin_thread() -> Result<(), Error> {
    set_threads(1);
    shim::set_deterministic().map_err(|e| Error::Other(Box::new(e)))
}

/// The tensor where libtorch's own ones are: kernels may group sums by the address that they begin at, and a slice of a
/// record batch begins anywhere.
pub(crate) fn aligned(tensor: Tensor) -> Result<Tensor, Error> {
    if (shim::address(&tensor) as usize).is_multiple_of(ALIGNMENT) {
        return Ok(tensor);
    }
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(&tensor)?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};
    use tfos_data::arrow::buffer::Buffer;

    use super::*;

    #[test] // DET-2
    fn a_misaligned_column_is_copied_and_an_aligned_one_is_not() {
        let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let buffer = Buffer::from_vec(values.clone());
        let begin = buffer.as_ptr() as usize % ALIGNMENT / 4;
        let first = (ALIGNMENT / 4 - begin) % (ALIGNMENT / 4);
        let at = |element: usize| shim::tensor_from_buffer(&buffer, 4 * element, &[40], Kind::Float).unwrap();
        let (kept, moved) = (aligned(at(first)).unwrap(), aligned(at(first + 1)).unwrap());
        assert_eq!(shim::address(&kept), buffer[4 * first..].as_ptr());
        assert_eq!(shim::address(&moved) as usize % ALIGNMENT, 0);
        assert_eq!(Vec::<f32>::try_from(&moved).unwrap(), values[first + 1..first + 41]);
        assert!(aligned(Tensor::zeros([0], (Kind::Float, tch::Device::Cpu))).is_ok());
    }
}
