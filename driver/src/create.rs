//! Creates a file exactly once over a connection that may be cut: the store's client repeats no request of this kind by
//! itself, because the one that was cut may have been heard.

use std::time::Duration;

use bytes::Bytes;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::{PutMode, PutOptions, PutPayload, Result};

use crate::model_dir::ModelDir;

/// How often a request is made again, and how long it waits before the first time.
const AGAIN: u32 = 6;
const PAUSE: Duration = Duration::from_millis(100);

impl ModelDir {
    /// Creates a file; `AlreadyExists` when it is there, perhaps by a request of this very call whose answer was lost.
    pub(crate) async fn create(&self, relative: &str, content: Bytes) -> Result<()> {
        let path = self.path(relative);
        for turn in 0.. {
            let payload = PutPayload::from(content.clone());
            match self.store().put_opts(&path, payload, PutOptions::from(PutMode::Create)).await {
                Err(error) if turn < AGAIN && was_cut(&error) => {
                    tracing::warn!("`{relative}` is created again, the connection was cut: {error}");
                    tokio::time::sleep(PAUSE * 2u32.pow(turn)).await;
                }
                other => return other.map(drop),
            }
        }
        Ok(())
    }
}

/// Whether there was no answer, so that nobody knows what became of the request.
fn was_cut(error: &object_store::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = next {
        if let Some(http) = e.downcast_ref::<HttpError>() {
            // The client itself repeats those that never reached the store.
            return !matches!(http.kind(), HttpErrorKind::Connect);
        }
        next = e.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_without_an_answer_is_made_again() {
        let http = |kind| HttpError::new(kind, std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "S3", source };
        assert!(was_cut(&failed(http(HttpErrorKind::Interrupted).into())));
        assert!(was_cut(&failed(http(HttpErrorKind::Timeout).into())));
        assert!(!was_cut(&failed(http(HttpErrorKind::Connect).into())));
        assert!(!was_cut(&failed("500".into())));
    }
}
