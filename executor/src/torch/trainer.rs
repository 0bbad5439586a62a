//! The model's variables and the way in which gradients become updates: here, or on the parameter servers.

use std::sync::Arc;

use tch::{Device, Tensor, no_grad};
use tfos_core::checkpoint::Loading;
use tfos_core::rows::MicroBatch;
use tfos_ps::memory::{Arena, Cut};
use tfos_ps::{
    Awaited, DeterministicTrainer, FullState, InitState, Layout, Load, LocalTrainer, Mode, Place, PsClient, Scheduled,
    Snapshot,
};

use super::blocks;
use super::device::DeviceOptimizer;
use super::lent::Lending;
use super::local_sgd::LocalSgd;
use super::overlap::{Overlap, forget_gradient};
use super::precision::Full;
use super::slices::{Frozen, floats, floats_mut};
use super::step::{Computed, Stepped};
use super::variables::Variables;
use crate::Error;
use crate::checkpoint::{Plan, Segments};
use crate::feed::Begun;

/// Where updates are made.
enum Backend {
    /// One trainer without ps: in place, nothing is sent.
    Local(LocalTrainer),
    /// The same in deterministic training, with the code of a ps.
    Steps(Box<DeterministicTrainer>),
    /// The same on a GPU.
    Device(DeviceOptimizer, u64),
    /// On the parameter servers.
    Ps(PsClient),
    /// Here, and now and then averaged on the parameter servers.
    Averaged(Box<LocalSgd>),
}

pub(super) struct Trainer {
    pub(super) layout: Arc<Layout>,
    pub(super) optimizer: Scheduled,
    /// In layout order; share their storage with the VarStore.
    variables: Vec<Tensor>,
    buffers: Vec<Tensor>,
    /// Deterministic training: the buffers as they were when the step began. Each of its parts begins with them.
    begun: Option<Vec<Tensor>>,
    /// CPU copies of variables, gradients and buffers that live on a GPU, for the ps.
    host: Option<(Vec<Tensor>, Vec<Tensor>)>,
    /// Variables that are where the ps have them. Before the client, as it has to go first.
    lending: Option<Lending>,
    /// Where gradients are computed of which the ps needs no copy.
    blocks: Option<blocks::Source>,
    backend: Backend,
    /// Sends gradients during the backward pass.
    overlap: Option<Overlap>,
    chief: bool,
}

/// Copies that share no memory with the tensors.
fn copies(tensors: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let copy = |t: &Tensor| {
        let mut copy = t.f_detach()?.f_empty_like()?;
        copy.f_copy_(t)?;
        Ok(copy)
    };
    no_grad(|| tensors.iter().map(copy).collect())
}

pub(super) fn on_host(tensors: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    tensors.iter().map(|t| Ok(t.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?)).collect()
}

/// Copies on the host in memory that stays where it is, so that a GPU copies from and to it by itself; in other memory where
/// CUDA has none of it left.
fn pinned(tensors: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let pin = |copy: Tensor, device: Device| {
        let pinned = if device.is_cuda() { copy.f_pin_memory(device) } else { return copy };
        pinned.unwrap_or_else(|error| {
            tracing::warn!(%error, "no pinned memory for what goes to {device:?}: copies take longer");
            copy
        })
    };
    let devices = tensors.iter().map(Tensor::device);
    Ok(on_host(tensors)?.into_iter().zip(devices).map(|(copy, device)| pin(copy, device)).collect())
}

/// How a chief begins.
pub(super) struct Begin<'a> {
    pub(super) optimizer: Scheduled,
    pub(super) mode: Mode,
    pub(super) load: Option<Loaded<'a>>,
    pub(super) chief: bool,
    /// Whether gradients leave during the backward pass; `None` where that is for the model's size to say.
    pub(super) overlap: Option<bool>,
}

/// Bytes of a model from which on a thread beside each backward pass costs less than it gains.
const WORTH: usize = 4 << 20;

/// What it begins with, if not with fresh values.
pub(super) struct Loaded<'a> {
    pub(super) loading: &'a Loading,
    pub(super) plan: &'a Plan,
    pub(super) runtime: &'a tokio::runtime::Handle,
}

