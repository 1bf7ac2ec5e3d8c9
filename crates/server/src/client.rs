//! A client of the API for the command: asks, waits for the answer, and says why there is none.
//!
//! Never repeats a request by itself: whoever asks knows whether that is safe.

use crate::http::auth::Token;
use serde_json::Value;
use std::time::Duration;
use thiserror::Error;

/// Why a request was not carried out, or whether it was is unknown.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address of the server is none.
    #[error("{address:?} is no address of a server: {why}; write http://host:port")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The client could not be made.
    #[error("the HTTP client cannot be made: {0}")]
    Setup(String),
    /// No answer came.
    #[error("no answer from {server}: {why}; is `rallypoint serve` running there?")]
    NoAnswer {
        /// The server.
        server: String,
        /// Why.
        why: String,
    },
    /// The server says no.
    #[error("{}", said(.0))]
    Problem(Value),
}

fn said(problem: &Value) -> String {
    let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    format!("{}: {} ({})", text("title"), text("detail"), text("advice"))
}

impl ClientError {
    /// The problem document, if the server sent one.
    #[must_use]
    pub fn problem(&self) -> Option<&Value> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }
}

/// A client of one server. Its calls wait.
pub struct ApiClient {
    server: url::Url,
    token: Option<Token>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl ApiClient {
    /// A client of the server at an address.
    ///
    /// # Errors
    /// [`ClientError::Address`], [`ClientError::Setup`].
    pub fn new(server: &str, token: Option<Token>) -> Result<Self, ClientError> {
        let wrong = |why: String| ClientError::Address { address: server.to_owned(), why };
        let url: url::Url = server.parse().map_err(|error: url::ParseError| wrong(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(wrong("it is neither http nor https".into()));
        }
        let setup = |error: String| ClientError::Setup(error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| setup(error.to_string()))?;
        let client = crate::call::client().map_err(setup)?;
        Ok(Self { server: url, token, client, runtime })
    }

    /// GETs what is at a path: its parts, and the parameters after the `?`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, ClientError> {
        self.send(reqwest::Method::GET, path, query, None, None)
    }

    /// POSTs to a path; `None` sends no body.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Value, ClientError> {
        self.send(reqwest::Method::POST, path, query, body, key)
    }

    fn send(
        &self,
        method: reqwest::Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
        key: Option<&str>,
    ) -> Result<Value, ClientError> {
        let no_answer = |why: String| ClientError::NoAnswer { server: self.server.to_string(), why };
        let mut url = self.server.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url).timeout(Duration::from_secs(400));
        if let Some(token) = &self.token {
            request = request.header("authorization", token.authorization());
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        self.runtime.block_on(async {
            let answer = request.send().await;
            let answer = answer.map_err(|error| no_answer(crate::call::chain(&error.without_url())))?;
            let is_good = answer.status().is_success();
            let status = answer.status();
            let bytes = answer.bytes().await;
            let bytes = bytes.map_err(|error| no_answer(crate::call::chain(&error.without_url())))?;
            match serde_json::from_slice::<Value>(&bytes) {
                Ok(value) if is_good => Ok(value),
                Ok(problem) if problem["title"].is_string() => Err(ClientError::Problem(problem)),
                _ => Err(no_answer(format!("it answered {status}, but not as a rallypoint server does"))),
            }
        })
    }
}
