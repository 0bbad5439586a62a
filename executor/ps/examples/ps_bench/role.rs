//! One process of a case: a ps, or a worker with one compute thread.

use std::io::{self, BufRead, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use tfos_ps::reference::Random;
use tfos_ps::transport::Tcp;
use tfos_ps::{
    Block, ClientOptions, Compress, InitState, Layout, LentPart, Mode, Optimizer, PsClient, PsServer, Push,
    ServerEvent, ServerOptions,
};

use crate::Failure;

/// Before the clock starts: memory is touched for the first time.
const WARM_STEPS: u32 = 3;
const TOKEN: &str = "bench";

pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ps", shard, shards, workers, transport, first] => {
            ps(shard.parse()?, shards.parse()?, workers.parse()?, transport, first)
        }
        ["worker", worker, workers, addresses, transport, mode, elements, work, seconds, compress] => {
            work_as(&Worker {
                worker: worker.parse()?,
                workers: workers.parse()?,
                addresses: addresses.split(',').map(str::to_owned).collect(),
                transport,
                is_sync: *mode == "sync",
                elements: elements.parse()?,
                work: Work::parse(work)?,
                time: Duration::from_secs_f64(seconds.parse()?),
                compress: compress.parse()?,
            })
        }
        _ => Err("unknown role".into()),
    }
}

/// Serves until standard input ends, which it does at the latest with the process that started this one. For each line it
/// prints what it has done so far: seconds of CPU, events for the driver, and pushes committed.
fn ps(shard: usize, num_shards: usize, num_workers: u32, transport: &str, first: &str) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let options = ServerOptions {
        shard,
        num_shards,
        // The others are asked by nobody.
        peers: vec![if shard == 0 { address.clone() } else { first.to_owned() }; num_shards],
        token: TOKEN.to_owned(),
        generation: 1,
        num_workers,
        loader: None,
    };
    let told = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let counting = Arc::clone(&told);
    let hear = move |event| match event {
        ServerEvent::Failed(error) => eprintln!("ps failed: {error}"),
        ServerEvent::Committed { commits, .. } => {
            counting.0.fetch_add(1, Ordering::Relaxed);
            counting.1.fetch_add(commits.len() as u64, Ordering::Relaxed);
        }
        _ => {}
    };
    let server = match transport {
        #[cfg(feature = "grpc")]
        "grpc" => {
            let acceptor = Box::new(tfos_ps::transport::GrpcAcceptor::new(listener)?);
            PsServer::start_on(acceptor, Arc::new(Tcp), options, Arc::new(hear))?
        }
        _ => PsServer::start(listener, options, Arc::new(hear))?,
    };
    println!("{address}");
    while wait_for_line()? > 0 {
        println!("{} {} {}", cpu()?, told.0.load(Ordering::Relaxed), told.1.load(Ordering::Relaxed));
    }
    server.stop();
    Ok(())
}

/// Seconds that all threads of this process have run, those that have ended too.
fn cpu() -> Result<f64, Failure> {
    let time = ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// Returns also at the end of the input.
fn wait_for_line() -> io::Result<usize> {
    io::stdin().lock().read_line(&mut String::new())
}

/// What a worker does between two pushes.
#[derive(Clone, Copy)]
enum Work {
    Nothing,
    Model,
    /// It stands for a model on a device of its own: it takes no core.
    Sleep(Duration),
}

impl Work {
    fn parse(text: &str) -> Result<Work, Failure> {
        Ok(match text {
            "nothing" => Work::Nothing,
            "model" => Work::Model,
            text => Work::Sleep(Duration::from_secs_f64(text.parse()?)),
        })
    }
}

struct Worker<'a> {
    worker: u32,
    workers: u32,
    addresses: Vec<String>,
    transport: &'a str,
    is_sync: bool,
    elements: usize,
    work: Work,
    time: Duration,
    compress: Compress,
}