impl Trainer {
    pub(super) fn new(
        mut variables: Variables,
        begin: &Begin<'_>,
        client: Option<PsClient>,
    ) -> Result<(Self, u64), Error> {
        let optimizer = begin.optimizer;
        let steps = begin.load.as_ref().map(|load| (load.plan.step(), load.plan.optimizer_step()));
        let (step, optimizer_step) = steps.unwrap_or_default();
        let on_cpu = variables.trained.iter().all(|t| t.device() == Device::Cpu);
        let in_steps = begin.mode == Mode::Deterministic;
        let (mut slots, mut local) = (None, None);
        if client.is_none() && on_cpu && !in_steps {
            let mut trainer = LocalTrainer::new(variables.layout.clone(), optimizer, step)?;
            if let Some(load) = &begin.load {
                // Straight to where they stay.
                let named = optimizer.slots().iter().zip(trainer.slots_mut()?);
                let named = named.map(|(name, chunks)| ((*name).to_owned(), Segments::new(0, chunks)));
                variables.load(load, named.collect())?;
                trainer.set_steps(step, optimizer_step);
            }
            local = Some(trainer);
        } else if let Some(load) = begin.load.as_ref().filter(|_| client.is_none()) {
            let slots = slots.insert(optimizer.initial_slots(variables.layout.total));
            let named = optimizer.slots().iter().zip(slots);
            let named = named.map(|(name, slot)| ((*name).to_owned(), Segments::new(0, [slot.as_mut_slice()])));
            variables.load(load, named.collect())?;
        }
        let Variables { layout, trained, buffers } = variables;
        if in_steps && !on_cpu {
            return Err(Error::Usage {
                what: "a variable is not on the CPU".into(),
                try_this: "--deterministic promises equal bits on CPUs only: create variables on ctx.variables()"
                    .into(),
            });
        }
        let backend = match (client, local) {
            (Some(client), _) => Backend::Ps(client),
            (None, Some(local)) => Backend::Local(local),
            (None, None) if in_steps => {
                let host = on_host(&buffers)?;
                let (params, host): (Vec<_>, Vec<_>) =
                    (trained.iter().map(floats).collect(), host.iter().map(floats).collect());
                let names = optimizer.slots().iter().map(|name| (*name).to_owned());
                // Parameters and buffers are in the tensors already.
                let state = slots.map(|slots| FullState {
                    step,
                    optimizer_step,
                    params: vec![],
                    slots: names.zip(slots).collect(),
                    buffers: vec![],
                });
                let trainer = DeterministicTrainer::new(&layout, optimizer, &params, &host, state.as_ref())?;
                Backend::Steps(Box::new(trainer))
            }
            (None, None) => {
                let saved = slots.as_deref().map(|slots| (slots, optimizer_step));
                Backend::Device(DeviceOptimizer::new(optimizer, &trained, &layout, saved)?, step)
            }
        };
        let host = match (&backend, on_cpu) {
            (Backend::Ps(_), false) => Some((pinned(&trained)?, pinned(&trained)?)),
            _ => None,
        };
        let mut trainer = Self {
            layout: Arc::new(layout),
            optimizer,
            variables: trained,
            buffers,
            begun: None,
            host,
            lending: None,
            blocks: None,
            backend,
            overlap: None,
            chief: begin.chief,
        };
        let step = trainer.meet(begin, step)?;
        trainer.take_alone(begin.mode, step)?;
        let is_worth = begin.overlap.unwrap_or(size_of::<f32>() * trainer.layout.total >= WORTH);
        if is_worth && on_cpu && matches!(trainer.backend, Backend::Ps(_)) {
            trainer.overlap = Some(Overlap::new(&trainer.layout, &trainer.variables)?);
            tracing::info!("gradients leave while the backward pass still runs");
        }
        trainer.begun = in_steps.then(|| copies(&trainer.buffers)).transpose()?;
        Ok((trainer, step))
    }

    /// Local SGD: from here on updates are made here.
    fn take_alone(&mut self, mode: Mode, step: u64) -> Result<(), Error> {
        let Mode::LocalSgd { steps } = mode else { return Ok(()) };
        if self.host.is_some() {
            return Err(Error::Usage {
                what: "a variable is not on the CPU".into(),
                try_this: "local-sgd keeps the optimizer on the CPU: create variables on ctx.variables()".into(),
            });
        }
        let local = LocalTrainer::new((*self.layout).clone(), self.optimizer, step)?;
        let before = Backend::Local(LocalTrainer::new(Layout::new([], [])?, self.optimizer, step)?);
        self.backend = match std::mem::replace(&mut self.backend, before) {
            Backend::Ps(client) => Backend::Averaged(Box::new(LocalSgd::begin(client, local, steps, step)?)),
            // There is nobody to meet.
            alone => alone,
        };
        Ok(())
    }

