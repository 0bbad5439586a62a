//! The dial and its older spellings: what is honoured, and what is refused with words.

use std::num::NonZeroU32;

use super::super::raw::ConfigError;
use super::super::valid::Job;
use super::*;

fn raw() -> RawJob {
    RawJob { application: Some("mnist".into()), ..RawJob::default() }
}

fn keys(job: Result<Job, ConfigError>) -> Vec<String> {
    job.unwrap_err().problems.into_iter().map(|p| p.key).collect()
}

#[test]
fn the_dial_says_in_one_word_what_the_older_options_say() {
    let dial = |text: &str| {
        let shape = RawJob { cluster_size: Some(4), num_ps: Some(1), ..raw() };
        Job::check(RawJob { consistency: Some(text.into()), ..shape }).map(|job| job.consistency)
    };
    let sync = |replicas_to_aggregate| Consistency::Sync { replicas_to_aggregate };
    let local = Consistency::LocalSgd { steps: NonZeroU32::new(8).unwrap() };
    for (text, wanted) in [
        ("sync", sync(3)),
        ("sync:2", sync(2)),
        ("async", Consistency::Async),
        ("ssp:0", Consistency::Bounded { max_staleness: 0 }),
        ("local-sgd:8", local),
    ] {
        let found = dial(text).unwrap();
        assert_eq!(found, wanted, "{text}");
        assert_eq!(Consistency::parse(&found.to_string(), 3, 1), Ok(wanted));
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<Consistency>(&json).unwrap(), found);
    }
    for (text, word) in [
        ("sync:4", "give 1 to 3"),
        ("sync:0", "give 1 to 3"),
        ("ssp", "ssp:N"),
        ("ssp:x", "`x`"),
        ("local-sgd", "local-sgd:N"),
        ("local-sgd:0", "1 step or more"),
        ("async:1", "none of"),
        ("bsp", "local-sgd:H"),
        ("", "none of"),
    ] {
        let told = dial(text).unwrap_err().to_string();
        assert!(told.contains("--consistency") && told.contains(word), "{text}: {told}");
    }
}

#[test]
fn what_contradicts_the_dial_is_told_with_all_the_rest() {
    let job = RawJob {
        cluster_size: Some(4),
        num_ps: Some(1),
        consistency: Some("bsp".into()),
        sync_replicas: Some(true),
        replicas_to_aggregate: Some(9),
        max_staleness: Some(1),
        deterministic: Some(true),
        ..raw()
    };
    let told = Job::check(job).unwrap_err();
    let of_dial = told.problems.iter().filter(|p| p.key == "--consistency").count();
    assert_eq!(of_dial, 5, "{told}");
    assert!(told.to_string().contains("--replicas-to-aggregate: 9 of 3"), "{told}");
}

#[test]
fn groups_have_names_and_the_last_has_the_rest() {
    let of = |text: &str| Consistency::parse(text, 3, 1);
    let groups = of("embed.*=async, out.*=ssp:2 ,sync:2").unwrap();
    assert_eq!(groups.to_string(), "embed.*=async,out.*=ssp:2,*=sync:2");
    assert_eq!(of(&groups.to_string()), Ok(groups.clone()));
    let json = serde_json::to_string(&groups).unwrap();
    assert_eq!(serde_json::from_str::<Consistency>(&json).unwrap(), groups);
    for (text, words) in [
        ("a=sync", &["no group has the rest"][..]),
        ("sync,a=async", &["comes after the rest"]),
        ("a=sync:2,sync:3", &["one number"]),
        ("a=local-sgd:4,sync", &["whole model"]),
        ("=async,b=bsp,sync:9", &["no name", "`bsp`", "give 1 to 3"]),
    ] {
        let told = of(text).unwrap_err();
        assert_eq!(told.len(), words.len(), "{text}: {told:?}");
        assert!(words.iter().all(|word| told.iter().any(|t| t.contains(word))), "{text}: {told:?}");
    }
    assert!(Consistency::parse("a=async,sync", 1, 0).unwrap_err()[0].contains("--num-ps"));
    let both = RawJob { num_ps: Some(1), consistency: Some("a=async,sync".into()), deterministic: Some(true), ..raw() };
    assert_eq!(keys(Job::check(both)), ["--consistency"]);
}

