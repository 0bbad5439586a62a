//! Addresses: which object store an URL or a path means, and which data files are behind it.
//!
//! A plain path is a local file, relative ones by the working directory. `s3://`, `gs://`, `az://`, `abfs://`,
//! `http://` and their kin take credentials and endpoints from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`);
//! `hdfs://` takes Hadoop's (`HADOOP_CONF_DIR`, `HADOOP_USER_NAME`).

mod fault;
#[cfg(feature = "hdfs")]
mod hdfs;
mod list;
mod remote;
mod watch;

use std::path::{Component, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use url::{Position, Url};

pub use fault::explain;
pub use list::{Listing, list};

use crate::error::{Error, Result};

/// What an address may begin with, for the message about one that does not.
const KNOWN: &str = "file, s3, s3a, gs, az, adl, azure, abfs, abfss, hdfs, viewfs, http or https";

/// Schemes that [`normalize`] leaves alone.
const SCHEMES: [&str; 16] = [
    "adl", "file", "hdfs", "oss", "s3", "s3a", "s3n", "swift", "viewfs", "wasb", "gs", "az", "abfs", "abfss", "http",
    "https",
];

/// How long a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Minutes: a job outlives the hiccups of its store.
    Long,
    /// Seconds: nothing runs yet, and a wrong address or key is to be told at once.
    Short,
}

impl Patience {
    fn retries(self) -> RetryConfig {
        match self {
            Self::Long => RetryConfig::default(),
            Self::Short => RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: Duration::from_millis(100),
                    max_backoff: Duration::from_secs(1),
                    base: 2.0,
                },
                max_retries: 2,
                retry_timeout: FIRST_ANSWER,
            },
        }
    }
}

/// How long the first answer of a store may take.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Finds the store for an address, the path in it, and the address in full form (a directory keeps its final `/`).
pub fn resolve(address: &str) -> Result<(Arc<dyn ObjectStore>, Path, Url)> {
    open(address, Patience::Long)
}

/// As [`resolve`], with a say in how long its requests are tried again.
pub fn open(address: &str, patience: Patience) -> Result<(Arc<dyn ObjectStore>, Path, Url)> {
    let url = to_url(address)?;
    let bad = |reason: String| Error::BadUrl { url: address.to_owned(), reason };
    let path = Path::from_url_path(url.path()).map_err(|e| bad(e.to_string()))?;
    if url.scheme() == "file" {
        return Ok((Arc::new(LocalFileSystem::new()), path, url));
    }
    let Some((store, path)) = remote::open(&url, patience.retries()).map_err(|e| Error::from_store(e, address))? else {
        return Err(bad(format!("no object store is known for the scheme `{}`; use a path, {KNOWN}", url.scheme())));
    };
    Ok((store, path, url))
}

/// As [`resolve`], for a directory in which checkpoints are kept.
pub fn resolve_to_keep(address: &str) -> Result<(Arc<dyn ObjectStore>, Path, Url)> {
    if remote::is_web(&to_url(address)?) {
        // A checkpoint counts because one driver alone could create its manifest.
        return Err(Error::Unsupported {
            what: format!("a model directory on a web server (`{address}`), which does not create a file only once,"),
            instead: "use a path, s3://, gs://, az:// or hdfs://; data may be read from there".into(),
        });
    }
    resolve(address)
}

/// The first request to a store before a job: an address, a key or a network that is wrong is told within seconds.
pub async fn first_contact(address: &str) -> Result<()> {
    let (store, path, url) = open(address, Patience::Short)?;
    if url.scheme() == "file" {
        return Ok(());
    }
    within(address, store.list_with_delimiter(Some(&path))).await.map(drop)
}

/// The answer to the first request, which does not take longer than ten seconds.
pub async fn within<T>(address: &str, answer: impl Future<Output = object_store::Result<T>>) -> Result<T> {
    match tokio::time::timeout(FIRST_ANSWER, answer).await {
        Ok(answer) => answer.map_err(|e| Error::from_store(e, address)),
        Err(late) => {
            Err(Error::from_store(object_store::Error::Generic { store: "URL", source: late.into() }, address))
        }
    }
}

/// Lets a DataFusion runtime find the store of `url` (by its scheme and authority).
pub fn register(runtime: &RuntimeEnv, url: &Url) -> Result<()> {
    let base = Url::parse(root(url)).map_err(|e| Error::BadUrl { url: url.to_string(), reason: e.to_string() })?;
    // A store at hand may be a caller's own (a cache, a test's): it stays.
    if runtime.object_store_registry.get_store(&base).is_ok() {
        return Ok(());
    }
    let (store, _, _) = resolve(url.as_str())?;
    runtime.register_object_store(&base, store);
    Ok(())
}