    /// Local SGD: meets the others before it is time, as there will be no rows for a while; `None` if there is no news.
    pub(super) fn meet_early(&mut self) -> Result<Option<Stepped>, Error> {
        let Backend::Averaged(local) = &mut self.backend else { return Ok(None) };
        if !local.has_news() {
            return Ok(None);
        }
        let buffers = if self.chief { on_host(&self.buffers)? } else { vec![] };
        no_grad(|| local.meet(&mut self.variables, &buffers)).map(Some)
    }

    /// Chief: gives the ps their state, or has them read it. Who has not got it then waits for it and takes it.
    fn meet(&mut self, begin: &Begin<'_>, step: u64) -> Result<u64, Error> {
        let mut host_buffers = on_host(&self.buffers)?;
        let layout = Arc::clone(&self.layout);
        let Self { backend: Backend::Ps(client), variables, host, .. } = self else { return Ok(step) };
        let params = host.as_mut().map_or(variables, |(params, _)| params);
        if begin.chief {
            let params: Vec<&[f32]> = params.iter().map(floats).collect();
            let buffers: Vec<&[f32]> = host_buffers.iter().map(floats).collect();
            let state = InitState {
                optimizer: begin.optimizer,
                mode: begin.mode,
                step,
                optimizer_step: begin.load.as_ref().map_or(0, |load| load.plan.optimizer_step()),
                params: &params,
                slots: &[],
                buffers: &buffers,
            };
            let Some(load) = &begin.load else {
                client.init(&layout, state)?;
                return Ok(step);
            };
            let what = serde_json::to_string(load.loading).map_err(|e| Error::Other(Box::new(e)))?;
            let (fresh, fresh_buffers) = load.plan.fresh();
            client.init_loaded(&layout, state, Load { what, fresh, fresh_buffers })?;
        }
        let step = {
            let mut params: Vec<&mut [f32]> = params.iter_mut().map(floats_mut).collect();
            let mut buffers: Vec<&mut [f32]> = host_buffers.iter_mut().map(floats_mut).collect();
            if begin.chief {
                client.pull(&mut params, &mut buffers)?.step
            } else {
                client.wait_init(&layout, &mut params, &mut buffers)?
            }
        };
        no_grad(|| {
            for (buffer, host) in self.buffers.iter_mut().zip(&host_buffers) {
                buffer.f_copy_(host)?;
            }
            self.upload()
        })?;
        Ok(step)
    }

    /// Brings parameters that the ps sent to the host to the GPU.
    fn upload(&mut self) -> Result<(), Error> {
        if let Some((params, _)) = &self.host {
            for (variable, param) in self.variables.iter_mut().zip(params) {
                variable.f_copy_(param)?;
            }
        }
        Ok(())
    }

    /// Backward pass and update.
    pub(super) fn step(&mut self, loss: &Tensor, computed: Computed<'_>) -> Result<Stepped, Error> {
        let _full = Full::begin(self.variables.first().map_or(Device::Cpu, Tensor::device))?;
        self.variables.iter().try_for_each(forget_gradient)?;
        let armed = self.blocks.as_ref().map(blocks::Source::arm);
        match (&self.overlap, &mut self.backend) {
            (Some(overlap), Backend::Ps(client)) => overlap.backward(loss, client)?,
            _ => loss.f_backward()?,
        }
        drop(armed);
        let mut gradients = Vec::with_capacity(self.variables.len());
        for variable in &self.variables {
            let grad = variable.f_grad()?;
            // A variable that the loss does not depend on has none.
            gradients.push(if grad.defined() { grad.f_contiguous()? } else { variable.f_zeros_like()? });
        }
        no_grad(|| self.apply(gradients, computed))
    }

