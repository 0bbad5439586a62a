//! Durations and sizes as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration: a plain number of seconds (`600`), or with a unit (`10s`, `500ms`, `2h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "f64")]
pub struct Period(pub Duration);

/// A number of bytes: plain, or with a unit (`64MiB`, `1GB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(into = "u64")]
pub struct ByteSize(pub u64);

impl From<Period> for f64 {
    fn from(p: Period) -> Self {
        p.0.as_secs_f64()
    }
}

impl From<ByteSize> for u64 {
    fn from(b: ByteSize) -> Self {
        b.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let seconds = s.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x >= 0.0 && *x < 1e12);
        seconds.map(Duration::from_secs_f64).or_else(|| humantime::parse_duration(s).ok()).map(Self).ok_or_else(|| {
            format!("`{s}` is no duration: write seconds (600) or a number with a unit (10s, 500ms, 2h)")
        })
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let at = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
        let (number, unit) = s.split_at(at);
        let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => f64::NAN,
        };
        let bytes = number.parse::<f64>().map_or(f64::NAN, |n| n * factor);
        if !bytes.is_finite() || bytes < 0.0 {
            return Err(format!("`{s}` is no size: write bytes or a number with a unit (64MiB, 1GB)"));
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers and strings both, as YAML offers them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Integer(u64),
    Float(f64),
    Text(String),
}

impl Scalar {
    fn text(self) -> String {
        match self {
            Self::Integer(n) => n.to_string(),
            Self::Float(x) => x.to_string(),
            Self::Text(s) => s,
        }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Scalar::deserialize(d)?.text().parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Scalar::deserialize(d)?.text().parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_numbers_with_and_without_units() {
        let p = |s: &str| s.parse::<Period>().map(|p| p.0.as_millis());
        assert_eq!(p("600"), Ok(600_000));
        assert_eq!(p("0.5"), Ok(500));
        assert_eq!(p("10s"), Ok(10_000));
        assert!(p("-1").is_err() && p("soon").is_err() && p("inf").is_err());
        let b = |s: &str| s.parse::<ByteSize>().map(|b| b.0);
        assert_eq!((b("64MiB"), b("1GB"), b("7")), (Ok(64 << 20), Ok(1_000_000_000), Ok(7)));
        assert!(b("x").is_err() && b("1parsec").is_err());
    }
}
