//! Performing a call, and what its answer means for a saga.
//!
//! Decides which answers are the business's no, which may pass, and which say that we are wrong as
//! such. Never decides about attempts. Secrets are put in here, and never stand in what is returned:
//! where a participant repeats one, it is taken out.

use crate::definition::{Call, Class, HeaderText, Method};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect;
use serde_json::Value;
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;

/// Longest answer that is an output.
pub(crate) const ANSWER_BYTES: usize = 1 << 20;
/// As much of another answer is kept.
const REFUSAL_BYTES: usize = 16 << 10;

/// What a call carries beside what its definition says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys<'a> {
    pub(crate) key: &'a str,
    pub(crate) key_of: Option<&'a str>,
    pub(crate) traceparent: &'a str,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CallOutcome {
    /// It was done; the answer.
    Done(Value),
    /// The business does not allow it.
    Business { status: u16, body: Value },
    /// It may pass.
    Transient { message: String, retry_after: Option<Duration>, may_have_acted: bool },
    /// The other side refuses us as such.
    Misconfigured(String),
    /// It cannot be made, or its answer cannot be kept: a person has to look.
    Fatal(String),
}

/// Performs calls.
pub(crate) struct Caller {
    client: reqwest::Client,
    /// Calls that may begin: each takes a connection, and with it a file of the process.
    room: Semaphore,
}

impl Caller {
    /// One that makes so many `calls` at once; others wait, within the time of their attempt.
    pub(crate) fn new(calls: usize) -> Result<Self, String> {
        client().map(|client| Self { client, room: Semaphore::new(calls) })
    }

    pub(crate) async fn perform(&self, call: &Call, keys: Keys<'_>) -> CallOutcome {
        let mut secrets = Vec::new();
        let headers = match headers(call, keys, &mut secrets) {
            Ok(headers) => headers,
            Err(Headers::Missing(why)) => return CallOutcome::Misconfigured(why),
            Err(Headers::Wrong(why)) => return CallOutcome::Fatal(why),
        };
        let method = match call.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
            Method::Delete => reqwest::Method::DELETE,
        };
        let url: url::Url = match call.url.parse() {
            Ok(url) => url,
            Err(error) => return CallOutcome::Fatal(format!("{:?} is no address: {error}", call.url)),
        };
        // It is never closed.
        let _room = self.room.acquire().await;
        let mut request = self.client.request(method, url).headers(headers);
        if let Some(json) = &call.json {
            request = request.body(json.to_string());
        }
        match request.send().await {
            Ok(response) => judge(response, call, keys.key_of.is_some(), &secrets).await,
            Err(error) => CallOutcome::Transient {
                may_have_acted: !error.is_connect(),
                message: chain(&error.without_url()),
                retry_after: None,
            },
        }
    }
}

