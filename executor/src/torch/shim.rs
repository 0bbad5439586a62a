//! An Arrow buffer as a CPU tensor without a copy: the tensor's storage owns a reference to the buffer.

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::{Kind, Tensor};
use tfos_data::arrow::buffer::{Buffer, MutableBuffer};
use torch_sys::C_tensor;

/// Why memory did not become a tensor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A dimension is negative, or the number of bytes overflows.
    #[error("no tensor has shape {shape:?}")]
    Shape {
        /// The shape asked for.
        shape: Vec<i64>,
    },
    /// The buffer ends before the tensor does.
    #[error("shape {shape:?} of {kind:?} from byte {offset} on needs {needed} bytes, the buffer has {available}")]
    Bounds {
        /// The shape asked for.
        shape: Vec<i64>,
        /// The element type asked for.
        kind: Kind,
        /// Where in the buffer the tensor was to begin, in bytes.
        offset: usize,
        /// Bytes from the offset to the tensor's end.
        needed: usize,
        /// Bytes from the offset to the buffer's end.
        available: usize,
    },
    /// An element type whose values Arrow buffers do not hold.
    #[error("no tensor of {kind:?} is made from a buffer")]
    Kind {
        /// The element type asked for.
        kind: Kind,
    },
    /// libtorch refused.
    #[error("libtorch: {text}")]
    Torch {
        /// libtorch's words.
        text: String,
    },
}

unsafe extern "C" {
    fn tfos_torch_version() -> *const std::ffi::c_char;
    fn tfos_from_blob(
        data: *mut c_void,
        sizes: *const i64,
        ndim: usize,
        dtype: i8,
        deleter: extern "C" fn(*mut c_void),
        context: *mut c_void,
        text: *mut c_char,
        capacity: usize,
    ) -> *mut C_tensor;
    fn tfos_data(tensor: *const C_tensor) -> *const c_void;
    fn tfos_load_cuda(text: *mut c_char, capacity: usize) -> c_int;
    fn tfos_set_deterministic(text: *mut c_char, capacity: usize) -> c_int;
}

/// The bytes of `buffer` from `offset` (in bytes) on as a contiguous CPU tensor of `shape` and `kind`.
///
/// Nothing is copied if the first element is aligned to its size, which Arrow's own arrays always are; misaligned
/// bytes are copied once. The tensor keeps the buffer alive, whatever becomes of the batch it came from.
///
/// Arrow buffers are shared and never change, so neither may the tensor: compute new tensors from it, and use no
/// in-place operation (`f_div_` and the like) on it.
pub fn tensor_from_buffer(buffer: &Buffer, offset: usize, shape: &[i64], kind: Kind) -> Result<Tensor, Error> {
    let (dtype, width) = dtype(kind).ok_or(Error::Kind { kind })?;
    let needed = bytes(shape, width).ok_or_else(|| Error::Shape { shape: shape.to_vec() })?;
    let available = buffer.len().saturating_sub(offset);
    if needed > available || offset > buffer.len() {
        return Err(Error::Bounds { shape: shape.to_vec(), kind, offset, needed, available });
    }
    let slice = buffer.slice_with_length(offset, needed);
    let owned = if slice.as_ptr().align_offset(width) == 0 { slice } else { copied(&slice) };
    let data = owned.as_ptr().cast_mut().cast();
    let context = Box::into_raw(Box::new(owned)).cast();
    let mut text = Text::new();
    // SAFETY: `data` is readable for `needed` bytes, aligned for `kind`, and stays so until `release(context)`, which
    // the shim calls exactly once. `shape` outlives the call.
    let pointer = unsafe {
        tfos_from_blob(data, shape.as_ptr(), shape.len(), dtype, release, context, text.0.as_mut_ptr(), text.0.len())
    };
    if pointer.is_null() {
        return Err(Error::Torch { text: text.read() });
    }
    // SAFETY: the shim hands over a tensor on the heap that nobody else frees.
    Ok(unsafe { Tensor::from_ptr(pointer) })
}

/// Address of the first element of a CPU tensor; null if it has no elements.
pub fn address(tensor: &Tensor) -> *const u8 {
    // SAFETY: the tensor lives through the call, which only reads its fields.
    unsafe { tfos_data(tensor.as_ptr()) }.cast()
}

/// Version of the libtorch that this program was compiled for.
pub fn torch_version() -> String {
    // SAFETY: a string literal of the shim.
    unsafe { std::ffi::CStr::from_ptr(tfos_torch_version()) }.to_string_lossy().into_owned()
}

/// Loads libtorch's CUDA half into this process, which takes a second and some memory and so is not done by the
/// linker for every process. Call it before the first question about CUDA: libtorch remembers a "no".
pub fn load_cuda() -> Result<(), Error> {
    let mut text = Text::new();
    // SAFETY: the text buffer outlives the call.
    match unsafe { tfos_load_cuda(text.0.as_mut_ptr(), text.0.len()) } {
        0 => Ok(()),
        _ => Err(Error::Torch { text: text.read() }),
    }
}

/// From now on, in this process, operations give the same result each time, or an error if they cannot.
pub fn set_deterministic() -> Result<(), Error> {
    let mut text = Text::new();
    // SAFETY: the text buffer outlives the call.
    match unsafe { tfos_set_deterministic(text.0.as_mut_ptr(), text.0.len()) } {
        0 => Ok(()),
        _ => Err(Error::Torch { text: text.read() }),
    }
}

