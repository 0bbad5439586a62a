//! Which checkpoints stay: the newest ones, one now and then, and the best one. What any of these keeps stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::GlobalStep;

/// A metric by which checkpoints are compared, written `accuracy`, or `-loss` where less is better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Best {
    /// Name of the metric.
    pub metric: String,
    /// Less is better.
    pub least: bool,
}

impl FromStr for Best {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (least, metric) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        if metric.is_empty() || metric.contains(char::is_whitespace) {
            return Err(format!(
                "`{text}` is no metric: write its name (accuracy), with a minus (-loss) if less is better"
            ));
        }
        Ok(Self { metric: metric.to_owned(), least })
    }
}

impl TryFrom<String> for Best {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Best> for String {
    fn from(best: Best) -> Self {
        best.to_string()
    }
}

impl fmt::Display for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.least { "-" } else { "" }, self.metric)
    }
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// So many of the newest; at least one.
    pub newest: usize,
    /// The first at or after each multiple of so many steps (0 is none of them).
    pub every: Option<u64>,
    /// The best by this metric, as far as checkpoints were scored; of equals the newer one.
    pub best: Option<Best>,
}

/// Means of an evaluator's metrics, by name.
pub type Scores = BTreeMap<String, f64>;

/// The checkpoints to delete, oldest first. The one that the job was restored from is kept until a newer one is
/// committed, simply because it then is the newest.
pub fn compute_deletions(
    steps: &[GlobalStep],
    scores: &BTreeMap<GlobalStep, Scores>,
    keep: &Retention,
) -> Vec<GlobalStep> {
    let steps: BTreeSet<GlobalStep> = steps.iter().copied().collect();
    let mut kept: BTreeSet<GlobalStep> = steps.iter().rev().take(keep.newest.max(1)).copied().collect();
    if let Some(every) = keep.every {
        // The first of each stretch. It is the first for good: it stays, and steps never decrease (CKP-2).
        let mut stretches: BTreeMap<u64, GlobalStep> = BTreeMap::new();
        for step in &steps {
            stretches.entry(step.0 / every.max(1)).or_insert(*step);
        }
        kept.extend(stretches.into_iter().filter(|(stretch, _)| *stretch > 0).map(|(_, step)| step));
    }
    if let Some(Best { metric, least }) = &keep.best {
        let value = |step: &GlobalStep| {
            let value = scores.get(step)?.get(metric).copied().filter(|v| v.is_finite())?;
            Some((if *least { -value } else { value }, *step))
        };
        let best = steps.iter().filter_map(value).max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        kept.extend(best.map(|(_, step)| step));
    }
    steps.difference(&kept).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(newest: usize, every: Option<u64>, best: Option<&str>) -> Retention {
        Retention { newest, every, best: best.map(|b| b.parse().unwrap()) }
    }

    fn left(steps: &[u64], scores: &[(u64, f64)], keep: &Retention) -> Vec<u64> {
        let scores = scores.iter().map(|(s, v)| (GlobalStep(*s), Scores::from([("m".to_owned(), *v)]))).collect();
        let all: Vec<GlobalStep> = steps.iter().map(|s| GlobalStep(*s)).collect();
        let gone = compute_deletions(&all, &scores, keep);
        assert!(gone.is_sorted());
        let mut left: Vec<u64> = steps.iter().copied().filter(|s| !gone.contains(&GlobalStep(*s))).collect();
        left.sort_unstable();
        left
    }

    #[test] // CKP-4
    fn the_newest_m_are_kept() {
        assert_eq!(left(&[3, 1, 2], &[], &keep(2, None, None)), [2, 3]);
        assert_eq!(left(&[3, 1, 2], &[], &keep(0, None, None)), [3]);
        assert_eq!(left(&[3, 1, 2], &[], &keep(9, None, None)), [1, 2, 3]);
    }

    #[test]
    fn the_first_at_or_after_each_multiple_stays_whenever_it_is_asked() {
        let (keep, history) = (keep(1, Some(100), None), [40, 90, 110, 130, 200, 201, 350, 360, 370]);
        assert_eq!(left(&history, &[], &keep), [110, 200, 350, 370]);
        // The same when checkpoints come and go one by one.
        let mut there = vec![];
        for step in history {
            there.push(step);
            there = left(&there, &[], &keep);
        }
        assert_eq!(there, [110, 200, 350, 370]);
    }

    #[test]
    fn the_best_one_stays_and_what_was_not_scored_is_not_the_best() {
        let steps = [1, 2, 3, 4, 5];
        let scores = [(1, 0.5), (2, 0.9), (3, 0.9), (4, 0.1)];
        assert_eq!(left(&steps, &scores, &keep(1, None, Some("m"))), [3, 5]);
        assert_eq!(left(&steps, &scores, &keep(1, None, Some("-m"))), [4, 5]);
        assert_eq!(left(&steps, &[(1, f64::NAN), (2, -3.0)], &keep(1, None, Some("m"))), [2, 5]);
        assert_eq!(left(&steps, &scores, &keep(1, None, Some("other"))), [5]);
        assert_eq!(left(&steps, &scores, &keep(1, Some(2), Some("-m"))), [2, 4, 5]);
    }

    #[test]
    fn a_metric_is_a_name_with_or_without_a_minus() {
        let best: Best = "-loss".parse().unwrap();
        assert_eq!((best.metric.as_str(), best.least, best.to_string()), ("loss", true, "-loss".to_owned()));
        assert!("-".parse::<Best>().is_err() && "a b".parse::<Best>().is_err());
    }
}
