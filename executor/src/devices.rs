//! GPUs: what the host shows, and leases that keep two executors of a host off the same one.
//!
//! A lease is an abstract Unix socket named after the GPU, bound for the life of the process: the kernel
//! gives it to one process per host and takes it back when that process is gone, however it went. Nothing is
//! written to disk. It is seen within one network namespace only: containers with their own need a resource
//! manager that assigns GPUs.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::Command;

use tfos_core::gpu::{HostGpu, Inventory, Unavailable, compute_choices};

use crate::Error;

/// GPUs that this process holds.
#[derive(Debug, Default)]
pub struct Leases {
    /// Held for life.
    _sockets: Vec<UnixListener>,
    visible: Vec<String>,
}

impl Leases {
    /// What goes into `CUDA_VISIBLE_DEVICES`.
    pub fn visible(&self) -> &[String] {
        &self.visible
    }
}

/// Looks at the environment and asks `nvidia-smi`.
pub fn inventory() -> Inventory {
    let assigned = std::env::var("TFOS_GPUS").or_else(|_| std::env::var("CUDA_VISIBLE_DEVICES")).ok();
    let split = |list: String| list.split(',').map(|d| d.trim().to_owned()).filter(|d| !d.is_empty()).collect();
    Inventory {
        assigned: assigned.map(split),
        host: host_gpus(),
        kubernetes: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
    }
}

fn host_gpus() -> Option<Vec<HostGpu>> {
    let query = |what: &str| {
        let output = Command::new("nvidia-smi").args([what, "--format=csv,noheader"]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let gpus = query("--query-gpu=index,uuid")?;
    let busy = query("--query-compute-apps=gpu_uuid").unwrap_or_default();
    Some(parse(&gpus, &busy))
}

fn parse(gpus: &str, busy: &str) -> Vec<HostGpu> {
    let line = |line: &str| {
        let (index, uuid) = line.split_once(',')?;
        let uuid = uuid.trim().to_owned();
        Some(HostGpu { index: index.trim().parse().ok()?, busy: busy.lines().any(|b| b.trim() == uuid), uuid })
    };
    gpus.lines().filter_map(line).collect()
}

/// Leases `wanted` GPUs, or says why not.
pub fn lease(inventory: &Inventory, wanted: usize) -> Result<Leases, Error> {
    let choices = compute_choices(inventory, wanted)?;
    let mut leases = Leases::default();
    for choice in &choices {
        if leases.visible.len() == wanted {
            break;
        }
        let name = format!("tfos-gpu-{}", choice.lease);
        let bound = SocketAddr::from_abstract_name(&name).and_then(|a| UnixListener::bind_addr(&a));
        match bound {
            Ok(socket) => {
                leases._sockets.push(socket);
                leases.visible.push(choice.visible.clone());
            }
            // Another executor of this host has it.
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(source) => return Err(Error::System { what: format!("lease GPU {}", choice.lease), source }),
        }
    }
    if leases.visible.len() < wanted {
        let found = leases.visible.len();
        let why = format!("{} more are leased by other executors of this host", choices.len() - found);
        return Err(Error::Gpu(Unavailable { wanted, found, why }));
    }
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three GPUs of names that no other test uses.
    fn host(tag: &str) -> Inventory {
        let gpu = |index| HostGpu { index, uuid: format!("{tag}-{}-{index}", std::process::id()), busy: false };
        Inventory { host: Some((0..3).map(gpu).collect()), ..Default::default() }
    }

    #[test] // three nodes on one host: each has its own GPU, and a fourth is told so
    fn test_gpu_cluster_spec() {
        let host = host("spec");
        let held: Vec<Leases> = (0..3).map(|_| lease(&host, 1).unwrap()).collect();
        let visible: Vec<&str> = held.iter().flat_map(Leases::visible).map(String::as_str).collect();
        assert_eq!(visible, ["0", "1", "2"]);
        let fourth = lease(&host, 1).unwrap_err().to_string();
        assert!(fourth.contains("leased by other executors"), "{fourth}");
    }

    #[test]
    fn a_lease_ends_with_its_holder_and_a_half_one_is_not_kept() {
        let host = host("end");
        let first = lease(&host, 2).unwrap();
        assert!(lease(&host, 2).is_err());
        assert_eq!(lease(&host, 1).unwrap().visible(), ["2"], "what the failed try took is free again");
        drop(first);
        assert_eq!(lease(&host, 3).unwrap().visible().len(), 3);
    }

    #[test]
    fn nvidia_smi_is_read() {
        let gpus = parse("0, GPU-a\n1, GPU-b\n", "GPU-b\n");
        assert_eq!(gpus.iter().map(|g| (g.index, g.busy)).collect::<Vec<_>>(), [(0, false), (1, true)]);
    }
}
