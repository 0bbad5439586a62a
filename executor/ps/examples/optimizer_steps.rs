//! What every optimizer makes of the same gradients in 100 steps, for `tests/interop/optimizers.py` to compare.
//!
//! `cargo run -p tfos-ps --example optimizer_steps -- DIR` writes DIR/NAME.json for each case: the optimizer, the
//! parameters at the beginning, the gradients, and the parameters after each step. The first half is computed by one
//! process and by 2 ps, the second by a resumed process and by 3 ps that begin from the state in between; all bits
//! must be the same.

use std::error::Error;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tfos_ps::reference::Random;
use tfos_ps::{
    ClientOptions, Decay, FullState, Layout, LocalTrainer, Mode, Optimizer, PsClient, PsServer, Push, Schedule,
    Scheduled, ServerEvent, ServerOptions, Variable,
};

const STEPS: usize = 100;
/// The first and the last lie on two ps each when there are three.
const SHAPES: [(&str, &[i64]); 3] = [("a", &[4, 5]), ("b", &[]), ("c", &[7, 8])];
const ELEMENTS: usize = 77;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One case per rule with its defaults, per option, per schedule (those ending early are TensorFlow's), and clipped.
fn cases() -> Vec<(&'static str, Scheduled)> {
    let sgd =
        |momentum, nesterov, weight_decay| Optimizer::Sgd { learning_rate: 0.01, momentum, nesterov, weight_decay };
    let adagrad = |initial_accumulator, weight_decay, lr_decay| Optimizer::Adagrad {
        learning_rate: 0.01,
        initial_accumulator,
        eps: 1e-10,
        weight_decay,
        lr_decay,
    };
    let rmsprop = |momentum, centered, weight_decay| Optimizer::RmsProp {
        learning_rate: 0.001,
        alpha: 0.99,
        eps: 1e-8,
        weight_decay,
        momentum,
        centered,
    };
    let ftrl = |learning_rate_power, l1, l2| Optimizer::Ftrl {
        learning_rate: 0.05,
        learning_rate_power,
        initial_accumulator: 0.1,
        l1,
        l2,
    };
    let adam = Optimizer::Adam { learning_rate: 0.002, beta1: 0.8, beta2: 0.99, eps: 1e-6, weight_decay: 0.01 };
    let adamw = Optimizer::AdamW { learning_rate: 0.002, beta1: 0.8, beta2: 0.99, eps: 1e-6, weight_decay: 0.1 };
    let lamb = Optimizer::Lamb { learning_rate: 0.002, beta1: 0.8, beta2: 0.99, eps: 1e-5, weight_decay: 0.1 };
    let adadelta = Optimizer::Adadelta { learning_rate: 0.5, rho: 0.8, eps: 1e-5, weight_decay: 0.01 };
    let cosine = |total_steps, end_factor| Schedule::from(Decay::Cosine { total_steps, end_factor });
    let polynomial = Decay::Polynomial { total_steps: 60, power: 1.5, end_factor: 0.1 };
    let constant: Vec<(&str, Optimizer)> = vec![
        ("sgd", sgd(0.0, false, 0.0)),
        ("sgd-decay", sgd(0.0, false, 0.01)),
        ("sgd-momentum", sgd(0.9, false, 0.0)),
        ("sgd-nesterov", sgd(0.9, true, 0.01)),
        ("adagrad", Optimizer::adagrad(0.01)),
        ("adagrad-options", adagrad(0.1, 0.01, 0.02)),
        ("adam", Optimizer::adam(0.001)),
        ("adam-options", adam),
        ("adamw", Optimizer::adamw(0.001)),
        ("adamw-options", adamw),
        ("lamb", Optimizer::lamb(0.01)),
        ("lamb-options", lamb),
        ("rmsprop", Optimizer::rmsprop(0.001)),
        ("rmsprop-momentum", rmsprop(0.9, false, 0.01)),
        ("rmsprop-centered", rmsprop(0.0, true, 0.0)),
        ("rmsprop-options", rmsprop(0.5, true, 0.01)),
        ("adadelta", Optimizer::adadelta(1.0)),
        ("adadelta-options", adadelta),
        ("ftrl", Optimizer::ftrl(0.001)),
        ("ftrl-options", ftrl(-0.5, 0.01, 0.02)),
        ("ftrl-power", ftrl(-0.7, 0.0, 0.01)),
    ];
    let scheduled = [
        ("step", sgd(0.9, false, 0.0).with_schedule(Schedule::step(30, 0.3))),
        ("step-warmup", Optimizer::adagrad(0.01).with_schedule(Schedule::step(30, 0.3).with_warmup(10, 0.1))),
        ("cosine", Optimizer::adamw(0.001).with_schedule(cosine(100, 0.1))),
        ("cosine-warmup", Optimizer::adam(0.001).with_schedule(cosine(90, 0.0).with_warmup(10, 1.0 / 3.0))),
        ("polynomial", rmsprop(0.9, true, 0.0).with_schedule(Schedule::polynomial(60, 2.0))),
        ("polynomial-warmup", sgd(0.9, true, 0.0).with_schedule(Schedule::polynomial(60, 1.0).with_warmup(10, 0.5))),
        ("warmup", Optimizer::adadelta(1.0).with_schedule(Schedule::constant().with_warmup(70, 0.2))),
        ("ftrl-step", ftrl(-0.5, 0.0, 0.0).with_schedule(Schedule::step(30, 0.5))),
        ("ftrl-cosine", ftrl(-0.5, 0.0, 0.01).with_schedule(cosine(60, 0.1))),
        ("ftrl-cosine-warmup", ftrl(-0.5, 0.01, 0.0).with_schedule(cosine(60, 0.1).with_warmup(10, 0.2))),
        ("ftrl-polynomial", ftrl(-0.5, 0.0, 0.01).with_schedule(polynomial.into())),
    ];
    // The norm of these gradients is about 5: the first clip most of it away, the second only the larger ones.
    let clipped = [
        ("clip-sgd", sgd(0.0, false, 0.01).with_clip_norm(0.5)),
        ("clip-adam", Optimizer::adam(0.001).with_clip_norm(5.0)),
        ("clip-lamb", lamb.with_clip_norm(5.0)),
        ("clip-cosine", sgd(0.9, true, 0.0).with_schedule(cosine(100, 0.1)).with_clip_norm(5.0)),
    ];
    constant.into_iter().map(|(name, rule)| (name, rule.into())).chain(scheduled).chain(clipped).collect()
}

fn main() -> Outcome<()> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: optimizer_steps DIR")?);
    std::fs::create_dir_all(&folder)?;
    let mut random = Random::new(11);
    let gradients: Vec<Vec<f32>> = (0..STEPS).map(|_| (0..ELEMENTS).map(|_| random.uniform()).collect()).collect();
    let initial: Vec<f32> = (0..ELEMENTS).map(|_| random.uniform() * 2.0).collect();
    let (early, late) = gradients.split_at(STEPS / 2);
    for (name, optimizer) in cases() {
        let params = initial.clone();
        let begin = FullState { step: 0, optimizer_step: 0, params, slots: Vec::new(), buffers: Vec::new() };
        let (mut params, middle) = alone(optimizer, &begin, early)?;
        let (rest, _) = alone(optimizer, &middle, late)?;
        if on_ps(2, optimizer, &begin, early)? != params || on_ps(3, optimizer, &middle, late)? != rest {
            return Err(format!("{name}: one process and the ps differ").into());
        }
        params.extend(rest);
        let case = serde_json::json!({
            "optimizer": optimizer, "lengths": layout()?.variables.iter().map(Variable::len).collect::<Vec<_>>(), "initial": initial, "gradients": gradients, "params": params,
        });
        std::fs::write(folder.join(format!("{name}.json")), serde_json::to_vec(&case)?)?;
    }
    Ok(())
}

