//! Queries with an exchange on several executors (Apache Ballista): the same rows as one process computes, each trained on
//! once, whoever is killed meanwhile.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tfos_tests::data::{convert, numbers};
use tfos_tests::procs::Signal;
use tfos_tests::wait::{self, secs};
use tfos_tests::{Gate, Lab, Running, Submit, bin};

use crate::netns::Namespaces;
use crate::reservation::Standalone;
use crate::verified_rows;

/// The folder of the only staged query, if there is one.
fn staged(lab: &Lab) -> Option<PathBuf> {
    let queries = std::fs::read_dir(lab.model().join("staging")).ok()?;
    queries.flatten().next().map(|query| query.path())
}

/// Names of the files that its manifest names.
fn files_of(lab: &Lab) -> Vec<String> {
    let manifest = std::fs::read(staged(lab).unwrap().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let files = manifest["files"].as_array().unwrap();
    files.iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
}

/// The values that nodes of `mode=ordered` say they were trained on.
fn trained_on(logs: &str) -> Vec<i64> {
    logs.lines().filter_map(|line| line.strip_prefix("row ")?.rsplit_once(' ')?.1.parse().ok()).collect()
}

/// The same, of executors that somebody started, when they have ended.
fn trained_in(executors: Vec<Running>) -> Vec<i64> {
    executors.into_iter().flat_map(|executor| trained_on(&executor.wait().stdout)).collect()
}

/// Tables of TPC-H, a hundredth of the smallest official size.
fn tpch(lab: &Lab) -> String {
    let to = lab.path("tpch");
    if !to.exists() {
        let words = format!("mode=tpch scale=0.01 files=5 to={}", to.display());
        Submit::new(&bin::probe().display().to_string()).args(&words).run().ok();
    }
    let table = |name: &str| format!("{name}:{}/", to.join(name).display());
    format!("tables={},{},{}", table("customer"), table("orders"), table("lineitem"))
}

/// After TPC-H's third query: revenue by order of one market segment, as a whole
/// number of no more than five digits, so that a model does not diverge on it. The function stands still at the
/// gate in the middle of the scan of `orders`.
fn revenue(gate: &Path) -> String {
    format!(
        "SELECT CAST(sum(l_extendedprice * (1 - l_discount)) * 10000 AS BIGINT) % 100003 AS x \
         FROM customer JOIN orders ON c_custkey = o_custkey JOIN lineitem ON l_orderkey = o_orderkey \
         WHERE c_mktsegment = 'BUILDING' AND gated(o_orderkey, 30016, '{}') > 0 AND l_shipdate > DATE '1995-03-15' \
         GROUP BY l_orderkey, o_orderdate",
        gate.display()
    )
}

/// A cluster of three that train, each on a host of its own, and a ps beside the driver.
struct Cluster<'a> {
    lab: &'a Lab,
    hosts: &'a Namespaces,
    query: String,
}

impl Cluster<'_> {
    fn submit(&self, more: &[String]) -> (Standalone, Vec<Running>) {
        let words = ["mode=ordered".to_owned(), tpch(self.lab), format!("sql={}", self.query)];
        let job =
            self.lab.probe("").args_of(words).args_of(more).flags("--cluster-size 4 --num-ps 1 --advertise 10.77.0.1");
        let job = Standalone::start(job.flags("--save-checkpoints-steps 20").through(&self.hosts.exec("driver")));
        std::fs::create_dir_all(self.lab.path("tmp")).unwrap();
        let near = job.executor("--executor-id 0 --threads 1 --bind 10.77.0.1").through(&self.hosts.exec("driver"));
        let far = (1..4).map(|id| {
            let executor = job.executor(&format!("--executor-id {id} --threads 1"));
            let executor = executor.env("TMPDIR", &self.lab.path("tmp").display().to_string());
            executor.through(&self.hosts.exec(&format!("node{id}"))).start()
        });
        let executors = std::iter::once(near.start()).chain(far).collect();
        (job, executors)
    }
}

