//! In what numbers a model computes while it trains.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::raw::RawJob;

/// See the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Products and convolutions in bf16; variables, gradients, optimizer and checkpoints in f32.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl Precision {
    pub(super) fn check(raw: &RawJob, mut bad: impl FnMut(&str, String)) -> Self {
        match raw.precision.as_deref() {
            None | Some("f32") => Self::F32,
            Some("bf16") => {
                if raw.deterministic.unwrap_or(false) {
                    let why =
                        "bf16 not together with --deterministic: how libtorch groups such sums depends on the machine";
                    bad("precision", why.into());
                }
                Self::Bf16
            }
            Some(other) => {
                bad("precision", format!("`{other}` is neither `f32` nor `bf16`"));
                Self::F32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_cannot_be_is_told() {
        let check = |precision: Option<&str>, deterministic: bool| {
            let mut told = vec![];
            let (precision, deterministic) = (precision.map(str::to_owned), Some(deterministic));
            let raw = RawJob { precision, deterministic, ..RawJob::default() };
            let found = Precision::check(&raw, |key, message| told.push(format!("{key}: {message}")));
            (found, told)
        };
        assert_eq!(check(None, true), (Precision::F32, vec![]));
        assert_eq!(check(Some("bf16"), false), (Precision::Bf16, vec![]));
        assert!(check(Some("bf16"), true).1[0].contains("--deterministic"));
        assert!(check(Some("fp8"), false).1[0].contains("`bf16`"));
        let text = serde_json::to_string(&Precision::Bf16).unwrap();
        assert_eq!((text.as_str(), serde_json::from_str(&text).unwrap()), ("\"bf16\"", Precision::Bf16));
    }
}
