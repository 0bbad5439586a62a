//! `tfos import`: weights of another program as the start of training.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tfos_driver::model_dir::ModelDir;
use tfos_executor::portable::Weights;

use super::flags::{ImportFlags, Output};
use crate::application::Stop;
use crate::portable::import::{Origin, import};
use crate::{Application, Error, Result};

pub(super) fn run(flags: &ImportFlags, applications: &[Arc<dyn Application>]) -> Result<u8> {
    super::init_logs("warn");
    let arguments = match arguments(flags, applications)? {
        Ok(arguments) => arguments,
        Err(help) => {
            println!("{help}");
            return Ok(0);
        }
    };
    super::runtime()?.block_on(async {
        let weights = Weights::open(&flags.weights).await?;
        reserved(&weights, &flags.weights)?;
        let dir = ModelDir::open(&flags.model_dir)?;
        dir.probe().await?;
        let origin = Origin { application: flags.application.clone(), arguments, step: 0 };
        let manifest = import(&weights, &dir, origin).await?;
        say(&weights, flags, manifest.parts.iter().map(|p| p.end).sum());
        Ok(0)
    })
}

/// The nodes' arguments, null where the application does not tell them; or its help, which was asked for.
fn arguments(flags: &ImportFlags, applications: &[Arc<dyn Application>]) -> Result<std::result::Result<Value, String>> {
    let Some(application) = super::find(applications, &flags.application) else {
        if flags.arguments.is_empty() {
            return Ok(Ok(Value::Null));
        }
        let name = &flags.application;
        return Err(Error::Usage(format!(
            "`{name}` is not built in, so its arguments mean nothing here; leave them out"
        )));
    };
    match application.node_arguments(&flags.arguments) {
        Ok(Some(text)) => Ok(Ok(serde_json::from_str(&text).unwrap_or_default())),
        Ok(None) if flags.arguments.is_empty() => Ok(Ok(Value::Null)),
        Ok(None) => {
            let name = &flags.application;
            Err(Error::Usage(format!("`{name}` takes its arguments from a job; give them to `tfos submit`")))
        }
        Err(Stop::Help(help)) => Ok(Err(help)),
        Err(Stop::Usage(text)) => Err(Error::Usage(text)),
    }
}

/// Names that mean something else in a checkpoint.
fn reserved(weights: &Weights, address: &str) -> Result<()> {
    let taken = |name: &str| name.starts_with("optimizer/") || name.starts_with("buffer/") || name.contains('@');
    match weights.tensors().iter().find(|t| taken(&t.name)) {
        None => Ok(()),
        Some(t) => Err(Error::Usage(format!(
            "`{address}` has a tensor `{}`: the file is a part of a checkpoint of tfos, whose model directory `tfos export` \
             makes whole weights of",
            t.name
        ))),
    }
}

fn say(weights: &Weights, flags: &ImportFlags, parameters: u64) {
    let mut converted: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in weights.tensors().iter().filter(|t| t.type_name() != "f32") {
        *converted.entry(tensor.type_name()).or_default() += 1;
    }
    let left_out: Vec<String> = weights.left_out().iter().map(|t| format!("{} ({})", t.name, t.type_name())).collect();
    let (count, dir) = (weights.tensors().len(), &flags.model_dir);
    if flags.output == Output::Json {
        println!(
            "{}",
            json!({"status": "ok", "model_dir": dir, "application": flags.application, "step": 0, "tensors": count,
                   "parameters": parameters, "converted": converted, "left_out": left_out})
        );
        return;
    }
    println!("{count} tensors ({parameters} parameters) are step 0 of {dir}");
    for (kind, count) in &converted {
        println!("converted from {kind} to f32: {count} tensors");
    }
    if !left_out.is_empty() {
        println!("left out, as they are no floats: {}", left_out.join(", "));
    }
    println!("to start from them: tfos submit --model-dir {dir} {}", flags.application);
}
