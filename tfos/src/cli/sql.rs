//! `tfos sql`: questions to a model directory: steps, samples, metrics, events.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use std::sync::Arc;

use tfos_data::arrow::json::LineDelimitedWriter;
use tfos_data::arrow::util::pretty::pretty_format_batches;
use tfos_driver::ledger;
use tfos_driver::model_dir::ModelDir;

use super::flags::Output;
use crate::cluster::register_rows_of;
use crate::{Application, Error, Result};

pub(super) fn run(model_dir: &str, query: &str, output: Output, applications: &[Arc<dyn Application>]) -> Result<u8> {
    super::init_logs("warn");
    super::runtime()?.block_on(async {
        let dir = ModelDir::open(model_dir)?;
        dir.contact().await?;
        let Some(context) = ledger::open(&dir).await? else {
            return Err(Error::Usage(format!(
                "`{model_dir}` has neither a checkpoint nor events: there is nothing to ask"
            )));
        };
        register_rows_of(&context, dir, applications)?;
        let batches = context.sql(query).await.map_err(tfos_data::Error::from)?.collect().await;
        let batches = batches.map_err(tfos_data::Error::from)?;
        match output {
            Output::Text => println!("{}", pretty_format_batches(&batches).map_err(tfos_data::Error::from)?),
            Output::Json => {
                let mut writer = LineDelimitedWriter::new(std::io::stdout().lock());
                for batch in &batches {
                    writer.write(batch).map_err(tfos_data::Error::from)?;
                }
                writer.finish().map_err(tfos_data::Error::from)?;
            }
        }
        Ok(0)
    })
}
