//! Parameters that stay where a ps of this host has them: from one step to the next, variables are views of its memory.
//!
//! Only variables whose memory nobody else holds are lent, as another view of it would not see the next step. Who changes a lent
//! one in place has a page of its own, and loses the change with the next step, as with any ps; then the variable is copied
//! from there on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use tch::{Kind, Tensor, no_grad};
use tfos_data::arrow::buffer::Buffer;
use tfos_ps::{Layout, Lent, LentPart, PsClient};
use torch_sys::C_tensor;

use super::shim;
use super::slices::floats_mut;
use crate::Error;

unsafe extern "C" {
    fn tfos_holders(tensor: *const C_tensor) -> usize;
}

/// Elements, 64 KiB, from which a copy costs more than another view.
const LEAST: usize = 1 << 14;
/// Views that are kept for each variable: a ps has a version for each worker, and a few more.
const KEPT: usize = 64;

/// A variable and where it is.
struct Variable {
    name: String,
    tensor: Tensor,
    place: Range<usize>,
    /// Whether it is worth it, and nobody has been seen who minds.
    eligible: bool,
    /// While it is lent, libtorch's count of changes in place.
    lent: Option<i64>,
}

/// See the module's text. Dropped before the client, it gives the variables memory of their own.
pub(super) struct Lending {
    variables: Vec<Variable>,
    /// By variable and address.
    views: HashMap<(usize, usize), Tensor>,
}

fn holders(tensor: &Tensor) -> usize {
    // SAFETY: the tensor lives through the call, which only reads its fields.
    unsafe { tfos_holders(tensor.as_ptr()) }
}

/// The elements of a part as a tensor, which keeps the memory.
fn view(part: LentPart, shape: &[i64]) -> Result<Tensor, Error> {
    let (place, bytes) = (NonNull::new(part.as_mut_ptr().cast::<u8>()), size_of_val(&*part));
    let Some(place) = place else { return Err(Error::Ps(tfos_ps::Error::Stopped)) };
    // SAFETY: so many bytes are mapped there for as long as the part lives.
    let buffer = unsafe { Buffer::from_custom_allocation(place, bytes, Arc::new(part)) };
    shim::tensor_from_buffer(&buffer, 0, shape, Kind::Float).map_err(|error| Error::Other(Box::new(error)))
}

impl Lending {
    /// For variables in layout order, on the CPU.
    pub(super) fn new(layout: &Layout, variables: &[Tensor]) -> Self {
        let variable = |(variable, tensor): (&tfos_ps::Variable, &Tensor)| Variable {
            name: variable.name.clone(),
            tensor: tensor.shallow_clone(),
            place: variable.offset..variable.offset + variable.len(),
            eligible: variable.len() >= LEAST,
            lent: None,
        };
        Self { variables: layout.variables.iter().zip(variables).map(variable).collect(), views: HashMap::new() }
    }

    /// Before a push: notices who changed what is lent.
    pub(super) fn check(&mut self, client: &mut PsClient) -> Result<(), Error> {
        let mut changed = false;
        for variable in &mut self.variables {
            let Some(version) = variable.lent else { continue };
            // Its view and itself.
            let held = holders(&variable.tensor) > 2;
            if variable.tensor.f_internal_version()? == version && !held {
                continue;
            }
            let what = if held { "is held by another tensor" } else { "was changed in place" };
            tracing::warn!("variable `{}` {what}: the ps has it, so what was done to it is lost", variable.name);
            variable.eligible = false;
            changed = true;
        }
        if changed {
            // Pages that were written to do not see what comes next.
            self.views.clear();
            client.forget_lent();
            self.variables.iter_mut().filter(|variable| !variable.eligible).try_for_each(Variable::own)?;
        }
        Ok(())
    }

    /// What has to be copied, and where it begins.
    pub(super) fn rest(&mut self) -> Vec<(usize, &mut [f32])> {
        let variables = self.variables.iter_mut().filter(|variable| variable.lent.is_none());
        variables.map(|variable| (variable.place.start, floats_mut(&mut variable.tensor))).collect()
    }

    /// Makes variables views of what is lent from now on; those that cannot be have been copied.
    pub(super) fn adopt(&mut self, lent: &Lent) -> Result<(), Error> {
        if self.views.len() > KEPT * self.variables.len() {
            self.views.clear();
        }
        for (number, variable) in self.variables.iter_mut().enumerate().filter(|(_, variable)| variable.eligible) {
            if variable.lent.is_none() && holders(&variable.tensor) > 1 {
                continue;
            }
            let Some(part) = lent.part(variable.place.clone()) else { continue };
            let key = (number, part.as_mut_ptr() as usize);
            let view = match self.views.entry(key) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(view(part, &variable.tensor.size())?),
            };
            no_grad(|| variable.tensor.f_set_data(view))?;
            variable.lent = Some(variable.tensor.f_internal_version()?);
        }
        Ok(())
    }

    /// How many variables are lent.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.variables.iter().filter(|variable| variable.lent.is_some()).count()
    }
}

impl Variable {
    /// Gives it memory of its own, with the values that it has.
    fn own(&mut self) -> Result<(), Error> {
        if self.lent.take().is_some() {
            no_grad(|| {
                let mut own = self.tensor.f_detach()?.f_empty_like()?;
                own.f_copy_(&self.tensor)?;
                self.tensor.f_set_data(&own)
            })?;
        }
        Ok(())
    }
}

impl Drop for Lending {
    fn drop(&mut self) {
        for variable in &mut self.variables {
            if let Err(error) = variable.own() {
                tracing::error!(%error, "no memory for variable `{}`", variable.name);
            }
        }
    }
}

#[cfg(test)]
mod tests;
