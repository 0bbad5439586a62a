//! Hosts a parameter server: its events become control messages, its snapshots become checkpoint parts.

use std::net::TcpListener;
use std::sync::Arc;

use tfos_core::checkpoint::Paths;
use tfos_core::config::{Consistency, Plane};
use tfos_core::failure::{Cause, chain};
use tfos_core::ids::{Generation, GlobalStep};
use tfos_core::proto::{
    Commit, Commits, ConsistencySet, NodeFailed, PartWritten, Returned, SetConsistency, SnapshotAt, StartPhase,
    from_executor::Message,
};
use tfos_ps::{Layout, Mode, PsServer, ServerEvent, ServerOptions, Snapshot};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::dial::dial;
use super::loader::PartLoader;
use crate::Error;
use crate::agent::{Heir, Task};
use crate::checkpoint::{CheckpointStore, Content};
use crate::control::{Outgoing, setting};

/// A ps in its executor, for one phase.
pub(crate) struct PsHost {
    server: PsServer,
    phase: u32,
    outgoing: Outgoing,
    shards: usize,
    /// Ends what the ps still reads.
    stopped: watch::Sender<bool>,
}

impl PsHost {
    /// Serves on a clone of the executor's listener, which itself stays open for the next phase.
    pub(crate) fn start(
        start: &StartPhase,
        plane: Plane,
        listener: TcpListener,
        mut options: ServerOptions,
        store: CheckpointStore,
        outgoing: Outgoing,
        heir: Option<Heir>,
    ) -> Result<Self, Error> {
        let StartPhase { phase, max_steps, .. } = *start;
        let dial = dial(&setting(&start.consistency)?);
        let (shard, shards, generation) = (options.shard, options.num_shards, options.generation);
        // Bounded by what the ps itself bounds: one entry per step or snapshot, never a gradient.
        let (events_tx, events_rx) = unbounded_channel();
        let callback = {
            let events: UnboundedSender<ServerEvent> = events_tx;
            Arc::new(move |event| {
                let _ = events.send(event);
            })
        };
        let (stopped, stopped_rx) = watch::channel(false);
        let runtime = tokio::runtime::Handle::current();
        options.loader = Some(Arc::new(PartLoader { store: store.clone(), runtime, stopped: stopped_rx }));
        let server = crate::plane::serve(&plane, listener, options, callback)?;
        if shard == 0 && max_steps > 0 {
            server.set_max_steps(Some(max_steps))?;
        }
        // Every other mode comes from the chief.
        if shard == 0 && matches!(dial.mode, Mode::Grouped { .. }) {
            server.begin_with(dial)?;
        }
        let writer = PartWriter {
            phase,
            shard: shard as u32,
            shards: shards as u32,
            generation,
            store,
            outgoing: outgoing.clone(),
            heir,
        };
        tokio::spawn(forward(events_rx, writer));
        Ok(Self { server, phase, outgoing, shards, stopped })
    }

