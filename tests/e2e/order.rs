//! Shuffled rows: every address has the same row for any number of workers and after a resume, and the rows of an epoch
//! are all of them, in an order that is not the data's.

use std::collections::BTreeMap;

use tfos_tests::data::numbers;
use tfos_tests::procs::Signal;
use tfos_tests::{Done, Lab, Submit};

use crate::verified_rows;

const ROWS: u64 = 4000;
const FILES: u64 = 10;
const EPOCHS: u64 = 2;
const BLOCK: u64 = 64;

/// Address (epoch, partition, row) and the number in the row.
type Order = BTreeMap<(u64, u64, u64), u64>;

fn job(lab: &Lab, name: &str, shape: &str, extra: &str) -> Submit {
    let data = numbers(lab.folder(), ROWS, FILES);
    let args = format!("mode=ordered epochs={EPOCHS} block={BLOCK} data={} {extra}", data.display());
    lab.probe(&args).model_dir(&lab.path(name)).flags("--quiet").flags(shape)
}

/// What the nodes printed. A row whose first training was lost was printed twice, and has to be the same row.
fn order(done: &Done) -> Order {
    let mut order = Order::new();
    for line in done.logs().lines() {
        let Some(("row", rest)) = line.split_once(' ') else { continue };
        let numbers: Vec<u64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert_eq!(numbers.len(), 4, "a line is cut: {line}");
        let (epoch, partition, row, x) = (numbers[0], numbers[1], numbers[2], numbers[3]);
        let before = order.insert((epoch, partition, row), x);
        assert!(before.is_none_or(|before| before == x), "{line}, and {before:?} before");
    }
    order
}

/// FNV-1a over the numbers in the order of their addresses, <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn hash(order: &Order) -> u64 {
    let bytes = order.values().flat_map(|x| x.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The order of seed 0. It may never change: a job that resumes under a new version has to find its rows.
const SEED_0: u64 = 0x23ca_fd0f_758c_d46d;

#[test] // SHF-1
fn the_order_is_the_same_for_any_number_of_workers_and_after_a_resume() {
    let lab = Lab::new("the_order_is_the_same_for_any_number_of_workers_and_after_a_resume");
    for (name, shape) in
        [("1", "--cluster-size 1"), ("2", "--cluster-size 3 --num-ps 1"), ("5", "--cluster-size 6 --num-ps 1")]
    {
        let done = job(&lab, name, shape, "").run().ok();
        assert_eq!(verified_rows(&lab.path(name)), EPOCHS * ROWS);
        let order = order(&done);
        check(&order);
        assert_eq!(hash(&order), SEED_0, "{name} workers: {:#x}", hash(&order));
    }
    let gate = lab.gate("gate");
    let mut broken = job(&lab, "broken", "--cluster-size 3 --num-ps 1 --save-checkpoints-steps 20", "");
    broken = broken.args_of(gate.arguments(150));
    let mut running = broken.start();
    gate.reached(&mut running, &[0, 1]);
    let step = running.until_checkpoint(20);
    assert!(step < EPOCHS * ROWS / 10, "the job was to be in its middle, not at step {step}");
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().signal(), Some(9));
    let resumed = job(&lab, "broken", "--cluster-size 1", "").run().ok().says(&["resuming from step"]);
    assert!(resumed.number("rows") as u64 <= EPOCHS * ROWS - step * 10);
    assert_eq!(verified_rows(&lab.path("broken")), EPOCHS * ROWS);
    let order = order(&resumed);
    assert_eq!(hash(&order), SEED_0, "after a resume: {:#x}", hash(&order));
}

#[test]
fn another_seed_is_another_order_and_is_not_resumed_on() {
    let lab = Lab::new("another_seed_is_another_order_and_is_not_resumed_on");
    let done = job(&lab, "model", "--cluster-size 1 --max-steps 100", "").run().ok();
    assert_eq!(done.number("global_step"), 100.0);
    let words = ["has changed since", "its shuffling"];
    job(&lab, "model", "--cluster-size 1", "seed=1").run().fails(1, &words);
    let other = order(&job(&lab, "other", "--cluster-size 1", "seed=1").run().ok());
    check(&other);
    assert_ne!(hash(&other), SEED_0);
}

/// Each epoch has every row, in an order of its own, and a row is never further than a block from where it was.
fn check(order: &Order) {
    let epochs: Vec<Vec<u64>> = (0..EPOCHS)
        .map(|epoch| order.iter().filter(|(address, _)| address.0 == epoch).map(|(_, x)| *x).collect())
        .collect();
    for rows in &epochs {
        let mut sorted = rows.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..ROWS), "an epoch has not each row once");
        let moved: Vec<u64> = rows.iter().zip(0..).map(|(x, at)| x.abs_diff(at)).collect();
        let mean = moved.iter().sum::<u64>() as f64 / ROWS as f64;
        // A third of a block, by the theory; blocks at the ends of the files are shorter.
        assert!((BLOCK as f64 / 4.0..BLOCK as f64 / 2.5).contains(&mean), "rows moved by {mean} on average");
        assert!(moved.iter().all(|m| *m < BLOCK));
    }
    assert_ne!(epochs.first(), epochs.get(1));
}
