//! Local SGD: a node that applies its own updates for a while, and then meets the others on the ps.
//!
//! What it did since they last met is one push: all rows of those updates are committed together when the states are
//! averaged, or return together. The rate of an update depends on the global step (`OPT-1`), which goes on only when nodes
//! meet; the optimizer's own count goes on with each update.

use tch::Tensor;
use tfos_ps::{LocalTrainer, PsClient, Push, Vector};

use super::slices::{floats, floats_mut};
use super::step::{Computed, Stepped};
use crate::Error;

/// See the module's text.
pub(super) struct LocalSgd {
    client: PsClient,
    local: LocalTrainer,
    /// Updates between two meetings.
    steps: u32,
    /// Global step and optimizer's count of the last meeting.
    met: (u64, u64),
    /// Since then.
    taken: u32,
    rows: u64,
    /// Sum over rows.
    loss: f64,
    leases: Vec<u8>,
}

impl LocalSgd {
    /// After the parameters of global step `step` are in the variables; `local` gets its slots from the ps.
    pub(super) fn begin(
        mut client: PsClient,
        mut local: LocalTrainer,
        steps: u32,
        step: u64,
    ) -> Result<LocalSgd, Error> {
        let optimizer_step = client.slots(&mut local.slots_mut()?)?;
        Ok(LocalSgd { client, local, steps, met: (step, optimizer_step), taken: 0, rows: 0, loss: 0.0, leases: vec![] })
    }

    /// One update here; true when it is time to meet.
    pub(super) fn apply(
        &mut self,
        variables: &mut [Tensor],
        gradients: &[Tensor],
        computed: Computed<'_>,
    ) -> Result<bool, Error> {
        let Computed { loss, rows, leases, .. } = computed;
        let gradients: Vec<&[f32]> = gradients.iter().map(floats).collect();
        let mut params: Vec<&mut [f32]> = variables.iter_mut().map(floats_mut).collect();
        self.local.set_steps(self.met.0, self.met.1 + u64::from(self.taken));
        self.local.apply(&mut params, &gradients)?;
        self.taken += 1;
        self.rows += rows;
        self.loss += loss * rows.max(1) as f64;
        // Lists of ranges, one behind the other, are a list of ranges.
        self.leases.extend_from_slice(leases);
        Ok(self.taken >= self.steps)
    }

    /// Whether there is something to bring to a meeting.
    pub(super) fn has_news(&self) -> bool {
        self.taken > 0
    }

    /// Waits for the others; then the variables have the mean of all, or the newest state if this came too late.
    pub(super) fn meet(&mut self, variables: &mut [Tensor], buffers: &[Tensor]) -> Result<Stepped, Error> {
        let buffers: Vec<&[f32]> = buffers.iter().map(floats).collect();
        let rows = self.rows;
        let push = Push {
            rows: rows.max(1),
            loss: self.loss / rows.max(1) as f64,
            leases: &self.leases,
            buffers: (!buffers.is_empty()).then_some(&buffers[..]),
            gradients: &[],
        };
        let params: Vector<'_> = variables.iter_mut().map(floats_mut).collect();
        let mut values = vec![params];
        values.extend(self.local.slots_mut()?);
        let (outcome, optimizer_step) = self.client.average(push, &mut values)?;
        drop(values);
        self.met = (outcome.step, optimizer_step);
        (self.taken, self.rows, self.loss) = (0, 0, 0.0);
        self.leases.clear();
        let rows = if outcome.dropped { 0 } else { rows };
        Ok(Stepped { stop: outcome.stop, ..Stepped::to(outcome.step, rows) })
    }

    /// Global step of the last meeting.
    pub(super) fn step(&self) -> u64 {
        self.met.0
    }

    pub(super) fn client(&mut self) -> &mut PsClient {
        &mut self.client
    }

    pub(super) fn into_client(self) -> PsClient {
        self.client
    }
}
