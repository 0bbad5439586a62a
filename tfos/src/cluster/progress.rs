//! A live line of progress on a terminal, plain lines elsewhere; always on stderr.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tfos_driver::Status;
use tokio::sync::watch;

/// How often a line is printed where there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    quiet: bool,
    first_step: Arc<Mutex<Option<Instant>>>,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !quiet;
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { bar, terminal, quiet, first_step: Arc::default() }
    }

    /// A line that stays.
    #[expect(clippy::print_stderr, reason = "this is where lines for people are printed")]
    pub(super) fn say(&self, line: &str) {
        if self.terminal {
            self.bar.suspend(|| eprintln!("{line}"));
        } else {
            eprintln!("{line}");
        }
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// When the first update of this run was seen.
    pub(super) fn first_step(&self) -> Option<Instant> {
        *self.first_step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the status until aborted.
    pub(super) fn watch(
        &self,
        mut status: watch::Receiver<Status>,
        from_step: u64,
    ) -> impl Future<Output = ()> + use<> {
        let progress = self.clone();
        async move {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% eta {eta}");
            progress.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            progress.bar.reset();
            let begun = Instant::now();
            let mut printed = begun;
            let mut shown = String::new();
            while status.changed().await.is_ok() {
                let now = Instant::now();
                let status = status.borrow_and_update().clone();
                if status.global_step > from_step {
                    let mut first = progress.first_step.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(now);
                }
                let line = line(&status, begun.elapsed());
                if progress.terminal {
                    let (done, all) = match status.staged_partitions {
                        Some((done, all)) => (u64::from(done), u64::from(all)),
                        None => (status.rows, status.rows_total.unwrap_or(0)),
                    };
                    progress.bar.set_length(all.max(1));
                    progress.bar.set_position(done);
                    progress.bar.set_message(line);
                } else if !progress.quiet && (now.duration_since(printed) >= EVERY) && line != shown {
                    progress.say(&line);
                    printed = now;
                    shown = line;
                }
            }
        }
    }
}

fn line(status: &Status, elapsed: Duration) -> String {
    let rate = status.rows as f64 / elapsed.as_secs_f64().max(1e-3);
    let at = match status.staged_partitions {
        Some((done, all)) => format!("partition {done}/{all}"),
        None => {
            let epoch = (status.epochs_done + 1).min(status.epochs.max(1));
            format!("epoch {epoch}/{} · step {}", status.epochs, status.global_step)
        }
    };
    let mut line = format!("{} · {at} · {} rows · {rate:.0} rows/s", status.stage, status.rows);
    if let Some(loss) = status.loss {
        line.push_str(&format!(" · loss {loss:.4}"));
    }
    if let Some(step) = status.checkpoint {
        line.push_str(&format!(" · checkpoint {step}"));
    }
    if let Some(reason) = &status.waiting_for {
        line.push_str(&format!(" · waiting for {reason}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_shown_like_training() {
        let staging =
            Status { stage: "staging".into(), rows: 500, staged_partitions: Some((2, 8)), ..Status::default() };
        assert_eq!(line(&staging, Duration::from_secs(2)), "staging · partition 2/8 · 500 rows · 250 rows/s");
        let training = Status {
            stage: "training".into(),
            global_step: 40,
            epochs: 3,
            epochs_done: 1,
            rows: 1000,
            loss: Some(0.25),
            checkpoint: Some(20),
            waiting_for: Some("a worker".into()),
            staged_partitions: None,
            ..staging
        };
        let expected = "training · epoch 2/3 · step 40 · 1000 rows · 250 rows/s · loss 0.2500 · checkpoint 20 · \
                        waiting for a worker";
        assert_eq!(line(&training, Duration::from_secs(4)), expected);
    }
}
