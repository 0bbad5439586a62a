//! Ports for a server that is told a number and binds it by itself.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tfos_core::ports::PortRange;
use tokio::net::TcpSocket;

/// A port that is ours as long as this lives: nobody else can bind it, but for the one who is told its number.
#[derive(Debug)]
pub(super) struct Reserved {
    socket: TcpSocket,
}

impl Reserved {
    /// The first free one of `ports`.
    pub(super) fn take(ip: IpAddr, ports: &PortRange) -> io::Result<Self> {
        let mut last = io::Error::other("no port");
        for port in ports.ports() {
            let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            match socket.bind(SocketAddr::new(ip, port)) {
                Ok(()) => {
                    // A socket that does not listen lets in those who allow it too, as servers do; sockets that are here
                    // to reserve do not allow it when they bind, so that two cannot have the same port.
                    socket.set_reuseaddr(true)?;
                    return Ok(Self { socket });
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[tokio::test]
    async fn a_reserved_port_is_for_the_server_that_is_told_of_it() {
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        let reserved = Reserved::take(ip, &PortRange::default()).unwrap();
        let port = reserved.port().unwrap();
        let same: PortRange = port.to_string().parse().unwrap();
        assert!(Reserved::take(ip, &same).is_err(), "reserved twice");
        // As servers bind.
        let server = TcpListener::bind((ip, port)).unwrap();
        assert!(TcpListener::bind((ip, port)).is_err(), "two servers on one port");
        drop(server);
        assert!(Reserved::take(ip, &same).is_err(), "the reservation outlives the server");
    }
}
