//! The phase `stage`: a query is run whole and its rows are written into files: by the chief while the others only
//! acknowledge, or by all that train, each of which runs the pieces that Ballista gives it until the driver has them all.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tfos_core::proto::{NodeFailed, NodeFinished, NodeReady, Staged, StagedFile, from_executor::Message};
use tfos_data::session;

use super::host::{HostOptions, Request};
use super::panics::unpanicked;
use crate::Error;
use crate::engine;

/// The thread of a node in that phase.
pub(super) struct Staging {
    pub(super) requests: Sender<Request>,
    /// The query, in the one executor that runs it.
    pub(super) query: Option<tokio::task::JoinHandle<()>>,
}

pub(super) fn start(options: HostOptions) -> Result<Staging, Error> {
    let (requests, asked) = channel();
    let (told, result) = channel();
    let outgoing = options.outgoing.clone();
    let (phase, node) = (options.start.phase, options.node);
    let alone = options.start.scheduler.is_empty();
    let runs = node.role.trains() && (options.trainer == 0 || !alone);
    // The other's end is dropped here, or with the query when the phase is cancelled.
    let query = runs.then(|| {
        tokio::spawn(async move {
            let done = async { if alone { write(options).await } else { engine::run(options).await } };
            let _ = told.send(unpanicked(done).await.and_then(|result| result));
        })
    });
    let spawned = std::thread::Builder::new().name(node.to_string()).spawn(move || {
        outgoing.send(Message::NodeReady(NodeReady { phase, ..Default::default() }));
        if let Ok(Err(error)) = result.recv() {
            tracing::error!("{error:?}");
            let cause = serde_json::to_string(&error.cause()).unwrap_or_default();
            return outgoing.send(Message::NodeFailed(NodeFailed { phase, cause }));
        }
        if node.role.trains() {
            outgoing.send(Message::NodeFinished(NodeFinished { phase }));
        }
        until_the_end(&asked);
        outgoing.send(Message::NodeFinished(NodeFinished { phase }));
    });
    spawned.map_err(|source| Error::System { what: format!("start a thread for {node}"), source })?;
    Ok(Staging { requests, query })
}

/// There is nothing to take a checkpoint of.
fn until_the_end(asked: &Receiver<Request>) {
    while let Ok(Request::Snapshot { .. }) = asked.recv() {}
}

async fn write(options: HostOptions) -> Result<(), Error> {
    let phase = options.start.phase;
    let Some((input, folder)) = options.start.inputs.first().and_then(|i| Some((i, i.files.first()?))) else {
        return Err(Error::Usage {
            what: "there is no query to stage".into(),
            try_this: "use one version of tfos".into(),
        });
    };
    let context = session::staging_session()?;
    options.function.register(&context)?;
    let plan = tfos_data::plan::decode(&input.plan, &context)?;
    let (outgoing, counters) = (options.outgoing.clone(), Arc::clone(&options.counters));
    let done = move |written: tfos_data::stage::Written| {
        let file = |f: tfos_data::stage::StagedFile| {
            counters.add_rows(f.rows);
            StagedFile { name: f.name, rows: f.rows, bytes: f.bytes, crc32c: f.crc32c }
        };
        let files = written.files.into_iter().map(file).collect();
        let whole = written.whole.and_then(|partition| u32::try_from(partition).ok());
        outgoing.send(Message::Staged(Staged { phase, files, whole }));
    };
    Ok(tfos_data::stage::stage(&plan, &context, folder, done).await?)
}
