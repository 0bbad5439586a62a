//! Arguments of the `mnist` application.

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use tfos_executor::ps::{Optimizer, Schedule};

use crate::application::Stop;

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Two dense layers.
    Mlp,
    /// Two convolutions with batch normalization, then a dense layer.
    Cnn,
}

/// Which update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adagrad.
    Adagrad,
    /// Adam.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
    /// LAMB, which is meant for large batches.
    Lamb,
    /// RMSprop.
    Rmsprop,
    /// Adadelta.
    Adadelta,
    /// FTRL, which is meant for wide models.
    Ftrl,
}

/// How the rate decays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decline {
    /// Not at all.
    Constant,
    /// To a tenth every --schedule-steps steps.
    Step,
    /// By half a cosine to 0 at --schedule-steps.
    Cosine,
    /// By a polynomial of power 1, a straight line, to 0 at --schedule-steps.
    Polynomial,
}

/// Who reads the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A query feeds the nodes.
    Feed,
    /// Nodes read TFRecord files themselves.
    Direct,
}

/// Trains a classifier of handwritten digits: columns `image` (784 bytes or numbers) and `label` (0 to 9).
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "mnist", no_binary_name = true)]
pub struct Args {
    /// Training data: a file, a directory (folders `key=value` in it are columns), a glob, or several of these with
    /// commas between them; any object-store URL [default: digits that it draws].
    #[arg(long, value_name = "URL")]
    pub data: Option<String>,
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
    /// Who reads the data.
    #[arg(long, value_enum, default_value_t = Mode::Feed)]
    pub input_mode: Mode,
    /// Which network.
    #[arg(long, value_enum, default_value_t = Network::Mlp)]
    pub network: Network,
    /// Passes over the data [default: 15 for the mlp, 10 for the cnn].
    #[arg(long)]
    pub epochs: Option<u32>,
    /// Rows per step of each worker.
    #[arg(long, default_value_t = 32)]
    pub batch_size: usize,
    /// Learning rate [default: 0.001 (mlp) or 0.002 (cnn) for adam and adamw, 0.05 for sgd, 0.01 (mlp) or 0.02 (cnn) for
    /// adagrad, 0.01 for lamb, 0.001 for rmsprop, 1 for adadelta, 0.02 (mlp) or 0.01 (cnn) for ftrl].
    #[arg(long, allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Update rule.
    #[arg(long, value_enum, default_value_t = Rule::Adam)]
    pub optimizer: Rule,
    /// How the learning rate decays over the global steps.
    #[arg(long, value_enum, default_value_t = Decline::Constant)]
    pub schedule: Decline,
    /// Steps of the schedule, counted from the end of the warm-up.
    #[arg(long, value_name = "STEPS")]
    pub schedule_steps: Option<u64>,
    /// Global steps over which the learning rate grows to its value, before the schedule.
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub warmup_steps: u64,
    /// Scale gradients whose L2 norm over all variables is larger down to it [default: leave them].
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    pub clip_norm: Option<f64>,
    /// Seed of the network and of the drawn digits [default: the job's].
    #[arg(long)]
    pub seed: Option<u64>,
    /// Move each training batch by up to so many pixels, which makes more of few images; 0 leaves them alone.
    #[arg(long, value_name = "PIXELS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=8))]
    pub shift: u8,
    /// Mix the training rows in blocks of so many, in another order in every epoch; 0 leaves them in theirs.
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    pub shuffle_block: u32,
    /// Rows to draw when there is no --data.
    #[arg(long, default_value_t = 10_000)]
    pub rows: usize,
    /// Write predictions for --eval-data to this file (parquet).
    #[arg(long, value_name = "FILE")]
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
        if parsed.epochs == Some(0) {
            return usage("--epochs must be at least 1");
        }
        if parsed.learning_rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return usage("--learning-rate must be a positive number");
        }
        if parsed.clip_norm.is_some_and(|norm| !norm.is_finite() || norm <= 0.0) {
            return usage("--clip-norm must be a positive number");
        }
        if parsed.schedule_steps == Some(0) {
            return usage("--schedule-steps must be at least 1");
        }
        if (parsed.schedule == Decline::Constant) != parsed.schedule_steps.is_none() {
            return usage("--schedule-steps goes with a --schedule other than constant, which needs it");
        }
        if parsed.input_mode == Mode::Direct && (parsed.sql.is_some() || parsed.data.is_none()) {
            return usage("--input-mode direct reads files: it needs --data and takes no --sql");
        }
        if let Some(format) = &parsed.format
            && let Err(e) = format.parse::<tfos_data::session::Format>()
        {
            return usage(&format!("--format: {e}"));
        }
        Ok(parsed)
    }

    /// The update rule with its rate.
    pub fn rule(&self) -> Optimizer {
        let rate = |mlp, cnn| {
            let default = if self.network == Network::Mlp { mlp } else { cnn };
            self.learning_rate.unwrap_or(default)
        };
        match self.optimizer {
            Rule::Sgd => {
                Optimizer::Sgd { learning_rate: rate(0.05, 0.05), momentum: 0.9, nesterov: false, weight_decay: 0.0 }
            }
            Rule::Adagrad => Optimizer::Adagrad {
                // At 0.05 one misclassified row of a short last batch, weighed as a whole one, was seen to undo all.
                learning_rate: rate(0.01, 0.02),
                initial_accumulator: 0.1,
                eps: 1e-10,
                weight_decay: 0.0,
                lr_decay: 0.0,
            },
            Rule::Adam => Optimizer::Adam {
                learning_rate: rate(0.001, 0.002),
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
            },
            Rule::Adamw => Optimizer::adamw(rate(0.001, 0.002)),
            Rule::Lamb => Optimizer::lamb(rate(0.01, 0.01)),
            Rule::Rmsprop => Optimizer::rmsprop(rate(0.001, 0.001)),
            Rule::Adadelta => Optimizer::adadelta(rate(1.0, 1.0)),
            // A larger accumulator at the beginning would make it forget the network that it begins with.
            Rule::Ftrl => Optimizer::Ftrl {
                learning_rate: rate(0.02, 0.01),
                learning_rate_power: -0.5,
                initial_accumulator: 1e-10,
                l1: 0.0,
                l2: 0.0,
            },
        }
    }

    /// How the rate changes.
    pub fn rates(&self) -> Schedule {
        let steps = self.schedule_steps.unwrap_or_default();
        let schedule = match self.schedule {
            Decline::Constant => Schedule::constant(),
            Decline::Step => Schedule::step(steps, 0.1),
            Decline::Cosine => Schedule::cosine(steps),
            Decline::Polynomial => Schedule::polynomial(steps, 1.0),
        };
        if self.warmup_steps == 0 { schedule } else { schedule.with_warmup(self.warmup_steps, 0.1) }
    }

    /// Passes over the data.
    pub fn passes(&self) -> u32 {
        self.epochs.unwrap_or(match self.network {
            Network::Mlp => 15,
            Network::Cnn => 10,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Args, Stop> {
        Args::read(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn bad_arguments_are_named() {
        for (line, word) in [
            ("--nonsense", "--nonsense"),
            ("--batch-size 0", "--batch-size"),
            ("--learning-rate -1", "--learning-rate"),
            ("--clip-norm 0", "--clip-norm"),
            ("--clip-norm -1", "--clip-norm"),
            ("--clip-norm NaN", "--clip-norm"),
            ("--input-mode direct", "--data"),
            ("--format yaml", "yaml"),
            ("--schedule cosine", "--schedule-steps"),
            ("--schedule-steps 9", "--schedule"),
            ("--schedule step --schedule-steps 0", "--schedule-steps"),
        ] {
            let Err(Stop::Usage(text)) = read(line) else { panic!("{line} was taken") };
            assert!(text.contains(word), "{line}: {text}");
        }
        assert!(matches!(read("--help"), Err(Stop::Help(_))));
    }

    #[test]
    fn arguments_travel_as_json() {
        let line = "--network cnn --epochs 3 --optimizer ftrl --schedule polynomial --schedule-steps 9 --warmup-steps 2 \
             --clip-norm 0.5";
        let args = read(line).unwrap();
        let again: Args = serde_json::from_str(&serde_json::to_string(&args).unwrap()).unwrap();
        assert_eq!((again.network, again.passes(), again.rule()), (Network::Cnn, 3, args.rule()));
        assert_eq!(again.clip_norm, Some(0.5));
        assert_eq!(again.rates(), Schedule::polynomial(9, 1.0).with_warmup(2, 0.1));
    }

    #[test]
    fn every_rule_and_schedule_is_named_as_in_json() {
        for name in ["sgd", "adagrad", "adam", "adamw", "lamb", "rmsprop", "adadelta", "ftrl"] {
            let rule = read(&format!("--optimizer {name}")).unwrap().rule();
            assert_eq!(serde_json::to_value(rule).unwrap()["name"], name);
        }
        assert_eq!(read("").unwrap().rates(), Schedule::constant());
        assert_eq!(read("--schedule cosine --schedule-steps 7").unwrap().rates(), Schedule::cosine(7));
    }
}
