//! `tfos sql`: questions to the ledger.
#![expect(clippy::print_stdout, reason = "results go to stdout")]

use tfos_data::arrow::json::LineDelimitedWriter;
use tfos_data::arrow::util::pretty::pretty_format_batches;
use tfos_data::session::{self, Format};
use tfos_driver::model_dir::ModelDir;

use super::flags::Output;
use crate::{Error, Result};

pub(super) fn run(model_dir: &str, query: &str, output: Output) -> Result<u8> {
    super::init_logs("warn");
    super::runtime()?.block_on(async {
        let dir = ModelDir::open(model_dir)?;
        dir.contact().await?;
        // The surviving lineage: segments of an abandoned future are not asked.
        let newest = dir.list_checkpoints().await?.into_iter().rev().find_map(|c| c.manifest.ok());
        let Some(manifest) = newest else {
            return Err(Error::Usage(format!("`{model_dir}` has no checkpoint, so it has no lineage to ask")));
        };
        let root = dir.url().as_str().trim_end_matches('/').to_owned();
        let files: Vec<String> = manifest.ledger.iter().map(|path| format!("{root}/{path}")).collect();
        if files.is_empty() {
            return Err(Error::Usage(format!("the newest checkpoint of `{model_dir}` has no ledger: no row was seen")));
        }
        let context = session::session();
        session::register(&context, "steps", &files.join(","), Format::Parquet, None).await?;
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
