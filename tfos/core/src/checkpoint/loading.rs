//! What a job loads before its first step, and under which names. Said once, by the driver, and read by every node
//! that loads.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How much of a checkpoint is taken; each takes less than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// Parameters, buffers, the optimizer's state and the global step.
    #[default]
    Full,
    /// Not the optimizer's state, which begins fresh; so the optimizer may be another one.
    ParametersOnly,
    /// Not the global step either: another model's parameters are where this one begins.
    Warm,
}

/// What becomes of variables that the checkpoint lacks, or has in another shape, and of those that only it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The job fails, and all of them are listed.
    #[default]
    Error,
    /// The first ones keep the values that they were initialised with, the others are left out; all are listed.
    Init,
}

/// From where, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// URL of the folder that `path` is in; `None` for the job's own model directory.
    pub folder: Option<String>,
    /// A manifest, relative to the model directory, or a safetensors file.
    pub path: String,
    /// How much of it.
    pub extent: Extent,
    /// Names that have changed.
    pub renames: Renames,
    /// What does not match.
    pub missing: Missing,
}

impl Loading {
    /// All of a checkpoint of the job's own, as it is.
    pub fn own(manifest: impl Into<String>) -> Self {
        let (extent, missing) = (Extent::Full, Missing::Error);
        Self { folder: None, path: manifest.into(), extent, renames: Renames::default(), missing }
    }
}

impl fmt::Display for Loading {
    /// As the user may know it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            Some(folder) => write!(f, "{}/{}", folder.trim_end_matches('/'), self.path),
            None => f.write_str(&self.path),
        }
    }
}

/// `OLD=NEW`: the variable OLD of the checkpoint is NEW in the model. `OLD*=NEW*` is the same for all that begin so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    old: String,
    new: String,
    is_prefix: bool,
}

impl FromStr for Rename {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("`{text}` {why}; write OLD=NEW or OLD.*=NEW.*"));
        let Some((old, new)) = text.split_once('=') else { return bad("has no `=`") };
        let (old, new) = (old.trim(), new.trim());
        let (old, new, is_prefix) = match (old.strip_suffix('*'), new.strip_suffix('*')) {
            (Some(old), Some(new)) => (old, new, true),
            (None, None) if old.is_empty() || new.is_empty() => return bad("has no name on one side"),
            (None, None) => (old, new, false),
            _ => return bad("ends with `*` on one side only"),
        };
        if old.contains(['*', '=']) || new.contains(['*', '=']) {
            return bad("has a `*` or `=` inside a name");
        }
        Ok(Self { old: old.to_owned(), new: new.to_owned(), is_prefix })
    }
}

impl fmt::Display for Rename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_prefix { "*" } else { "" };
        write!(f, "{}{star}={}{star}", self.old, self.new)
    }
}

impl Rename {
    fn applies_to(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.old) } else { name == self.old }
    }
}

/// All renames of a job. For each name the most exact one counts: a whole name before a prefix, a longer prefix before
/// a shorter one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Renames(Vec<Rename>);

impl TryFrom<Vec<String>> for Renames {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        let mut renames: Vec<Rename> = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        renames.sort_by_key(|r| (r.is_prefix, std::cmp::Reverse(r.old.len())));
        for (at, rename) in renames.iter().enumerate() {
            let twice = |other: &&Rename| other.old == rename.old && other.is_prefix == rename.is_prefix;
            if let Some(other) = renames.iter().take(at).find(twice) {
                return Err(format!("`{other}` and `{rename}` are about the same name"));
            }
        }
        Ok(Self(renames))
    }
}

impl From<Renames> for Vec<String> {
    fn from(renames: Renames) -> Self {
        renames.0.iter().map(ToString::to_string).collect()
    }
}

impl Renames {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the checkpoint's `name` is called in the model.
    pub fn apply(&self, name: &str) -> String {
        match self.0.iter().find(|rename| rename.applies_to(name)) {
            Some(rename) => format!("{}{}", rename.new, name.get(rename.old.len()..).unwrap_or_default()),
            None => name.to_owned(),
        }
    }

    /// Those that are about none of these names.
    pub fn idle<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a Rename> {
        self.0.iter().filter(|rename| !names.iter().any(|name| rename.applies_to(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renames(texts: &[&str]) -> Result<Renames, String> {
        Renames::try_from(texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_most_exact_rename_counts() {
        let r =
            renames(&["encoder.*=backbone.*", "encoder.head.*=head.*", "encoder.head.bias=b", "x=y", "y=x"]).unwrap();
        let cases = [
            ("encoder.conv.weight", "backbone.conv.weight"),
            ("encoder.head.weight", "head.weight"),
            ("encoder.head.bias", "b"),
            ("decoder.weight", "decoder.weight"),
            ("x", "y"),
            ("y", "x"),
            ("x.y", "x.y"),
        ];
        for (old, new) in cases {
            assert_eq!(r.apply(old), new);
        }
        let idle: Vec<String> = r.idle(&["encoder.a", "x"]).map(ToString::to_string).collect();
        assert_eq!(idle, ["encoder.head.bias=b", "y=x", "encoder.head.*=head.*"]);
        // A prefix may be empty on either side: everything moves below a new name, or out of an old one.
        assert_eq!(renames(&["*=model.*"]).unwrap().apply("w"), "model.w");
        assert_eq!(renames(&["model.*=*"]).unwrap().apply("model.w"), "w");
    }

    #[test]
    fn renames_travel_as_their_text() {
        let loading = Loading { renames: renames(&["a.*=b.*", "c=d"]).unwrap(), ..Loading::own("m.json") };
        let text = serde_json::to_string(&loading).unwrap();
        assert_eq!(serde_json::from_str::<Loading>(&text).unwrap(), loading);
        assert_eq!(loading.to_string(), "m.json");
        let elsewhere = Loading { folder: Some("s3://b/m/".into()), ..loading };
        assert_eq!(elsewhere.to_string(), "s3://b/m/m.json");
    }

    #[test]
    fn nonsense_is_refused_with_its_text() {
        for bad in ["a", "=b", "a=", "a*=b", "a=b*", "a*b=c", "a=b=c"] {
            let error = renames(&["c=d", bad]).unwrap_err();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
        assert!(renames(&["a=b", "a=c"]).unwrap_err().contains("`a=c`"));
        assert!(renames(&["a=b", "a*=c*"]).is_ok());
    }
}
