//! The harness of the tests with real processes: builds the binaries, submits jobs, kills what has to be killed,
//! waits for conditions and never for time, and shows every node's log when a test fails.

pub mod bin;
pub mod chance;
pub mod data;
pub mod gate;
pub mod hdfs;
mod http;
pub mod lab;
pub mod logs;
pub mod procs;
pub mod proxy;
pub mod s3;
pub mod server;
pub mod submit;
pub mod wait;
pub mod web;
pub mod weights;

pub use gate::Gate;
pub use hdfs::Hdfs;
pub use lab::Lab;
pub use proxy::{Fault, Proxy};
pub use s3::S3;
pub use submit::{Done, Running, Submit};
pub use web::Web;
