//! HDFS by its own protocol, without a JVM. `hdfs://HOST:PORT/path` names a NameNode, `hdfs://SERVICE/path` what
//! `hdfs-site.xml` in `HADOOP_CONF_DIR` says; the user is `HADOOP_USER_NAME`, or who runs the process.
//!
//! Create-if-absent holds: the client writes a file under another name, and the NameNode's rename without overwrite
//! lets exactly one of them have the final one.

use std::sync::{Arc, OnceLock};

use hdfs_native_object_store::HdfsObjectStoreBuilder;
use object_store::{ObjectStore, Result};
use tokio::runtime::{Builder, Runtime};
use url::Url;

/// The connections to NameNodes live here: a client may outlive the runtime in which it is opened.
static CONNECTIONS: OnceLock<Runtime> = OnceLock::new();

fn connections() -> Result<&'static Runtime> {
    if let Some(runtime) = CONNECTIONS.get() {
        return Ok(runtime);
    }
    let built = Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("hdfs").build();
    let built = built.map_err(|e| object_store::Error::Generic { store: "HDFS", source: e.into() })?;
    // Who was later gives theirs up; nothing runs in it yet.
    if let Err(late) = CONNECTIONS.set(built) {
        late.shutdown_background();
    }
    let absent = || object_store::Error::Generic { store: "HDFS", source: "its threads are gone".into() };
    CONNECTIONS.get().ok_or_else(absent)
}

/// The store of one NameNode or name service. Nothing is sent yet.
pub(super) fn open(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let builder = HdfsObjectStoreBuilder::new().with_url(super::root(url));
    Ok(Arc::new(builder.with_io_runtime(connections()?.handle().clone()).build()?))
}
