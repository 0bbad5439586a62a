//! A model that was written in PyTorch: a TorchScript module, trained on any columns, by one of three losses.

mod args;
mod model;

use tfos_data::convert::ConvertOptions;
use tfos_data::session::Format;
use tfos_executor::torch::module::{Named, ScriptModule};

use crate::application::{Shapes, Stop};
use crate::cluster::check_columns;
use crate::model::EVAL_INPUT;
use crate::portable::export::MODULE;
use crate::{Application, Cluster, Error, NodeContext, NodeError, Result, run_model};

pub use args::{Args, Loss};
pub use model::Scripted;

/// See the module's text.
#[derive(Debug, Clone, Copy)]
pub struct TorchScript;

/// What a module trains, in the order of its definition.
fn variables(address: &str) -> Result<Shapes> {
    use tfos_data::object_store::ObjectStoreExt;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::System { what: "start the runtime".into(), source })?;
    let bytes = runtime.block_on(async {
        let (store, path, _) = tfos_data::store::resolve(address)?;
        let failed = |e| tfos_data::Error::from_store(e, address);
        Ok::<_, Error>(store.get(&path).await.map_err(failed)?.bytes().await.map_err(failed)?)
    })?;
    let trained = check_module(&bytes, address)?.into_iter();
    Ok(trained.map(|named| (named.name, named.tensor.size())).collect())
}

impl Application for TorchScript {
    fn name(&self) -> &str {
        "torchscript"
    }

    fn about(&self) -> &str {
        "a TorchScript module that PyTorch wrote, on any columns"
    }

    fn check(&self, arguments: &[String]) -> std::result::Result<(), Stop> {
        Args::read(arguments).map(drop)
    }

    fn variables(&self, arguments: &[String]) -> std::result::Result<Option<Shapes>, Stop> {
        let args = Args::read(arguments)?;
        variables(&args.module).map(Some).map_err(|e| Stop::Usage(e.to_string()))
    }

    fn inputs(&self, node_arguments: &str) -> Vec<String> {
        serde_json::from_str(node_arguments).map(|args: Args| args.features).unwrap_or_default()
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let args = Args::read(arguments).map_err(|stop| match stop {
            Stop::Help(text) | Stop::Usage(text) => Error::Usage(text),
        })?;
        let module = cluster.read_file(&args.module)?;
        check_module(&module, &args.module)?;
        cluster.set_arguments(&args)?;
        let read = |cluster: &Cluster, url: &str| {
            let format = cluster.format_of(url, args.format.as_deref())?;
            cluster.read(url, format, args.schema.as_deref())
        };
        let eval = match &args.eval_data {
            Some(url) => {
                let rows = read(cluster, url)?;
                check_columns(&rows, url, &args.columns())?;
                Some(rows)
            }
            None => None,
        };
        let rows = match &args.sql {
            Some(query) => {
                let format = cluster.format_of(&args.data, args.format.as_deref())?;
                cluster.register("data", &args.data, format, args.schema.as_deref())?;
                cluster.sql(query)?
            }
            None => read(cluster, &args.data)?,
        };
        check_columns(&rows, args.sql.as_deref().unwrap_or(&args.data), &args.columns())?;
        // What no step needs is not read.
        let columns = args.columns();
        let rows = rows.select_columns(&columns.iter().map(String::as_str).collect::<Vec<_>>())?;
        match (&eval, cluster.job().shape.evaluator) {
            (Some(rows), true) => cluster.add_input(EVAL_INPUT, rows.clone()),
            (None, true) => return Err(Error::Usage("--evaluator needs --eval-data to score on".into())),
            (_, false) => {}
        }
        cluster.add_asset(MODULE, module)?;
        cluster.shuffle(args.shuffle_block, cluster.job().seed);
        cluster.train(rows, args.epochs)?;
        let Some(eval) = eval else { return Ok(()) };
        if !cluster.job().shape.evaluator {
            cluster.evaluate(eval.clone())?;
        }
        if let Some(file) = &args.predictions {
            let format = Format::from_path(file)
                .ok_or_else(|| Error::Usage(format!("--predictions {file}: its name does not say a format")))?;
            let scored = cluster.inference(eval)?;
            cluster.block_on(tfos_data::convert::write(scored, file, format, &ConvertOptions::default()))?;
        }
        Ok(())
    }

    fn node(&self, context: &mut NodeContext) -> std::result::Result<(), NodeError> {
        run_model::<Scripted>(context)
    }
}

/// Says what is wrong with a module before any node waits for another.
/// Gives the tensors that are trained.
fn check_module(bytes: &[u8], address: &str) -> Result<Vec<Named>> {
    let bad = |what: String| Error::Usage(format!("--module {address}: {what}"));
    let words = |e: &NodeError| tfos_core::failure::chain(e).join(": ");
    let module = ScriptModule::load(bytes, tch::Device::Cpu).map_err(|e| {
        bad(format!("it is no TorchScript module ({}); write one with torch.jit.script(module).save(FILE)", words(&e)))
    })?;
    let tensors = module.tensors().map_err(|e| bad(words(&e)))?;
    if !tensors.iter().any(|t| t.parameter && t.tensor.requires_grad()) {
        return Err(bad("it has no parameter to train; was it frozen, or traced without parameters?".into()));
    }
    Ok(tensors.into_iter().filter(|t| t.tensor.requires_grad()).collect())
}
