//! Roles, and the pure function from reservations to the cluster spec.
//!
//! - `RES-1` a spec exists only when every required reservation is in.
//! - `RES-2` the order of arrival does not change the spec.
//! - `RES-3` a newer attempt of an executor replaces the older one; an older one is refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, ExecutorId};

/// What a node does. The order of the variants is the order in which executors get their roles,
/// which is TensorFlowOnSpark's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds parameter shards.
    Ps,
    /// Trains like a worker, and initialises or restores the parameters.
    Chief,
    /// Reads checkpoints and scores them.
    Evaluator,
    /// Consumes a feed and computes updates.
    Worker,
}

impl Role {
    /// True for the roles that consume a feed and compute updates.
    pub fn trains(self) -> bool {
        matches!(self, Self::Chief | Self::Worker)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ps => "ps",
            Self::Chief => "chief",
            Self::Evaluator => "evaluator",
            Self::Worker => "worker",
        })
    }
}

/// A role instance, printed as `worker:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// What the node does.
    pub role: Role,
    /// Rank within the role, from 0.
    pub index: u32,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.role, self.index)
    }
}

/// How many nodes of each role a job wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Executors in all, one node each.
    pub cluster_size: u32,
    /// Nodes that hold parameters.
    pub num_ps: u32,
    /// One node scores each checkpoint.
    pub evaluator: bool,
}

/// A shape that cannot be a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// No executor is left for the chief.
    #[error(
        "a cluster of {cluster_size} is too small: {num_ps} ps{} and a chief need at least {needed}; raise --cluster-size or lower --num-ps",
        if *.evaluator { ", an evaluator" } else { "" }
    )]
    TooSmall {
        /// Executors asked for.
        cluster_size: u32,
        /// Parameter servers asked for.
        num_ps: u32,
        /// Evaluator asked for.
        evaluator: bool,
        /// The smallest size that works.
        needed: u32,
    },
    /// Several workers have to exchange gradients somewhere.
    #[error(
        "{trainers} training nodes without a parameter server would have to all-reduce, which is not built in yet; use --num-ps 1 or more, or --cluster-size {smaller}"
    )]
    NeedsPs {
        /// Chief and workers.
        trainers: u32,
        /// The size at which one node trains alone.
        smaller: u32,
    },
}

impl Shape {
    /// Checks that roles and executors fit.
    pub fn validate(&self) -> Result<(), ShapeError> {
        let others = self.num_ps + u32::from(self.evaluator);
        if self.cluster_size < others + 1 {
            return Err(ShapeError::TooSmall {
                cluster_size: self.cluster_size,
                num_ps: self.num_ps,
                evaluator: self.evaluator,
                needed: others + 1,
            });
        }
        let trainers = self.num_trainers();
        if self.num_ps == 0 && trainers > 1 {
            return Err(ShapeError::NeedsPs { trainers, smaller: others + 1 });
        }
        Ok(())
    }

    /// Chief and workers.
    pub fn num_trainers(&self) -> u32 {
        self.cluster_size.saturating_sub(self.num_ps + u32::from(self.evaluator))
    }

    /// The node of each executor, in the order ps, chief, evaluator, worker.
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = (0..self.num_ps).map(|index| NodeId { role: Role::Ps, index }).collect();
        nodes.push(NodeId { role: Role::Chief, index: 0 });
        if self.evaluator {
            nodes.push(NodeId { role: Role::Evaluator, index: 0 });
        }
        nodes.extend((0..self.num_trainers().saturating_sub(1)).map(|index| NodeId { role: Role::Worker, index }));
        nodes
    }

    /// The node that executor `id` hosts, if the shape has one for it.
    pub fn node_of(&self, id: ExecutorId) -> Option<NodeId> {
        self.nodes().get(id.0 as usize).copied()
    }
}

/// An executor's claim at start: who it is and where it can be reached. Its listener is already bound
/// and stays open, so the port cannot be taken by somebody else in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Which executor.
    pub executor_id: ExecutorId,
    /// Its n-th try.
    pub attempt: Attempt,
    /// Name of its host, for people.
    pub host: String,
    /// Address that the other nodes dial, `host:port`.
    pub address: String,
    /// GPUs that it holds leases on.
    pub devices: Vec<String>,
    /// Version of the program.
    pub version: String,
    /// Process id on its host.
    pub pid: u32,
}

/// Role to ordered addresses, fixed for one generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Addresses by role, in task order.
    pub roles: BTreeMap<Role, Vec<String>>,
}

impl ClusterSpec {
    /// Addresses of one role, in task order.
    pub fn addresses(&self, role: Role) -> &[String] {
        self.roles.get(&role).map_or(&[], Vec::as_slice)
    }
}

/// Why a reservation was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The id is beyond the cluster's size.
    #[error("executor `{id}` is not needed: the cluster has {cluster_size} executors, numbered from 0")]
    NotNeeded {
        /// Executor that asked.
        id: ExecutorId,
        /// Executors that the job wants.
        cluster_size: u32,
    },
    /// The id is taken by a live executor of the same or a newer attempt.
    #[error("executor `{id}` attempt {attempt} is already registered from {host}")]
    Duplicate {
        /// Executor that asked.
        id: ExecutorId,
        /// Attempt that holds the place.
        attempt: Attempt,
        /// Host of the holder.
        host: String,
    },
}

/// The reservations of one cluster while it forms.
#[derive(Debug, Clone)]
pub struct Reservations {
    shape: Shape,
    by_id: BTreeMap<ExecutorId, Reservation>,
}

impl Reservations {
    /// None yet.
    pub fn new(shape: Shape) -> Self {
        Self { shape, by_id: BTreeMap::new() }
    }

