//! That sending begins before the backward pass ends, and that it changes no bit.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::TcpListener;
use std::sync::Condvar;
use std::time::{Duration, Instant};

use tch::{Device, Kind, no_grad};
use tfos_ps::transport::{Closer, Connection, Tcp, Transport};
use tfos_ps::{ClientOptions, InitState, Mode, Optimizer, PsServer, Push, ServerOptions};

use super::super::slices::floats_mut;
use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// Bytes that were sent, and whoever waits for them.
#[derive(Debug, Default)]
struct Sent(Mutex<usize>, Condvar);

impl Sent {
    /// Whether there are more than so many before the deadline.
    fn wait_for(&self, bytes: usize) -> bool {
        let deadline = Instant::now() + DEADLINE;
        let mut sent = self.0.lock().unwrap();
        while *sent <= bytes && Instant::now() < deadline {
            sent = self.1.wait_timeout(sent, deadline.saturating_duration_since(Instant::now())).unwrap().0;
        }
        *sent > bytes
    }
}

/// TCP that counts.
#[derive(Debug)]
struct Counting(Arc<Sent>);

#[derive(Debug)]
struct Counted(Box<dyn Connection>, Arc<Sent>);

impl Transport for Counting {
    fn connect(&self, address: &str, timeout: Duration) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(Counted(Tcp.connect(address, timeout)?, Arc::clone(&self.0))))
    }
}

impl Connection for Counted {
    fn send(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        self.0.send(slices)?;
        *self.1.0.lock().unwrap() += bytes;
        self.1.1.notify_all();
        Ok(())
    }

    fn recv(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.0.recv(slices)
    }

    fn split(&self) -> io::Result<Box<dyn Connection>> {
        self.0.split()
    }

    fn closer(&self) -> io::Result<Box<dyn Closer>> {
        self.0.closer()
    }

    fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.0.set_timeout(timeout)
    }

    fn peer(&self) -> &str {
        self.0.peer()
    }

    fn transport(&self) -> &'static str {
        self.0.transport()
    }
}

/// Two layers, the second one with more than a bucket of elements, and a variable that no loss depends on.
pub(in super::super) struct Model {
    pub(in super::super) layout: Layout,
    /// In layout order: a, b, idle.
    pub(in super::super) variables: Vec<Tensor>,
    input: Tensor,
}

impl Model {
    const WIDE: i64 = 600;

    pub(in super::super) fn new() -> Model {
        let shapes = [("a", vec![8, Self::WIDE]), ("b", vec![Self::WIDE, Self::WIDE]), ("idle", vec![5])];
        let variable = |shape: &Vec<i64>| {
            let count = shape.iter().product::<i64>();
            let values = Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.001;
            (values.sin() * 0.1).reshape(shape).detach().set_requires_grad(true)
        };
        let variables = shapes.iter().map(|(_, shape)| variable(shape)).collect();
        let layout = Layout::new(shapes.map(|(name, shape)| (name.to_owned(), shape)), []).unwrap();
        let input = (Tensor::arange(32, (Kind::Float, Device::Cpu)) * 0.1).cos().reshape([4, 8]);
        Model { layout, variables, input: input.detach().set_requires_grad(true) }
    }

    pub(in super::super) fn loss(&self) -> Tensor {
        self.input.matmul(&self.variables[0]).relu().matmul(&self.variables[1]).square().mean(Kind::Float)
    }
}

/// A ps that waits for one worker's gradients, and that worker.
pub(in super::super) fn cluster(model: &Model, transport: &dyn Transport) -> (PsServer, PsClient) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peers = vec![listener.local_addr().unwrap().to_string()];
    let options = ServerOptions {
        shard: 0,
        num_shards: 1,
        peers: peers.clone(),
        token: "t".into(),
        generation: 1,
        num_workers: 1,
        loader: None,
    };
    let server = PsServer::start(listener, options, Arc::new(drop)).unwrap();
    let options =
        ClientOptions { worker: 0, token: "t".into(), generation: 1, is_chief: true, connect_timeout: DEADLINE };
    let mut client = PsClient::connect_over(transport, &peers, &options).unwrap();
    let params: Vec<&[f32]> = model.variables.iter().map(floats).collect();
    let (optimizer, mode) = (Optimizer::adam(0.01).with_clip_norm(0.5), Mode::Sync { replicas_to_aggregate: 1 });
    let state = InitState { optimizer, mode, step: 0, optimizer_step: 0, params: &params, slots: &[], buffers: &[] };
    client.init(&model.layout, state).unwrap();
    (server, client)
}

