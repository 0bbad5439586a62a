//! A program whose node behaves as its arguments say (`mode=… key=value …`): well, badly, or not before the test
//! opens a gate. The tests submit it; it is driver and executors at once, as any program on tfos is.
#![expect(clippy::print_stdout, reason = "what it finds goes to the test or to the node's log")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tfos::application::Stop;
use tfos::data::SessionContext;
use tfos::data::arrow::array::{ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch};
use tfos::data::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use tfos::data::datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use tfos::data::datafusion::scalar::ScalarValue;
use tfos::data::parquet::arrow::ArrowWriter;
use tfos::data::parquet::file::properties::WriterProperties;
use tfos::data::session::Format;
use tfos::prelude::*;

#[path = "probe/network.rs"]
mod network;
#[path = "probe/tpch.rs"]
mod tpch;

/// What it can be asked to do, and on what.
const MODES: [(&str, &str); 23] = [
    ("basic", "adds two numbers with libtorch and leaves the feed alone"),
    ("role", "checks node, number of workers and arguments"),
    ("sum", "evaluates: sums column x and reports sum and rows"),
    ("square", "inference: x squared; the driver checks every row and their order"),
    ("wrong-count", "inference: one result fewer than rows"),
    ("no-results", "inference: no results at all"),
    ("error", "fails at batch at=N"),
    ("late-error", "fails after the feed has ended"),
    ("panic", "panics at batch at=N"),
    ("panic-in-query", "a function of its query panics at row at=N, before a checkpoint is due"),
    ("terminate", "ends the feed at batch at=N"),
    ("never-steps", "reads the feed to its end and never steps"),
    ("no-train-with", "reads the feed to its end without ever naming a model"),
    ("listener", "checks that the reserved port is held and handed over once"),
    (
        "linear",
        "trains y = 2 x + 1, with drop-last=1 on whole batches only, then reports w and b; stands still at gate=FILE before \
         step gate-at=N; the chief computes for compute-secs=N in its second step; has ballast=N parameters",
    ),
    (
        "ordered",
        "trains on rows shuffled in blocks of block=N by seed=N, and prints the address and x of each; gates as linear",
    ),
    ("network", "trains a small network on the same line, and reports how well it fits; see probe/network.rs"),
    (
        "bits",
        "trains a network with batch normalization and dropout in batches of batch=N, shuffled and with gates as ordered; \
         clips gradients to clip=NORM",
    ),
    ("idle", "the driver does nothing with its cluster"),
    ("draw", "the driver writes rows=N drawn digits to=FILE"),
    ("wide", "the driver writes files=N Parquet files of rows=N rows of 784 random bytes into the folder to=FOLDER"),
    ("tpch", "the driver writes tables of TPC-H of scale=S as Parquet, files=N each, into folders of to=FOLDER"),
    ("touch", "reads every byte of column image, in batches of 256"),
];

struct Probe;

/// `key=value` arguments.
struct Arguments(BTreeMap<String, String>);

impl Arguments {
    fn read(words: &[String]) -> Result<Self, String> {
        let pair = |word: &String| word.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        let read: Option<BTreeMap<_, _>> = words.iter().map(pair).collect();
        let arguments = Self(read.ok_or_else(|| format!("arguments are key=value, not {words:?}"))?);
        if MODES.iter().all(|(name, _)| *name != arguments.mode()) {
            let names: Vec<&str> = MODES.iter().map(|(name, _)| *name).collect();
            return Err(format!("mode={} is none of {}", arguments.mode(), names.join(", ")));
        }
        Ok(arguments)
    }

    fn of(context: &NodeContext) -> Result<Self, NodeError> {
        serde_json::from_str(context.arguments()).map(Self).map_err(NodeError::application)
    }

    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn mode(&self) -> &str {
        self.text("mode")
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.text(key).parse().unwrap_or(default)
    }

    /// Stands still in front of unit `at` of this node if a gate is there; see the harness's `gate.rs`.
    fn pass_gate(&self, context: &NodeContext, at: u64) -> Result<(), NodeError> {
        let gate = self.text("gate");
        if gate.is_empty() || at != self.number("gate-at", 0) {
            return Ok(());
        }
        std::fs::write(format!("{gate}.reached-{}", context.worker_num()), b"").map_err(NodeError::application)?;
        // Returns when there is a writer.
        std::fs::File::open(gate).map(drop).map_err(NodeError::application)
    }
}

