//! Gradients leave while the backward pass still runs: libtorch tells of each as soon as it is whole, and a thread beside
//! the pass sends it, front layers first where several wait.
//!
//! What could not be told of (a variable that the loss does not depend on, a gradient that is no plain f32 on the CPU) is
//! sent by the push, which also tells the ps that this is all. So the update is the same bit by bit as without.

use std::ffi::{c_char, c_int, c_void};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;
use tfos_ps::{FrontFirst, Layout, PsClient};
use torch_sys::C_tensor;

use super::shim::{self, Text};
use super::slices::floats;
use crate::Error;

type Tell = extern "C" fn(*mut c_void, u32, *mut C_tensor);

unsafe extern "C" {
    fn tfos_on_gradient(
        variable: *mut C_tensor,
        number: u32,
        tell: Tell,
        context: *mut c_void,
        release: extern "C" fn(*mut c_void),
        text: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn tfos_forget_gradient(variable: *mut C_tensor, text: *mut c_char, capacity: usize) -> c_int;
}

/// A variable's number, and its gradient.
type Told = (u32, Plain);

/// Whom to tell, if anybody listens.
#[derive(Debug, Default)]
struct Ear(Mutex<Option<Sender<Told>>>);

impl Ear {
    fn listen(&self, to: Option<Sender<Told>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Overlap {
    ear: Arc<Ear>,
    /// Where each variable begins in the flat vector, and its length.
    places: Vec<(usize, usize)>,
}

/// Runs on the thread of the backward pass.
extern "C" fn tell(context: *mut c_void, number: u32, gradient: *mut C_tensor) {
    // SAFETY: the context is the reference made in `hear`, which the hook keeps; the tensor is on the heap, and nobody
    // else frees it.
    let (ear, gradient) = unsafe { (&*context.cast::<Ear>(), Tensor::from_ptr(gradient)) };
    if let Some(sender) = &*ear.0.lock().unwrap_or_else(PoisonError::into_inner) {
        // Who has stopped to listen has an error to tell of.
        drop(sender.send((number, Plain(gradient))));
    }
}

extern "C" fn release(context: *mut c_void) {
    // SAFETY: `context` is a reference made in `hear`, and this runs once for it.
    drop(unsafe { Arc::from_raw(context.cast_const().cast::<Ear>()) });
}

fn done(code: c_int, text: &Text) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(Error::Other(Box::new(shim::Error::Torch { text: text.read() }))) }
}

/// Has `ear` told of the gradient of `variable`.
fn hear(ear: &Arc<Ear>, variable: &Tensor, number: u32) -> Result<(), Error> {
    let mut text = Text::new();
    let (room, capacity) = text.room();
    let context = Arc::into_raw(Arc::clone(ear)).cast_mut().cast();
    // SAFETY: variable and text outlive the call; the context is released by the hook, or by the call if it fails.
    let code =
        unsafe { tfos_on_gradient(variable.as_ptr().cast_mut(), number, tell, context, release, room, capacity) };
    done(code, &text)
}

/// The next backward pass leaves its gradient in the variable, instead of adding to what is there: this saves writing
/// zeros and adding to them.
pub(super) fn forget_gradient(variable: &Tensor) -> Result<(), Error> {
    let mut text = Text::new();
    let (room, capacity) = text.room();
    // SAFETY: variable and text outlive the call.
    let code = unsafe { tfos_forget_gradient(variable.as_ptr().cast_mut(), room, capacity) };
    done(code, &text)
}

/// A gradient as the parameter plane wants it: empty if it is not plain.
#[derive(Debug)]
struct Plain(Tensor);

impl AsRef<[f32]> for Plain {
    fn as_ref(&self) -> &[f32] {
        floats(&self.0)
    }
}

impl Overlap {
    /// For variables in layout order, on the CPU.
    pub(super) fn new(layout: &Layout, variables: &[Tensor]) -> Result<Self, Error> {
        let ear = Arc::new(Ear::default());
        for (number, variable) in variables.iter().enumerate() {
            hear(&ear, variable, number as u32)?;
        }
        let places = layout.variables.iter().map(|variable| (variable.offset, variable.len())).collect();
        Ok(Self { ear, places })
    }

    /// The backward pass, and beside it the beginning of the push. What fails first is what is told.
    pub(super) fn backward(&self, loss: &Tensor, client: &mut PsClient) -> Result<(), Error> {
        let (sender, told) = channel::<Told>();
        self.ear.listen(Some(sender));
        let (passed, sent) = std::thread::scope(|scope| {
            let send = move || {
                client.stream(FrontFirst::new(told).filter_map(|(number, at, piece)| {
                    let (start, len) = *self.places.get(number as usize)?;
                    (at + piece.as_ref().len() <= len).then_some((start + at, piece))
                }))
            };
            let sending = scope.spawn(send);
            let passed = loss.f_backward();
            // The end of the slices.
            self.ear.listen(None);
            (passed, sending.join())
        });
        passed?;
        sent.unwrap_or(Err(tfos_ps::Error::Stopped))?;
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
