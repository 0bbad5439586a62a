//! Training with one worker and no ps: the same optimizers, applied in place to the worker's own tensors.

use std::ops::Range;
use std::sync::Arc;

use crate::error::Error;
use crate::flat;
use crate::layout::Layout;
use crate::memory::{Arena, CHUNK, Copying, Cut, Pool, Slots, SlotsMut, Source};
use crate::optimizer::{Plan, Round, Scheduled, square_sum};
use crate::shard::grain;
use crate::snapshot::{FullState, Snapshot};
use crate::team::Team;

/// The optimizer of a worker without parameter servers.
#[derive(Debug)]
pub struct LocalTrainer {
    layout: Layout,
    optimizer: Scheduled,
    slots: Slots,
    step: u64,
    optimizer_step: u64,
    /// For copies of parameters.
    pool: Arc<Pool>,
    /// Whether what the first snapshot wants beside the state is being found already.
    prepared: bool,
    /// A snapshot whose parameters may still have to be copied before they change.
    copying: Option<Arc<Copying>>,
}

/// Elements that are updated while they are in the core's own cache.
const BLOCK: usize = 4096;

/// Part of a variable, from element `start` of the flat vector on.
struct Tensor<'a> {
    variable: usize,
    start: usize,
    param: &'a mut [f32],
    grad: &'a [f32],
}

/// An update in place, by as many threads as are worth it: see [`crate::shard`].
struct Pass<'a> {
    plan: Plan<'a>,
    copying: Option<&'a Copying>,
}

impl Pass<'_> {
    /// `tensors` are all of `range`, in order, and none goes over an end of it.
    fn run(
        &self,
        range: Range<usize>,
        grain: usize,
        tensors: &mut [Tensor<'_>],
        mut slots: SlotsMut<'_>,
    ) -> Result<(), Error> {
        if let Some(at) = slots.middle(&range, grain) {
            let (left, right) = tensors.split_at_mut(tensors.partition_point(|tensor| tensor.start < at));
            let (first, second) = slots.split(at);
            let begin = || self.run(range.start..at, grain, left, first);
            return Team::for_updates().join(begin, || self.run(at..range.end, grain, right, second));
        }
        for Tensor { variable, start, param, grad } in tensors {
            let update = self.plan.of(*variable);
            for block in slots.blocks(*start..*start + param.len(), BLOCK) {
                let inside = block.start - *start..block.end - *start;
                // What a snapshot still has to copy is copied before it changes, and is then in the cache.
                if let Some(copying) = self.copying {
                    copying.before_change(&block)?;
                }
                let (param, grad) = (&mut param[inside.clone()], &grad[inside]);
                slots.update(block, |part, slots| update.apply(1.0, &mut param[part.clone()], &grad[part], slots))?;
            }
        }
        Ok(())
    }
}

impl LocalTrainer {
    /// With fresh slots, at global step `step`.
    pub fn new(layout: Layout, optimizer: impl Into<Scheduled>, step: u64) -> Result<LocalTrainer, Error> {
        let optimizer = optimizer.into();
        let arena = Arena::new()?;
        let slots = Slots::new(&arena, layout.total, &optimizer.initial_values())?;
        let pool = Pool::new(&arena, CHUNK.min(layout.total));
        Ok(LocalTrainer { layout, optimizer, slots, step, optimizer_step: 0, pool, prepared: false, copying: None })
    }

    /// With slots that the caller has filled, which have seen `optimizer_step` updates.
    pub fn with_slots(
        layout: Layout,
        optimizer: impl Into<Scheduled>,
        step: u64,
        optimizer_step: u64,
        slots: Vec<Vec<f32>>,
    ) -> Result<LocalTrainer, Error> {
        let optimizer = optimizer.into();
        if slots.len() != optimizer.slots().len() {
            let (expected, found) = (optimizer.slots().len().to_string(), slots.len().to_string());
            return Err(Error::State { what: "number of slots", expected, found });
        }
        let arena = Arena::new()?;
        let values: Vec<&[f32]> = slots.iter().map(Vec::as_slice).collect();
        let slots = Slots::with_values(&arena, layout.total, &values)?;
        let pool = Pool::new(&arena, CHUNK.min(layout.total));
        Ok(LocalTrainer { layout, optimizer, slots, step, optimizer_step, pool, prepared: false, copying: None })
    }