fn ensure(holds: bool, what: impl Display) -> Result<(), NodeError> {
    if holds { Ok(()) } else { Err(NodeError::application(what)) }
}

impl Application for Probe {
    fn name(&self) -> &str {
        "probe"
    }

    fn about(&self) -> &str {
        "behaves as the tests want"
    }

    fn check(&self, arguments: &[String]) -> Result<(), Stop> {
        Arguments::read(arguments).map(drop).map_err(Stop::Usage)
    }

    fn main(&self, cluster: &mut Cluster, arguments: &[String]) -> Result<()> {
        let args = Arguments::read(arguments).map_err(Error::Usage)?;
        cluster.set_arguments(&args.0)?;
        match args.mode() {
            "idle" => return Ok(()),
            "draw" => return draw(cluster, &args),
            "wide" => return wide(&args).map_err(Error::Application),
            "tpch" => {
                let scale = args.text("scale").parse().map_err(|e| Error::Usage(format!("scale: {e}")))?;
                let written = tpch::write(args.text("to").as_ref(), scale, args.number("files", 1) as i32);
                return written.map_err(Error::Application);
            }
            _ => {}
        }
        let rows = match args.text("sql") {
            "" => cluster.read(args.text("data"), Format::Parquet, None)?,
            query => {
                if !args.text("data").is_empty() {
                    cluster.register("data", args.text("data"), Format::Parquet, None)?;
                }
                for (name, place) in args.text("tables").split(',').filter_map(|table| table.split_once(':')) {
                    let format = cluster.format_of(place, None)?;
                    cluster.register(name, place, format, None)?;
                }
                cluster.sql(query)?
            }
        };
        let epochs = args.number("epochs", 1) as u32;
        match args.mode() {
            "sum" => drop(cluster.evaluate(rows)?),
            "square" | "wrong-count" | "no-results" => {
                let scored = cluster.inference(rows)?;
                let batches = cluster.block_on(scored.collect())?;
                let column = |name: &str| -> Vec<i64> {
                    let columns = batches.iter().filter_map(|b| b.column_by_name(name));
                    columns.flat_map(|c| c.as_primitive::<Int64Type>().values().to_vec()).collect()
                };
                let (x, square) = (column("x"), column("square"));
                let in_order = x.iter().copied().eq(0..x.len() as i64);
                let exact = square.iter().copied().eq(x.iter().map(|x| x * x));
                let sum: i64 = square.iter().sum();
                println!("{{\"rows\":{},\"sum\":{sum},\"in_order\":{in_order},\"exact\":{exact}}}", square.len());
                if !in_order || !exact {
                    return Err(Error::Application("results are wrong or out of order".into()));
                }
            }
            "panic-in-query" => {
                cluster.register("data", args.text("data"), Format::Parquet, None)?;
                let rows = cluster.sql(&format!("SELECT touchy(x, {}) AS x FROM data", args.number("at", 0)))?;
                cluster.train(rows, epochs)?;
            }
            "linear" | "network" => {
                cluster.train(rows.clone(), epochs)?;
                cluster.evaluate(rows)?;
            }
            _ => {
                cluster.shuffle(args.number("block", 0) as u32, args.number("seed", 0));
                cluster.train(rows, epochs)?;
            }
        }
        Ok(())
    }

    fn node(&self, context: &mut NodeContext) -> Result<(), NodeError> {
        let args = Arguments::of(context)?;
        println!("probe: {} runs mode={} as trainer {}", context.node(), args.mode(), context.worker_num());
        match args.mode() {
            "basic" => {
                let three = Tensor::from(1i64) + Tensor::from(2i64);
                context.report_metrics(&[("three", three.double_value(&[]))], 1);
                Ok(())
            }
            "role" => role(context),
            "sum" => sum(context),
            "square" | "wrong-count" | "no-results" => infer(context, args.mode()),
            "listener" => listener(context),
            "linear" => linear(context, &args),
            "network" => network::network(context, &args),
            "ordered" => ordered(context, &args),
            "touch" => touch(context),
            "bits" => bits(context, &args),
            _ => consume(context, &args),
        }
    }

