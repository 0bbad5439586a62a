//! Where variables lie changes nothing but who holds them: same numbers, and checkpoints that fit any other placement.

use std::thread;

use tfos_ps::{FullState, InitState, Layout, Mode, Push, Scheduled, ServerEvent, Snapshot};

use crate::cluster::{Cluster, adam};

/// In the order of their creation; none of the lengths is a multiple of a cache line.
const SIZES: [(&str, i64); 5] = [("z", 50), ("embedding", 301), ("bias", 1), ("k", 33), ("empty", 0)];

fn variables() -> impl Iterator<Item = (String, Vec<i64>)> {
    SIZES.into_iter().map(|(name, len)| (name.to_owned(), vec![len]))
}

/// Of element `index` of a variable; the same wherever it lies.
fn value(name: &str, index: usize, step: u64) -> f32 {
    let seed = name.bytes().map(u64::from).sum::<u64>() * 1000 + index as u64 + step * 7919;
    tfos_ps::reference::Random::new(seed).uniform()
}

fn flat(layout: &Layout, step: u64) -> Vec<f32> {
    layout.variables.iter().flat_map(|v| (0..v.len()).map(move |i| value(&v.name, i, step))).collect()
}

/// By name, to compare.
fn named(layout: &Layout, values: &[f32]) -> Vec<(String, Vec<f32>)> {
    let mut named: Vec<_> =
        layout.variables.iter().map(|v| (v.name.clone(), values[v.offset..][..v.len()].to_vec())).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
}

/// Trains two workers for `steps`, and gives the state.
fn trained(layout: &Layout, shards: usize, optimizer: Scheduled, from: Option<&FullState>, steps: u64) -> FullState {
    let cluster = Cluster::start(shards, 2);
    let mode = Mode::Sync { replicas_to_aggregate: 2 };
    thread::scope(|scope| {
        for index in 0..2u32 {
            let cluster = &cluster;
            scope.spawn(move || {
                let mut client = cluster.connect(index);
                if index == 0 {
                    let (params, buffers): (&[&[f32]], &[&[f32]]) = (&[&flat(layout, 0)], &[]);
                    match from {
                        Some(state) => client.init_from(layout, optimizer, mode, state).unwrap(),
                        None => {
                            let slots = &[];
                            let state =
                                InitState { optimizer, mode, step: 0, optimizer_step: 0, params, slots, buffers };
                            client.init(layout, state).unwrap();
                        }
                    }
                }
                let mut params = vec![f32::NAN; layout.total];
                let mut step = client.wait_init(layout, &mut [&mut params], &mut []).unwrap();
                for _ in 0..steps {
                    let gradient = flat(layout, step * 2 + u64::from(index) + 1);
                    let push = Push { rows: 3, loss: 0.0, leases: &[], buffers: None, gradients: &[&gradient] };
                    step = client.push_pull(push, &mut [&mut params]).unwrap().step;
                }
                client.finish().unwrap();
            });
        }
    });
    cluster.servers[0].request_snapshot(1).unwrap();
    let part = |shard| cluster.await_event(shard, |e| if let ServerEvent::Snapshot(s) = e { Some(s) } else { None });
    let parts: Vec<Snapshot> = (0..shards).map(part).collect();
    for (part, range) in parts.iter().zip(layout.ranges(shards)) {
        assert_eq!(part.range, range);
    }
    FullState::assemble(parts).unwrap()
}

#[test] // LOD-2
fn whole_variables_round_the_ps_train_to_the_same_bits_and_go_on_on_any_other_cut() {
    let even = Layout::new(variables(), []).unwrap();
    let optimizer = adam();
    let reference = trained(&even, 2, optimizer, None, 8);
    for shards in [1, 2, 3, 7] {
        let dealt = Layout::round_robin(variables(), [], shards).unwrap();
        let half = trained(&dealt, shards, optimizer, None, 4);
        // What was saved of one placement is read by name into another one.
        let moved = |values: &[f32]| named(&dealt, values).into_iter().flat_map(|(_, v)| v).collect::<Vec<f32>>();
        let state = FullState {
            params: moved(&half.params),
            slots: half.slots.iter().map(|(name, slot)| (name.clone(), moved(slot))).collect(),
            ..half
        };
        let whole = trained(&even, 3, optimizer, Some(&state), 4);
        assert_eq!(whole.params, reference.params, "over {shards}");
        assert_eq!(whole.slots, reference.slots, "over {shards}");
    }
}

#[test]
fn a_worker_with_another_placement_is_refused() {
    let cluster = Cluster::start(2, 2);
    let dealt = Layout::round_robin(variables(), [], 2).unwrap();
    let params = flat(&dealt, 0);
    let mut chief = cluster.connect(0);
    let state = |params| InitState {
        optimizer: adam(),
        mode: Mode::Async,
        step: 0,
        optimizer_step: 0,
        params,
        slots: &[],
        buffers: &[],
    };
    let params: &[&[f32]] = &[&params];
    // Cut for another number of ps: nothing is sent.
    let three = Layout::round_robin(variables(), [], 3).unwrap();
    assert!(chief.init(&three, state(params)).unwrap_err().to_string().contains("cut for 3 shards"));
    chief.init(&dealt, state(params)).unwrap();
    let even = Layout::new(variables(), []).unwrap();
    let mut values = vec![0.0; even.total];
    let refused = cluster.connect(1).wait_init(&even, &mut [&mut values], &mut []).unwrap_err();
    assert!(matches!(refused, tfos_ps::Error::Refused { .. }), "{refused}");
}