fn work_as(setting: &Worker<'_>) -> Result<(), Failure> {
    let options = ClientOptions {
        worker: setting.worker,
        token: TOKEN.to_owned(),
        generation: 1,
        is_chief: setting.worker == 0,
        connect_timeout: Duration::from_secs(30),
    };
    let addresses = &setting.addresses;
    let mut client = match setting.transport {
        "tcp" => PsClient::connect_over(&Tcp, addresses, &options)?,
        // What a job does by itself on one host.
        "shm" => PsClient::connect(addresses, &options)?,
        #[cfg(feature = "grpc")]
        "grpc" => PsClient::connect_over(&tfos_ps::transport::Grpc, addresses, &options)?,
        other => return Err(format!("there is no transport {other}").into()),
    };
    client = client.with_compression(setting.compress);
    let elements = setting.elements;
    let layout = Layout::new([("w".to_owned(), vec![elements as i64])], [])?;
    let (mut params, mut gradient) = (vec![0.0; elements], vec![1e-6; elements]);
    // On one host, after the first push: where the ps reads the gradient, and where it has the parameters.
    let (mut block, mut lent): (Option<Block>, Option<LentPart>) = (None, None);
    let computes = matches!(setting.work, Work::Model);
    let row = if computes { uniform(u64::from(setting.worker), elements) } else { Vec::new() };
    if setting.worker == 0 {
        // |row|^2 is near elements / 3: far from where the steps would diverge.
        let learning_rate = 0.1 / elements as f64;
        let optimizer = Optimizer::Sgd { learning_rate, momentum: 0.0, nesterov: false, weight_decay: 0.0 }.into();
        let mode = if setting.is_sync { Mode::Sync { replicas_to_aggregate: setting.workers } } else { Mode::Async };
        let params: &[&[f32]] = &[&params];
        client.init(
            &layout,
            InitState { optimizer, mode, step: 0, optimizer_step: 0, params, slots: &[], buffers: &[] },
        )?;
    }
    client.wait_init(&layout, &mut [&mut params], &mut [])?;
    let mut first_loss = None;
    let mut last_loss = 0.0;
    let mut step = |client: &mut PsClient| -> Result<u64, Failure> {
        if let Work::Sleep(time) = setting.work {
            std::thread::sleep(time);
        }
        let gradient: &mut [f32] = block.as_deref_mut().unwrap_or(&mut gradient);
        if computes {
            last_loss = gradient_of(lent.as_deref().unwrap_or(&params), &row, 1.0, gradient);
            first_loss.get_or_insert(last_loss);
        }
        let push = Push { rows: 1, loss: last_loss, leases: b"lease", buffers: None, gradients: &[gradient] };
        if !client.lends() || setting.addresses.len() > 1 {
            let step = client.push_pull(push, &mut [&mut params])?.step;
            block = client.block(elements);
            block.iter_mut().for_each(|block| block.fill(1e-6));
            return Ok(step);
        }
        let (outcome, parts) = client.push_pull_lent(push, &mut [])?;
        lent = parts.part(0..elements);
        Ok(outcome.step)
    };
    let mut begin = 0;
    for _ in 0..WARM_STEPS {
        begin = step(&mut client)?;
    }
    println!("ready");
    io::stdout().flush()?;
    wait_for_line()?;
    let (started, mut end, mut own) = (Instant::now(), begin, 0);
    while started.elapsed() < setting.time || own == 0 {
        end = step(&mut client)?;
        own += 1;
    }
    let steps = if setting.is_sync { end - begin } else { own };
    let rate = steps as f64 / started.elapsed().as_secs_f64();
    // A bench of something that does not learn would be worth nothing.
    if computes && first_loss.is_some_and(|first| last_loss >= first) {
        return Err(format!("the loss rose from {first_loss:?} to {last_loss}").into());
    }
    client.finish()?;
    println!("{rate}");
    Ok(())
}

fn uniform(seed: u64, len: usize) -> Vec<f32> {
    let mut random = Random::new(seed + 1);
    (0..len).map(|_| random.uniform()).collect()
}

/// Loss of one row, and its gradient: `(w·x - y)^2` and `2 (w·x - y) x`.
fn gradient_of(params: &[f32], row: &[f32], target: f32, gradient: &mut [f32]) -> f64 {
    const LANES: usize = 32;
    let mut sums = [0.0f32; LANES];
    for (w, x) in params.chunks(LANES).zip(row.chunks(LANES)) {
        for ((sum, w), x) in sums.iter_mut().zip(w).zip(x) {
            *sum += w * x;
        }
    }
    let error = sums.iter().sum::<f32>() - target;
    for (g, x) in gradient.iter_mut().zip(row) {
        *g = 2.0 * error * x;
    }
    f64::from(error) * f64::from(error)
}
