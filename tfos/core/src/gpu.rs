//! Which GPUs an executor may use, as a pure function of what its host shows.

use serde::{Deserialize, Serialize};

/// What the host and its resource manager say about GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// GPUs that a resource manager (or the user, through `CUDA_VISIBLE_DEVICES`) assigned to this
    /// process; they win over anything else.
    pub assigned: Option<Vec<String>>,
    /// GPUs that the host has, by uuid, in order of their index. `None` when there is no `nvidia-smi`.
    pub host: Option<Vec<HostGpu>>,
    /// True inside a Kubernetes pod: there the host's list shows GPUs that were not given to the pod.
    pub kubernetes: bool,
}

/// A GPU of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGpu {
    /// Index for `CUDA_VISIBLE_DEVICES`.
    pub index: u32,
    /// Name of its lease.
    pub uuid: String,
    /// True when some process computes on it.
    pub busy: bool,
}

/// A GPU that can be leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What goes into `CUDA_VISIBLE_DEVICES`.
    pub visible: String,
    /// Name of the host-level lease.
    pub lease: String,
}

/// The wish cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} GPU(s) are wanted and {found} free on this host ({why}); lower --num-gpus or start the executor where they are"
)]
pub struct Unavailable {
    /// Asked for.
    pub wanted: usize,
    /// Free to take.
    pub found: usize,
    /// Where was looked.
    pub why: String,
}

/// GPUs to try to lease, best first. More than `wanted` may come back: whoever leases takes the first
/// `wanted` that no other executor of this host holds.
///
/// Zero wanted is no GPU at all: unlike in TensorFlowOnSpark nobody gets one without asking.
pub fn compute_choices(inventory: &Inventory, wanted: usize) -> Result<Vec<Choice>, Unavailable> {
    if wanted == 0 {
        return Ok(vec![]);
    }
    let (choices, why): (Vec<Choice>, String) = match (&inventory.assigned, &inventory.host) {
        (Some(list), _) => (
            list.iter().map(|d| Choice { visible: d.clone(), lease: d.clone() }).collect(),
            format!("the resource manager assigned {}", list.len()),
        ),
        (None, _) if inventory.kubernetes => (vec![], "the pod was given none".into()),
        (None, None) => (vec![], "no nvidia-smi".into()),
        (None, Some(host)) => (
            host.iter()
                .filter(|g| !g.busy)
                .map(|g| Choice { visible: g.index.to_string(), lease: g.uuid.clone() })
                .collect(),
            format!("nvidia-smi lists {}", host.len()),
        ),
    };
    if choices.len() < wanted {
        return Err(Unavailable { wanted, found: choices.len(), why });
    }
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u32) -> Option<Vec<HostGpu>> {
        Some((0..n).map(|index| HostGpu { index, uuid: format!("GPU-{index}"), busy: false }).collect())
    }

    fn visible(inventory: &Inventory, wanted: usize) -> Vec<String> {
        compute_choices(inventory, wanted).unwrap().into_iter().map(|c| c.visible).collect()
    }

    #[test]
    fn test_gpu_unavailable() {
        let error = compute_choices(&Inventory::default(), 1).unwrap_err();
        assert!(error.to_string().contains("no nvidia-smi"), "{error}");
    }

    #[test]
    fn test_gpu_available() {
        assert_eq!(visible(&Inventory { host: host(1), ..Default::default() }, 1), ["0"]);
    }

    #[test] // decided: no request means no GPU
    fn test_gpu_default() {
        assert!(visible(&Inventory { host: host(1), ..Default::default() }, 0).is_empty());
    }

    #[test]
    fn test_gpu_spark_available() {
        let inventory = Inventory { assigned: Some(vec!["3".into()]), host: host(8), kubernetes: true };
        assert_eq!(visible(&inventory, 1), ["3"]);
    }

    #[test]
    fn test_gpu_spark_fallback() {
        let mut inventory = Inventory { host: host(2), ..Default::default() };
        inventory.host.as_mut().unwrap()[0].busy = true;
        assert_eq!(visible(&inventory, 1), ["1"]);
    }

    #[test]
    fn test_gpu_spark_unavailable_default() {
        assert!(visible(&Inventory { host: host(2), kubernetes: true, assigned: None }, 0).is_empty());
    }

    #[test]
    fn test_gpu_spark_unavailable_but_requested() {
        let pod = Inventory { host: host(2), kubernetes: true, assigned: None };
        assert!(compute_choices(&pod, 1).unwrap_err().to_string().contains("the pod was given none"));
    }
}