    fn register(&self, session: &SessionContext) -> Result<(), NodeError> {
        session.register_udf(touchy());
        session.register_udf(gated());
        // Runs in every executor before its node starts, so also where the node cannot start; and on the driver.
        if std::env::args().nth(1).is_some_and(|a| a == "executor") {
            println!("probe: CUDA_VISIBLE_DEVICES=[{}]", std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default());
        }
        Ok(())
    }
}

/// `touchy(x, at)` is x, and panics where x = at.
fn touchy() -> ScalarUDF {
    let types = vec![DataType::Int64, DataType::Int64];
    let body = |arguments: &[ColumnarValue]| {
        let columns = ColumnarValue::values_to_arrays(arguments)?;
        if let [x, at] = columns.as_slice() {
            let pairs = x.as_primitive::<Int64Type>().values().iter().zip(at.as_primitive::<Int64Type>().values());
            pairs.filter(|(x, at)| x == at).for_each(|(x, _)| misbehave(*x as u64));
        }
        Ok(arguments.first().cloned().unwrap_or_else(|| ColumnarValue::from(ScalarValue::Int64(None))))
    };
    create_udf("touchy", types, DataType::Int64, Volatility::Immutable, Arc::new(body))
}

/// `gated(x, at, gate)` is x, and stands still at the gate where x = at; see the harness's `gate.rs`.
fn gated() -> ScalarUDF {
    let types = vec![DataType::Int64, DataType::Int64, DataType::Utf8];
    let body = |arguments: &[ColumnarValue]| {
        let columns = ColumnarValue::values_to_arrays(arguments)?;
        if let [x, at, gate] = columns.as_slice() {
            let pairs = x.as_primitive::<Int64Type>().values().iter().zip(at.as_primitive::<Int64Type>().values());
            for (row, _) in pairs.enumerate().filter(|(_, (x, at))| x == at) {
                let gate = gate.as_string::<i32>().value(row);
                std::fs::write(format!("{gate}.reached-0"), b"")?;
                drop(std::fs::File::open(gate)?);
            }
        }
        Ok(arguments.first().cloned().unwrap_or_else(|| ColumnarValue::from(ScalarValue::Int64(None))))
    };
    create_udf("gated", types, DataType::Int64, Volatility::Immutable, Arc::new(body))
}

fn draw(cluster: &Cluster, args: &Arguments) -> Result<()> {
    let drawn = tfos::apps::digits::record_batch(args.number("seed", 0), args.number("rows", 100) as usize);
    let drawn = drawn.map_err(tfos::data::Error::from)?;
    cluster.session().register_batch("drawn", drawn)?;
    let copy = cluster.sql(&format!("COPY drawn TO '{}' STORED AS PARQUET", args.text("to")))?;
    cluster.block_on(copy.collect())?;
    Ok(())
}

/// Bytes that no compression makes less of, in row groups of 8192 rows.
fn wide(args: &Arguments) -> std::result::Result<(), String> {
    const ROWS: usize = 8192;
    let (folder, rows) = (args.text("to"), args.number("rows", 0) as usize);
    std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let schema = Arc::new(Schema::new(vec![Field::new("image", DataType::Binary, false)]));
    let mut random = 1u64;
    for number in 0..args.number("files", 1) {
        let file = std::fs::File::create(format!("{folder}/part-{number:03}.parquet")).map_err(|e| e.to_string())?;
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(ROWS));
        // A dictionary of values that never repeat would be a second copy.
        let properties = properties.set_dictionary_enabled(false).build();
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties));
        let mut writer = writer.map_err(|e| e.to_string())?;
        for start in (0..rows).step_by(ROWS) {
            let words = ROWS.min(rows - start) * 784 / 8;
            let bytes: Vec<u8> = (0..words)
                .flat_map(|_| {
                    // Marsaglia's xorshift64, <https://www.jstatsoft.org/article/view/v008i14>.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random.to_le_bytes()
                })
                .collect();
            let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(bytes.chunks(784)));
            let batch = RecordBatch::try_new(Arc::clone(&schema), vec![images]).map_err(|e| e.to_string())?;
            writer.write(&batch).map_err(|e| e.to_string())?;
        }
        writer.close().map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn touch(context: &mut NodeContext) -> Result<(), NodeError> {
    let mut feed = context.data_feed()?;
    let mut sum = 0;
    while let Some(batch) = feed.next_batch(256)? {
        sum += batch.tensor("image")?.sum(Kind::Int64).int64_value(&[]);
    }
    context.report_metrics(&[("sum", sum as f64)], 1);
    Ok(())
}