fn push(model: &mut Model, client: &mut PsClient) {
    let gradient = |variable: &Tensor| match variable.grad() {
        grad if grad.defined() => grad.contiguous(),
        _ => variable.zeros_like(),
    };
    let gradients: Vec<Tensor> = model.variables.iter().map(gradient).collect();
    let gradients: Vec<&[f32]> = gradients.iter().map(floats).collect();
    let push = Push { rows: 4, loss: 0.0, leases: &[], buffers: None, gradients: &gradients };
    no_grad(|| {
        let mut params: Vec<&mut [f32]> = model.variables.iter_mut().map(floats_mut).collect();
        client.push_pull(push, &mut params).unwrap();
    });
    model.variables.iter().for_each(|variable| forget_gradient(variable).unwrap());
}

#[test]
fn overlapped_steps_give_the_same_bits() {
    let run = |overlapped: bool| {
        let mut model = Model::new();
        let (_server, mut client) = cluster(&model, &Tcp);
        let overlap = overlapped.then(|| Overlap::new(&model.layout, &model.variables).unwrap());
        for _ in 0..5 {
            let loss = model.loss();
            match &overlap {
                Some(overlap) => overlap.backward(&loss, &mut client).unwrap(),
                None => loss.backward(),
            }
            push(&mut model, &mut client);
        }
        client.finish().unwrap();
        model.variables.iter().flat_map(|v| floats(v).to_vec()).collect::<Vec<f32>>()
    };
    let (overlapped, plain) = (run(true), run(false));
    assert!(overlapped == plain);
    assert!(plain.iter().all(|value| value.is_finite()) && plain[..4800] != floats(&Model::new().variables[0])[..]);
}

/// Waits within the backward pass, and notes what it found.
struct Gate {
    sent: Arc<Sent>,
    found: Mutex<Option<bool>>,
}

extern "C" fn wait_in_backward(context: *mut c_void, _: u32, gradient: *mut C_tensor) {
    // SAFETY: as in `tell`; the context is the gate of the test, which keeps it.
    let (gate, _gradient) = unsafe { (&*context.cast::<Gate>(), Tensor::from_ptr(gradient)) };
    *gate.found.lock().unwrap() = Some(gate.sent.wait_for(1 << 20));
}

extern "C" fn let_go(context: *mut c_void) {
    // SAFETY: as in `release`.
    drop(unsafe { Arc::from_raw(context.cast_const().cast::<Gate>()) });
}

#[test]
fn sending_begins_before_the_backward_pass_ends() {
    let mut model = Model::new();
    let sent = Arc::<Sent>::default();
    let (_server, mut client) = cluster(&model, &Counting(Arc::clone(&sent)));
    let before = *sent.0.lock().unwrap();
    *sent.0.lock().unwrap() -= before;
    let gate = Arc::new(Gate { sent: Arc::clone(&sent), found: Mutex::new(None) });
    // The input's gradient is the last one, so the pass cannot end before this has seen the second layer's leave.
    let mut text = Text::new();
    let (room, capacity) = text.room();
    let context = Arc::into_raw(Arc::clone(&gate)).cast_mut().cast();
    // SAFETY: as in `hear`.
    let code = unsafe {
        tfos_on_gradient(model.input.as_ptr().cast_mut(), 0, wait_in_backward, context, let_go, room, capacity)
    };
    done(code, &text).unwrap();
    let overlap = Overlap::new(&model.layout, &model.variables).unwrap();
    overlap.backward(&model.loss(), &mut client).unwrap();
    assert_eq!(*gate.found.lock().unwrap(), Some(true), "nothing left during the backward pass");
    push(&mut model, &mut client);
    client.finish().unwrap();
    // Variables go, and so do the hooks and what they hold.
    drop(model);
    assert_eq!((Arc::strong_count(&gate), Arc::strong_count(&overlap.ear)), (1, 1));
}
