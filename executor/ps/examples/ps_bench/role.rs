//! One process of a case: the ps, or a worker with one compute thread.

use std::io::{self, BufRead, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tfos_ps::reference::Random;
use tfos_ps::transport::Tcp;
use tfos_ps::{
    ClientOptions, Compress, InitState, Layout, Mode, Optimizer, PsClient, PsServer, Push, ServerEvent, ServerOptions,
};

use crate::Failure;
use crate::case::WORKERS;

/// Before the clock starts: memory is touched for the first time.
const WARM_STEPS: u32 = 3;
const TOKEN: &str = "bench";

pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["ps", workers, transport] => ps(workers.parse()?, transport),
        ["worker", worker, address, transport, mode, elements, computes, seconds, compress] => work(&Worker {
            worker: worker.parse()?,
            address: (*address).to_owned(),
            transport,
            is_sync: *mode == "sync",
            elements: elements.parse()?,
            computes: *computes == "true",
            time: Duration::from_secs_f64(seconds.parse()?),
            compress: compress.parse()?,
        }),
        _ => Err("unknown role".into()),
    }
}

/// Serves until standard input ends, which it does at the latest with the process that started this one.
fn ps(num_workers: u32, transport: &str) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let options = ServerOptions {
        shard: 0,
        num_shards: 1,
        peers: vec![address.clone()],
        token: TOKEN.to_owned(),
        generation: 1,
        num_workers,
        loader: None,
    };
    let failed = |event| {
        if let ServerEvent::Failed(error) = event {
            eprintln!("ps failed: {error}");
        }
    };
    let server = match transport {
        #[cfg(feature = "grpc")]
        "grpc" => {
            let acceptor = Box::new(tfos_ps::transport::GrpcAcceptor::new(listener)?);
            PsServer::start_on(acceptor, Arc::new(Tcp), options, Arc::new(failed))?
        }
        _ => PsServer::start(listener, options, Arc::new(failed))?,
    };
    println!("{address}");
    wait_for_line()?;
    server.stop();
    Ok(())
}

/// Returns also at the end of the input.
fn wait_for_line() -> io::Result<usize> {
    io::stdin().lock().read_line(&mut String::new())
}

struct Worker<'a> {
    worker: u32,
    address: String,
    transport: &'a str,
    is_sync: bool,
    elements: usize,
    computes: bool,
    time: Duration,
    compress: Compress,
}

fn work(setting: &Worker<'_>) -> Result<(), Failure> {
    let options = ClientOptions {
        worker: setting.worker,
        token: TOKEN.to_owned(),
        generation: 1,
        is_chief: setting.worker == 0,
        connect_timeout: Duration::from_secs(30),
    };
    let addresses = [setting.address.clone()];
    let mut client = match setting.transport {
        "tcp" => PsClient::connect_over(&Tcp, &addresses, &options)?,
        // What a job does by itself on one host.
        "shm" => PsClient::connect(&addresses, &options)?,
        #[cfg(feature = "grpc")]
        "grpc" => PsClient::connect_over(&tfos_ps::transport::Grpc, &addresses, &options)?,
        other => return Err(format!("there is no transport {other}").into()),
    };
    client = client.with_compression(setting.compress);
    let elements = setting.elements;
    let layout = Layout::new([("w".to_owned(), vec![elements as i64])], [])?;
    let mut params = vec![0.0; elements];
    let mut gradient = vec![1e-6; elements];
    let row = if setting.computes { uniform(u64::from(setting.worker), elements) } else { Vec::new() };
    if setting.worker == 0 {
        // |row|^2 is near elements / 3: far from where the steps would diverge.
        let learning_rate = 0.1 / elements as f64;
        let optimizer = Optimizer::Sgd { learning_rate, momentum: 0.0, nesterov: false, weight_decay: 0.0 }.into();
        let mode = if setting.is_sync { Mode::Sync { replicas_to_aggregate: WORKERS } } else { Mode::Async };
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
        if setting.computes {
            last_loss = gradient_of(&params, &row, 1.0, &mut gradient);
            first_loss.get_or_insert(last_loss);
        }
        let push = Push { rows: 1, loss: last_loss, leases: b"lease", buffers: None, gradients: &[&gradient] };
        Ok(client.push_pull(push, &mut [&mut params])?.step)
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
    if setting.computes && first_loss.is_some_and(|first| last_loss >= first) {
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
