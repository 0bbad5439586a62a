//! A small network whose names, shapes and optimizer are arguments: trunk=NAME, head=NAME, hidden=N, extra=N,
//! optimizer=NAME, rate=R. With still=1 nothing that is trained on changes its running statistics.

use super::{Arguments, ensure};
use tfos::prelude::nn::ModuleT;
use tfos::prelude::*;

fn named<'a>(args: &'a Arguments, key: &str, default: &'a str) -> &'a str {
    Some(args.text(key)).filter(|text| !text.is_empty()).unwrap_or(default)
}

/// Learns y = 2 x + 1, and reports in an evaluation how far it is from that: `fit`, the same for the same parameters.
pub(super) fn network(context: &mut NodeContext, args: &Arguments) -> Result<(), NodeError> {
    let hidden = args.number("hidden", 40) as i64;
    let root = context.variables();
    let trunk = &root / named(args, "trunk", "trunk");
    let dense = nn::linear(&trunk / "dense", 1, hidden, Default::default());
    let norm = nn::batch_norm1d(&trunk / "norm", hidden, Default::default());
    let head = nn::linear(&root / named(args, "head", "head"), hidden, 1, Default::default());
    let extra = args.number("extra", 0) as i64;
    let extra = (extra > 0).then(|| root.zeros("extra", &[extra]));
    let forward = |x: &Tensor, train: bool| head.forward(&norm.forward_t(&dense.forward(x), train).relu());
    let rate = args.text("rate").parse().unwrap_or(0.01);
    let optimizer = match named(args, "optimizer", "adam") {
        "adam" => Optimizer::adam(rate),
        "lamb" => Optimizer::lamb(rate),
        "momentum" => Optimizer::Sgd { learning_rate: rate, momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        other => return Err(NodeError::application(format!("optimizer={other} is none that it knows"))),
    };
    context.train_with(optimizer)?;
    let mut feed = context.data_feed()?;
    while let Some(batch) = feed.next_batch(10)? {
        if context.kind() != PhaseKind::Train {
            continue;
        }
        let x = batch.tensor("x")?.to_kind(Kind::Float).unsqueeze(1);
        let y = batch.tensor("y")?.to_kind(Kind::Float).unsqueeze(1);
        let loss = (forward(&x, args.number("still", 0) == 0) - y).square().mean(Kind::Float);
        context.step(&loss)?;
    }
    if context.kind() == PhaseKind::Evaluate {
        let x = Tensor::arange(100, (Kind::Float, Device::Cpu)).unsqueeze(1) / 100.0;
        let fit = (forward(&x, false) - (&x * 2.0 + 1.0)).square().mean(Kind::Double).double_value(&[]);
        ensure(fit.is_finite(), format!("it is {fit} away"))?;
        let extra = extra.map_or(0.0, |e| e.sum(Kind::Double).double_value(&[]));
        context.report_metrics(&[("fit", fit), ("extra", extra)], 1);
    }
    Ok(())
}