/// The port of test_run: a cluster of one is chief 0 and has its arguments.
fn role(context: &mut NodeContext) -> Result<(), NodeError> {
    let node = context.node().to_string();
    ensure(node == "chief:0", format!("this is {node}"))?;
    ensure(context.num_workers() == 1 && context.worker_num() == 0, "it is not alone")?;
    ensure(context.kind() == PhaseKind::Train, "it was not called to train")?;
    ensure(context.arguments().contains("\"hello\":\"world\""), context.arguments())?;
    let addresses = context.cluster_spec().addresses(Role::Chief);
    ensure(addresses.len() == 1, format!("{addresses:?}"))?;
    context.report_metrics(&[("seed", context.seed() as f64)], 1);
    Ok(())
}

fn sum(context: &mut NodeContext) -> Result<(), NodeError> {
    let mut feed = context.data_feed()?;
    let (mut sum, mut rows) = (0, 0);
    while let Some(batch) = feed.next_batch(10)? {
        sum += batch.tensor("x")?.sum(Kind::Int64).int64_value(&[]);
        rows += batch.rows();
    }
    ensure(feed.should_stop(), "the feed has ended and should_stop is false")?;
    // Means over one report per trainer.
    context.report_metrics(&[("sum", sum as f64), ("rows", rows as f64)], 1);
    Ok(())
}

fn infer(context: &mut NodeContext, mode: &str) -> Result<(), NodeError> {
    let mut feed = context.data_feed()?;
    while let Some(batch) = feed.next_batch(10)? {
        let mut squares: Vec<i64> = Vec::try_from(batch.tensor("x")?.square())?;
        if mode == "no-results" {
            continue;
        }
        if mode == "wrong-count" {
            squares.pop();
        }
        let column: ArrayRef = Arc::new(Int64Array::from(squares));
        context.batch_results(&[("square", column)])?;
    }
    Ok(())
}

/// Reads the feed in batches of 10, and does at batch `at` what its mode says.
fn consume(context: &mut NodeContext, args: &Arguments) -> Result<(), NodeError> {
    let at = args.number("at", 3);
    if args.mode() != "no-train-with" {
        let _line = nn::linear(context.variables() / "line", 1, 1, Default::default());
        context.train_with(Optimizer::sgd(0.1))?;
    }
    let mut feed = context.data_feed()?;
    let mut batches = 0;
    while let Some(batch) = feed.next_batch(10)? {
        batches += 1;
        ensure(batch.rows() <= 10, format!("a batch of {} rows", batch.rows()))?;
        match args.mode() {
            "error" if batches == at => return Err(NodeError::application(format!("deliberate error at batch {at}"))),
            "panic" if batches == at => misbehave(at),
            "terminate" if batches == at => {
                feed.terminate();
                ensure(feed.should_stop(), "terminated, and should_stop is false")?;
                ensure(feed.next_batch(10)?.is_none(), "terminated, and there are rows")?;
            }
            _ => {}
        }
    }
    if args.mode() == "late-error" {
        args.pass_gate(context, 0)?;
        return Err(NodeError::application("deliberate error after the feed"));
    }
    Ok(())
}

#[expect(clippy::panic, reason = "what it is for")]
fn misbehave(at: u64) {
    panic!("deliberate panic at {at}");
}

/// The ports of test_port_released and test_port_unreleased: the listener of the reserved port is handed over while
/// it is bound, once, and nobody else can bind the port.
fn listener(context: &mut NodeContext) -> Result<(), NodeError> {
    let node = context.node();
    let known = context.cluster_spec().addresses(node.role).get(node.index as usize).cloned().unwrap_or_default();
    let listener = context.take_listener().ok_or_else(|| NodeError::application("there is no listener"))?;
    let bound = listener.local_addr().map_err(NodeError::application)?;
    ensure(bound.to_string() == known, format!("the listener is {bound}, the cluster knows {known}"))?;
    ensure(context.take_listener().is_none(), "the listener was handed over twice")?;
    let again = TcpListener::bind(bound);
    let refused = again.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::AddrInUse);
    ensure(refused, format!("a second bind of {bound} gave {again:?}"))?;
    context.report_metrics(&[("held", 1.0)], 1);
    Ok(())
}

