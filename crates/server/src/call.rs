//! Performing a call, and what its answer means for a saga.
//!
//! Decides which answers are the business's no, which may pass, and which say that we are wrong as
//! such. Never decides about attempts. Secrets are put in here, and never stand in what is returned.

use crate::definition::{HttpCall, Method};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect;
use serde_json::Value;
use std::time::{Duration, SystemTime};

/// Longest answer that is read.
const ANSWER_BYTES: usize = 512 << 10;

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
}

/// Performs calls.
pub(crate) struct Caller {
    client: reqwest::Client,
}

impl Caller {
    pub(crate) fn new() -> Result<Self, String> {
        client().map(|client| Self { client })
    }

    pub(crate) async fn perform(&self, call: &HttpCall, keys: Keys<'_>) -> CallOutcome {
        let headers = match headers(call, keys) {
            Ok(headers) => headers,
            Err(why) => return CallOutcome::Misconfigured(why),
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
            Err(error) => {
                return CallOutcome::Misconfigured(format!("{:?} is no address: {error}", call.url));
            }
        };
        let mut request = self.client.request(method, url).headers(headers);
        if let Some(body) = &call.body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        match request.send().await {
            Ok(response) => judge(response).await,
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

fn headers(call: &HttpCall, keys: Keys<'_>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &call.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
        let value = secret(value).map_err(|missing| {
            format!("the environment has no variable {missing:?} for the header {name}: set it and start the server again")
        })?;
        let mut value: HeaderValue =
            value.parse().map_err(|_| format!("the value of the header {name} cannot be sent"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let own = [
        ("idempotency-key", Some(keys.key)),
        ("idempotency-key-of", keys.key_of),
        ("traceparent", Some(keys.traceparent)),
    ];
    for (name, value) in own {
        if let Some(value) = value {
            let value = value.parse().map_err(|_| format!("the value of {name} cannot be sent"))?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(headers)
}

/// Puts variables of the environment in the places of `${NAME}`.
fn secret(text: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else { break };
        out.push_str(before);
        out.push_str(&std::env::var(name).map_err(|_| name.to_owned())?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

async fn judge(mut response: reqwest::Response) -> CallOutcome {
    let status = response.status();
    let wait = retry_after(response.headers());
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => break,
            Ok(Some(chunk)) => {
                if bytes.len() + chunk.len() > ANSWER_BYTES && status.is_success() {
                    let message =
                        format!("the answer is longer than {ANSWER_BYTES} bytes: let it be a reference");
                    return CallOutcome::Misconfigured(message);
                }
                bytes.extend_from_slice(&chunk);
                bytes.truncate(ANSWER_BYTES);
            }
            Err(error) if status.is_success() => {
                let message = format!("the answer broke off: {}", chain(&error.without_url()));
                return CallOutcome::Transient { message, retry_after: None, may_have_acted: true };
            }
            Err(_) => break,
        }
    }
    let text = || String::from_utf8_lossy(&bytes).into_owned();
    let body: Value = match serde_json::from_slice(&bytes) {
        Ok(body) => body,
        Err(_) if bytes.is_empty() => Value::Null,
        Err(_) => Value::String(text()),
    };
    let said = || {
        let short: String = text().chars().take(200).collect();
        if short.is_empty() { format!("answered {status}") } else { format!("answered {status}: {short}") }
    };
    match status.as_u16() {
        200..=299 => CallOutcome::Done(body),
        429 => CallOutcome::Transient { message: said(), retry_after: wait, may_have_acted: false },
        408 | 425 | 500..=599 => {
            CallOutcome::Transient { message: said(), retry_after: wait, may_have_acted: true }
        }
        300..=399 | 401 | 403 | 405 | 407 | 415 => CallOutcome::Misconfigured(said()),
        status => CallOutcome::Business { status, body },
    }
}