    fn apply(&mut self, gradients: Vec<Tensor>, computed: Computed<'_>) -> Result<Stepped, Error> {
        let rows = computed.rows;
        if self.begun.is_some() {
            return self.push(&gradients, computed);
        }
        match &mut self.backend {
            Backend::Local(local) => {
                let gradients: Vec<&[f32]> = gradients.iter().map(floats).collect();
                let mut params: Vec<&mut [f32]> = self.variables.iter_mut().map(floats_mut).collect();
                let step = local.apply(&mut params, &gradients)?;
                Ok(Stepped::to(step, rows))
            }
            Backend::Device(optimizer, step) => {
                optimizer.apply(*step, &mut self.variables, &gradients)?;
                *step += 1;
                Ok(Stepped::to(*step, rows))
            }
            // Is pushed to.
            Backend::Steps(steps) => Ok(Stepped::to(steps.step(), rows)),
            Backend::Averaged(local) => {
                if !local.apply(&mut self.variables, &gradients, computed)? {
                    return Ok(Stepped::to(local.step(), 0));
                }
                let buffers = if self.chief { on_host(&self.buffers)? } else { vec![] };
                local.meet(&mut self.variables, &buffers)
            }
            Backend::Ps(client) => {
                let buffers = if self.chief && !self.buffers.is_empty() { on_host(&self.buffers)? } else { vec![] };
                let buffers: Vec<&[f32]> = buffers.iter().map(floats).collect();
                let (host_params, host_grads) = self.host.as_mut().map(|(params, grads)| (params, grads)).unzip();
                let gradients = match host_grads {
                    Some(grads) => {
                        for (host, device) in grads.iter_mut().zip(&gradients) {
                            host.f_copy_(device)?;
                        }
                        &*grads
                    }
                    None => &gradients,
                };
                let gradients: Vec<&[f32]> = gradients.iter().map(floats).collect();
                let push = computed.push(&gradients, &buffers);
                let outcome = if client.lends() && host_params.is_none() {
                    let lending = self.lending.get_or_insert_with(|| Lending::new(&self.layout, &self.variables));
                    lending.check(client)?;
                    let (outcome, lent) = client.push_pull_lent(push, &mut lending.rest())?;
                    lending.adopt(&lent)?;
                    outcome
                } else {
                    let params = host_params.unwrap_or(&mut self.variables);
                    let mut params: Vec<&mut [f32]> = params.iter_mut().map(floats_mut).collect();
                    client.push_pull(push, &mut params)?
                };
                if self.blocks.is_none() && self.host.is_none() {
                    self.blocks = blocks::Source::of(client);
                }
                self.upload()?;
                let rows = if outcome.dropped { 0 } else { rows };
                Ok(Stepped { stop: outcome.stop, ..Stepped::to(outcome.step, rows) })
            }
        }
    }

    /// Deterministic training: a part of the next step. The last one brings the buffers, whoever computes it.
    fn push(&mut self, gradients: &[Tensor], computed: Computed<'_>) -> Result<Stepped, Error> {
        let Computed { rows, micro_batch, .. } = computed;
        let Some(micro_batch) = micro_batch else {
            return Err(Error::Usage {
                what: "a step was taken without a batch of the feed".into(),
                try_this: "with --deterministic take one step for each batch of ctx.data_feed()".into(),
            });
        };
        let place = Place { index: micro_batch.index, of: micro_batch.of };
        let buffers = if micro_batch.is_last() { on_host(&self.buffers)? } else { vec![] };
        let buffers: Vec<&[f32]> = buffers.iter().map(floats).collect();
        let gradients: Vec<&[f32]> = gradients.iter().map(floats).collect();
        let push = computed.push(&gradients, &buffers);
        match &mut self.backend {
            Backend::Ps(client) => {
                let stop = client.push(push, place)?;
                Ok(Stepped { stop, ..Stepped::to(client.step(), rows) })
            }
            Backend::Steps(steps) => {
                let parts = steps.push(push, place)?;
                if let Some(begun) = self.begun.as_mut().filter(|_| !parts.is_empty()) {
                    let mut params: Vec<&mut [f32]> = self.variables.iter_mut().map(floats_mut).collect();
                    let mut begun: Vec<&mut [f32]> = begun.iter_mut().map(floats_mut).collect();
                    steps.read(&mut params, &mut begun)?;
                }
                Ok(Stepped { parts, ..Stepped::to(steps.step(), rows) })
            }
            // Never deterministic, see `new`.
            Backend::Local(_) | Backend::Device(..) | Backend::Averaged(_) => Ok(Stepped::to(0, 0)),
        }
    }

