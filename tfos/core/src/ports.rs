//! Port specifications: `8888` or `9997-9999`; 0 means any free port.

use std::fmt;
use std::net::{TcpListener, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One port or an inclusive range, tried in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange(RangeInclusive<u16>);

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Not a number, not a range, or the wrong way round.
    #[error("invalid port specification `{spec}`: give one port such as 8888 or a range such as 9997-9999")]
    Invalid {
        /// What was given.
        spec: String,
    },
    /// Every port of the range is in use (or not ours to bind).
    #[error("unable to bind to any port of {host}:{ports}; free one of them or give another range")]
    NoneFree {
        /// Address to bind.
        host: String,
        /// Ports that were tried.
        ports: String,
        /// What the last one said.
        #[source]
        source: std::io::Error,
    },
}

impl Default for PortRange {
    fn default() -> Self {
        Self(0..=0)
    }
}

impl PortRange {
    /// The ports to try, in order.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.0.clone()
    }

    /// Binds the first free port and keeps it.
    pub fn bind(&self, host: &str) -> Result<TcpListener, PortError> {
        let mut last = std::io::Error::other("no address");
        for port in self.ports() {
            let bound =
                (host, port).to_socket_addrs().and_then(|a| TcpListener::bind(a.collect::<Vec<_>>().as_slice()));
            match bound {
                Ok(listener) => return Ok(listener),
                Err(e) => last = e,
            }
        }
        Err(PortError::NoneFree { host: host.to_owned(), ports: self.to_string(), source: last })
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(spec: &str) -> Result<Self, Self::Err> {
        let invalid = || PortError::Invalid { spec: spec.to_owned() };
        let port = |s: &str| s.trim().parse::<u16>().map_err(|_| invalid());
        let range = match spec.split_once('-') {
            Some((low, high)) => port(low)?..=port(high)?,
            None => port(spec)?..=port(spec)?,
        };
        if range.is_empty() || (*range.start() == 0 && *range.end() != 0) {
            return Err(invalid());
        }
        Ok(Self(range))
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortError;

    fn try_from(spec: String) -> Result<Self, Self::Error> {
        spec.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (low, high) if low == high => write!(f, "{low}"),
            (low, high) => write!(f, "{low}-{high}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_reservation_server_port_spec() {
        assert_eq!("9999".parse::<PortRange>().unwrap().ports().collect::<Vec<_>>(), [9999]);
        assert_eq!("9997-9999".parse::<PortRange>().unwrap().ports().collect::<Vec<_>>(), [9997, 9998, 9999]);
        for bad in ["", "x", "9999-9997", "1-2-3", "70000", "0-5"] {
            assert!(matches!(bad.parse::<PortRange>(), Err(PortError::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn test_reservation_server_port_range() {
        // Two neighbouring free ports, found by asking the system for one until the next is free too.
        let (first, base) = std::iter::repeat_with(|| TcpListener::bind("127.0.0.1:0").unwrap())
            .map(|l| (l.local_addr().unwrap().port(), l))
            .filter(|(p, _)| *p < u16::MAX)
            .find_map(|(p, l)| TcpListener::bind(("127.0.0.1", p + 1)).ok().map(|next| ((l, next), p)))
            .unwrap();
        drop(first);
        let range: PortRange = format!("{base}-{}", base + 1).parse().unwrap();
        let one = range.bind("127.0.0.1").unwrap();
        let two = range.bind("127.0.0.1").unwrap();
        assert_ne!(one.local_addr().unwrap().port(), two.local_addr().unwrap().port());
        let third = range.bind("127.0.0.1").unwrap_err();
        assert!(third.to_string().contains(&format!("127.0.0.1:{base}-{}", base + 1)), "{third}");
    }
}