/// The gate of the query, closed or open, and nobody in front of it.
fn closed(lab: &Lab, name: &str) -> Gate {
    let _ = std::fs::remove_file(lab.path(name));
    let _ = std::fs::remove_file(lab.path(&format!("{name}.reached-0")));
    lab.gate(name)
}

#[test] // STG-2
fn a_join_on_three_hosts_survives_kills_while_it_is_staged_and_while_it_is_fed() {
    let lab = Lab::new("a_join_on_three_hosts_survives_kills_while_it_is_staged_and_while_it_is_fed");
    let Some(hosts) = Namespaces::of_nodes(3) else { return };
    let mut gate = closed(&lab, "gate");
    let cluster = Cluster { lab: &lab, hosts: &hosts, query: revenue(&lab.path("gate")) };

    // Somebody stands in the middle of the query when another is killed.
    let (mut job, executors) = cluster.submit(&[]);
    gate.reached(&mut job.driver, &[0]);
    let at = staged(&lab).map(|query| query.join("manifest.json").exists());
    assert_ne!(at, Some(true), "there is a manifest before the query has ended");
    let killed = std::time::Instant::now();
    executors[3].signal(Signal::SIGKILL);
    let done = job.driver.wait().fails(1, &["worker:1", "control stream", "by 3 executors (Ballista)"]);
    assert!(killed.elapsed() < secs(2), "the end came {:?} after the kill", killed.elapsed());
    drop((done, executors.into_iter().map(Running::wait).collect::<Vec<_>>()));
    // Not even the one that was killed leaves what it had written for the others.
    let left = || std::fs::read_dir(lab.path("tmp")).unwrap().next().is_none().then_some(());
    wait::until("no shuffle files", secs(5), left);
    assert!(!staged(&lab).is_some_and(|query| query.join("manifest.json").exists()), "half a query counts");

    // Submitted again it is staged anew, and a kill in the middle of the epoch loses and repeats nothing.
    gate.open();
    let mut feeding = lab.gate("feeding");
    let (mut job, executors) = cluster.submit(&feeding.arguments(15));
    feeding.reached(&mut job.driver, &[0, 1, 2]);
    job.driver.until_checkpoint(20);
    executors[2].signal(Signal::SIGKILL);
    job.driver.wait().fails(1, &["worker:0", "control stream", "staged "]);
    let mut seen = trained_in(executors);
    feeding.open();
    let (job, executors) = cluster.submit(&feeding.arguments(15));
    job.driver.wait().ok().says(&["was staged before", "resuming from step"]);
    seen.extend(trained_in(executors));
    let rows = verified_rows(&lab.model());

    // Everybody has written files, and only those of one attempt at each partition are there.
    let files = files_of(&lab);
    for node in ["chief0", "worker0", "worker1"] {
        assert!(files.iter().any(|f| f.contains(&format!(".{node}-"))), "{node} wrote nothing: {files:?}");
    }

    // The same query in one process.
    let other = Lab::path(&lab, "alone");
    let words = ["mode=ordered".to_owned(), tpch(&lab), format!("sql={}", cluster.query)];
    let program = bin::probe().display().to_string();
    let alone = Submit::new(&program).model_dir(&other).args_of(words).flags("--engine datafusion --quiet").run().ok();
    let mut expected = trained_on(&alone.says(&["by one executor"]).logs());
    assert!(expected.len() > 500, "{} rows are no test", expected.len());
    // Steps behind the last checkpoint were trained on again, so values may come twice; rows that count do not.
    assert_eq!(rows, expected.len() as u64);
    for values in [&mut seen, &mut expected] {
        values.sort_unstable();
        values.dedup();
    }
    assert!(seen == expected, "{} values, and {} of one process", seen.len(), expected.len());
}

