//! Gradients that the backward pass leaves where a ps of this host reads them: it computes them in memory of [`Blocks`].

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use tfos_ps::{Block, Blocks, PsClient};

type Take = extern "C" fn(*mut c_void, usize, *mut *mut c_void) -> *mut c_void;
type Give = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn tfos_arm(source: *mut c_void, least: usize, take: Take, give: Give) -> c_int;
}

/// Bytes from which a tensor may be a gradient that has a block.
const LEAST: usize = 1 << 16;

/// The blocks of all ps of this host.
#[derive(Debug)]
pub(super) struct Source(Box<Vec<Arc<Blocks>>>);

/// Until it is dropped, tensors that this thread makes lie in blocks, where they have the size of a variable.
#[derive(Debug)]
pub(super) struct Armed<'a>(PhantomData<&'a Source>);

extern "C" fn take(source: *mut c_void, bytes: usize, block: *mut *mut c_void) -> *mut c_void {
    // SAFETY: the source that `arm` gave, which outlives the armed time.
    let blocks = unsafe { &*source.cast::<Vec<Arc<Blocks>>>() };
    let elements = if bytes % size_of::<f32>() == 0 { bytes / size_of::<f32>() } else { 0 };
    let Some(taken) = blocks.iter().find_map(|blocks| blocks.take(elements)) else { return ptr::null_mut() };
    let place = taken.as_mut_ptr();
    // SAFETY: the caller's own variable.
    unsafe { *block = Box::into_raw(Box::new(taken)).cast() };
    place.cast()
}

extern "C" fn give(block: *mut c_void) {
    // SAFETY: the box made in `take`, and this runs once for it. A block is `Send`.
    drop(unsafe { Box::from_raw(block.cast::<Block>()) });
}

impl Source {
    /// `None` before the first push, and where no ps is on this host.
    pub(super) fn of(client: &PsClient) -> Option<Source> {
        let blocks = client.blocks();
        (!blocks.is_empty()).then(|| Source(Box::new(blocks)))
    }

    /// For the backward pass, which runs on the thread that asks for it.
    pub(super) fn arm(&self) -> Armed<'_> {
        // SAFETY: `take` only reads the source, which outlives the guard.
        let armed = unsafe { tfos_arm(ptr::from_ref(&*self.0).cast_mut().cast(), LEAST, take, give) };
        if armed == 0 {
            tracing::warn!("libtorch takes no other memory: gradients are copied");
        }
        Armed(PhantomData)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        // SAFETY: as in `arm`; without a source nothing is called.
        unsafe { tfos_arm(ptr::null_mut(), 0, take, give) };
    }
}