    /// Continues from a checkpoint. The parameters themselves are the caller's; `state.slots` may be empty, then they
    /// are fresh.
    pub fn restore(layout: Layout, optimizer: impl Into<Scheduled>, state: &FullState) -> Result<LocalTrainer, Error> {
        let optimizer = optimizer.into();
        if state.slots.is_empty() {
            return LocalTrainer::new(layout, optimizer, state.step);
        }
        let names: Vec<&str> = state.slots.iter().map(|(name, _)| name.as_str()).collect();
        if names != optimizer.slots() {
            let (expected, found) = (format!("{:?}", optimizer.slots()), format!("{names:?}"));
            return Err(Error::State { what: "slots", expected, found });
        }
        let slots = state.slots.iter().map(|(_, saved)| saved.clone()).collect();
        LocalTrainer::with_slots(layout, optimizer, state.step, state.optimizer_step, slots)
    }

    /// The global step: number of updates applied.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The values of each slot, to be read or replaced, in order.
    pub fn slots_mut(&mut self) -> Result<Vec<Vec<&mut [f32]>>, Error> {
        self.slots.all_mut()
    }

    /// Goes on from another point: global step `step`, after so many updates of the optimizer.
    pub fn set_steps(&mut self, step: u64, optimizer_step: u64) {
        (self.step, self.optimizer_step) = (step, optimizer_step);
    }

    /// One update in place; returns the new global step. Both lists have one slice per variable, in layout order;
    /// after a length error nothing has been changed.
    pub fn apply(&mut self, params: &mut [&mut [f32]], grads: &[&[f32]]) -> Result<u64, Error> {
        let count = self.layout.variables.len();
        for (what, found) in [("parameter tensors", params.len()), ("gradient tensors", grads.len())] {
            if found != count {
                return Err(Error::Length { what, expected: count, found });
            }
        }
        for ((variable, param), grad) in self.layout.variables.iter().zip(&*params).zip(grads) {
            flat::check("parameter tensor", &[&**param], variable.len())?;
            flat::check("gradient tensor", &[grad], variable.len())?;
        }
        let totals = self.measure(params, grads)?;
        let plan = self.optimizer.plan(self.step, self.optimizer_step + 1, &totals, count)?;
        let copying = self.copying.take();
        let grain = grain(self.layout.total);
        let slots = self.slots.update();
        // Cut where threads may be.
        let mut pieces = Vec::with_capacity(count + self.layout.total / grain);
        for (index, (param, grad)) in params.iter_mut().zip(grads).enumerate() {
            let (mut start, mut param, mut grad) = (self.layout.variables[index].offset, &mut **param, *grad);
            while !param.is_empty() {
                let end = slots.cut(start, grain);
                let len = (end - start).min(param.len());
                let (now, later) = param.split_at_mut(len);
                let (grad_now, grad_later) = grad.split_at(len);
                pieces.push(Tensor { variable: index, start, param: now, grad: grad_now });
                (start, param, grad) = (start + len, later, grad_later);
            }
        }
        let pass = Pass { plan, copying: copying.as_deref() };
        pass.run(0..self.layout.total, grain, &mut pieces, slots)?;
        // So that no step waits for it; and not while slots are still being loaded.
        if !std::mem::replace(&mut self.prepared, true) {
            self.slots.prepare();
            self.pool.prepare(self.layout.total.div_ceil(CHUNK));
        }
        self.optimizer_step += 1;
        self.step += 1;
        Ok(self.step)
    }

