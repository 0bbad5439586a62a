//! A model's variables in the order in which the ps hold them: what is trained, and what is not.

use std::collections::HashMap;

use tch::{Device, Tensor, no_grad};
use tfos_ps::Layout;

use super::slices::{check, floats_mut};
use super::trainer::{Loaded, on_host};
use crate::Error;
use crate::checkpoint::{Destination, Segments};

/// Variables in layout order: what is trained, and what is not.
pub(super) struct Variables {
    pub(super) layout: Layout,
    pub(super) trained: Vec<Tensor>,
    pub(super) buffers: Vec<Tensor>,
}

impl Variables {
    /// Sorts out a model's variables; those that require no gradient are buffers. `whole` has the number of ps and the
    /// variables in the order of their creation, where they go round the ps.
    pub(super) fn collect(named: HashMap<String, Tensor>, whole: Option<(usize, &[Tensor])>) -> Result<Self, Error> {
        let (mut trained, mut buffers): (Vec<_>, Vec<_>) = named.into_iter().partition(|(_, t)| t.requires_grad());
        trained.sort_by(|a, b| a.0.cmp(&b.0));
        buffers.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, tensor) in trained.iter().chain(&buffers) {
            check(name, tensor)?;
        }
        let shapes = |list: &[(String, Tensor)]| list.iter().map(|(n, t)| (n.clone(), t.size())).collect::<Vec<_>>();
        let layout = match whole {
            None => Layout::new(shapes(&trained), shapes(&buffers))?,
            Some((shards, created)) => {
                in_order_of_creation(&mut trained, created);
                let layout = Layout::round_robin(shapes(&trained), shapes(&buffers), shards)?;
                let places: HashMap<&str, usize> =
                    layout.variables.iter().enumerate().map(|(n, v)| (v.name.as_str(), n)).collect();
                trained.sort_by_key(|(name, _)| places.get(name.as_str()).copied());
                layout
            }
        };
        let tensors = |list: Vec<(String, Tensor)>| list.into_iter().map(|(_, t)| t).collect();
        Ok(Self { layout, trained: tensors(trained), buffers: tensors(buffers) })
    }

    /// Loads the variables, and these slots: on the CPU straight into place, for a GPU by way of it.
    pub(super) fn load(&mut self, from: &Loaded<'_>, slots: Vec<(String, Segments<'_>)>) -> Result<(), Error> {
        let (mut params, mut buffers) = (on_host(&self.trained)?, on_host(&self.buffers)?);
        let mut into = Destination {
            params: Segments::new(0, params.iter_mut().map(floats_mut)),
            slots,
            buffers: Some(Segments::new(0, buffers.iter_mut().map(floats_mut))),
        };
        from.runtime.block_on(from.plan.load(0..self.layout.total, &mut into))?;
        drop(into);
        no_grad(|| {
            let pairs = self.trained.iter_mut().zip(&params).chain(self.buffers.iter_mut().zip(&buffers));
            for (tensor, host) in pairs.filter(|(tensor, _)| tensor.device() != Device::Cpu) {
                tensor.f_copy_(host)?;
            }
            Ok(())
        })
    }
}

/// A handle says nothing of the order, the memory does; variables that have none come last, by their names.
fn in_order_of_creation(named: &mut [(String, Tensor)], created: &[Tensor]) {
    let born: HashMap<_, _> = created.iter().enumerate().map(|(n, t)| (t.data_ptr(), n)).collect();
    let number = |t: &Tensor| born.get(&t.data_ptr()).copied().filter(|_| t.numel() > 0).unwrap_or(usize::MAX);
    named.sort_by(|(a, x), (b, y)| number(x).cmp(&number(y)).then_with(|| a.cmp(b)));
}

/// Names and shapes of the trained variables, in the order in which they were created.
pub fn created(vs: &tch::nn::VarStore) -> Vec<(String, Vec<i64>)> {
    let mut trained: Vec<_> = vs.variables().into_iter().filter(|(_, t)| t.requires_grad()).collect();
    in_order_of_creation(&mut trained, &vs.trainable_variables());
    trained.into_iter().map(|(name, tensor)| (name, tensor.size())).collect()
}