    /// Takes a claim. An executor that asks for no id in particular gets the lowest free one from
    /// [`Self::free_id`] first.
    pub fn add(&mut self, claim: Reservation) -> Result<(), Refusal> {
        let id = claim.executor_id;
        if id.0 >= self.shape.cluster_size {
            return Err(Refusal::NotNeeded { id, cluster_size: self.shape.cluster_size });
        }
        if let Some(held) = self.by_id.get(&id)
            && held.attempt >= claim.attempt
        {
            return Err(Refusal::Duplicate { id, attempt: held.attempt, host: held.host.clone() });
        }
        self.by_id.insert(id, claim);
        Ok(())
    }

    /// Gives a place back, when its executor went away before the cluster was complete.
    pub fn remove(&mut self, id: ExecutorId) {
        self.by_id.remove(&id);
    }

    /// Lowest id that nobody holds.
    pub fn free_id(&self) -> Option<ExecutorId> {
        (0..self.shape.cluster_size).map(ExecutorId).find(|id| !self.by_id.contains_key(id))
    }

    /// True when every place is taken.
    pub fn done(&self) -> bool {
        self.remaining() == 0
    }

    /// Places not taken yet.
    pub fn remaining(&self) -> usize {
        (self.shape.cluster_size as usize).saturating_sub(self.by_id.len())
    }

    /// Executors that have not registered.
    pub fn missing(&self) -> Vec<ExecutorId> {
        (0..self.shape.cluster_size).map(ExecutorId).filter(|id| !self.by_id.contains_key(id)).collect()
    }

    /// The claims that are in, by executor.
    pub fn get(&self) -> impl Iterator<Item = &Reservation> {
        self.by_id.values()
    }

    /// One claim.
    pub fn of(&self, id: ExecutorId) -> Option<&Reservation> {
        self.by_id.get(&id)
    }

    /// The spec, once complete (`RES-1`, `RES-2`).
    pub fn spec(&self) -> Option<ClusterSpec> {
        if !self.done() {
            return None;
        }
        let mut spec = ClusterSpec::default();
        for (id, claim) in &self.by_id {
            let node = self.shape.node_of(*id)?;
            spec.roles.entry(node.role).or_default().push(claim.address.clone());
        }
        Some(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: u32, attempt: u32) -> Reservation {
        Reservation {
            executor_id: ExecutorId(id),
            attempt: Attempt(attempt),
            host: format!("host{id}"),
            address: format!("10.0.0.{id}:{}", 9000 + attempt),
            devices: vec![],
            version: "0".into(),
            pid: 1,
        }
    }

    const SHAPE: Shape = Shape { cluster_size: 4, num_ps: 1, evaluator: true };

    #[test] // the port of test_reservation_class
    fn test_reservation_class() {
        let mut r = Reservations::new(Shape { cluster_size: 2, num_ps: 0, evaluator: true });
        assert!(!r.done());
        assert_eq!(r.remaining(), 2);
        r.add(claim(0, 0)).unwrap();
        assert_eq!((r.done(), r.remaining()), (false, 1));
        r.add(claim(1, 0)).unwrap();
        assert_eq!((r.done(), r.remaining(), r.get().count()), (true, 0, 2));
    }

    #[test] // RES-1, RES-2
    fn spec_is_complete_and_does_not_depend_on_arrival() {
        let mut forward = Reservations::new(SHAPE);
        let mut backward = Reservations::new(SHAPE);
        for id in 0..4 {
            assert_eq!(forward.spec(), None);
            forward.add(claim(id, 0)).unwrap();
            backward.add(claim(3 - id, 0)).unwrap();
        }
        let spec = forward.spec().unwrap();
        assert_eq!(Some(&spec), backward.spec().as_ref());
        assert_eq!(spec.addresses(Role::Ps), ["10.0.0.0:9000"]);
        assert_eq!(spec.addresses(Role::Chief), ["10.0.0.1:9000"]);
        assert_eq!(spec.addresses(Role::Evaluator), ["10.0.0.2:9000"]);
        assert_eq!(spec.addresses(Role::Worker), ["10.0.0.3:9000"]);
    }

    #[test] // RES-3
    fn a_newer_attempt_replaces_and_an_older_one_is_refused() {
        let mut r = Reservations::new(SHAPE);
        r.add(claim(0, 1)).unwrap();
        assert!(matches!(r.add(claim(0, 1)), Err(Refusal::Duplicate { .. })));
        assert!(matches!(r.add(claim(0, 0)), Err(Refusal::Duplicate { .. })));
        r.add(claim(0, 2)).unwrap();
        assert_eq!(r.of(ExecutorId(0)).unwrap().address, "10.0.0.0:9002");
        assert!(matches!(r.add(claim(4, 0)), Err(Refusal::NotNeeded { .. })));
    }

    #[test]
    fn shapes_that_cannot_be_clusters_say_what_to_do() {
        let too_small = Shape { cluster_size: 2, num_ps: 2, evaluator: false }.validate().unwrap_err();
        assert!(too_small.to_string().contains("need at least 3"), "{too_small}");
        let no_ps = Shape { cluster_size: 3, num_ps: 0, evaluator: true }.validate().unwrap_err();
        assert!(no_ps.to_string().contains("--num-ps 1"), "{no_ps}");
        Shape { cluster_size: 1, num_ps: 0, evaluator: false }.validate().unwrap();
    }

    #[test]
    fn roles_come_in_the_order_ps_chief_evaluator_worker() {
        let names: Vec<String> =
            Shape { cluster_size: 6, num_ps: 2, evaluator: true }.nodes().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ps:0", "ps:1", "chief:0", "evaluator:0", "worker:0", "worker:1"]);
    }
}
