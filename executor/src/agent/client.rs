//! An agent's questions to the driver.

use std::time::Duration;

use tfos_core::proto::control_client::ControlClient;
use tfos_core::proto::{PartWritten, RescueReport};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::will::Task;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(2);

/// The driver of the dead executor's job.
pub(super) struct Driver(ControlClient<Channel>);

impl Driver {
    /// `None` when it is gone: then nobody would make a checkpoint of the part.
    pub(super) async fn call(task: &Task) -> Option<Self> {
        let endpoint = Endpoint::from_shared(task.driver.clone()).ok()?.connect_timeout(ANSWER);
        Some(Self(ControlClient::new(endpoint.connect().await.ok()?)))
    }

    /// Whether the part is wanted still; brings it, if it is there.
    pub(super) async fn wants(&mut self, task: &Task, part: Option<PartWritten>) -> bool {
        let report = RescueReport {
            executor_id: task.executor,
            generation: task.generation,
            phase: task.phase,
            id: task.id,
            part,
        };
        let mut request = Request::new(report);
        let Ok(bearer) = format!("Bearer {}", task.token).parse() else { return false };
        request.metadata_mut().insert("authorization", bearer);
        let answer = tokio::time::timeout(ANSWER, self.0.rescue(request)).await;
        matches!(answer, Ok(Ok(answer)) if answer.get_ref().wanted)
    }
}
