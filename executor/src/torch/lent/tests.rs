//! That nothing is copied where nothing needs to be, that this changes no bit, and who is not lent to.

use tfos_ps::Push;
use tfos_ps::transport::{SameHost, Tcp, Transport};

use super::super::blocks::Source;
use super::super::overlap::tests::{Model, cluster};
use super::super::overlap::{Overlap, forget_gradient};
use super::super::slices::floats;
use super::*;

const STEPS: usize = 6;

/// How often the large variable was lent, how often its gradient lay in a block, and the variables in the end. `meddle` is called
/// before each step.
fn trained(
    transport: &dyn Transport,
    overlapped: bool,
    mut meddle: impl FnMut(usize, &mut Vec<Tensor>),
) -> (usize, usize, Vec<f32>) {
    let mut model = Model::new();
    let (_server, mut client) = cluster(&model, transport);
    let overlap = overlapped.then(|| Overlap::new(&model.layout, &model.variables).unwrap());
    let (mut lending, mut source) = (None::<Lending>, None::<Source>);
    let (mut lent, mut in_blocks) = (0, 0);
    for step in 0..STEPS {
        meddle(step, &mut model.variables);
        model.variables.iter().for_each(|variable| forget_gradient(variable).unwrap());
        let armed = source.as_ref().map(Source::arm);
        let loss = model.loss();
        match &overlap {
            Some(overlap) => overlap.backward(&loss, &mut client).unwrap(),
            None => loss.backward(),
        }
        drop(armed);
        let gradient = |variable: &Tensor| match variable.grad() {
            grad if grad.defined() => grad.contiguous(),
            _ => variable.zeros_like(),
        };
        let gradients: Vec<Tensor> = model.variables.iter().map(gradient).collect();
        // Of two blocks one is left.
        let len = model.variables[1].numel();
        in_blocks += usize::from(std::iter::from_fn(|| client.block(len)).collect::<Vec<_>>().len() == 1);
        let gradients: Vec<&[f32]> = gradients.iter().map(floats).collect();
        let push = Push { rows: 4, loss: 0.0, leases: &[], buffers: None, gradients: &gradients };
        if client.lends() {
            let lending = lending.get_or_insert_with(|| Lending::new(&model.layout, &model.variables));
            lending.check(&mut client).unwrap();
            let answer = client.push_pull_lent(push, &mut lending.rest()).unwrap().1;
            lending.adopt(&answer).unwrap();
            lent += lending.count();
        } else {
            let mut params: Vec<&mut [f32]> = model.variables.iter_mut().map(floats_mut).collect();
            client.push_pull(push, &mut params).unwrap();
        }
        source = source.or_else(|| Source::of(&client));
    }
    drop(lending);
    client.finish().unwrap();
    // Long after the ps has gone.
    drop(_server);
    (lent, in_blocks, model.variables.iter().flat_map(|v| floats(v).to_vec()).collect())
}

#[test]
fn what_is_lent_and_lies_in_blocks_gives_the_same_bits() {
    let (lent, in_blocks, copied) = trained(&Tcp, false, |_, _| {});
    assert_eq!((lent, in_blocks), (0, 0));
    for overlapped in [false, true] {
        // The first push makes the window.
        let (lent, in_blocks, params) = trained(&SameHost, overlapped, |_, _| {});
        assert_eq!((lent, in_blocks), (STEPS - 1, STEPS - 1), "overlapped: {overlapped}");
        assert!(params == copied);
    }
}

#[test]
fn a_change_in_place_is_lost_with_the_next_step_and_not_before() {
    let halve = |step: usize, variables: &mut Vec<Tensor>| {
        if step == 3 {
            no_grad(|| drop(variables[1].f_mul_scalar_(0.5).unwrap()));
        }
    };
    let (_, _, copied) = trained(&Tcp, false, halve);
    let (lent, _, params) = trained(&SameHost, true, halve);
    assert!(params == copied && params != trained(&Tcp, false, |_, _| {}).2);
    assert_eq!(lent, 2, "from then on it is copied");
}

#[test]
fn a_variable_with_a_view_is_not_lent() {
    let mut view = None;
    let keep = |step: usize, variables: &mut Vec<Tensor>| {
        if step == 0 {
            view = Some(variables[1].detach().tr());
        }
    };
    let (lent, in_blocks, params) = trained(&SameHost, true, keep);
    assert_eq!((lent, in_blocks), (0, STEPS - 1));
    assert!(params == trained(&Tcp, false, |_, _| {}).2);
    let seen = view.unwrap().tr().contiguous();
    assert!(floats(&seen) == &params[4800..4800 + seen.numel()], "the view sees every step");
}
