//! `tfos set`: another setting for a job that runs.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::time::Duration;

use serde_json::json;
use tfos_driver::model_dir::ModelDir;
use tfos_driver::settings::{Answer, ask};

use super::flags::Output;
use crate::{Error, Result};

pub(super) fn run(job: &str, setting: &str, patience: Duration, output: Output) -> Result<u8> {
    super::init_logs("warn");
    let Some((name, value)) = setting.split_once('=') else {
        return Err(Error::Usage(format!("`{setting}` is no setting; write consistency=VALUE")));
    };
    if name != "consistency" {
        return Err(Error::Usage(format!("`{name}` cannot be set while a job runs; consistency can")));
    }
    let dir = ModelDir::open(job)?;
    let Answer { consistency, global_step, error } = super::runtime()?.block_on(ask(&dir, value, patience))?;
    if let Some(why) = error {
        return Err(Error::Usage(format!("the job says that consistency cannot be {consistency}: {why}")));
    }
    let step = global_step.unwrap_or_default();
    match output {
        Output::Json => println!("{}", json!({"consistency": consistency, "global_step": step})),
        Output::Text => println!("consistency is {consistency} after step {step}"),
    }
    Ok(0)
}