    /// Cuts snapshot `id`; every shard writes its part by itself.
    pub(crate) fn take_checkpoint(&self, id: u64) -> Result<(), Error> {
        match self.server.request_snapshot(id) {
            Ok(()) => Ok(()),
            // The application has no model, or its chief is not that far yet.
            Err(tfos_ps::Error::NotInitialised { .. }) => {
                let phase = self.phase;
                self.outgoing.send(Message::SnapshotAt(SnapshotAt { phase, id, global_step: 0 }));
                for _ in 0..self.shards {
                    self.outgoing.send(Message::PartWritten(PartWritten { phase, id, ..Default::default() }));
                }
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Turns the dial; the answer comes in the order of the commits.
    pub(crate) fn set(&self, order: &SetConsistency) -> Result<(), Error> {
        let refuse = |error: String| {
            let (phase, id) = (self.phase, order.id);
            self.outgoing.send(Message::ConsistencySet(ConsistencySet { phase, id, global_step: 0, error }));
            Ok(())
        };
        let consistency: Consistency = match serde_json::from_str(&order.consistency) {
            Ok(consistency) => consistency,
            Err(e) => return refuse(e.to_string()),
        };
        match self.server.turn(order.id, dial(&consistency)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => refuse(why),
            Err(tfos_ps::Error::NotInitialised { .. }) => {
                refuse("the model is not there yet; try again in a moment".to_owned())
            }
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
        self.server.stop();
    }
}

impl Drop for PsHost {
    fn drop(&mut self) {
        // The server's own end waits for its threads.
        self.stopped.send_replace(true);
    }
}

/// Writes parts and reports them.
#[derive(Debug, Clone)]
pub(crate) struct PartWriter {
    pub(crate) phase: u32,
    pub(crate) shard: u32,
    pub(crate) shards: u32,
    pub(crate) generation: u64,
    pub(crate) store: CheckpointStore,
    pub(crate) outgoing: Outgoing,
    /// Who writes the part if this process dies.
    pub(crate) heir: Option<Heir>,
}

impl PartWriter {
    pub(crate) async fn write(self, layout: Arc<Layout>, snapshot: Snapshot) {
        let (id, step) = (snapshot.id, snapshot.step);
        let path = Paths::part(GlobalStep(step), Generation(self.generation), self.shard, self.shards);
        let (start, end) = (snapshot.range.start as u64, snapshot.range.end as u64);
        let optimizer_step = snapshot.optimizer_step;
        let content = Content::new(&layout, snapshot);
        let written = match &content {
            Ok(content) => {
                let left = self.heir.clone().map(|heir| {
                    let (content, task) = (content.clone(), heir.task.clone());
                    let task = Task {
                        phase: self.phase,
                        id,
                        path: path.clone(),
                        global_step: step,
                        optimizer_step,
                        start,
                        end,
                        ..task
                    };
                    // Waits for values that are still being copied.
                    tokio::task::spawn_blocking(move || heir.take(task, &content))
                });
                let written = self.store.write_part(&path, content).await;
                if let Some(left) = left {
                    // It has logged what it could not do.
                    let _ = left.await;
                }
                written
            }
            Err(e) => Err(cannot_encode(&path, e)),
        };
        let mut part = PartWritten {
            phase: self.phase,
            id,
            global_step: step,
            optimizer_step,
            path,
            start,
            end,
            ..Default::default()
        };
        match written {
            Ok(written) => written.tell(&mut part),
            Err(e) => part.error = chain(&e).join(": "),
        }
        self.outgoing.send(Message::PartWritten(part));
        // Before the memory is used for anything else.
        if let Some(heir) = &self.heir {
            heir.agent.done(id);
        }
        drop(content);
    }
}

fn cannot_encode(path: &str, error: &serde_json::Error) -> Error {
    Error::Checkpoint { path: path.to_owned(), action: "written", source: error.to_string().into() }
}

async fn forward(mut events: UnboundedReceiver<ServerEvent>, writer: PartWriter) {
    let phase = writer.phase;
    let outgoing = writer.outgoing.clone();
    let mut layout = None;
    while let Some(event) = events.recv().await {
        match event {
            ServerEvent::Initialised { step, layout: described } => {
                layout = Some(Arc::new(described));
                tracing::info!("initialised at step {step}");
            }
            ServerEvent::Committed { step, commits } => {
                let commit = |c: &tfos_ps::Commit| Commit {
                    global_step: step,
                    worker: c.worker,
                    rows: c.rows,
                    loss: c.loss,
                    ranges: c.leases.clone().into(),
                    staleness: c.staleness,
                };
                let commits = commits.iter().map(commit).collect();
                outgoing.send(Message::Commits(Commits { phase, commits }));
            }
            ServerEvent::Dropped { worker, leases, .. } => {
                outgoing.send(Message::Returned(Returned { phase, worker, ranges: leases.into() }));
            }
            ServerEvent::Turned { id, step, refused } => {
                let error = refused.unwrap_or_default().to_owned();
                let set = ConsistencySet { phase, id, global_step: step, error };
                outgoing.send(Message::ConsistencySet(set));
            }
            ServerEvent::SnapshotMarker { id, step } => {
                outgoing.send(Message::SnapshotAt(SnapshotAt { phase, id, global_step: step }));
            }
            ServerEvent::Snapshot(snapshot) => {
                if let Some(layout) = &layout {
                    // Beside the order, so that a slow store does not hold commits back.
                    tokio::spawn(writer.clone().write(Arc::clone(layout), snapshot));
                }
            }
            ServerEvent::WorkerLost { worker, error } => {
                tracing::warn!("trainer {worker} is gone: {}", chain(&error).join(": "));
            }
            ServerEvent::Failed(error) => {
                let secondary = error.is_secondary();
                let chain = chain(&error);
                let cause = if secondary { Cause::PeerLost { chain } } else { Cause::Error { chain, user: false } };
                let cause = serde_json::to_string(&cause).unwrap_or_default();
                outgoing.send(Message::NodeFailed(NodeFailed { phase, cause }));
            }
        }
    }
}
