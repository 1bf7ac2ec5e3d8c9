//! What a request holds, taken out of it; what does not fit is a problem document.

use super::problem::{Kind, Problem};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// The parts of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|error| Problem::malformed(format!("the path: {error}")))
    }
}

/// The parameters after the `?`.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|error| Problem::malformed(error.body_text()))
    }
}

/// The kinds of body there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Media {
    Json,
    Yaml,
    Other,
}

fn media(headers: &HeaderMap) -> Option<(Media, String)> {
    let text = String::from_utf8_lossy(headers.get(header::CONTENT_TYPE)?.as_bytes()).into_owned();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let media = match essence.as_str() {
        "application/json" => Media::Json,
        "application/yaml" | "application/x-yaml" | "text/yaml" | "text/x-yaml" => Media::Yaml,
        other if other.starts_with("application/") && other.ends_with("+json") => Media::Json,
        _ => Media::Other,
    };
    Some((media, text))
}

fn too_large() -> Problem {
    Problem::new(Kind::TooLarge, format!("a body has at most {} bytes", super::BODY_BYTES))
}

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A body that is too long but no longer than this is read and let go of, for so long at most.
const PASSED_OVER: u64 = 16 << 20;
const PASSING: Duration = Duration::from_secs(5);

async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    bytes_within(PATIENCE, request, state).await
}

async fn bytes_within<S: Send + Sync>(
    patience: Duration,
    request: Request,
    state: &S,
) -> Result<Bytes, Problem> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let said: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
    if let Some(said) = said.filter(|said| *said > super::BODY_BYTES as u64) {
        // Who still sends when the connection is closed may never read the answer.
        if said <= PASSED_OVER {
            let mut rest = request.into_body().into_data_stream();
            let _ =
                tokio::time::timeout(PASSING, async { while let Some(Ok(_)) = rest.next().await {} }).await;
        }
        return Err(too_large());
    }
    let read = tokio::time::timeout(patience, Bytes::from_request(request, state)).await;
    let read = read.map_err(|_| {
        let text = format!("the body did not come within {patience:?}");
        Problem::new(Kind::TooSlow, text)
    })?;
    read.map_err(|error| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            too_large()
        } else {
            Problem::malformed(error.body_text())
        }
    })
}

/// A JSON body; an absent one is `null`.
pub(crate) struct JsonBody(pub(crate) Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let media = media(request.headers());
        let bytes = bytes(request, state).await?;
        match media {
            _ if bytes.is_empty() => return Ok(Self(Value::Null)),
            Some((Media::Json, _)) => {}
            Some((_, found)) => {
                let text = format!("the body is {found:?}; it must be application/json");
                return Err(Problem::new(Kind::MediaType, text));
            }
            None => {
                let text = "the body has no Content-Type; it must be application/json";
                return Err(Problem::new(Kind::MediaType, text));
            }
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| Problem::malformed(format!("the body is no JSON: {error}")))?;
        Ok(Self(value))
    }
}

/// A definition: YAML, of which JSON is a part.
pub(crate) struct TextBody(pub(crate) String);

impl<S: Send + Sync> FromRequest<S> for TextBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let media = media(request.headers());
        let bytes = bytes(request, state).await?;
        match media {
            Some((Media::Json | Media::Yaml, _)) => {}
            found => {
                let found =
                    found.map_or("has no Content-Type".to_owned(), |(_, found)| format!("is {found:?}"));
                let text = format!("the body {found}; it must be application/yaml or application/json");
                return Err(Problem::new(Kind::MediaType, text));
            }
        }
        let text = String::from_utf8(bytes.to_vec())
            .map_err(|error| Problem::malformed(format!("the body is no UTF-8: {error}")))?;
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use futures_util::stream;
    use std::convert::Infallible;

    #[tokio::test]
    async fn a_body_that_does_not_end_is_not_waited_for() {
        let request = Request::new(Body::from_stream(stream::pending::<Result<&str, Infallible>>()));
        let problem = bytes_within(Duration::from_millis(1), request, &()).await.unwrap_err();
        assert_eq!(serde_json::to_value(problem).unwrap()["status"], 408);
    }
}
