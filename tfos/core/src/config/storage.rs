//! Keys and addresses of object stores in `job.yaml`: variables of the environment, whose values are never shown.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What the names of the stores' variables begin with.
const PREFIXES: [&str; 4] = ["AWS_", "AZURE_", "GOOGLE_", "HADOOP_"];

/// Variables by name. Neither `Debug` nor `Serialize` gives a value away.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Storage(BTreeMap<String, String>);

impl Storage {
    /// Names and values, for the environment of this process.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names alone.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// Names that no store takes.
    pub(super) fn unknown(&self) -> Vec<&str> {
        let known = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        self.0.keys().map(String::as_str).filter(|name| !known(name)).collect()
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Serialize for Storage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for name in self.0.keys() {
            map.serialize_entry(name, "(not shown)")?;
        }
        map.end()
    }
}

/// A value as YAML reads it: `true` and `8020` need no quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Bool(bool),
    Number(i64),
}

impl<'de> Deserialize<'de> for Storage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own message would quote what it found.
        let read = BTreeMap::<String, Scalar>::deserialize(deserializer)
            .map_err(|_| D::Error::custom("expected lines of `VARIABLE: value`"))?;
        let text = |value| match value {
            Scalar::Text(text) => text,
            Scalar::Bool(on) => on.to_string(),
            Scalar::Number(number) => number.to_string(),
        };
        Ok(Self(read.into_iter().map(|(name, value)| (name, text(value))).collect()))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Job, RawJob};

    const TEXT: &str = "application: mnist\nstorage:\n  AWS_SECRET_ACCESS_KEY: sesame\n  AWS_ALLOW_HTTP: true\n";

    #[test]
    fn no_value_is_shown() {
        let raw = RawJob::from_yaml("job.yaml", TEXT).unwrap();
        let job = Job::check(raw.clone()).unwrap();
        assert_eq!(job.storage, ["AWS_ALLOW_HTTP", "AWS_SECRET_ACCESS_KEY"]);
        let set: Vec<_> = raw.storage.iter().flat_map(|s| s.variables()).collect();
        assert_eq!(set, [("AWS_ALLOW_HTTP", "true"), ("AWS_SECRET_ACCESS_KEY", "sesame")]);
        for shown in [format!("{raw:?}"), raw.to_yaml().unwrap(), format!("{job:?}")] {
            assert!(!shown.contains("sesame") && shown.contains("AWS_SECRET_ACCESS_KEY"), "{shown}");
        }
    }

    #[test]
    fn mistakes_are_told_without_the_value() {
        for text in ["storage: sesame\n", "storage: [sesame]\n", "storage: {AWS_X: {sesame: 1}}\n"] {
            let error = RawJob::from_yaml("job.yaml", text).unwrap_err().to_string();
            assert!(error.contains("`storage`") && !error.contains("sesame"), "{error}");
        }
        let check = |text: &str| Job::check(RawJob::from_yaml("job.yaml", text).unwrap()).unwrap_err().to_string();
        let error = check("application: mnist\nstorage: {LD_PRELOAD: sesame}\n");
        assert!(error.contains("LD_PRELOAD") && !error.contains("sesame"), "{error}");
        let error = check(&format!("{TEXT}master: standalone\n"));
        assert!(error.contains("standalone") && error.contains("each executor"), "{error}");
    }
}
