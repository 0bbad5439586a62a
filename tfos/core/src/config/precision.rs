//! In what numbers a model computes while it trains.

use super::raw::RawJob;
use super::words::{read, words};

words! {
    /// See the module's text.
    #[derive(Default)]
    pub enum Precision {
        /// f32 throughout.
        #[default]
        F32 = "f32",
        /// Products and convolutions in bf16; variables, gradients, optimizer and checkpoints in f32.
        Bf16 = "bf16",
    }
}

impl Precision {
    pub(super) fn check(raw: &RawJob, mut bad: impl FnMut(&str, String)) -> Self {
        let precision = read("precision", raw.precision.as_ref(), &mut bad);
        if precision == Self::Bf16 && raw.deterministic.unwrap_or(false) {
            let why = "bf16 not together with --deterministic: how libtorch groups such sums depends on the machine";
            bad("precision", why.into());
        }
        precision
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
