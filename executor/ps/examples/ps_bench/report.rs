//! What is printed: a line per case as it is measured, then the ratios within this run.

use std::collections::BTreeMap;

use serde_json::json;

use crate::case::WORKERS;
use crate::limit::Memory;

/// Passes over the parameters that nobody can leave out where processes share memory: the gradient is applied (gradient read,
/// parameters read and written).
const SHARED_PASSES: f64 = 3.0;
/// Where they do not, the gradient is also copied to the ps (read, written), and the parameters to the worker.
const EXCHANGE_PASSES: f64 = 7.0;
/// The model reads parameters and row for its loss, then the row, and writes the gradient.
const COMPUTE_PASSES: f64 = 4.0;

#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) system: String,
    pub(crate) what: &'static str,
    pub(crate) elements: usize,
    /// Steps per second of each worker.
    pub(crate) rates: Vec<f64>,
    pub(crate) round: u32,
}

#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    memory: Vec<Memory>,
    /// Rate of each round by elements, what and system.
    rates: BTreeMap<(usize, &'static str, String), Vec<f64>>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Report {
        Report { json, memory: Vec::new(), rates: BTreeMap::new() }
    }

    pub(crate) fn memory(&mut self, memory: &Memory) {
        let Memory { one, all } = *memory;
        self.memory.push(Memory { one, all });
        if self.json {
            println!("{}", json!({"memory_gb_per_s": {"one_thread": one, "all_workers": all}}));
        } else {
            println!("memory touched by copying: {one:.1} GB/s with one thread, {all:.1} with {WORKERS}");
        }
    }

    pub(crate) fn add(&mut self, measured: Measured) {
        let Measured { system, what, elements, rates, round } = measured;
        let rate = rates.iter().sum::<f64>() / rates.len().max(1) as f64;
        let gigabytes = rate * elements as f64 * 8.0 / 1e9;
        if self.json {
            let line = json!({"system": system, "what": what, "parameters": elements, "round": round,
                "steps_per_s": rate, "gb_per_s": gigabytes, "workers": rates});
            println!("{line}");
        } else {
            println!("{elements:>11} parameters {what:>8} {system:<22} {rate:>8.2} steps/s {gigabytes:>6.2} GB/s");
        }
        self.rates.entry((elements, what, system)).or_default().push(rate);
    }

    /// Of each of ours: how many times each peer, and which part of the bound.
    pub(crate) fn summary(&self) {
        let all = median(self.memory.iter().map(|memory| memory.all).collect());
        for ((elements, what, system), rates) in &self.rates {
            if !system.starts_with("tfos") {
                continue;
            }
            let rate = median(rates.clone());
            let mut exchange = if system.starts_with("tfos-shm") { SHARED_PASSES } else { EXCHANGE_PASSES };
            if system.ends_with("sync") && !system.ends_with("async") {
                // One update for all workers.
                exchange += 2.0 / f64::from(WORKERS) - 2.0;
            }
            let passes = exchange + if *what == "step" { COMPUTE_PASSES } else { 0.0 };
            let bound = all * 1e9 / (f64::from(WORKERS) * passes * 4.0 * *elements as f64);
            let peers = self.rates.iter().filter(|((e, w, s), _)| e == elements && w == what && !s.starts_with("tfos"));
            let ratios: BTreeMap<&str, f64> =
                peers.map(|((.., peer), rates)| (peer.as_str(), rate / median(rates.clone()))).collect();
            if self.json {
                let line = json!({"summary": system, "what": what, "parameters": elements, "steps_per_s": rate,
                    "bound_steps_per_s": bound, "of_bound": rate / bound, "times": ratios});
                println!("{line}");
            } else {
                let ratios: Vec<String> = ratios.iter().map(|(peer, times)| format!("{times:.2} x {peer}")).collect();
                let part = rate / bound * 100.0;
                println!("{elements:>11} {what:>8} {system:<15} {part:>3.0} % of the bound; {}", ratios.join(", "));
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
