//! Who does not belong is refused, with a typed reason.

use tfos_ps::reference::Regression;
use tfos_ps::{ClientOptions, Error, InitState, Mode, PsClient, Push, Refusal};

use crate::cluster::{Cluster, Worker, sgd};

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result.unwrap_err() {
        Error::Refused { refusal, .. } => refusal,
        other => panic!("not a refusal: {other:?}"),
    }
}

fn state<'a>(params: &'a [&'a [f32]], buffers: &'a [&'a [f32]]) -> InitState<'a> {
    InitState { optimizer: sgd(0.1), mode: Mode::Async, step: 0, optimizer_step: 0, params, slots: &[], buffers }
}

#[test]
fn wrong_token_generation_or_ps_is_refused() {
    let cluster = Cluster::start(2, 1);
    let connect = |options: &ClientOptions| PsClient::connect(&cluster.addresses, options);
    let good = Cluster::options(0);
    let token = ClientOptions { token: "another secret".into(), ..good.clone() };
    assert_eq!(refusal(connect(&token)), Refusal::Token);
    let old = ClientOptions { generation: 2, ..good.clone() };
    assert_eq!(refusal(connect(&old)), Refusal::Generation { expected: 3, found: 2 });
    let mut swapped = cluster.addresses.clone();
    swapped.swap(0, 1);
    assert!(matches!(refusal(PsClient::connect(&swapped, &good)), Refusal::Shard { .. }));
    assert!(matches!(refusal(PsClient::connect(&cluster.addresses[..1], &good)), Refusal::Shard { .. }));
    assert!(matches!(PsClient::connect(&[], &good), Err(Error::Options { .. })));
}

#[test]
fn another_model_is_refused_and_both_are_named() {
    let cluster = Cluster::start(2, 2);
    let ours = Regression::new(20, 1);
    let _chief = Worker::join(&cluster, 0, &ours, Some((sgd(0.1), Mode::Async)));
    let theirs = Regression::new(21, 1).layout().unwrap();
    let (mut params, mut buffers) = (vec![0.0; 22], [0.0]);
    let mut client = cluster.connect(1);
    let refused = refusal(client.wait_init(&theirs, &mut [&mut params], &mut [&mut buffers]));
    assert_eq!(refused, Refusal::Layout { chief: ours.layout().unwrap().fingerprint(), worker: theirs.fingerprint() });
    assert!(refused.to_string().contains("2 variables of 21 elements"), "{refused}");
}

#[test]
fn only_the_chief_initialises_and_only_once() {
    let cluster = Cluster::start(2, 2);
    let problem = Regression::new(20, 1);
    let layout = problem.layout().unwrap();
    let params = [0.5; 21];
    let mut worker = cluster.connect(1);
    assert_eq!(refusal(worker.init(&layout, state(&[&params], &[&[0.0]]))), Refusal::NotChief);
    let chief = Worker::join(&cluster, 0, &problem, Some((sgd(0.1), Mode::Async)));
    drop(chief);
    let mut again = cluster.connect(0);
    assert_eq!(again.initialised_at(), Some(0));
    let refused = refusal(again.init(&layout, state(&[&params], &[&[0.0]])));
    assert_eq!(refused, Refusal::AlreadyInitialised { step: 0 });
}

#[test]
fn a_push_before_init_is_refused_and_wrong_lengths_never_leave_the_worker() {
    let cluster = Cluster::start(1, 1);
    let layout = Regression::new(20, 1).layout().unwrap();
    let mut client = cluster.connect(0);
    let gradient = [0.0; 20];
    let push = Push { rows: 1, loss: 0.0, leases: &[], buffers: None, gradients: &[&gradient] };
    let mut params = [0.0; 20];
    assert!(matches!(client.push_pull(push, &mut [&mut params]), Err(Error::Length { .. })));
    client.init(&layout, state(&[&[0.5; 21]], &[&[0.0]])).unwrap();
    assert!(matches!(client.push_pull(push, &mut [&mut params]), Err(Error::Length { found: 20, .. })));
    let wrong = client.init(&layout, state(&[&[0.5; 20]], &[&[0.0]]));
    assert!(matches!(wrong, Err(Error::Length { expected: 21, .. })));
}

#[test]
fn slots_of_another_optimizer_are_refused() {
    let cluster = Cluster::start(1, 1);
    let layout = Regression::new(20, 1).layout().unwrap();
    let slots = [("exp_avg".to_owned(), vec![0.0; 21])];
    let mut client = cluster.connect(0);
    let params = [0.0; 21];
    let refused = refusal(client.init(&layout, InitState { slots: &slots, ..state(&[&params], &[&[0.0]]) }));
    assert!(matches!(refused, Refusal::BadInit { .. }), "{refused:?}");
}
