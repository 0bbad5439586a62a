//! The agent at work: writes the part that its executor cannot write any more.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tfos_core::failure::chain;
use tfos_core::proto::PartWritten;

use super::client::Driver;
use super::will::{self, Task};
use crate::checkpoint::{CheckpointStore, Content};

/// How often the driver is asked whether it still waits; it gives up after three seconds of silence.
const ASK: Duration = Duration::from_millis(500);

/// Whether everything went well.
pub(super) fn run(files: Vec<OwnedFd>) -> bool {
    let (task, content) = match will::read(files) {
        Ok(read) => read,
        Err(error) => {
            tracing::error!("the snapshot that the executor left cannot be read: {error}");
            return false;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return false };
    let good = runtime.block_on(rescue(&task, &content));
    // What is not wanted is not waited for.
    runtime.shutdown_background();
    good
}

async fn rescue(task: &Task, content: &Content) -> bool {
    let Some(mut driver) = Driver::call(task).await else { return false };
    if !driver.wants(task, None).await {
        return true;
    }
    tracing::warn!("the executor is dead; writing its part `{}`", task.path);
    let store = match CheckpointStore::open(&task.model_dir) {
        Ok(store) => store,
        Err(error) => {
            tracing::error!("{}", chain(&error).join(": "));
            return false;
        }
    };
    store.remove_unfinished(&task.path);
    let write = store.write_part(&task.path, content);
    tokio::pin!(write);
    let written = loop {
        tokio::select! {
            written = &mut write => break written,
            () = tokio::time::sleep(ASK) => {
                if !driver.wants(task, None).await {
                    tracing::warn!("nobody waits for `{}` any more", task.path);
                    return false;
                }
            }
        }
    };
    let mut part = PartWritten {
        phase: task.phase,
        id: task.id,
        global_step: task.global_step,
        optimizer_step: task.optimizer_step,
        path: task.path.clone(),
        start: task.start,
        end: task.end,
        ..PartWritten::default()
    };
    let good = written.is_ok();
    match written {
        Ok(written) => written.tell(&mut part),
        Err(error) => part.error = chain(&error).join(": "),
    }
    driver.wants(task, Some(part)).await;
    good
}
