//! The harness: P servers on 127.0.0.1:0, their events, and workers that train the reference regression.

use std::net::TcpListener;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tfos_ps::reference::Regression;
use tfos_ps::transport::{Connection, Tcp, Transport};
use tfos_ps::wire::{self, Header, Hello, HelloRole, Kind};
use tfos_ps::{
    ClientOptions, Error, InitState, Mode, Optimizer, Outcome, PsClient, PsServer, Push, Schedule, Scheduled,
    ServerEvent, ServerOptions,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const TOKEN: &str = "a secret";

pub(crate) struct Cluster {
    pub(crate) servers: Vec<PsServer>,
    pub(crate) addresses: Vec<String>,
    /// Of each server.
    events: Vec<Mutex<Receiver<ServerEvent>>>,
}

impl Cluster {
    pub(crate) fn start(shards: usize, workers: u32) -> Cluster {
        Cluster::start_first(shards, shards, workers)
    }

    /// Only the first `started` of `shards` servers; the others are played by the test.
    pub(crate) fn start_first(started: usize, shards: usize, workers: u32) -> Cluster {
        let listeners: Vec<_> = (0..shards).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
        let mut servers = Vec::new();
        let mut events = Vec::new();
        for (shard, listener) in listeners.into_iter().enumerate().take(started) {
            let (sender, receiver) = channel();
            let sender = Mutex::new(sender);
            let options = ServerOptions {
                shard,
                num_shards: shards,
                peers: addresses.clone(),
                token: TOKEN.to_owned(),
                generation: 3,
                num_workers: workers,
                loader: None,
            };
            let callback = move |event| drop(sender.lock().unwrap().send(event));
            servers.push(PsServer::start(listener, options, Arc::new(callback)).unwrap());
            events.push(Mutex::new(receiver));
        }
        Cluster { servers, addresses, events }
    }

    pub(crate) fn options(worker: u32) -> ClientOptions {
        ClientOptions {
            worker,
            token: TOKEN.to_owned(),
            generation: 3,
            is_chief: worker == 0,
            connect_timeout: DEADLINE,
        }
    }

    pub(crate) fn connect(&self, worker: u32) -> PsClient {
        PsClient::connect(&self.addresses, &Cluster::options(worker)).unwrap()
    }

    /// Worker 1 of a cluster with one ps, which speaks for itself; and what its first push is called.
    pub(crate) fn stranger(&self) -> (Box<dyn Connection>, u64) {
        let mut worker = Tcp.connect(&self.addresses[0], DEADLINE).unwrap();
        let role = HelloRole::Worker { worker: 1, is_chief: false, session: None };
        let (version, token) = (wire::VERSION, TOKEN.to_owned());
        let hello = Hello { version, token, generation: 3, shard: 0, num_shards: 1, role };
        wire::send(&mut *worker, Header::new(Kind::Hello), &wire::to_json("hello", &hello).unwrap(), []).unwrap();
        let welcome = wire::expect(&mut *worker, Kind::Welcome, "Welcome").unwrap();
        worker.set_timeout(Some(DEADLINE)).unwrap();
        (worker, (welcome.seq << 32) + 1)
    }

    /// Events of a server until `wanted` gives something; panics at the deadline.
    pub(crate) fn await_event<T>(&self, shard: usize, mut wanted: impl FnMut(ServerEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let events = self.events[shard].lock().unwrap();
        let mut seen = Vec::new();
        loop {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    seen.push(format!("{event:?}").chars().take(200).collect::<String>());
                    if let Some(found) = wanted(event) {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no such event of ps:{shard} came; seen: {seen:#?}")
                }
            }
        }
    }

    /// All events of a server up to now.
    pub(crate) fn drain(&self, shard: usize) -> Vec<ServerEvent> {
        self.events[shard].lock().unwrap().try_iter().collect()
    }
}

pub(crate) fn sgd(learning_rate: f64) -> Scheduled {
    Optimizer::sgd(learning_rate).into()
}

/// Its rate is another one in every step of the tests.
pub(crate) fn adam() -> Scheduled {
    let rule = Optimizer::Adam { learning_rate: 0.02, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.001 };
    rule.with_schedule(Schedule::cosine(60).with_warmup(5, 0.1))
}

/// A connected worker of the regression, with its parameters: bias, then weights, in one vector.
pub(crate) struct Worker {
    pub(crate) client: PsClient,
    pub(crate) problem: Regression,
    pub(crate) params: Vec<f32>,
    pub(crate) step: u64,
}

impl Worker {
    /// The chief initialises with zeros; must be called in a thread if the chief is not initialised yet.
    pub(crate) fn join(cluster: &Cluster, worker: u32, problem: &Regression, how: Option<(Scheduled, Mode)>) -> Worker {
        Worker::join_by(cluster.connect(worker), problem, how)
    }

    pub(crate) fn join_by(mut client: PsClient, problem: &Regression, how: Option<(Scheduled, Mode)>) -> Worker {
        let layout = problem.layout().unwrap();
        if let Some((optimizer, mode)) = how {
            let params = vec![0.0; layout.total];
            let state = InitState {
                optimizer,
                mode,
                step: 0,
                optimizer_step: 0,
                params: &[&params],
                slots: &[],
                buffers: &[&[0.0]],
            };
            client.init(&layout, state).unwrap();
        }
        let mut params = vec![f32::NAN; layout.total];
        let mut buffers = [f32::NAN];
        let (bias, weight) = params.split_at_mut(1);
        let step = client.wait_init(&layout, &mut [bias, weight], &mut [&mut buffers]).unwrap();
        assert!(params.iter().chain(&buffers).all(|value| value.is_finite()));
        Worker { client, problem: problem.clone(), params, step }
    }

    pub(crate) fn train(&mut self, rows: std::ops::Range<u64>) -> Result<Outcome, Error> {
        let (loss, gradient) = self.problem.gradient(&self.params, rows.clone());
        self.push(&gradient, rows.end - rows.start, loss)
    }

    pub(crate) fn push(&mut self, gradient: &[f32], rows: u64, loss: f64) -> Result<Outcome, Error> {
        let seen = [rows as f32];
        let push = Push {
            rows,
            loss,
            leases: &rows.to_le_bytes(),
            buffers: Some(&[&seen]),
            gradients: &[&gradient[..1], &gradient[1..]],
        };
        let (bias, weight) = self.params.split_at_mut(1);
        let outcome = self.client.push_pull(push, &mut [bias, weight])?;
        self.step = outcome.step;
        Ok(outcome)
    }
}

/// Largest difference.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