    /// Deterministic training: makes parameters and buffers those that a micro-batch begins with; gives their step.
    pub(super) fn begin(&mut self, micro_batch: MicroBatch) -> Result<(Begun, u64), Error> {
        let before = micro_batch.step.0.saturating_sub(1);
        let Self { backend: Backend::Ps(client), begun: Some(begun), .. } = self else {
            return self.rewind().map(|()| (Begun::Yes, before));
        };
        if client.step() != before {
            let mut params: Vec<&mut [f32]> = self.variables.iter_mut().map(floats_mut).collect();
            let mut begun: Vec<&mut [f32]> = begun.iter_mut().map(floats_mut).collect();
            match client.await_step(before, &mut params, &mut begun)? {
                Awaited::Ready => {}
                Awaited::NotYet => return Ok((Begun::NotYet, client.step())),
                Awaited::Over => return Ok((Begun::Over, client.step())),
            }
        }
        self.rewind().map(|()| (Begun::Yes, before))
    }

    /// Gives the buffers the values that they had when the step began.
    fn rewind(&mut self) -> Result<(), Error> {
        no_grad(|| {
            for (buffer, begun) in self.buffers.iter_mut().zip(self.begun.iter().flatten()) {
                buffer.f_copy_(begun)?;
            }
            Ok(())
        })
    }

    pub(super) fn idle(&mut self) -> Result<bool, Error> {
        match &mut self.backend {
            Backend::Ps(client) => Ok(client.idle()?.stop),
            Backend::Averaged(local) => Ok(local.client().idle()?.stop),
            Backend::Local(_) | Backend::Steps(_) | Backend::Device(..) => Ok(false),
        }
    }

    pub(super) fn active(&mut self) -> Result<bool, Error> {
        match &mut self.backend {
            Backend::Ps(client) => Ok(client.active()?.stop),
            Backend::Averaged(local) => Ok(local.client().active()?.stop),
            Backend::Local(_) | Backend::Steps(_) | Backend::Device(..) => Ok(false),
        }
    }

    /// True when updates are made here and the checkpoint is this trainer's to take.
    pub(super) fn is_local(&self) -> bool {
        !matches!(self.backend, Backend::Ps(_) | Backend::Averaged(_))
    }

    /// The whole state: on the CPU without a copy of what does not change yet, of a GPU copied to the host.
    pub(super) fn snapshot(&mut self, id: u64) -> Result<Option<Snapshot>, Error> {
        let buffers = on_host(&self.buffers)?;
        let buffers: Vec<&[f32]> = buffers.iter().map(floats).collect();
        match &mut self.backend {
            Backend::Steps(steps) => Ok(Some(steps.snapshot(id)?)),
            Backend::Local(local) => Ok(Some(local.snapshot(id, Box::new(Frozen::new(&self.variables)), &buffers)?)),
            Backend::Device(optimizer, step) => {
                let params: Vec<f32> = on_host(&self.variables)?.iter().flat_map(|t| floats(t).to_vec()).collect();
                let arena = Arena::new()?;
                let mut slots = vec![];
                for (name, values) in optimizer.slots()? {
                    slots.push((name, Cut::of(&arena, &values)?));
                }
                Ok(Some(Snapshot {
                    id,
                    step: *step,
                    optimizer_step: optimizer.optimizer_step(),
                    range: 0..params.len(),
                    params: Cut::of(&arena, &params)?,
                    slots,
                    buffers: Some(buffers.concat()),
                }))
            }
            Backend::Ps(_) | Backend::Averaged(_) => Ok(None),
        }
    }

    /// Tells the ps that this trainer is done; the variables stay usable.
    pub(super) fn finish(mut self) -> Result<Option<Self>, Error> {
        // The ps keeps what it has lent only as long as this node is one of its own.
        self.lending = None;
        match self.backend {
            Backend::Ps(client) => client.finish().map(|()| None).map_err(Error::from),
            Backend::Averaged(local) => local.into_client().finish().map(|()| None).map_err(Error::from),
            Backend::Local(_) | Backend::Steps(_) | Backend::Device(..) => Ok(Some(self)),
        }
    }
}
