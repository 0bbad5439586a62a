//! How fast gradients and parameters travel: 1 ps and 2 workers on this machine, over TCP on the loopback.
//!
//! `cargo run --release -p tfos-ps --example ps_bench [-- SECONDS [PS [WORKERS [ELEMENTS]]]]`. All are threads of one
//! process; gradients are constant, so the workers compute nothing. GB/s counts both directions of one worker. CPU is
//! that of the whole process (workers, ps, kernel) per push: it says more than the rate on a machine that is shared.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tfos_ps::{
    ClientOptions, Error, InitState, Layout, Mode, Optimizer, PsClient, PsServer, Push, ServerEvent, ServerOptions,
};

struct Setting {
    elements: usize,
    optimizer: Optimizer,
    mode: Mode,
    shards: usize,
    workers: u32,
    time: Duration,
}

fn main() -> Result<(), Error> {
    let argument = |at| std::env::args().nth(at).and_then(|text| text.parse::<u32>().ok());
    let time = Duration::from_secs(argument(1).unwrap_or(5).into());
    let (shards, workers) = (argument(2).unwrap_or(1) as usize, argument(3).unwrap_or(2));
    let sgd = Optimizer::Sgd { learning_rate: 1e-6, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let adam = Optimizer::Adam { learning_rate: 1e-6, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let sync = Mode::Sync { replicas_to_aggregate: workers };
    println!("{shards} ps, {workers} workers");
    let only = argument(4).map(|elements| vec![elements as usize]);
    for elements in only.unwrap_or_else(|| vec![1_000, 1_000_000, 25_000_000]) {
        for (name, optimizer) in [("sgd", sgd), ("adam", adam)] {
            for (mode_name, mode) in [("async", Mode::Async), ("sync", sync)] {
                let results = measure(&Setting { elements, optimizer, mode, shards, workers, time })?;
                let pushes = results.iter().map(|(rate, _)| rate).sum::<f64>() / results.len() as f64;
                let cpu = results.iter().map(|(_, cpu)| cpu).sum::<f64>() / results.len() as f64 / f64::from(workers);
                let rate = pushes * elements as f64 * 8.0 / 1e9;
                println!(
                    "{elements:>9} params {name:>5} {mode_name:>5}: {pushes:>7.1} pushes/s and {rate:.2} GB/s per worker, {:.2} ms CPU per push",
                    cpu * 1e3
                );
            }
        }
    }
    Ok(())
}

/// Seconds of CPU that this process has used, from /proc (0 where there is none); a tick is 10 ms on Linux.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Pushes per second of each worker, and CPU seconds of the process per push of that worker.
fn measure(setting: &Setting) -> Result<Vec<(f64, f64)>, Error> {
    let system = |source| Error::System { what: "listen", source };
    let bound: Result<Vec<_>, _> = (0..setting.shards).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    let bound = bound.map_err(system)?;
    let peers: Result<Vec<_>, _> = bound.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect();
    let peers = peers.map_err(system)?;
    let mut servers = Vec::new();
    for (shard, listener) in bound.into_iter().enumerate() {
        let options = ServerOptions {
            shard,
            num_shards: setting.shards,
            peers: peers.clone(),
            token: "bench".to_owned(),
            generation: 1,
            num_workers: setting.workers,
        };
        let failed = |event| {
            if let ServerEvent::Failed(error) = event {
                eprintln!("ps failed: {error}");
            }
        };
        servers.push(PsServer::start(listener, options, Arc::new(failed))?);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..setting.workers)
            .map(|worker| {
                scope.spawn({
                    let (peers, stop) = (&peers, &stop);
                    move || work(setting, peers, worker, stop)
                })
            })
            .collect();
        std::thread::sleep(setting.time);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Stopped))).collect()
    })
}

fn work(setting: &Setting, peers: &[String], worker: u32, stop: &AtomicBool) -> Result<(f64, f64), Error> {
    let options = ClientOptions {
        worker,
        token: "bench".to_owned(),
        generation: 1,
        is_chief: worker == 0,
        connect_timeout: Duration::from_secs(10),
    };
    let layout = Layout::new([("w".to_owned(), vec![setting.elements as i64])], [])?;
    let mut client = PsClient::connect(peers, &options)?;
    let mut params = vec![0.5; setting.elements];
    let gradient = vec![1.0; setting.elements];
    if worker == 0 {
        let (optimizer, mode) = (setting.optimizer.into(), setting.mode);
        let init =
            InitState { optimizer, mode, step: 0, optimizer_step: 0, params: &[&params], slots: &[], buffers: &[] };
        client.init(&layout, init)?;
    }
    client.wait_init(&layout, &mut [&mut params], &mut [])?;
    let push = Push { rows: 1, loss: 0.0, leases: b"lease", buffers: None, gradients: &[&gradient] };
    // The first pushes touch all memory for the first time.
    for _ in 0..2 {
        client.push_pull(push, &mut [&mut params])?;
    }
    let (started, cpu, mut pushes) = (Instant::now(), cpu_seconds(), 0u32);
    while !stop.load(Ordering::Relaxed) {
        client.push_pull(push, &mut [&mut params])?;
        pushes += 1;
    }
    let rate = f64::from(pushes) / started.elapsed().as_secs_f64();
    let cpu = (cpu_seconds() - cpu) / f64::from(pushes.max(1));
    client.finish()?;
    Ok((rate, cpu))
}
