//! Where rows come from: object stores, TFRecord and idx files, DataFusion sessions, and plans that travel.
//!
//! ```text
//! url --store--> files --session--> DataFrame --plan--> bytes --plan--> partition i as record batches
//! ```
//!
//! * [`store`]: addresses to object stores.
//! * [`tfrecord`]: TFRecord files of `tf.train.Example` as record batches, both ways, and as a DataFusion format.
//! * [`session`]: the one DataFusion session that driver and executors agree on.
//! * [`plan`]: physical plans as bytes, their partitions, and which of them can be fed.
//! * `numbers`: Parquet files with numbers and lists of them, faster than DataFusion reads them.
//! * [`stage`]: the rows of a query that cannot be fed as it is, written into files that can.
//! * [`ballista`](mod@ballista): such a query on several executors.
//! * [`idx`] and [`convert`]: MNIST's files, and one format into another.

#[cfg(feature = "ballista")]
pub mod ballista;
pub mod convert;
pub mod error;
mod hive;
pub mod idx;
mod ipc;
mod numbers;
pub mod plan;
pub mod session;
pub mod stage;
pub mod store;
pub mod tfrecord;

pub use error::{Error, Result};
#[doc(hidden)]
pub use numbers::hostile as numbers_hostile;

pub use datafusion::prelude::{DataFrame, SessionContext};
/// The versions of arrow, DataFusion, object_store and parquet that everything else has to use too.
pub use datafusion::{self, arrow, parquet};
#[cfg(feature = "ballista")]
pub use datafusion_proto;
pub use object_store;