    /// The totals of all rounds of measuring.
    fn measure(&self, params: &[&mut [f32]], grads: &[&[f32]]) -> Result<Vec<f64>, Error> {
        let mut totals = Vec::new();
        for round in self.optimizer.rounds() {
            match round {
                Round::GradientNorm => totals.push(grads.iter().map(|grad| square_sum(grad)).sum()),
                Round::TrustRatios => {
                    let update = self.optimizer.clipped_update(self.step, self.optimizer_step + 1, &totals);
                    for (index, (param, grad)) in params.iter().zip(grads).enumerate() {
                        let range = self.range(index);
                        let mut norms = [0.0; 2];
                        for block in self.slots.blocks(range.clone(), BLOCK) {
                            let inside = block.start - range.start..block.end - range.start;
                            let slots = &self.slots.views(block)[..self.slots.count()];
                            let found = update.norms(1.0, &param[inside.clone()], &grad[inside], slots)?;
                            norms.iter_mut().zip(found).for_each(|(norm, found)| *norm += found);
                        }
                        totals.extend(norms);
                    }
                }
            }
        }
        Ok(totals)
    }

    /// Of the variable, in the flat vector.
    fn range(&self, variable: usize) -> Range<usize> {
        let variable = &self.layout.variables[variable];
        variable.offset..variable.offset + variable.len()
    }

    /// The whole state, as one shard of one ps would give it. `params` are copied while training goes on, at the latest by
    /// the next [`LocalTrainer::apply`]; until then nobody may change them. `buffers` are copied now.
    pub fn snapshot(&mut self, id: u64, params: Box<dyn Source>, buffers: &[&[f32]]) -> Result<Snapshot, Error> {
        flat::check("buffers", buffers, self.layout.buffers_total)?;
        if let Some(copying) = self.copying.take() {
            copying.finish()?;
        }
        let copying = Arc::new(Copying::new(self.layout.total, params, &self.pool));
        copying.start();
        self.copying = Some(Arc::clone(&copying));
        let names = self.optimizer.slots().iter().map(|&name| name.to_owned());
        Ok(Snapshot {
            id,
            step: self.step,
            optimizer_step: self.optimizer_step,
            range: 0..self.layout.total,
            params: Cut::copying(copying),
            slots: names.zip(self.slots.freeze()).collect(),
            buffers: Some(buffers.concat()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::Optimizer;

    #[test]
    fn a_restored_trainer_continues_identically() {
        let layout = Layout::new([("b".into(), vec![1]), ("w".into(), vec![3])], [("m".into(), vec![2])]).unwrap();
        let optimizer = Optimizer::Adam { learning_rate: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let (mut b, mut w) = ([1.0], [1.0, 2.0, 3.0]);
        let mut trainer = LocalTrainer::new(layout.clone(), optimizer, 40).unwrap();
        for _ in 0..5 {
            trainer.apply(&mut [&mut b, &mut w], &[&[0.5], &[1.0, -1.0, 0.25]]).unwrap();
        }
        let params = Box::new([&b[..], &w].concat());
        let snapshot = trainer.snapshot(1, params, &[&[7.0, 8.0]]).unwrap();
        let state = FullState::assemble(vec![snapshot]).unwrap();
        assert_eq!((state.step, state.optimizer_step, &state.buffers[..]), (45, 5, &[7.0, 8.0][..]));
        let mut again = LocalTrainer::restore(layout, optimizer, &state).unwrap();
        let (mut b2, mut w2) = (b, w);
        for (t, b, w) in [(&mut trainer, &mut b, &mut w), (&mut again, &mut b2, &mut w2)] {
            assert_eq!(t.apply(&mut [b, w], &[&[0.5], &[1.0, -1.0, 0.25]]).unwrap(), 46);
        }
        assert_eq!((b, w), (b2, w2));
    }

    #[test]
    fn wrong_shapes_change_nothing() {
        let layout = Layout::new([("b".into(), vec![1]), ("w".into(), vec![3])], []).unwrap();
        let optimizer = Optimizer::Sgd { learning_rate: 0.1, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let mut trainer = LocalTrainer::new(layout, optimizer, 0).unwrap();
        let (mut b, mut w) = ([1.0], [1.0, 2.0, 3.0]);
        let wrong = trainer.apply(&mut [&mut b, &mut w], &[&[0.5], &[1.0]]);
        assert!(matches!(wrong, Err(Error::Length { expected: 3, found: 1, .. })));
        assert_eq!((b[0], trainer.step()), (1.0, 0));
    }
}