fn layout() -> Result<Layout, tfos_ps::Error> {
    Layout::new(SHAPES.map(|(name, shape)| (name.to_owned(), shape.to_vec())), [])
}

/// A flat vector as one slice per variable.
fn split<'a>(layout: &Layout, flat: &'a [f32]) -> Vec<&'a [f32]> {
    layout.variables.iter().map(|variable| &flat[variable.offset..variable.offset + variable.len()]).collect()
}

fn split_mut<'a>(layout: &Layout, flat: &'a mut [f32]) -> Vec<&'a mut [f32]> {
    let mut rest = flat;
    let variable = |variable: &Variable| rest.split_off_mut(..variable.len()).unwrap_or_default();
    layout.variables.iter().map(variable).collect()
}

/// The parameters after each step, and the state at the end.
fn alone(optimizer: Scheduled, begin: &FullState, gradients: &[Vec<f32>]) -> Outcome<(Vec<Vec<f32>>, FullState)> {
    let layout = layout()?;
    let mut trainer = LocalTrainer::restore(layout.clone(), optimizer, begin)?;
    let mut params = begin.params.clone();
    let mut history = Vec::new();
    for gradient in gradients {
        trainer.apply(&mut split_mut(&layout, &mut params), &split(&layout, gradient))?;
        history.push(params.clone());
    }
    let end = trainer.snapshot(0, Box::new(params), &[])?;
    Ok((history, FullState::assemble(vec![end])?))
}

fn on_ps(shards: usize, optimizer: Scheduled, begin: &FullState, gradients: &[Vec<f32>]) -> Outcome<Vec<Vec<f32>>> {
    let listeners = (0..shards).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let mut peers = Vec::new();
    for listener in &listeners {
        peers.push(listener.local_addr()?.to_string());
    }
    let failed = |event| {
        if let ServerEvent::Failed(error) = event {
            eprintln!("ps failed: {error}");
        }
    };
    let mut servers = Vec::new();
    for (shard, listener) in listeners.into_iter().enumerate() {
        let options = ServerOptions {
            shard,
            num_shards: shards,
            peers: peers.clone(),
            token: "steps".to_owned(),
            generation: 1,
            num_workers: 1,
            loader: None,
        };
        servers.push(PsServer::start(listener, options, Arc::new(failed))?);
    }
    let options = ClientOptions {
        worker: 0,
        token: "steps".to_owned(),
        generation: 1,
        is_chief: true,
        connect_timeout: Duration::from_secs(30),
    };
    let mut client = PsClient::connect(&peers, &options)?;
    client.init_from(&layout()?, optimizer, Mode::Async, begin)?;
    let mut params = begin.params.clone();
    let mut history = Vec::new();
    for gradient in gradients {
        let push = Push { rows: 1, loss: 0.0, leases: &[], buffers: None, gradients: &[gradient] };
        client.push_pull(push, &mut [&mut params])?;
        history.push(params.clone());
    }
    client.finish()?;
    servers.iter().for_each(PsServer::stop);
    Ok(history)
}
