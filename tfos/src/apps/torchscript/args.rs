//! Arguments of the `torchscript` application.

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use tfos_executor::ps::Optimizer;

use crate::application::Stop;
use crate::apps::mnist::Rule;

/// What is minimised, over what the module gives for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Logits of classes, and the number of the right one.
    CrossEntropy,
    /// Numbers, and the right ones.
    Mse,
    /// One logit, and 0 or 1.
    BceWithLogits,
}

/// Trains a TorchScript module, as `torch.jit.script(module).save(FILE)` writes it in PyTorch. `tfos export` writes it again
/// with the trained values.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "torchscript", no_binary_name = true)]
pub struct Args {
    /// The module, any object-store URL; the model directory keeps a copy that every node reads.
    #[arg(long, value_name = "FILE")]
    pub module: String,
    /// Training data: a file, a directory, a glob, or several of these with commas between them; any object-store URL.
    #[arg(long, value_name = "URL")]
    pub data: String,
    /// Data to score at the end (and, with --evaluator, at every checkpoint).
    #[arg(long, value_name = "URL")]
    pub eval_data: Option<String>,
    /// Format of both: parquet, csv, ndjson, arrow, avro or tfrecord [default: by the file names].
    #[arg(long)]
    pub format: Option<String>,
    /// Schema of both, such as `image:binary,label:int64` [default: inferred].
    #[arg(long)]
    pub schema: Option<String>,
    /// Query over the table `data` that gives the training rows.
    #[arg(long, value_name = "QUERY")]
    pub sql: Option<String>,
    /// Columns that the module gets, numbers or lists of numbers: side by side as one f32 matrix `[rows, values]`.
    #[arg(long, value_name = "COLUMN[,COLUMN...]", value_delimiter = ',', required = true)]
    pub features: Vec<String>,
    /// Give each column to the module as an argument of its own, in this order, and whole numbers as they are.
    #[arg(long)]
    pub separate: bool,
    /// Shape of a row of the matrix, such as 1,28,28.
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', conflicts_with = "separate")]
    pub shape: Vec<u32>,
    /// Column that the module is to learn.
    #[arg(long, value_name = "COLUMN")]
    pub label: String,
    /// What is minimised.
    #[arg(long, value_enum)]
    pub loss: Loss,
    /// Update rule, with PyTorch's defaults.
    #[arg(long, value_enum, default_value_t = Rule::Sgd)]
    pub optimizer: Rule,
    /// Learning rate [default: 0.01 for sgd, adagrad, rmsprop and lamb, 0.001 for adam, adamw and ftrl, 1 for adadelta].
    #[arg(long, allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Momentum of sgd.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub momentum: f64,
    /// Rows per step of each worker.
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,
    /// Leave out what is left of an epoch when it is fewer rows than a batch: batch normalization cannot train on one row.
    #[arg(long)]
    pub drop_last: bool,
    /// Passes over the data.
    #[arg(long, default_value_t = 1)]
    pub epochs: u32,
    /// Mix the training rows in blocks of so many, in another order in every epoch; 0 leaves them in theirs.
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    pub shuffle_block: u32,
    /// Write predictions for --eval-data to this file; its name says the format.
    #[arg(long, value_name = "FILE", requires = "eval_data")]
    pub predictions: Option<String>,
}

impl Args {
    /// Reads the arguments, or says why not.
    pub fn read(arguments: &[String]) -> Result<Self, Stop> {
        let parsed = Self::try_parse_from(arguments).map_err(|e| match e.use_stderr() {
            true => Stop::Usage(e.render().to_string().trim_start_matches("error: ").trim_end().to_owned()),
            false => Stop::Help(e.render().to_string()),
        })?;
        let usage = |text: &str| Err(Stop::Usage(text.to_owned()));
        if parsed.batch_size == 0 {
            return usage("--batch-size must be at least 1");
        }
        if parsed.epochs == 0 {
            return usage("--epochs must be at least 1");
        }
        if parsed.learning_rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return usage("--learning-rate must be a positive number");
        }
        if !(0.0..1.0).contains(&parsed.momentum) {
            return usage("--momentum must be 0 or more, and less than 1");
        }
        if parsed.momentum > 0.0 && parsed.optimizer != Rule::Sgd {
            return usage("--momentum goes with --optimizer sgd");
        }
        if parsed.features.iter().any(String::is_empty) || parsed.shape.contains(&0) {
            return usage("--features and --shape are lists with commas between, without empty places or zeros");
        }
        Ok(parsed)
    }

    /// The update rule with its rate.
    pub fn rule(&self) -> Optimizer {
        let rate = |default| self.learning_rate.unwrap_or(default);
        match self.optimizer {
            Rule::Sgd => Optimizer::Sgd {
                learning_rate: rate(0.01),
                momentum: self.momentum,
                nesterov: false,
                weight_decay: 0.0,
            },
            Rule::Adagrad => Optimizer::adagrad(rate(0.01)),
            Rule::Adam => Optimizer::adam(rate(0.001)),
            Rule::Adamw => Optimizer::adamw(rate(0.001)),
            Rule::Lamb => Optimizer::lamb(rate(0.01)),
            Rule::Rmsprop => Optimizer::rmsprop(rate(0.01)),
            Rule::Adadelta => Optimizer::adadelta(rate(1.0)),
            Rule::Ftrl => Optimizer::ftrl(rate(0.001)),
        }
    }

    /// Columns of the training rows, each once.
    pub fn columns(&self) -> Vec<String> {
        let mut columns: Vec<String> = vec![];
        for name in self.features.iter().chain([&self.label]) {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args, Stop> {
        Args::read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    const LEAST: &str = "--module m.pt --data d.csv --features a,b --label y --loss mse";

    #[test]
    fn bad_arguments_are_named() {
        for (line, word) in [
            ("--data d --features a --label y --loss mse", "--module"),
            ("--module m --data d --features a --label y --loss hinge", "hinge"),
            (&format!("{LEAST} --batch-size 0"), "--batch-size"),
            (&format!("{LEAST} --epochs 0"), "--epochs"),
            (&format!("{LEAST} --learning-rate -1"), "--learning-rate"),
            (&format!("{LEAST} --momentum 1"), "--momentum"),
            (&format!("{LEAST} --momentum 0.9 --optimizer adam"), "--optimizer sgd"),
            (&format!("{LEAST} --shape 1,0"), "--shape"),
            (&format!("{LEAST} --shape 2 --separate"), "--separate"),
            (&format!("{LEAST} --predictions p.csv"), "--eval-data"),
        ] {
            let Err(Stop::Usage(text)) = read(line) else { panic!("{line} was taken") };
            assert!(text.contains(word), "{line}: {text}");
        }
        assert!(matches!(read("--help"), Err(Stop::Help(_))));
    }

    #[test]
    fn arguments_travel_as_json() {
        let args = read(&format!("{LEAST} --shape 1,2 --optimizer adam --learning-rate 0.5")).unwrap();
        let again: Args = serde_json::from_str(&serde_json::to_string(&args).unwrap()).unwrap();
        assert_eq!((again.rule(), again.columns(), again.shape), (args.rule(), args.columns(), vec![1, 2]));
        assert_eq!(args.rule(), Optimizer::adam(0.5));
        assert_eq!(read(&LEAST.replace("a,b", "a,y,a")).unwrap().columns(), ["a", "y"]);
        assert_eq!(read(LEAST).unwrap().rule(), Optimizer::sgd(0.01));
    }
}
