//! Settings of a job that runs, changed from outside through its model directory: a request is a file that exactly one
//! command creates, the answer is one that the driver creates.
//!
//! ```text
//!  tfos set --create--> job/set-GENERATION-N.json        the driver asks for N = 1, 2, 3 … by name, once in a while
//!           <--read---- job/set-GENERATION-N-answer.json
//! ```
//!
//! A command that got no answer in time withdraws its request by creating the answer itself.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tfos_core::checkpoint::Paths;
use tfos_core::failure::chain;
use tfos_core::ids::Generation;
use tokio::sync::mpsc::UnboundedSender;

use crate::error::Error;
use crate::event::Event;
use crate::model_dir::ModelDir;

/// How often the driver looks for the next request.
const LOOK: Duration = Duration::from_secs(1);
/// How often a command looks for its answer.
const WAIT: Duration = Duration::from_millis(200);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Request {
    consistency: String,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// As it was asked for.
    pub consistency: String,
    /// It holds for all steps after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global_step: Option<u64>,
    /// Why nothing was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Beside the driver's loop, for as long as it takes events.
pub(crate) async fn watch(dir: ModelDir, generation: Generation, events: UnboundedSender<Event>) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = 1;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = events.closed() => return,
        }
        match take(&dir, generation, number).await {
            Ok(None) => {}
            Ok(Some(request)) => {
                if let Some(Request { consistency }) = request {
                    let _ = events.send(Event::SetAsked { number, consistency });
                }
                number += 1;
            }
            // The job does not depend on it; the next look may do better.
            Err(error) => tracing::warn!("{}", chain(&error).join(": ")),
        }
    }
}

/// The request of that number, if it is there; without a content if it was withdrawn or is none.
async fn take(dir: &ModelDir, generation: Generation, number: u64) -> Result<Option<Option<Request>>, Error> {
    let Some(bytes) = dir.read(&Paths::set(generation, number)).await? else { return Ok(None) };
    if dir.read(&Paths::set_answer(generation, number)).await?.is_some() {
        return Ok(Some(None));
    }
    match serde_json::from_slice(&bytes) {
        Ok(request) => Ok(Some(Some(request))),
        Err(e) => {
            let error = Some(format!("the request cannot be read: {e}; use one version of tfos"));
            let answer = Answer { consistency: String::new(), global_step: None, error };
            reply(dir, generation, number, &answer).await?;
            Ok(Some(None))
        }
    }
}

/// Creates the answer; false if it is there already.
pub(crate) async fn reply(dir: &ModelDir, generation: Generation, number: u64, answer: &Answer) -> Result<bool, Error> {
    let path = Paths::set_answer(generation, number);
    let json = serde_json::to_vec(answer).map_err(|e| dir.encoding(&path, e))?;
    match dir.create(&path, json.into()).await {
        Ok(()) => Ok(true),
        Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
        Err(e) => Err(dir.error(format!("`{path}` cannot be written"), e)),
    }
}

/// Asks the job that runs on this model directory; an error if none has answered after `patience`.
pub async fn ask(dir: &ModelDir, consistency: &str, patience: Duration) -> Result<Answer, Error> {
    dir.contact().await?;
    let nobody = |generation: Generation| Error::NotRunning { url: dir.url().to_string(), generation: generation.0 };
    let generation = dir.newest_generation().await?;
    if generation == Generation::default() {
        return Err(nobody(generation));
    }
    let request = Request { consistency: consistency.to_owned() };
    let mut number = 1;
    loop {
        let path = Paths::set(generation, number);
        let json = serde_json::to_vec(&request).map_err(|e| dir.encoding(&path, e))?;
        match dir.create(&path, json.into()).await {
            Ok(()) => break,
            Err(object_store::Error::AlreadyExists { .. }) => number += 1,
            Err(e) => return Err(dir.error(format!("`{path}` cannot be written"), e)),
        }
    }
    let deadline = Instant::now() + patience;
    let path = Paths::set_answer(generation, number);
    loop {
        if let Some(bytes) = dir.read(&path).await? {
            return serde_json::from_slice(&bytes).map_err(|e| dir.encoding(&path, e));
        }
        if Instant::now() >= deadline {
            let error = Some("withdrawn: nobody answered in time".to_owned());
            let withdrawn = Answer { consistency: consistency.to_owned(), global_step: None, error };
            if reply(dir, generation, number, &withdrawn).await? {
                return Err(nobody(generation));
            }
        }
        tokio::time::sleep(WAIT).await;
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
