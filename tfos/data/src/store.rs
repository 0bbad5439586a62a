//! Addresses: which object store an URL or a path means, and which data files are behind it.
//!
//! A plain path is a local file, relative ones by the working directory. `s3://`, `gs://`, `az://`, `abfs://`,
//! `http://` and their kin take credentials and endpoints from the environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`).

use std::path::{Component, PathBuf};
use std::sync::Arc;

use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, parse_url_opts};
use url::{Position, Url};

use crate::error::{Error, Result};

/// Schemes that [`normalize`] leaves alone.
const SCHEMES: [&str; 16] = [
    "adl", "file", "hdfs", "oss", "s3", "s3a", "s3n", "swift", "viewfs", "wasb", "gs", "az", "abfs", "abfss", "http",
    "https",
];

/// Finds the store for an address, the path in it, and the address in full form (a directory keeps its final `/`).
pub fn resolve(address: &str) -> Result<(Arc<dyn ObjectStore>, Path, Url)> {
    let url = to_url(address)?;
    let bad = |reason: String| Error::BadUrl { url: address.to_owned(), reason };
    let path = Path::from_url_path(url.path()).map_err(|e| bad(e.to_string()))?;
    if url.scheme() == "file" {
        return Ok((Arc::new(LocalFileSystem::new()), path, url));
    }
    let (store, path) = parse_url_opts(&url, environment(&url)).map_err(|source| match source {
        object_store::Error::NotFound { .. } | object_store::Error::Generic { .. }
            if !matches!(
                url.scheme(),
                "s3" | "s3a" | "gs" | "az" | "adl" | "azure" | "abfs" | "abfss" | "http" | "https"
            ) =>
        {
            bad(format!(
                "no object store is known for the scheme `{}`; use a path, file, s3, gs, az, abfs, http or https",
                url.scheme()
            ))
        }
        source => Error::Store { url: address.to_owned(), source },
    })?;
    Ok((Arc::from(store), path, url))
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

/// The data files behind addresses.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Scheme and authority that all files share.
    pub root: Url,
    pub store: Arc<dyn ObjectStore>,
    /// Sorted by path within each address.
    pub files: Vec<ObjectMeta>,
}

/// Lists a file, a directory (and what is below it), a glob, or several of these separated by commas.
///
/// Names that begin with `_` or `.` are not data (`_SUCCESS`, `.part.crc`) unless addressed themselves.
pub async fn list(addresses: &str) -> Result<Listing> {
    let mut listing: Option<Listing> = None;
    for address in addresses.split(',').map(str::trim).filter(|a| !a.is_empty()) {
        let (store, url, files) = list_one(address).await?;
        let base =
            Url::parse(root(&url)).map_err(|e| Error::BadUrl { url: address.to_owned(), reason: e.to_string() })?;
        match &mut listing {
            None => listing = Some(Listing { root: base, store, files }),
            Some(first) if first.root == base => first.files.extend(files),
            Some(first) => {
                return Err(Error::Unsupported {
                    what: format!("one table in two stores (`{}` and `{base}`)", first.root),
                    instead: "register two tables and use UNION ALL".into(),
                });
            }
        }
    }
    let mut listing =
        listing.ok_or_else(|| Error::BadUrl { url: addresses.to_owned(), reason: "the address is empty".into() })?;
    let mut seen = std::collections::HashSet::new();
    listing.files.retain(|f| seen.insert(f.location.clone()));
    Ok(listing)
}

async fn list_one(address: &str) -> Result<(Arc<dyn ObjectStore>, Url, Vec<ObjectMeta>)> {
    let (base, glob) = split_glob(address);
    let (store, path, url) = resolve(base)?;
    let fail = |e| Error::from_store(e, address);
    if glob.is_none() && !path.as_ref().is_empty() && !url.path().ends_with('/') {
        match store.head(&path).await {
            Ok(meta) => return Ok((store, url, vec![meta])),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(e) if is_local_dir(&url) => drop(e),
            Err(e) => return Err(fail(e)),
        }
    }
    let mut folder = url.clone();
    folder.set_path(&format!("{}/", url.path().trim_end_matches('/')));
    let mut wanted = ListingTableUrl::try_new(folder, None)?;
    if let Some(glob) = glob {
        wanted = wanted.with_glob(glob)?;
    }
    let depth = path.parts().count();
    let hidden = |p: &Path| p.parts().skip(depth).any(|part| part.as_ref().starts_with(['_', '.']));
    let mut files: Vec<ObjectMeta> = store
        .list(Some(&path))
        .try_filter(|meta| std::future::ready(wanted.contains(&meta.location, false) && !hidden(&meta.location)))
        .try_collect()
        .await
        .map_err(fail)?;
    files.sort_by(|a, b| a.location.cmp(&b.location));
    match files.is_empty() {
        true if glob.is_some() || is_local_dir(&url) || url.path().ends_with('/') && url.scheme() != "file" => {
            Err(Error::NoFiles { url: address.to_owned() })
        }
        true => Err(Error::NotFound { url: address.to_owned() }),
        false => Ok((store, url, files)),
    }
}

fn is_local_dir(url: &Url) -> bool {
    url.scheme() == "file" && url.to_file_path().is_ok_and(|p| p.is_dir())
}

/// The part before the first path segment with a wildcard, and the rest.
fn split_glob(address: &str) -> (&str, Option<&str>) {
    let Some(wild) = address.find(['*', '?', '[']) else {
        return (address, None);
    };
    // A query belongs to an URL, not to a glob.
    match address.get(..wild).and_then(|head| head.rfind('/')) {
        Some(slash) => (&address[..=slash], Some(&address[slash + 1..])),
        None => ("./", Some(address)),
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

fn environment(url: &Url) -> Vec<(String, String)> {
    let wanted = |key: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|p| key.starts_with(p));
    let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    let mut options: Vec<_> = vars.filter(|(k, _)| wanted(k)).map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
    if url.scheme() == "http" {
        options.push(("allow_http".into(), "true".into()));
    }
    options
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

    #[tokio::test]
    async fn lists_files_folders_globs_and_lists() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.csv", "b.csv", "c.txt", "_SUCCESS", ".a.csv.crc"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let base = dir.path().display().to_string();
        let names = |l: Listing| l.files.iter().map(|f| f.location.filename().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(list(&base).await.unwrap()), ["a.csv", "b.csv", "c.txt"]);
        assert_eq!(names(list(&format!("{base}/*.csv")).await.unwrap()), ["a.csv", "b.csv"]);
        assert_eq!(names(list(&format!("{base}/b.csv,{base}/*.csv")).await.unwrap()), ["b.csv", "a.csv"]);
        assert!(matches!(list(&format!("{base}/none")).await, Err(Error::NotFound { .. })));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(matches!(list(&format!("{base}/empty")).await, Err(Error::NoFiles { .. })));
        assert!(matches!(list(&format!("{base}/*.parquet")).await, Err(Error::NoFiles { .. })));
    }
}
