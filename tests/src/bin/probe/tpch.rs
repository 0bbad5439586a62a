//! Tables of TPC-H as Parquet files, from the generator of the `tpchgen` crates.

use std::fs::File;
use std::path::Path;

use tfos::data::arrow::array::RecordBatch;
use tfos::data::arrow::error::ArrowError;
use tfos::data::parquet::arrow::ArrowWriter;
use tpchgen::generators::{CustomerGenerator, LineItemGenerator, OrderGenerator};
use tpchgen_arrow::{CustomerArrow, LineItemArrow, OrderArrow};

/// Writes customer, orders and lineitem into folders below `to`, each in `files` files.
pub(crate) fn write(to: &Path, scale: f64, files: i32) -> Result<(), String> {
    for n in 1..=files {
        let customer = CustomerArrow::new(CustomerGenerator::new(scale, n, files));
        table(to, "customer", n, customer)?;
        table(to, "orders", n, OrderArrow::new(OrderGenerator::new(scale, n, files)))?;
        table(to, "lineitem", n, LineItemArrow::new(LineItemGenerator::new(scale, n, files)))?;
    }
    Ok(())
}

fn table(
    to: &Path,
    name: &str,
    number: i32,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
) -> Result<(), String> {
    let folder = to.join(name);
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let file = File::create(folder.join(format!("part-{number:03}.parquet"))).map_err(|e| e.to_string())?;
    let mut file = Some(file);
    let mut writer = None;
    for batch in batches {
        let batch = batch.map_err(|e| e.to_string())?;
        if let Some(file) = file.take() {
            writer = Some(ArrowWriter::try_new(file, batch.schema(), None).map_err(|e| e.to_string())?);
        }
        if let Some(writer) = &mut writer {
            writer.write(&batch).map_err(|e| e.to_string())?;
        }
    }
    writer.map_or(Ok(()), |writer| writer.close().map(drop).map_err(|e| e.to_string()))
}
