//! Which data files are behind an address: a file, a folder and what is below it, a glob, or a list of these.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::datasource::listing::ListingTableUrl;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use url::Url;

use super::remote::is_web;
use super::{Patience, open, resolve, root, within};
use crate::error::{Error, Result};
use crate::hive;

/// The data files behind addresses.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Scheme and authority that all files share.
    pub root: Url,
    pub store: Arc<dyn ObjectStore>,
    /// Sorted by path within each address.
    pub files: Vec<ObjectMeta>,
    /// The columns in the names of the folders on the way to a file (`year=2024/month=1/`), of files that have such.
    pub partitions: HashMap<Path, Vec<(String, String)>>,
}

/// Lists a file, a directory (and what is below it), a glob of files or directories, or several of these separated by
/// commas.
///
/// Names that begin with `_` or `.` are not data (`_SUCCESS`, `.part.crc`) unless addressed themselves.
pub async fn list(addresses: &str) -> Result<Listing> {
    let mut listing: Option<Listing> = None;
    for address in addresses.split(',').map(str::trim).filter(|a| !a.is_empty()) {
        let (store, url, depth, files) = list_one(address).await?;
        let keys = |file: &ObjectMeta| {
            let parts: Vec<_> = file.location.parts().skip(depth).collect();
            let folders = parts.split_last().map(|(_, folders)| folders).unwrap_or_default();
            let keys = hive::keys(folders.iter().map(|f| f.as_ref()));
            (!keys.is_empty()).then(|| (file.location.clone(), keys))
        };
        let partitions: HashMap<_, _> = files.iter().filter_map(keys).collect();
        let base =
            Url::parse(root(&url)).map_err(|e| Error::BadUrl { url: address.to_owned(), reason: e.to_string() })?;
        match &mut listing {
            None => listing = Some(Listing { root: base, store, files, partitions }),
            Some(first) if first.root == base => {
                first.files.extend(files);
                first.partitions.extend(partitions);
            }
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
    let mut seen = HashSet::new();
    listing.files.retain(|f| seen.insert(f.location.clone()));
    Ok(listing)
}

/// The files of one address, and how many segments of their paths it addresses.
async fn list_one(address: &str) -> Result<(Arc<dyn ObjectStore>, Url, usize, Vec<ObjectMeta>)> {
    let (base, glob) = split_glob(address);
    let (store, path, url) = resolve(base)?;
    // The files are read by a patient client; whether they can be reached is found out by a brisk one.
    let (brisk, ..) = open(base, Patience::Short)?;
    if glob.is_none() && !path.as_ref().is_empty() && !url.path().ends_with('/') {
        match within(address, brisk.head(&path)).await {
            // A web server answers for a folder too, with a page for people.
            Ok(_) if is_web(&url) && has_children(&*brisk, &path).await => {}
            Ok(meta) => return Ok((store, url, path.parts().count(), vec![meta])),
            Err(Error::NotFound { .. }) => {}
            Err(e) if is_local_dir(&url) => drop(e),
            Err(e) => return Err(e),
        }
    } else if url.scheme() != "file" {
        within(address, brisk.list_with_delimiter(Some(&path))).await?;
    }
    let mut folder = url.clone();
    folder.set_path(&format!("{}/", url.path().trim_end_matches('/')));
    let mut wanted = ListingTableUrl::try_new(folder, None)?;
    if let Some(glob) = glob {
        wanted = wanted.with_glob(glob)?;
    }
    let depth = path.parts().count();
    let hidden = |p: &Path| p.parts().skip(depth).any(|part| part.as_ref().starts_with(['_', '.']));
    // A glob names files, or folders of which every file is meant. Not by `ListingTableUrl::contains`, which takes
    // folders `key=value` out of a path before it looks.
    let matches = |p: &Path| {
        let parts: Vec<String> = p.parts().skip(depth).map(|part| part.as_ref().to_owned()).collect();
        let upto = |n: usize| parts.get(..n).unwrap_or_default().join("/");
        wanted.get_glob().as_ref().is_none_or(|glob| (1..=parts.len()).any(|n| glob.matches(&upto(n))))
    };
    let mut files: Vec<ObjectMeta> = store
        .list(Some(&path))
        .try_filter(|meta| std::future::ready(matches(&meta.location) && !hidden(&meta.location)))
        .try_collect()
        .await
        .map_err(|e| Error::from_store(e, address))?;
    files.sort_by(|a, b| a.location.cmp(&b.location));
    match files.is_empty() {
        true if glob.is_some() || is_local_dir(&url) || url.path().ends_with('/') && url.scheme() != "file" => {
            Err(Error::NoFiles { url: address.to_owned() })
        }
        true => Err(Error::NotFound { url: address.to_owned() }),
        false => Ok((store, url, depth, files)),
    }
}

/// False as well where the server lists nothing.
async fn has_children(store: &dyn ObjectStore, path: &Path) -> bool {
    let listed = store.list_with_delimiter(Some(path)).await;
    listed.is_ok_and(|found| !found.common_prefixes.is_empty() || found.objects.iter().any(|o| o.location != *path))
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

#[cfg(test)]
mod tests {
    use super::*;

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
