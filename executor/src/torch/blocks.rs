//! Gradients that the backward pass leaves where a ps of this host reads them: it computes them in memory of [`Blocks`].

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use tfos_ps::{Block, Blocks, PsClient};

type Take = extern "C" fn(*mut c_void, usize) -> *mut c_void;
type Give = extern "C" fn(*mut c_void) -> c_int;

unsafe extern "C" {
    fn tfos_arm(source: *mut c_void, least: usize, take: Take, give: Give) -> c_int;
}

/// Blocks that tensors have, by their addresses.
static TAKEN: Mutex<BTreeMap<usize, Block>> = Mutex::new(BTreeMap::new());

/// Bytes from which a tensor may be a gradient that has a block.
const LEAST: usize = 1 << 16;

/// The blocks of all ps of this host.
#[derive(Debug)]
pub(super) struct Source(Vec<Arc<Blocks>>);

/// Until it is dropped, tensors that this thread makes lie in blocks, where they have the size of a variable.
#[derive(Debug)]
pub(super) struct Armed<'a>(PhantomData<&'a Source>);

extern "C" fn take(source: *mut c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the source that `arm` gave, which outlives the armed time.
    let blocks = unsafe { &*source.cast::<Vec<Arc<Blocks>>>() };
    let elements = if bytes.is_multiple_of(size_of::<f32>()) { bytes / size_of::<f32>() } else { 0 };
    let Some(block) = blocks.iter().find_map(|blocks| blocks.take(elements)) else { return ptr::null_mut() };
    let place = block.as_mut_ptr();
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(place as usize, block);
    place.cast()
}

extern "C" fn give(place: *mut c_void) -> c_int {
    let block = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&(place as usize));
    c_int::from(block.is_some())
}

impl Source {
    /// `None` before the first push, and where no ps is on this host.
    pub(super) fn of(client: &PsClient) -> Option<Source> {
        let blocks = client.blocks();
        (!blocks.is_empty()).then(|| Source(blocks))
    }

    /// For the backward pass, which runs on the thread that asks for it.
    pub(super) fn arm(&self) -> Armed<'_> {
        // SAFETY: `take` only reads the source, which outlives the guard.
        let armed = unsafe { tfos_arm(ptr::from_ref(&self.0).cast_mut().cast(), LEAST, take, give) };
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
