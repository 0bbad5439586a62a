//! Says when a store does not do what it is asked: its client tries again by itself, and nobody would know why nothing moves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};
use object_store::{ClientOptions, Result};
use tfos_core::failure::chain;

/// A request that takes longer is told, even if it succeeds.
const SLOW: Duration = Duration::from_secs(10);

/// How often the same trouble is told.
const AGAIN: Duration = Duration::from_secs(10);

/// Trouble with a store, as it goes on.
#[derive(Debug)]
struct Trouble {
    began: Instant,
    failed: u64,
}

/// How a store does. Decides what is worth a line.
#[derive(Debug, Default)]
struct Health {
    trouble: Option<Trouble>,
    /// When trouble was told last, and whether its end is still to be told.
    told: Option<Instant>,
    owes: bool,
}

impl Health {
    /// A request failed.
    fn failed(&mut self, now: Instant, what: &str) -> Option<String> {
        let trouble = self.trouble.get_or_insert(Trouble { began: now, failed: 0 });
        trouble.failed += 1;
        if self.told.is_some_and(|at| now.duration_since(at) < AGAIN) {
            return None;
        }
        self.told = Some(now);
        self.owes = true;
        Some(if trouble.failed == 1 {
            format!("{what}; it is asked again")
        } else {
            let seconds = now.duration_since(trouble.began).as_secs_f64();
            format!("{what}; {} requests have failed in {seconds:.1} s, and are made again", trouble.failed)
        })
    }

    /// A request succeeded, after `took`.
    fn answered(&mut self, now: Instant, took: Duration, what: &str) -> Option<String> {
        let over = self.trouble.take();
        if let Some(Trouble { began, failed }) = over
            && std::mem::take(&mut self.owes)
        {
            let seconds = now.duration_since(began).as_secs_f64();
            return Some(format!("the store answers again, after {seconds:.1} s and {failed} failed requests"));
        }
        (took >= SLOW).then(|| format!("{what} took {:.1} s", took.as_secs_f64()))
    }
}

/// Connects to a store, and listens to what it answers.
#[derive(Debug)]
pub(super) struct Watching {
    health: Arc<Mutex<Health>>,
}

impl Watching {
    /// For a store by its scheme and authority: the clients of one store tell its trouble once.
    pub(super) fn of(root: &str) -> Self {
        static KNOWN: Mutex<BTreeMap<String, Arc<Mutex<Health>>>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        Self { health: Arc::clone(known.entry(root.to_owned()).or_default()) }
    }
}

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Watched { inner, health: Arc::clone(&self.health) }))
    }
}

#[derive(Debug)]
struct Watched {
    inner: HttpClient,
    health: Arc<Mutex<Health>>,
}

fn tell(health: &Mutex<Health>, decide: impl FnOnce(&mut Health) -> Option<String>) {
    if let Some(line) = decide(&mut health.lock().unwrap_or_else(PoisonError::into_inner)) {
        tracing::warn!("{line}");
    }
}

/// Whether the client reads the body in one go, and does not ask again when the connection is cut in it. All but the
/// content of files are so: listings, what is said of uploads, and refusals.
fn is_read_at_once(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() != "GET" || query.contains("list-type=") || query.contains("comp=list")
}

#[async_trait::async_trait]
impl HttpService for Watched {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // The path alone: what is signed or secret stands in the query and the headers.
        let what = format!("{} {}", request.method(), request.uri().path());
        let at_once = is_read_at_once(&request);
        let begun = Instant::now();
        let mut answer = self.inner.execute(request).await;
        if let Ok(whole) = answer {
            let (head, body) = whole.into_parts();
            answer = if at_once || !head.status.is_success() {
                // Here a cut is one of the request, which the client makes again where that does no harm.
                let cut = |e| HttpError::new(HttpErrorKind::Interrupted, e);
                body.bytes().await.map(|all| HttpResponse::from_parts(head, all.into())).map_err(cut)
            } else {
                let (health, what) = (Arc::clone(&self.health), what.clone());
                let note = move |error: HttpError| {
                    tell(&health, |h| h.failed(Instant::now(), &failure(&what, &error)));
                    error
                };
                Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body.map_err(note))))
            };
        }
        let now = Instant::now();
        let trouble = match &answer {
            Err(error) => Some(failure(&what, error)),
            // What clients ask again: see object_store's retries.
            Ok(answer) if answer.status().is_server_error() || matches!(answer.status().as_u16(), 408 | 429) => {
                Some(format!("the store answers {} to {what}", answer.status()))
            }
            Ok(_) => None,
        };
        tell(&self.health, |health| match trouble {
            Some(trouble) => health.failed(now, &trouble),
            None => health.answered(now, now.duration_since(begun), &what),
        });
        answer
    }
}

fn failure(what: &str, error: &HttpError) -> String {
    let chain = chain(error);
    format!("the store fails at {what}: {}", chain.last().map(String::as_str).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_at_its_beginning_now_and_then_and_at_its_end() {
        let (mut health, begin) = (Health::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(health.answered(at(0), Duration::ZERO, "GET /x"), None);
        assert_eq!(health.failed(at(1), "500").as_deref(), Some("500; it is asked again"));
        assert!((2..11).all(|second| health.failed(at(second), "500").is_none()));
        assert!(health.failed(at(11), "500").is_some_and(|line| line.contains("11 requests have failed in 10.0 s")));
        let over = health.answered(at(12), Duration::ZERO, "GET /x").unwrap();
        assert_eq!(over, "the store answers again, after 11.0 s and 11 failed requests");
        assert_eq!(health.answered(at(13), Duration::ZERO, "GET /x"), None);
        assert!(health.answered(at(14), SLOW, "GET /x").is_some_and(|line| line == "GET /x took 10.0 s"));
    }

    #[test]
    fn a_store_that_throttles_every_second_request_is_not_told_of_each() {
        let (mut health, begin) = (Health::default(), Instant::now());
        let at = |tenths: u64| begin + Duration::from_millis(100 * tenths);
        let mut lines = vec![];
        for tenth in 0..300 {
            lines.extend(match tenth % 2 {
                0 => health.failed(at(tenth), "503"),
                _ => health.answered(at(tenth), Duration::ZERO, "GET /x"),
            });
        }
        assert_eq!(lines.len(), 2 * 3, "{lines:?}");
    }
}
