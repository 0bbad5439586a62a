//! Local SGD: what the nodes make of one state by themselves is averaged, slots too, on all shards or on none.

use std::thread;

use tfos_ps::reference::Regression;
use tfos_ps::{FullState, LocalTrainer, Mode, Optimizer, Outcome, Push, Scheduled, ServerEvent, Vector};

use crate::cluster::{Cluster, Worker, sgd};

const STEPS: u64 = 4;
const MODE: Mode = Mode::LocalSgd { steps: STEPS as u32 };

/// A worker with an optimizer of its own.
struct Local {
    worker: Worker,
    trainer: LocalTrainer,
    step: u64,
    optimizer_step: u64,
}

impl Local {
    fn join(cluster: &Cluster, index: u32, problem: &Regression, optimizer: Scheduled) -> Local {
        let mut worker = Worker::join(cluster, index, problem, (index == 0).then_some((optimizer, MODE)));
        let mut trainer = LocalTrainer::new(problem.layout().unwrap(), optimizer, 0).unwrap();
        let optimizer_step = worker.client.slots(&mut trainer.slots_mut().unwrap()).unwrap();
        let step = worker.step;
        Local { worker, trainer, step, optimizer_step }
    }

    /// So many updates, of 8 rows each, from row `begin` on.
    fn alone(&mut self, begin: u64, steps: u64) {
        for step in 0..steps {
            self.trainer.set_steps(self.step, self.optimizer_step + step);
            let rows = begin + 8 * step..begin + 8 * step + 8;
            let (_, gradient) = self.worker.problem.gradient(&self.worker.params, rows);
            let (bias, weight) = self.worker.params.split_at_mut(1);
            self.trainer.apply(&mut [bias, weight], &[&gradient[..1], &gradient[1..]]).unwrap();
        }
    }

    fn average(&mut self, rows: u64) -> Outcome {
        let push = Push { rows, loss: 0.5, leases: &rows.to_le_bytes(), buffers: None, gradients: &[] };
        let (bias, weight) = self.worker.params.split_at_mut(1);
        let params: Vector<'_> = vec![bias, weight];
        let mut values = vec![params];
        values.extend(self.trainer.slots_mut().unwrap());
        let (outcome, optimizer_step) = self.worker.client.average(push, &mut values).unwrap();
        (self.step, self.optimizer_step) = (outcome.step, optimizer_step);
        outcome
    }

    fn slots(&mut self) -> Vec<Vec<f32>> {
        self.trainer.slots_mut().unwrap().iter().map(|slot| slot.concat()).collect()
    }
}

fn clipped_adam() -> Scheduled {
    Optimizer::adam(0.02).with_clip_norm(1.0)
}

#[test]
fn one_node_alone_is_one_process_bit_by_bit() {
    for (shards, optimizer) in [(1, clipped_adam()), (3, Optimizer::ftrl(0.1).into())] {
        let problem = Regression::new(60, 3);
        let cluster = Cluster::start(shards, 1);
        let mut local = Local::join(&cluster, 0, &problem, optimizer);
        for round in 0..5 {
            local.alone(round * 8 * STEPS, STEPS);
            assert_eq!(local.average(8 * STEPS), Outcome { step: round + 1, dropped: false, stop: false });
            assert_eq!(local.optimizer_step, (round + 1) * STEPS);
        }
        let layout = problem.layout().unwrap();
        let mut params = vec![0.0; layout.total];
        let mut trainer = LocalTrainer::new(layout, optimizer, 0).unwrap();
        for step in 0..5 * STEPS {
            let (_, gradient) = problem.gradient(&params, 8 * step..8 * step + 8);
            let (bias, weight) = params.split_at_mut(1);
            trainer.apply(&mut [bias, weight], &[&gradient[..1], &gradient[1..]]).unwrap();
        }
        assert_eq!(local.worker.params, params);
        assert_eq!(local.slots(), trainer.slots_mut().unwrap().iter().map(|s| s.concat()).collect::<Vec<_>>());
    }
}

#[test]
fn states_are_averaged_by_rows_and_a_checkpoint_has_all_of_them() {
    let problem = Regression::new(60, 4);
    let cluster = Cluster::start(2, 2);
    let mut nodes: Vec<Local> = thread::scope(|scope| {
        let join = |index| {
            let (cluster, problem) = (&cluster, &problem);
            scope.spawn(move || Local::join(cluster, index, problem, clipped_adam()))
        };
        [join(0), join(1)].map(|thread| thread.join().unwrap()).into()
    });
    // The second one runs out of rows: a quarter of the first one's.
    nodes[0].alone(0, STEPS);
    nodes[1].alone(1000, 1);
    let [a, b] = [0, 1].map(|i| std::iter::once(nodes[i].worker.params.clone()).chain(nodes[i].slots()));
    let mean = |(a, b): (Vec<f32>, Vec<f32>)| a.iter().zip(&b).map(|(a, b)| 0.8 * a + 0.2 * b).collect::<Vec<_>>();
    let wanted: Vec<Vec<f32>> = a.zip(b).map(mean).collect();
    thread::scope(|scope| {
        let (first, second) = nodes.split_at_mut(1);
        scope.spawn(|| first[0].average(32));
        scope.spawn(|| second[0].average(8));
    });
    for node in &mut nodes {
        let found = std::iter::once(node.worker.params.clone()).chain(node.slots()).flatten();
        for (found, wanted) in found.zip(wanted.iter().flatten()) {
            assert!((found - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3), "{found} {wanted}");
        }
        assert_eq!((node.step, node.optimizer_step), (1, STEPS));
    }
    cluster.servers[0].request_snapshot(1).unwrap();
    let part = |shard| {
        cluster.await_event(shard, |event| match event {
            ServerEvent::Snapshot(snapshot) => Some(snapshot),
            _ => None,
        })
    };
    let state = FullState::assemble(vec![part(0), part(1)]).unwrap();
    assert_eq!((state.step, state.optimizer_step, &state.params), (1, STEPS, &nodes[0].worker.params));
    assert_eq!(state.slots.into_iter().map(|(_, slot)| slot).collect::<Vec<_>>(), nodes[1].slots());
}

#[test] // PS-3
fn a_state_that_is_too_old_is_dropped_and_replaced() {
    let problem = Regression::new(20, 5);
    let cluster = Cluster::start(2, 2);
    let mut first = Local::join(&cluster, 0, &problem, sgd(0.1));
    let mut second = Local::join(&cluster, 1, &problem, sgd(0.1));
    second.alone(0, 2);
    // The others go on without it while it says that it has no rows.
    second.worker.client.idle().unwrap();
    first.alone(100, STEPS);
    assert!(!first.average(32).dropped);
    assert_eq!(second.average(16), Outcome { step: 1, dropped: true, stop: false });
    assert_eq!(first.worker.params, second.worker.params);
    let returned = cluster.await_event(0, |event| match event {
        ServerEvent::Dropped { worker, leases, .. } => Some((worker, leases)),
        _ => None,
    });
    assert_eq!(returned, (1, 16u64.to_le_bytes().to_vec()));
}