#[test]
fn local_sgd_needs_somebody_who_averages_and_a_cpu() {
    let of = |num_ps, num_gpus| {
        let consistency = Some("local-sgd:4".into());
        keys(Job::check(RawJob { cluster_size: Some(3), num_ps, num_gpus, consistency, ..raw() }))
    };
    assert_eq!(of(None, None), ["--cluster-size", "--consistency"]);
    assert_eq!(of(Some(1), Some(1)), ["--consistency"]);
}

#[test]
fn synchronous_training_aggregates_all_unless_told_otherwise() {
    let sync = |r| {
        Job::check(RawJob {
            cluster_size: Some(4),
            num_ps: Some(1),
            sync_replicas: Some(true),
            replicas_to_aggregate: r,
            ..raw()
        })
    };
    assert_eq!(sync(None).unwrap().consistency, Consistency::Sync { replicas_to_aggregate: 3 });
    assert_eq!(sync(Some(2)).unwrap().consistency, Consistency::Sync { replicas_to_aggregate: 2 });
    assert!(sync(Some(4)).unwrap_err().to_string().contains("give 1 to 3"));
}

#[test]
fn staleness_is_bounded_in_asynchronous_training_only() {
    let bounded = |sync_replicas, replicas_to_aggregate| {
        let shape = RawJob { cluster_size: Some(4), num_ps: Some(1), ..raw() };
        Job::check(RawJob { max_staleness: Some(2), sync_replicas, replicas_to_aggregate, ..shape })
    };
    let consistency = bounded(None, None).unwrap().consistency;
    assert_eq!(consistency, Consistency::Bounded { max_staleness: 2 });
    let text = serde_json::to_string(&consistency).unwrap();
    assert_eq!(serde_json::from_str::<Consistency>(&text).unwrap(), consistency);
    assert_eq!(keys(bounded(Some(true), None)), ["--max-staleness"]);
    assert_eq!(keys(bounded(Some(true), Some(2))), ["--max-staleness"]);
    assert_eq!(keys(bounded(None, Some(2))), ["--replicas-to-aggregate"]);
}

#[test]
fn deterministic_training_is_synchronous_and_on_cpus() {
    let of = |change: fn(&mut RawJob)| {
        let mut job = RawJob { cluster_size: Some(4), num_ps: Some(1), deterministic: Some(true), ..raw() };
        change(&mut job);
        Job::check(job)
    };
    let cut = |n| Consistency::Deterministic { micro_batches: NonZeroU32::new(n).unwrap() };
    let job = of(|_| {}).unwrap();
    assert_eq!(job.consistency, cut(8));
    let text = serde_json::to_string(&job.consistency).unwrap();
    assert_eq!(serde_json::from_str::<Consistency>(&text).unwrap(), job.consistency);
    assert_eq!(of(|job| job.micro_batches = Some(3)).unwrap().consistency, cut(3));
    let all = of(|job| (job.sync_replicas, job.replicas_to_aggregate) = (Some(true), Some(3)));
    assert_eq!(all.unwrap().consistency, cut(8));
    assert_eq!(keys(of(|job| job.micro_batches = Some(0))), ["--micro-batches"]);
    assert_eq!(keys(of(|job| job.max_staleness = Some(0))), ["--max-staleness"]);
    assert_eq!(keys(of(|job| job.num_gpus = Some(1))), ["--num-gpus"]);
    let backups = of(|job| (job.sync_replicas, job.replicas_to_aggregate) = (Some(true), Some(2)));
    assert_eq!(keys(backups), ["--replicas-to-aggregate"]);
    let alone = of(|job| (job.deterministic, job.micro_batches) = (None, Some(2)));
    assert_eq!(keys(alone), ["--micro-batches"]);
}
