//! Clients of the stores of this world, by the scheme of an address, with what the environment says of them.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreScheme, Result, RetryConfig};
use url::Url;

use super::root;
use super::watch::Watching;

/// A builder with the address and with each variable of the environment that it knows.
macro_rules! built {
    ($builder:ty, $url:expr, $retries:expr) => {
        Arc::new(
            environment($url)
                .into_iter()
                .fold(<$builder>::new().with_url($url.as_str()), |builder, (key, value)| match key.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                })
                .with_retry($retries)
                .with_http_connector(Watching::of(root($url)))
                .build()?,
        ) as Arc<dyn ObjectStore>
    };
}

/// The store of an address that is not a local file, and the path in it; `None` for a scheme that nobody knows.
pub(super) fn open(url: &Url, retries: RetryConfig) -> Result<Option<(Arc<dyn ObjectStore>, Path)>> {
    #[cfg(feature = "hdfs")]
    if matches!(url.scheme(), "hdfs" | "viewfs") {
        return Ok(Some((super::hdfs::open(url)?, Path::from_url_path(url.path())?)));
    }
    let Ok((scheme, path)) = ObjectStoreScheme::parse(url) else { return Ok(None) };
    let store = match scheme {
        ObjectStoreScheme::AmazonS3 => built!(AmazonS3Builder, url, retries),
        ObjectStoreScheme::GoogleCloudStorage => built!(GoogleCloudStorageBuilder, url, retries),
        ObjectStoreScheme::MicrosoftAzure => built!(MicrosoftAzureBuilder, url, retries),
        ObjectStoreScheme::Http => {
            let builder = HttpBuilder::new().with_url(root(url)).with_retry(retries);
            let builder = builder.with_http_connector(Watching::of(root(url)));
            Arc::new(builder.with_config(ClientConfigKey::AllowHttp, "true").build()?)
        }
        _ => return Ok(None),
    };
    Ok(Some((store, path)))
}

/// Whether the address is a web server's, which is read from and no more.
pub(super) fn is_web(url: &Url) -> bool {
    matches!(ObjectStoreScheme::parse(url), Ok((ObjectStoreScheme::Http, _)))
}

/// `AWS_ACCESS_KEY_ID` and its kin, as the builders name them.
fn environment(url: &Url) -> Vec<(String, String)> {
    let prefix = match ObjectStoreScheme::parse(url) {
        Ok((ObjectStoreScheme::GoogleCloudStorage, _)) => "GOOGLE_",
        Ok((ObjectStoreScheme::MicrosoftAzure, _)) => "AZURE_",
        _ => "AWS_",
    };
    let variables = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    variables.filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.to_ascii_lowercase(), v)).collect()
}
