//! What the refusal of a store means for whoever wrote the address: keys, bucket, or a server that is not there.
//!
//! The answer of an S3 server repeats the key's id and what was signed, so of an answer only its code is shown.

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};
use tfos_core::failure::chain;
use url::Url;

use crate::error::Error;

/// What S3 servers say of a key that they do not know or that does not fit.
const CODES: [&str; 6] = [
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    // Of versitygw.
    "XAdminUserNotFound",
];

/// The user's mistakes among a remote store's errors; any other is given back.
pub fn explain(source: object_store::Error, url: &str) -> Result<Error, object_store::Error> {
    let Some(scheme) = Url::parse(url).ok().map(|u| u.scheme().to_owned()).filter(|s| s != "file") else {
        return Err(source);
    };
    let (keys, place) = variables(&scheme);
    let url = url.to_owned();
    // No type tells these two apart from others; the codes are those of the S3 protocol.
    let said = chain(&source).join(": ");
    let code = said.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    let code = code.unwrap_or_default().to_owned();
    if code == "NoSuchBucket" || said.contains("ContainerNotFound") {
        return Ok(Error::NoBucket { url, place, answer: Box::new(source) });
    }
    let refused =
        matches!(source, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. });
    // The answer to a listing has no type of its own.
    let refused = refused || CODES.contains(&code.as_str()) || said.contains("403 Forbidden");
    if refused || said.contains("Missing AccessKeyId") || said.contains("Missing SecretAccessKey") {
        let code = if code.is_empty() { "no permission".to_owned() } else { code };
        return Ok(Error::Refused { url, code, keys, answer: Box::new(source) });
    }
    if said.contains("169.254.169.254") {
        // No key in the environment: the client asked the host for the role of a cloud's machine.
        return Ok(Error::Refused { url, code: "no key is given".to_owned(), keys, answer: Box::new(source) });
    }
    match absence(&source) {
        Some(why) => Ok(Error::Unreachable { url, why, place, answer: Box::new(source) }),
        None => Err(source),
    }
}

/// What names the keys of a store, and what names the place of its server.
fn variables(scheme: &str) -> (&'static str, &'static str) {
    match scheme {
        "s3" | "s3a" => ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL and AWS_ALLOW_HTTP"),
        "gs" => ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BASE_URL"),
        "az" | "adl" | "azure" | "abfs" | "abfss" => {
            ("AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ENDPOINT")
        }
        "hdfs" | "viewfs" => ("HADOOP_USER_NAME and the permissions of the path", "HADOOP_CONF_DIR"),
        _ => ("what the server asks for", "the network"),
    }
}

/// Why there was no answer at all, if there was none.
fn absence(error: &object_store::Error) -> Option<String> {
    let (mut absent, mut last) = (false, None);
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(e) = next {
        let http = e.downcast_ref::<HttpError>().map(HttpError::kind);
        absent |= matches!(http, Some(HttpErrorKind::Connect | HttpErrorKind::Timeout));
        // The client's word for plain http that was not allowed.
        absent |= e.to_string() == "URL scheme is not allowed";
        absent |= e.is::<std::io::Error>() || e.is::<tokio::time::error::Elapsed>();
        last = Some(e.to_string());
        next = e.source();
    }
    last.filter(|_| absent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: source.into() }
    }

    #[test]
    fn only_the_code_of_an_answer_is_shown() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIDEXAMPLE</AWSAccessKeyId></Error>";
        let denied = object_store::Error::PermissionDenied { path: "k".into(), source: body.into() };
        for answer in [denied, generic(body)] {
            let error = explain(answer, "s3://b/k").unwrap();
            let text = chain(&error).join(": ");
            assert!(text.contains("SignatureDoesNotMatch") && text.contains("AWS_ACCESS_KEY_ID"), "{text}");
            assert!(!text.contains("AKIDEXAMPLE"), "{text}");
            assert!(error.is_user());
        }
        for keyless in ["Missing AccessKeyId", "403 Forbidden"] {
            assert!(matches!(explain(generic(keyless), "s3://b/k"), Ok(Error::Refused { .. })), "{keyless}");
        }
    }

    #[test]
    fn a_silent_server_and_a_missing_bucket_are_told_apart() {
        let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = explain(generic(refused()), "s3://b/k").unwrap();
        assert!(matches!(&error, Error::Unreachable { .. }) && error.to_string().contains("AWS_ENDPOINT_URL"));
        let error = explain(generic("<Code>NoSuchBucket</Code>"), "s3://b/k").unwrap();
        assert!(matches!(error, Error::NoBucket { .. }), "{error}");
        assert!(explain(generic("else"), "s3://b/k").is_err());
        assert!(explain(generic(refused()), "/local").is_err(), "a local file has no server");
    }
}