/// What sends requests.
pub(crate) fn client() -> Result<reqwest::Client, String> {
    // Another part of the process may have chosen one already; it is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(redirect::Policy::none())
        .user_agent(concat!("rallypoint/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.to_string())
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why a call has no headers.
enum Headers {
    /// The environment lacks something: a person sets it.
    Missing(String),
    /// They cannot be sent.
    Wrong(String),
}

fn headers(call: &Call, keys: Keys<'_>, secrets: &mut Vec<String>) -> Result<HeaderMap, Headers> {
    let mut headers = HeaderMap::new();
    if call.json.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for (name, value) in &call.headers {
        let name: HeaderName =
            name.parse().map_err(|_| Headers::Wrong(format!("{name:?} is no name of a header")))?;
        let unsendable = || Headers::Wrong(format!("the value of the header {name} cannot be sent"));
        let value = match value {
            HeaderText::Text(text) => text.parse().map_err(|_| unsendable())?,
            HeaderText::Secret(variable) => {
                let secret = std::env::var(variable).ok().filter(|secret| !secret.is_empty());
                let secret = secret.ok_or_else(|| {
                    Headers::Missing(format!(
                        "the environment has no variable {variable:?} for the header {name}: set it and \
                         start the server again"
                    ))
                })?;
                let mut value: HeaderValue = secret.parse().map_err(|_| unsendable())?;
                value.set_sensitive(true);
                secrets.push(secret);
                value
            }
        };
        headers.insert(name, value);
    }
    let own = [
        ("idempotency-key", Some(keys.key)),
        ("idempotency-key-of", keys.key_of),
        ("traceparent", Some(keys.traceparent)),
    ];
    for (name, value) in own {
        if let Some(value) = value {
            let value =
                value.parse().map_err(|_| Headers::Wrong(format!("the value of {name} cannot be sent")))?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(headers)
}

/// What stands in the place of a secret that a participant repeated.
const HIDDEN: &str = "(secret)";

fn hide(text: &mut String, secrets: &[String]) {
    for secret in secrets {
        if text.contains(secret.as_str()) {
            *text = text.replace(secret.as_str(), HIDDEN);
        }
    }
}

fn hide_in(value: &mut Value, secrets: &[String]) {
    match value {
        Value::String(text) => hide(text, secrets),
        Value::Array(items) => items.iter_mut().for_each(|item| hide_in(item, secrets)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, field)| hide_in(field, secrets)),
        _ => {}
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// What an answer means where the definition says nothing else.
fn usual(status: u16, is_undo: bool) -> Class {
    match status {
        200..=299 => Class::Done,
        404 | 410 if is_undo => Class::Done,
        401 | 403 | 405 | 407 => Class::Misconfigured,
        408 | 409 | 425 | 429 | 300..=399 | 500.. => Class::Transient,
        _ => Class::Business,
    }
}

async fn judge(
    mut response: reqwest::Response,
    call: &Call,
    is_undo: bool,
    secrets: &[String],
) -> CallOutcome {
    let status = response.status();
    let class = call.status.get(&status.as_u16()).copied();
    let class = class.unwrap_or_else(|| usual(status.as_u16(), is_undo));
    // What an undo answers is not kept.
    let is_output = class == Class::Done && !is_undo;
    let longest = if is_output { ANSWER_BYTES } else { REFUSAL_BYTES };
    let wait = retry_after(response.headers());
    let media = response.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok());
    let is_json = media.is_none_or(is_json);
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => break,
            Ok(Some(chunk)) => {
                if bytes.len() + chunk.len() > longest {
                    if is_output {
                        let message = format!(
                            "answered {status} with more than {ANSWER_BYTES} bytes, which cannot be kept: let \
                             the participant answer with a reference"
                        );
                        return CallOutcome::Fatal(message);
                    }
                    bytes.extend_from_slice(&chunk[..longest - bytes.len()]);
                    break;
                }
                bytes.extend_from_slice(&chunk);
            }
            Err(error) if is_output => {
                let message = format!("the answer broke off: {}", chain(&error.without_url()));
                return CallOutcome::Transient { message, retry_after: None, may_have_acted: true };
            }
            Err(_) => break,
        }
    }
    let mut body: Value = match serde_json::from_slice(&bytes) {
        Ok(body) if is_json => body,
        _ if bytes.is_empty() => Value::Null,
        _ => Value::String(String::from_utf8_lossy(&bytes).into_owned()),
    };
    hide_in(&mut body, secrets);
    let said = |body: &Value| {
        let short: String = match body {
            Value::Null => return format!("answered {status}"),
            Value::String(text) => text.chars().take(200).collect(),
            body => body.to_string().chars().take(200).collect(),
        };
        format!("answered {status}: {short}")
    };
    match class {
        Class::Done => CallOutcome::Done(body),
        Class::Business => CallOutcome::Business { status: status.as_u16(), body },
        // "Too many requests" is said before anything is done.
        Class::Transient => CallOutcome::Transient {
            message: said(&body),
            retry_after: wait,
            may_have_acted: status.as_u16() != 429,
        },
        Class::Misconfigured => CallOutcome::Misconfigured(said(&body)),
    }
}

/// `application/json`, `application/problem+json`, with or without parameters.
fn is_json(media: &str) -> bool {
    let essence = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_meaning_of_answers() {
        use Class::{Business, Done, Misconfigured, Transient};
        let table: [(Class, &[u16]); 4] = [
            (Done, &[200, 201, 202, 204, 299]),
            (
                Transient,
                &[300, 301, 302, 303, 304, 307, 308, 408, 409, 425, 429, 500, 501, 502, 503, 504, 599],
            ),
            (Misconfigured, &[401, 403, 405, 407]),
            (Business, &[400, 402, 404, 406, 410, 411, 412, 413, 415, 418, 422, 423, 424, 428, 431, 451]),
        ];
        for (class, all) in table {
            for &status in all {
                assert_eq!(usual(status, false), class, "{status}");
                let of_an_undo = if matches!(status, 404 | 410) { Done } else { class };
                assert_eq!(usual(status, true), of_an_undo, "{status}");
            }
        }
    }

    #[test]
    fn media_that_are_json() {
        for json in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(json), "{json}");
        }
        for other in ["text/plain", "application/jsonp", "text/html; x=application/json", ""] {
            assert!(!is_json(other), "{other}");
        }
    }

    #[test]
    fn a_repeated_secret_is_hidden() {
        let secrets = ["s3cret".to_owned()];
        let mut body = serde_json::json!({"a": ["you sent s3cret!"], "b": 1});
        hide_in(&mut body, &secrets);
        assert_eq!(body, serde_json::json!({"a": ["you sent (secret)!"], "b": 1}));
    }
}
