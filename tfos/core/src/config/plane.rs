//! How parameters and gradients travel between those that train and the ps: who holds what, over what, in how many bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::raw::RawJob;
use super::words::{read, words};

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Plane {
    /// How variables are dealt to the ps.
    pub placement: Placement,
    /// What carries them.
    pub transport: Carrier,
    /// How gradients are sent.
    pub compress: Compression,
    /// Whether they are while the backward pass still runs.
    pub overlap: Overlapping,
}

words! {
    /// Whether gradients are sent while the backward pass still runs.
    #[derive(Default)]
    pub enum Overlapping {
        /// Where the model is large, and nothing speaks against it.
        #[default]
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

words! {
    /// How variables are dealt to the ps.
    #[derive(Default)]
    pub enum Placement {
        /// All of them as one vector, cut evenly.
        #[default]
        Even = "even",
        /// Whole, in the order of their creation, one to each ps in turn, as TensorFlow does.
        RoundRobin = "round-robin",
    }
}

words! {
    /// What carries them.
    #[derive(Default)]
    pub enum Carrier {
        /// Shared memory where both ends are on one host, TCP elsewhere.
        #[default]
        Auto = "auto",
        /// Shared memory or nothing.
        SharedMemory = "shared-memory",
        /// Plain TCP everywhere.
        Tcp = "tcp",
        /// gRPC everywhere, for where only HTTP/2 passes.
        Grpc = "grpc",
    }
}

/// How gradients are sent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// Rounded to 16 bits.
    Bf16,
    /// The largest ones only.
    TopK {
        /// Of all, above 0 and at most 0.5.
        fraction: f64,
    },
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self::None),
            "bf16" => return Ok(Self::Bf16),
            _ => {}
        }
        let Some(fraction) = text.strip_prefix("topk:") else {
            return Err(format!("`{text}` is none of `none`, `bf16` and `topk:FRACTION`, such as `topk:0.01`"));
        };
        match fraction.parse() {
            Ok(fraction) if fraction > 0.0 && fraction <= 0.5 => Ok(Self::TopK { fraction }),
            _ => {
                Err(format!("`{fraction}` must be a number above 0 and at most 0.5, where all would be as many bytes"))
            }
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Bf16 => f.write_str("bf16"),
            Self::TopK { fraction } => write!(f, "topk:{fraction}"),
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Compression> for String {
    fn from(compression: Compression) -> String {
        compression.to_string()
    }
}

impl Plane {
    pub(super) fn check(raw: &RawJob, num_ps: u32, mut bad: impl FnMut(&str, String)) -> Self {
        let plane = Self {
            placement: read("placement", raw.placement.as_ref(), &mut bad),
            transport: read("transport", raw.transport.as_ref(), &mut bad),
            compress: read("compress", raw.compress.as_ref(), &mut bad),
            overlap: read("overlap", raw.overlap.as_ref(), &mut bad),
        };
        let usual = Self::default();
        let without_ps = [
            ("placement", plane.placement != usual.placement),
            ("transport", plane.transport != usual.transport),
            ("compress", plane.compress != usual.compress),
            ("overlap", plane.overlap == Overlapping::On),
        ];
        for (key, _) in without_ps.into_iter().filter(|(_, asked)| *asked && num_ps == 0) {
            bad(key, "only together with --num-ps: without parameter servers nothing is sent".into());
        }
        if plane.compress != Compression::None && raw.deterministic.unwrap_or(false) {
            bad("compress", "not together with --deterministic, which promises every bit".into());
        }
        let local = raw.consistency.as_deref().is_some_and(|word| word.trim().starts_with("local-sgd"));
        if plane.compress != Compression::None && local {
            bad("compress", "not together with --consistency local-sgd, which sends no gradients but states".into());
        }
        let contradictions = [
            (
                plane.compress != Compression::None,
                "--compress, which looks at a whole gradient before it sends any of it",
            ),
            (raw.num_gpus.unwrap_or(0) > 0, "--num-gpus: gradients of a GPU are copied to the host as a whole"),
            (local, "--consistency local-sgd, which sends no gradients"),
        ];
        for (_, why) in contradictions.iter().filter(|(is, _)| *is && plane.overlap == Overlapping::On) {
            bad("overlap", format!("not together with {why}"));
        }
        plane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(num_ps: u32, of: impl FnOnce(&mut RawJob)) -> (Plane, Vec<String>) {
        let (mut raw, mut told) = (RawJob::default(), vec![]);
        of(&mut raw);
        let plane = Plane::check(&raw, num_ps, |key, message| told.push(format!("{key}: {message}")));
        (plane, told)
    }

    #[test]
    fn what_is_written_is_read_and_travels() {
        let (plane, told) = check(2, |raw| {
            raw.placement = Some("round-robin".into());
            raw.transport = Some("tcp".into());
            raw.compress = Some("topk:0.01".into());
            raw.overlap = Some("off".into());
        });
        let expected = Plane {
            placement: Placement::RoundRobin,
            transport: Carrier::Tcp,
            compress: Compression::TopK { fraction: 0.01 },
            overlap: Overlapping::Off,
        };
        assert_eq!((plane, told), (expected, vec![]));
        let text = serde_json::to_string(&plane).unwrap();
        assert_eq!(text, r#"{"placement":"round-robin","transport":"tcp","compress":"topk:0.01","overlap":"off"}"#);
        assert_eq!(serde_json::from_str::<Plane>(&text).unwrap(), plane);
        assert_eq!(serde_json::from_str::<Plane>("{}").unwrap(), Plane::default());
        assert!(serde_json::from_str::<Plane>(r#"{"compress":"topk:2"}"#).is_err());
    }

    #[test]
    fn every_wrong_word_is_told_with_what_there_is() {
        let (_, told) = check(1, |raw| {
            raw.placement = Some("odd".into());
            raw.transport = Some("pigeon".into());
            raw.compress = Some("topk:0.9".into());
        });
        for (key, word) in [("placement:", "`round-robin`"), ("transport:", "`shared-memory`"), ("compress:", "0.5")] {
            assert!(told.iter().any(|t| t.starts_with(key) && t.contains(word)), "{key} {word} in {told:?}");
        }
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn what_needs_ps_says_so_and_bits_are_not_rounded_where_they_are_promised() {
        let all = |raw: &mut RawJob| {
            raw.placement = Some("round-robin".into());
            raw.transport = Some("shared-memory".into());
            raw.compress = Some("bf16".into());
            raw.deterministic = Some(true);
        };
        assert_eq!(check(0, all).1.len(), 4);
        let (_, told) = check(1, all);
        assert!(told.len() == 1 && told[0].contains("--deterministic"), "{told:?}");
        let local = |raw: &mut RawJob| {
            (raw.compress, raw.consistency) = (Some("bf16".into()), Some("local-sgd:8".into()));
        };
        assert!(check(1, local).1[0].contains("local-sgd"));
        let (_, told) = check(1, |raw| {
            (raw.compress, raw.num_gpus, raw.overlap) = (Some("bf16".into()), Some(1), Some("on".into()));
        });
        assert!(told.len() == 2 && told.iter().all(|t| t.starts_with("overlap:")), "{told:?}");
        let (_, told) = check(0, |raw| (raw.placement, raw.compress) = (Some("even".into()), Some("none".into())));
        assert!(told.is_empty(), "{told:?}");
    }
}
