//! The module's inputs from columns, its loss, its metrics, its predictions.

use std::sync::Arc;

use tch::{Device, Kind, Reduction, Tensor};
use tfos_data::arrow::array::{ArrayRef, Int64Array};
use tfos_executor::ps::Optimizer;
use tfos_executor::torch::module::ScriptModule;
use tfos_executor::{Batch, Error, NodeContext};

use super::args::{Args, Loss};
use crate::Model;
use crate::apps::columns::floats;
use crate::portable::export::MODULE;

/// See the module's text.
#[derive(Debug)]
pub struct Scripted {
    module: ScriptModule,
    args: Args,
    device: Device,
}

/// One number per row as `[rows]`, whether they lie so or as `[rows, 1]`.
fn flat(tensor: Tensor) -> Result<Tensor, Error> {
    Ok(match tensor.size().as_slice() {
        [_, 1] => tensor.f_squeeze_dim(1)?,
        _ => tensor,
    })
}

fn wrong(what: String, try_this: &str) -> Error {
    Error::Usage { what, try_this: try_this.into() }
}

impl Scripted {
    fn inputs(&self, batch: &Batch) -> Result<Vec<Tensor>, Error> {
        let columns = self.args.features.iter().map(|name| Ok(batch.tensor(name)?.f_to_device(self.device)?));
        let columns = columns.collect::<Result<Vec<Tensor>, Error>>()?;
        if self.args.separate {
            let as_module = |t: Tensor| if t.kind() == Kind::Double { t.f_to_kind(Kind::Float) } else { Ok(t) };
            return Ok(columns.into_iter().map(as_module).collect::<Result<_, _>>()?);
        }
        let rows = batch.rows() as i64;
        let matrix = |t: Tensor| t.f_to_kind(Kind::Float)?.f_reshape([rows, -1]);
        let matrices = columns.into_iter().map(matrix).collect::<Result<Vec<_>, _>>()?;
        let all = Tensor::f_cat(&matrices, 1)?;
        if self.args.shape.is_empty() {
            return Ok(vec![all]);
        }
        let row: i64 = self.args.shape.iter().map(|n| i64::from(*n)).product();
        let width = all.size().get(1).copied().unwrap_or(0);
        if width != row {
            let what = format!("a row has {width} values and --shape {:?} is one of {row}", self.args.shape);
            return Err(wrong(what, "give the shape of one row"));
        }
        let shape: Vec<i64> = [rows].into_iter().chain(self.args.shape.iter().map(|n| i64::from(*n))).collect();
        Ok(vec![all.f_reshape(shape)?])
    }

    /// What the module gives, checked against the loss.
    fn forward(&self, batch: &Batch, train: bool) -> Result<Tensor, Error> {
        self.module.train(train)?;
        let output = self.module.forward(&self.inputs(batch)?)?;
        let (rows, size) = (batch.rows() as i64, output.size());
        let fits = match self.args.loss {
            Loss::CrossEntropy => size.len() == 2,
            Loss::Mse | Loss::BceWithLogits => !size.is_empty(),
        };
        if !fits || size.first() != Some(&rows) {
            let what = format!("the module gives {size:?} for a batch of {rows} rows");
            return Err(wrong(what, "cross-entropy needs [rows, classes], the other losses [rows] or [rows, values]"));
        }
        Ok(output.f_to_kind(Kind::Float)?)
    }

    fn loss_of(&self, output: &Tensor, batch: &Batch) -> Result<(Tensor, Tensor), Error> {
        let label = batch.tensor(&self.args.label)?.f_to_device(self.device)?;
        if self.args.loss == Loss::CrossEntropy {
            let label = flat(label.f_to_kind(Kind::Int64)?)?;
            let loss = output.f_cross_entropy_loss::<Tensor>(&label, None, Reduction::Mean, -100, 0.0)?;
            return Ok((loss, label));
        }
        let (output, label) = (flat(output.shallow_clone())?, flat(label.f_to_kind(Kind::Float)?)?);
        if output.size() != label.size() {
            let (ours, theirs) = (output.size(), label.size());
            let what = format!("the module gives {ours:?} where the label `{}` is {theirs:?}", self.args.label);
            return Err(wrong(what, "they have to be of one shape"));
        }
        let loss = match self.args.loss {
            Loss::BceWithLogits => {
                output.f_binary_cross_entropy_with_logits::<Tensor>(&label, None, None, Reduction::Mean)?
            }
            _ => output.f_mse_loss(&label, Reduction::Mean)?,
        };
        Ok((loss, label))
    }
}

impl Model for Scripted {
    fn build(context: &NodeContext) -> Result<Self, Error> {
        let args: Args = serde_json::from_str(context.arguments()).map_err(Error::application)?;
        let module = context.script_module(&context.asset(MODULE)?)?;
        Ok(Self { module, args, device: context.device() })
    }

    fn optimizer(&self) -> Optimizer {
        self.args.rule()
    }

    fn batch_size(&self) -> usize {
        self.args.batch_size
    }

    fn drop_last(&self) -> bool {
        self.args.drop_last
    }

    fn loss(&self, batch: &Batch) -> Result<Tensor, Error> {
        Ok(self.loss_of(&self.forward(batch, true)?, batch)?.0)
    }

    fn metrics(&self, batch: &Batch) -> Result<Vec<(&'static str, f64)>, Error> {
        let output = self.forward(batch, false)?;
        let (loss, label) = self.loss_of(&output, batch)?;
        let right = match self.args.loss {
            Loss::CrossEntropy => Some(output.f_argmax(-1, false)?.f_eq_tensor(&label)?),
            Loss::BceWithLogits => Some(flat(output)?.f_gt(0.0)?.f_eq_tensor(&label.f_gt(0.5)?)?),
            Loss::Mse => None,
        };
        let mut metrics = vec![("loss", loss.f_double_value(&[])?)];
        if let Some(right) = right {
            metrics.push(("accuracy", right.f_to_kind(Kind::Float)?.f_mean(Kind::Float)?.f_double_value(&[])?));
        }
        Ok(metrics)
    }

    /// `output` is what the module gives. `prediction` is the class of the largest logit, the probability of a 1, or the
    /// output itself.
    fn predict(&self, batch: &Batch) -> Result<Vec<(&'static str, ArrayRef)>, Error> {
        let output = self.forward(batch, false)?.f_to_device(Device::Cpu)?;
        let prediction: ArrayRef = match self.args.loss {
            Loss::CrossEntropy => Arc::new(Int64Array::from(Vec::<i64>::try_from(output.f_argmax(-1, false)?)?)),
            Loss::BceWithLogits => floats(&flat(output.f_sigmoid()?)?)?,
            Loss::Mse => floats(&flat(output.shallow_clone())?)?,
        };
        Ok(vec![("prediction", prediction), ("output", floats(&flat(output)?)?)])
    }
}