/// Keeps libtorch busy on every core, and this thread inside of it.
fn compute(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let matrix = Tensor::rand([512, 512], (Kind::Float, Device::Cpu));
        std::hint::black_box(matrix.matmul(&matrix).sum(Kind::Float).double_value(&[]));
    }
}

fn linear(context: &mut NodeContext, args: &Arguments) -> Result<(), NodeError> {
    let line = nn::linear(context.variables() / "line", 1, 1, Default::default());
    // Makes checkpoints large, and takes no part in the loss.
    let ballast = args.number("ballast", 0) as i64;
    let _ballast = (ballast > 0).then(|| context.variables().zeros("ballast", &[ballast]));
    context.train_with(if ballast > 0 { Optimizer::adam(0.3) } else { Optimizer::sgd(0.3) })?;
    let drop_last = args.number("drop-last", 0) == 1 && context.kind() == PhaseKind::Train;
    let mut feed = context.data_feed()?.drop_last(drop_last);
    let mut batches = 0;
    while let Some(batch) = feed.next_batch(10)? {
        if context.kind() == PhaseKind::Evaluate {
            continue;
        }
        ensure(!drop_last || batch.rows() == 10, format!("a batch of {} rows with drop_last", batch.rows()))?;
        batches += 1;
        args.pass_gate(context, batches)?;
        if batches == 2 && context.worker_num() == 0 {
            compute(Duration::from_secs(args.number("compute-secs", 0)));
        }
        let x = batch.tensor("x")?.to_kind(Kind::Float).unsqueeze(1);
        let y = batch.tensor("y")?.to_kind(Kind::Float).unsqueeze(1);
        let loss = (line.forward(&x) - y).square().mean(Kind::Float);
        context.step(&loss)?;
    }
    if context.kind() == PhaseKind::Evaluate {
        let bias = line.bs.as_ref().map_or(f64::NAN, |b| b.double_value(&[0]));
        context.report_metrics(&[("w", line.ws.double_value(&[0, 0])), ("b", bias)], 1);
    }
    Ok(())
}

fn ordered(context: &mut NodeContext, args: &Arguments) -> Result<(), NodeError> {
    let line = nn::linear(context.variables() / "line", 1, 1, Default::default());
    context.train_with(Optimizer::sgd(1e-3))?;
    let mut feed = context.data_feed()?;
    let mut batches = 0;
    while let Some(batch) = feed.next_batch(10)? {
        batches += 1;
        args.pass_gate(context, batches)?;
        let x = batch.tensor("x")?;
        let values: Vec<i64> = Vec::try_from(&x)?;
        let addresses = batch.ranges().iter().flat_map(|r| (r.start..r.end).map(|row| (r.epoch, r.partition, row)));
        for ((epoch, partition, row), x) in addresses.zip(values) {
            println!("row {epoch} {partition} {row} is {x}");
        }
        let x = x.to_kind(Kind::Float).unsqueeze(1) / 10_000.0;
        context.step(&line.forward(&x).square().mean(Kind::Float))?;
    }
    Ok(())
}

/// What a cluster could change bit by bit: sums of gradients, running means, and what dropout forgets.
fn bits(context: &mut NodeContext, args: &Arguments) -> Result<(), NodeError> {
    let vs = context.variables();
    let input = nn::linear(&vs / "input", 1, 32, Default::default());
    let norm = nn::batch_norm1d(&vs / "norm", 32, Default::default());
    let output = nn::linear(&vs / "output", 32, 1, Default::default());
    match args.text("clip").parse() {
        Ok(clip) => context.train_with(Optimizer::adam(0.01).with_clip_norm(clip))?,
        Err(_) => context.train_with(Optimizer::adam(0.01))?,
    }
    let mut feed = context.data_feed()?;
    let mut batches = 0;
    while let Some(batch) = feed.next_batch(args.number("batch", 10) as usize)? {
        batches += 1;
        args.pass_gate(context, batches)?;
        let x = batch.tensor("x")?.to_kind(Kind::Float).unsqueeze(1);
        let y = batch.tensor("y")?.to_kind(Kind::Float).unsqueeze(1);
        let hidden = input.forward(&x).apply_t(&norm, true).relu().dropout(0.3, true);
        context.step(&(output.forward(&hidden) - y).square().mean(Kind::Float))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    tfos::run(Probe)
}
