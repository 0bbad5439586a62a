//! What a job begins with: how much of its checkpoint, under which names, or another model's parameters.

use serde::{Deserialize, Serialize};

use super::raw::RawJob;
use crate::checkpoint::{Extent, Loading, Missing, Renames};

/// See the module's text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// How much of a checkpoint of the job's own.
    pub extent: Extent,
    /// Variables whose names have changed.
    pub renames: Renames,
    /// What becomes of variables that do not match.
    pub missing: Missing,
    /// Where the parameters come from when there is no checkpoint yet: a model directory, a manifest or a safetensors
    /// file.
    pub init_from: Option<String>,
}

impl Restore {
    pub(super) fn check(raw: &RawJob, mut bad: impl FnMut(&str, String)) -> Self {
        let extent = match raw.restore.as_deref() {
            None | Some("full") => Extent::Full,
            Some("parameters-only") => Extent::ParametersOnly,
            Some(other) => {
                bad("restore", format!("`{other}` is neither `full` nor `parameters-only`"));
                Extent::Full
            }
        };
        let missing = match raw.restore_missing.as_deref() {
            None | Some("error") => Missing::Error,
            Some("init") => Missing::Init,
            Some(other) => {
                bad("restore-missing", format!("`{other}` is neither `error` nor `init`"));
                Missing::Error
            }
        };
        let renames = Renames::try_from(raw.restore_map.clone().unwrap_or_default()).unwrap_or_else(|message| {
            bad("restore-map", message);
            Renames::default()
        });
        let init_from = raw.init_from.clone();
        if init_from.as_ref().is_some_and(|url| url.trim().is_empty()) {
            bad("init-from", "is empty; name a model directory, a manifest or a safetensors file".into());
        }
        Self { extent, renames, missing, init_from }
    }

    /// How the job's own checkpoint is loaded when it resumes.
    pub fn resume(&self, manifest: &str) -> Loading {
        let Self { extent, renames, missing, .. } = self.clone();
        Loading { extent, renames, missing, ..Loading::own(manifest) }
    }

    /// How another model's parameters are loaded.
    pub fn warm(&self, folder: String, path: String) -> Loading {
        Loading { folder: Some(folder), extent: Extent::Warm, ..self.resume(&path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_word_is_told_with_what_there_is() {
        let text = |t: &str| Some(t.to_owned());
        let raw = RawJob {
            restore: text("half"),
            restore_map: Some(vec!["a".into()]),
            restore_missing: text("ignore"),
            init_from: text(" "),
            ..RawJob::default()
        };
        let mut told = vec![];
        Restore::check(&raw, |key, message| told.push(format!("{key}: {message}")));
        for (key, word) in [
            ("restore:", "`parameters-only`"),
            ("restore-missing:", "`init`"),
            ("restore-map:", "OLD=NEW"),
            ("init-from:", "empty"),
        ] {
            assert!(told.iter().any(|t| t.starts_with(key) && t.contains(word)), "{key} {word} in {told:?}");
        }
    }

    #[test]
    fn a_warm_start_takes_no_steps_and_no_optimizer() {
        let raw = RawJob {
            restore_map: Some(vec!["a.*=b.*".into()]),
            restore_missing: Some("init".into()),
            ..RawJob::default()
        };
        let restore = Restore::check(&raw, |key, message| unreachable!("{key}: {message}"));
        let own = restore.resume("checkpoints/000000000007/manifest.json");
        assert_eq!((own.extent, own.missing, own.folder.as_deref()), (Extent::Full, Missing::Init, None));
        let warm = restore.warm("s3://bucket/model".into(), "x.safetensors".into());
        assert_eq!((warm.extent, warm.renames.apply("a.w")), (Extent::Warm, "b.w".to_owned()));
        assert_eq!(warm.to_string(), "s3://bucket/model/x.safetensors");
    }
}