#[test]
fn scans_functions_and_stores_travel() {
    let lab = Lab::new("scans_functions_and_stores_travel");
    let parquet = numbers(lab.folder(), 3000, 3);
    let (records, text) = (lab.path("records"), lab.path("text.csv.gz"));
    convert(&parquet, &records, "--num-files 4 --to-format tfrecord");
    let lines: String = (0..3000).map(|i| format!("{i},{}\n", i % 7)).collect();
    let plain = lab.write("text.csv", format!("x,k\n{lines}"));
    std::process::Command::new("gzip").arg(&plain).status().unwrap();
    let tables = format!("tables=a:{}/,b:{},c:{}/", records.display(), text.display(), parquet.display());
    let query = "SELECT touchy(sum(a.x), CAST(-1 AS BIGINT)) AS x FROM a JOIN b ON a.x = b.x JOIN c ON a.x = c.x \
                 WHERE touchy(c.x, CAST(-1 AS BIGINT)) >= 0 AND b.k < 6 GROUP BY a.x % 500";
    let job = || lab.probe("").args_of(["mode=sum", &tables, &format!("sql={query}")]);
    let done = job().flags("--engine ballista --cluster-size 4 --num-ps 1").run().ok();
    let done = done.says(&["by 3 executors (Ballista)", "staged 500 rows"]);
    let sum: u64 = (0..3000).filter(|i| i % 7 < 6).sum();
    // Means of what three report.
    assert_eq!((done.number("metrics.sum") * 3.0, done.number("metrics.rows") * 3.0), (sum as f64, 500.0));
    // What executors wrote for each other is gone.
    let left = |folder: &Path| folder.join("job/logs/g1/shuffle").exists();
    assert!(!left(&lab.model()), "shuffle files are left");
}

#[test]
fn a_failure_in_a_task_is_told_with_its_cause_and_an_interrupt_is_one() {
    let lab = Lab::new("a_failure_in_a_task_is_told_with_its_cause_and_an_interrupt_is_one");
    let data = numbers(lab.folder(), 4000, 8);
    let job = |query: &str| {
        let words = ["mode=sum".to_owned(), format!("data={}", data.display()), format!("sql={query}")];
        lab.probe("").args_of(words).flags("--engine ballista --cluster-size 3 --num-ps 1 --quiet")
    };
    job("SELECT touchy(x, CAST(2345 AS BIGINT)) AS x FROM data ORDER BY x")
        .run()
        .fails(1, &["deliberate panic at 2345"])
        .error();
    job("SELECT CAST(arrow_cast(x, 'Utf8') || 'x' AS BIGINT) AS x FROM data ORDER BY x")
        .run()
        .fails(1, &["Cannot cast"])
        .error();
    let gate = lab.gate("gate");
    let mut running =
        job(&format!("SELECT gated(x, 2000, '{}') AS x FROM data ORDER BY x", lab.path("gate").display())).start();
    gate.reached(&mut running, &[0]);
    running.signal(Signal::SIGINT);
    running.wait().fails(130, &[]);
    let manifests = staged(&lab).map(|query| query.join("manifest.json").exists());
    assert_ne!(manifests, Some(true), "an interrupted query was taken for a whole one");
    wait::until("no shuffle files", secs(5), || {
        let left = std::fs::read_dir(lab.model().join("job/logs")).unwrap().flatten();
        left.into_iter().all(|g| !g.path().join("shuffle").exists()).then_some(())
    });
}

#[test]
fn an_engine_that_cannot_be_honoured_is_an_error() {
    let lab = Lab::new("an_engine_that_cannot_be_honoured_is_an_error");
    let job = |flags: &str| lab.probe("mode=idle").flags(flags).run();
    job("--engine spark").fails(2, &["--engine", "`spark`", "`ballista`"]);
    job("--engine ballista --deterministic").fails(2, &["--engine", "--deterministic"]);
    let shown = job("--engine ballista --dry-run").ok();
    assert_eq!(shown.json["job"]["engine"], "ballista");
    let file = lab.write("job.yaml", "engine: datafusion\n");
    let shown = lab.probe("mode=idle").flags("--dry-run").flag("--config", &file).run().ok();
    assert_eq!(shown.json["job"]["engine"], "datafusion");
}
