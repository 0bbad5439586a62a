//! The transport that suits: shared memory where the ps is on this host, else TCP.
//!
//! Who connects asks over TCP for the name of the ps' abstract socket. Whether both are on one host is not guessed
//! from addresses: either that socket can be reached and passes the memory, or the TCP connection is used.

use std::io;
use std::time::{Duration, Instant};

use super::shared::connect_shared;
use super::{Connection, Tcp, Transport};
use crate::error::Error;
use crate::wire::{self, Header, Kind};

/// Longest name of an abstract socket.
const MAX_NAME: usize = 107;

/// Shared memory on one host, TCP otherwise; for connections to a ps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nearest;

/// Shared memory, or an error that says why not.
#[derive(Debug, Clone, Copy, Default)]
pub struct SameHost;

impl Transport for SameHost {
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        match find(address, timeout)? {
            Found::Shared(shared) => Ok(shared),
            Found::Tcp(_, why) => {
                let text =
                    format!("no shared memory with the ps at {address} ({why}); leave --transport out, or give tcp");
                Err(io::Error::new(io::ErrorKind::Unsupported, text))
            }
        }
    }
}

impl Transport for Nearest {
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        match find(address, timeout)? {
            Found::Shared(shared) => Ok(shared),
            Found::Tcp(tcp, why) => {
                tracing::debug!(why, address, "no shared memory with this ps");
                Ok(tcp)
            }
        }
    }
}

enum Found {
    Shared(Box<dyn Connection>),
    /// And why no shared memory.
    Tcp(Box<dyn Connection>, String),
}

fn find(address: &str, timeout: Duration) -> io::Result<Found> {
    let deadline = Instant::now() + timeout;
    let mut tcp = Tcp.connect(address, timeout)?;
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    tcp.set_timeout(Some(left()))?;
    let name = ask(&mut *tcp).map_err(|error| match error {
        Error::PeerLost { source, .. } => source,
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    })?;
    tcp.set_timeout(None)?;
    if name.is_empty() {
        return Ok(Found::Tcp(tcp, "it offers none".to_owned()));
    }
    match connect_shared(&name, address, left()) {
        Ok(shared) => Ok(Found::Shared(shared)),
        Err(error) => Ok(Found::Tcp(tcp, error.to_string())),
    }
}

fn ask(tcp: &mut dyn Connection) -> Result<String, Error> {
    wire::send(tcp, Header::new(Kind::Nearest), &[], [])?;
    let header = wire::expect(tcp, Kind::Nearest, "Nearest")?;
    let name = wire::recv_meta(tcp, &header, MAX_NAME)?;
    // A name that is no text is none of ours, and cannot be reached.
    Ok(String::from_utf8(name).unwrap_or_default())
}