/// libtorch's number for an element type, and the element's size in bytes.
fn dtype(kind: Kind) -> Option<(i8, usize)> {
    Some(match kind {
        Kind::Uint8 => (0, 1),
        Kind::Int8 => (1, 1),
        Kind::Int16 => (2, 2),
        Kind::Int => (3, 4),
        Kind::Int64 => (4, 8),
        Kind::Half => (5, 2),
        Kind::Float => (6, 4),
        Kind::Double => (7, 8),
        Kind::Bool => (11, 1),
        _ => return None,
    })
}

/// Size in bytes of a tensor of `shape` with elements of `width` bytes.
fn bytes(shape: &[i64], width: usize) -> Option<usize> {
    shape.iter().try_fold(width, |total, &dimension| total.checked_mul(usize::try_from(dimension).ok()?))
}

/// The same bytes where any element type may lie.
fn copied(bytes: &[u8]) -> Buffer {
    let mut copy = MutableBuffer::with_capacity(bytes.len());
    copy.extend_from_slice(bytes);
    copy.into()
}

/// Drops what [`tensor_from_buffer`] gave to a tensor; runs on whichever thread drops the tensor's storage last.
extern "C" fn release(context: *mut c_void) {
    // SAFETY: `context` is the box made in `tensor_from_buffer`, and this runs once for it. A buffer is `Send`.
    drop(unsafe { Box::from_raw(context.cast::<Buffer>()) });
}

/// Room for an error text from C++.
pub(super) struct Text([c_char; 512]);

impl Text {
    pub(super) fn new() -> Self {
        Self([0; 512])
    }

    /// Where C++ writes it, and how much fits.
    pub(super) fn room(&mut self) -> (*mut c_char, usize) {
        (self.0.as_mut_ptr(), self.0.len())
    }

    pub(super) fn read(&self) -> String {
        // SAFETY: the shim ends the text with a zero, and so does the initial value.
        unsafe { CStr::from_ptr(self.0.as_ptr()) }.to_string_lossy().trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn read<T: tch::kind::Element + Copy>(tensor: &Tensor) -> Vec<T> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    /// Memory that counts its owners.
    fn counted(values: Vec<f32>) -> (Arc<Vec<f32>>, Buffer) {
        let owner = Arc::new(values);
        let pointer = std::ptr::NonNull::new(owner.as_ptr().cast_mut().cast()).unwrap();
        // SAFETY: the buffer holds the vector that the pointer points into.
        let buffer = unsafe { Buffer::from_custom_allocation(pointer, owner.len() * 4, Arc::clone(&owner) as _) };
        (owner, buffer)
    }

    #[test]
    fn a_tensor_keeps_the_buffer_alive_and_lets_it_go_once() {
        let (owner, buffer) = counted(vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let tensor = tensor_from_buffer(&buffer, 4, &[2, 3], Kind::Float).unwrap();
        assert_eq!(address(&tensor), buffer[4..].as_ptr());
        drop(buffer);
        let view = tensor.select(0, 1);
        assert_eq!(Arc::strong_count(&owner), 2);
        assert_eq!(read::<f32>(&tensor), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        drop(tensor);
        assert_eq!(Arc::strong_count(&owner), 2);
        assert_eq!(read::<f32>(&view), [4.0, 5.0, 6.0]);
        std::thread::spawn(move || drop(view)).join().unwrap();
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn misaligned_bytes_are_copied() {
        let bytes: Vec<u8> = [7u8].into_iter().chain([1i64, -2].into_iter().flat_map(i64::to_le_bytes)).collect();
        let buffer = copied(&bytes);
        let tensor = tensor_from_buffer(&buffer, 1, &[2], Kind::Int64).unwrap();
        assert_ne!(address(&tensor), buffer[1..].as_ptr());
        assert_eq!(read::<i64>(&tensor), [1, -2]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let buffer = copied(&[0; 8]);
        let error = |offset, shape: &[i64], kind| tensor_from_buffer(&buffer, offset, shape, kind).unwrap_err();
        assert!(matches!(error(0, &[3], Kind::Float), Error::Bounds { needed: 12, available: 8, .. }));
        assert!(matches!(error(9, &[0], Kind::Float), Error::Bounds { .. }));
        assert!(matches!(error(0, &[-1], Kind::Float), Error::Shape { .. }));
        assert!(matches!(error(0, &[i64::MAX, 2], Kind::Float), Error::Shape { .. }));
        assert!(matches!(error(0, &[1], Kind::ComplexFloat), Error::Kind { .. }));
        assert_eq!(tensor_from_buffer(&buffer, 8, &[0, 3], Kind::Float).unwrap().size(), [0, 3]);
    }

    #[test]
    fn a_refusal_of_libtorch_is_an_error_and_releases_the_buffer() {
        let (owner, buffer) = counted(vec![0.0]);
        let context = Box::into_raw(Box::new(buffer)).cast();
        let mut text = Text::new();
        // SAFETY: a negative size is refused before any memory is touched.
        let pointer = unsafe {
            tfos_from_blob(
                owner.as_ptr().cast_mut().cast(),
                [-1].as_ptr(),
                1,
                6,
                release,
                context,
                text.0.as_mut_ptr(),
                text.0.len(),
            )
        };
        assert!(pointer.is_null());
        assert!(text.read().contains("negative"), "{}", text.read());
        assert_eq!(Arc::strong_count(&owner), 1);
    }

    #[test]
    fn gradients_flow_past_a_borrowed_tensor() {
        let (_owner, buffer) = counted(vec![1.0, 2.0]);
        let input = tensor_from_buffer(&buffer, 0, &[2], Kind::Float).unwrap();
        let weight = Tensor::from_slice(&[3f32, 4.0]).set_requires_grad(true);
        (&input * &weight).sum(Kind::Float).backward();
        assert_eq!(read::<f32>(&weight.grad()), [1.0, 2.0]);
    }
}
