//! The values of a push, wherever they lie.

use std::ops::{Deref, DerefMut};

use crate::memory::Floats;

/// Memory of this process, or a window that the worker has written ([`crate::transport::Window`]).
#[derive(Debug)]
pub(crate) enum Gradient {
    Own(Vec<f32>),
    Window(Floats),
}

impl Gradient {
    /// Makes it so long, of any values; whoever has a window asks for the length that it has.
    pub(crate) fn set_len(&mut self, len: usize) {
        match self {
            Gradient::Own(values) => values.resize(len, 0.0),
            Gradient::Window(values) if values.len() == len => {}
            Gradient::Window(_) => *self = Gradient::Own(vec![0.0; len]),
        }
    }
}

impl Default for Gradient {
    fn default() -> Gradient {
        Gradient::Own(Vec::new())
    }
}

impl Deref for Gradient {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Gradient::Own(values) => values,
            Gradient::Window(values) => values,
        }
    }
}

impl DerefMut for Gradient {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Gradient::Own(values) => values,
            Gradient::Window(values) => values,
        }
    }
}