/// Scheme and authority of an address, as object stores are registered: `s3://bucket`, `file://`.
pub fn root(url: &Url) -> &str {
    &url[..Position::BeforePath]
}

/// An address as people write it: local files without `file://`. `path` is taken below `root` if given.
pub fn display(root: &str, path: Option<&Path>) -> String {
    let full = match path {
        Some(path) => format!("{}/{path}", root.trim_end_matches('/')),
        None => root.to_owned(),
    };
    match full.strip_prefix("file://").or_else(|| full.strip_prefix("file:")) {
        // With a path the text after the scheme is already decoded; without one it is an URL's.
        Some(local) if path.is_some() => local.to_owned(),
        Some(_) => Url::parse(&full)
            .ok()
            .and_then(|u| u.to_file_path().ok())
            .map_or_else(|| full.clone(), |p| p.display().to_string()),
        None => full,
    }
}

/// The URL of an address; a plain path becomes an absolute `file://` one.
pub fn to_url(address: &str) -> Result<Url> {
    let bad = |reason: &str| Error::BadUrl { url: address.to_owned(), reason: reason.to_owned() };
    if address.is_empty() {
        return Err(bad("the address is empty"));
    }
    if address.contains("://") || address.starts_with("file:") {
        return Url::parse(address).map_err(|e| bad(&e.to_string()));
    }
    let absolute = std::path::absolute(address).map_err(Error::io("resolve", address))?;
    // `..` is taken back by name, without asking the file system: the path may not exist yet.
    let mut clean = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    let folder = address.ends_with('/') || address == "." || address.ends_with("/.");
    let url = if folder { Url::from_directory_path(&clean) } else { Url::from_file_path(&clean) };
    url.map_err(|()| bad("the path cannot be written as an URL"))
}

/// Completes a path the way a cluster's users expect: with a scheme it stays, from `/` it belongs to `default_fs`, and
/// otherwise to the user's home there (hdfs, viewfs) or the working directory (file).
pub fn normalize(path: &str, default_fs: &str, working_dir: &str, user: &str) -> String {
    if path.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme)) || path.starts_with("file:") {
        return path.to_owned();
    }
    let (fs, scheme) = (default_fs.trim_end_matches('/'), default_fs.split(':').next().unwrap_or_default());
    match scheme {
        _ if path.starts_with('/') && scheme == "file" => format!("file://{path}"),
        _ if path.starts_with('/') => format!("{fs}{path}"),
        "hdfs" | "viewfs" => format!("{fs}/user/{user}/{path}"),
        "file" => format!("file://{}/{path}", working_dir.trim_end_matches('/')),
        _ => format!("{fs}/{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_hdfs_path() {
        let paths = ["hdfs://foo/bar", "file:///foo/bar", "/foo/bar", "foo/bar", "s3://b/k"];
        let cases = [
            ("hdfs://nn:8020", ["hdfs://nn:8020/foo/bar", "hdfs://nn:8020/user/u/foo/bar"]),
            ("file://", ["file:///foo/bar", "file:///cwd/foo/bar"]),
            ("viewfs://nn", ["viewfs://nn/foo/bar", "viewfs://nn/user/u/foo/bar"]),
            ("file:///", ["file:///foo/bar", "file:///cwd/foo/bar"]),
            ("s3://bucket", ["s3://bucket/foo/bar", "s3://bucket/foo/bar"]),
            ("gs://bucket/", ["gs://bucket/foo/bar", "gs://bucket/foo/bar"]),
        ];
        for (fs, [absolute, relative]) in cases {
            let got = paths.map(|p| normalize(p, fs, "/cwd", "u"));
            assert_eq!(got, [paths[0], paths[1], absolute, relative, paths[4]], "{fs}");
        }
        for scheme in SCHEMES {
            let path = format!("{scheme}://host/x");
            assert_eq!(normalize(&path, "hdfs://nn", "/cwd", "u"), path);
        }
    }

    #[test]
    fn plain_paths_become_urls() {
        assert_eq!(to_url("/a/./b/../c d").unwrap().as_str(), "file:///a/c%20d");
        assert_eq!(display("file:///a/c%20d", None), "/a/c d");
        assert_eq!(display("file:///", Some(&Path::from("a/b"))), "/a/b");
        assert_eq!(display("s3://bucket/", Some(&Path::from("a/b"))), "s3://bucket/a/b");
        assert!(to_url("x/").unwrap().path().ends_with("/x/"));
    }

    #[test]
    fn unknown_schemes_are_named() {
        let error = resolve("warp://a/b").unwrap_err();
        assert!(matches!(error, Error::BadUrl { .. }) && error.to_string().contains("`warp`"), "{error}");
    }
}
