//! Requests and answers through a model directory on a file system.

use tokio::sync::mpsc::unbounded_channel;

use super::*;

const LONG: Duration = Duration::from_secs(30);

async fn running() -> (tempfile::TempDir, ModelDir, Generation) {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    let generation = dir.claim_generation("{}").await.unwrap();
    (folder, dir, generation)
}

#[tokio::test]
async fn requests_come_in_their_order_and_each_gets_its_answer() {
    let (_folder, dir, generation) = running().await;
    let (events, mut heard) = unbounded_channel();
    let watching = tokio::spawn(watch(dir.clone(), generation, events));
    let answering = tokio::spawn({
        let dir = dir.clone();
        async move {
            for wanted in 1..=2 {
                let Some(Event::SetAsked { number, consistency }) = heard.recv().await else { panic!("no request") };
                assert_eq!(number, wanted);
                let answer = Answer { consistency, global_step: Some(10 * number), error: None };
                assert!(reply(&dir, generation, number, &answer).await.unwrap());
            }
        }
    });
    for (text, step) in [("sync:2", 10), ("async", 20)] {
        let answer = ask(&dir, text, LONG).await.unwrap();
        assert_eq!((answer.consistency.as_str(), answer.global_step, answer.error), (text, Some(step), None));
    }
    answering.await.unwrap();
    // Nobody listens any more: the watch ends by itself.
    watching.await.unwrap();
}

#[tokio::test]
async fn a_request_that_nobody_answers_is_withdrawn_and_is_not_heard_later() {
    let (_folder, dir, generation) = running().await;
    let error = ask(&dir, "sync", Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::NotRunning { generation: 1, .. }), "{error}");
    assert_eq!(take(&dir, generation, 1).await.unwrap(), Some(None));
    let request = Some(Some(Request { consistency: "async".into() }));
    let asked = tokio::spawn({
        let dir = dir.clone();
        async move { ask(&dir, "async", LONG).await }
    });
    let found = async {
        loop {
            match take(&dir, generation, 2).await.unwrap() {
                None => tokio::task::yield_now().await,
                found => return found,
            }
        }
    };
    assert_eq!(tokio::time::timeout(LONG, found).await.unwrap(), request);
    let answer = Answer { consistency: "async".into(), global_step: None, error: Some("no".into()) };
    assert!(reply(&dir, generation, 2, &answer).await.unwrap());
    assert_eq!(asked.await.unwrap().unwrap(), answer);
}

#[tokio::test]
async fn without_any_job_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = ModelDir::open(&folder.path().display().to_string()).unwrap();
    let error = ask(&dir, "sync", LONG).await.unwrap_err();
    assert!(matches!(error, Error::NotRunning { generation: 0, .. }), "{error}");
    assert!(!folder.path().join("job").exists());
}
