//! Problem documents (RFC 9457): every error of the API, in one form.
//!
//! Decides the kinds of problems, their status codes, who is at fault and what to do. Never shows a
//! secret: what a problem says comes from the request, a saga's journal or the store.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rallypoint::{SagaRequestError, SagaStoreError, StartError, saga::Refusal};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::openapi::response::{Response as ApiResponse, ResponseBuilder};
use utoipa::openapi::{ContentBuilder, Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

/// The media type of a problem document.
pub(crate) const MEDIA_TYPE: &str = "application/problem+json";

/// Who has to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// Whoever sent the request: the same request fails again.
    Caller,
    /// The server or its store: the same request may succeed later.
    Server,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Names the kind of problem; stable.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The kind of problem, for people.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this request.
    detail: String,
    /// Who has to do something.
    fault: Fault,
    /// What to do.
    advice: String,
    /// Each place that is wrong, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    findings: Vec<Finding>,
}

/// A place in a definition that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Finding {
    /// Where.
    pub(crate) place: String,
    /// What is wrong there.
    pub(crate) message: String,
    /// What to write instead.
    pub(crate) hint: Option<String>,
}

/// The kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Malformed,
    Unauthorized,
    NoSuchPlace,
    NoSuchSaga,
    NoSuchStep,
    NoSuchDefinition,
    Method,
    OtherInput,
    Deleted,
    VersionTaken,
    NotNow,
    TooLarge,
    TooSlow,
    MediaType,
    InvalidDefinition,
    Full,
    Busy,
    Unavailable,
    Internal,
}

impl Kind {
    /// Name, status, title, who, what to do.
    fn row(self) -> (&'static str, StatusCode, &'static str, Fault, &'static str) {
        use Fault::{Caller, Server};
        match self {
            Self::Malformed => (
                "urn:rallypoint:problem:malformed",
                StatusCode::BAD_REQUEST,
                "The request is malformed",
                Caller,
                "correct the request; /openapi.json says what it may hold",
            ),
            Self::Unauthorized => (
                "urn:rallypoint:problem:unauthorized",
                StatusCode::UNAUTHORIZED,
                "The token is missing or wrong",
                Caller,
                "send the header `Authorization: Bearer` with the token of the server's --token-file",
            ),
            Self::NoSuchPlace => (
                "urn:rallypoint:problem:no-such-place",
                StatusCode::NOT_FOUND,
                "There is nothing at this path",
                Caller,
                "/openapi.json lists every path",
            ),
            Self::NoSuchSaga => (
                "urn:rallypoint:problem:no-such-saga",
                StatusCode::NOT_FOUND,
                "There is no saga of this id",
                Caller,
                "GET /v1/sagas lists them; a `/` in an id is written %2F",
            ),
            Self::NoSuchStep => (
                "urn:rallypoint:problem:no-such-step",
                StatusCode::NOT_FOUND,
                "The saga has no such step",
                Caller,
                "GET /v1/sagas/{saga} lists its steps",
            ),
            Self::NoSuchDefinition => (
                "urn:rallypoint:problem:no-such-definition",
                StatusCode::NOT_FOUND,
                "There is no definition of this name",
                Caller,
                "put the definition first: PUT /v1/definitions/{name}",
            ),
            Self::Method => (
                "urn:rallypoint:problem:method",
                StatusCode::METHOD_NOT_ALLOWED,
                "This path does not take this method",
                Caller,
                "the header Allow names the methods that it takes",
            ),
            Self::OtherInput => (
                "urn:rallypoint:problem:other-input",
                StatusCode::CONFLICT,
                "The key was used for another saga",
                Caller,
                "send another Idempotency-Key, or the same name and input as before",
            ),
            Self::Deleted => (
                "urn:rallypoint:problem:deleted",
                StatusCode::CONFLICT,
                "The key was used for a saga that has ended and was deleted",
                Caller,
                "send another Idempotency-Key; this one is free again 30 days after the deletion",
            ),
            Self::VersionTaken => (
                "urn:rallypoint:problem:version-taken",
                StatusCode::CONFLICT,
                "This version is another definition",
                Caller,
                "raise the definition's version: sagas that began with the old one go on with it",
            ),
            Self::NotNow => (
                "urn:rallypoint:problem:not-now",
                StatusCode::CONFLICT,
                "The saga's state does not allow this",
                Caller,
                "look at the saga first: GET /v1/sagas/{saga}",
            ),
            Self::TooLarge => (
                "urn:rallypoint:problem:too-large",
                StatusCode::PAYLOAD_TOO_LARGE,
                "The body is too large",
                Caller,
                "send less: a reference to the data instead of the data",
            ),
            Self::TooSlow => (
                "urn:rallypoint:problem:too-slow",
                StatusCode::REQUEST_TIMEOUT,
                "The body takes too long",
                Caller,
                "nothing was changed: send the same request again, at once as a whole",
            ),
            Self::MediaType => (
                "urn:rallypoint:problem:media-type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "The body is of another kind",
                Caller,
                "name the kind of the body in the header Content-Type",
            ),
            Self::InvalidDefinition => (
                "urn:rallypoint:problem:invalid-definition",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The definition cannot be used",
                Caller,
                "correct what the findings name and put it again",
            ),
            Self::Full => (
                "urn:rallypoint:problem:full",
                StatusCode::CONFLICT,
                "A limit is reached",
                Caller,
                "nothing was changed; see the detail for what to use instead",
            ),
            Self::Busy => (
                "urn:rallypoint:problem:busy",
                StatusCode::SERVICE_UNAVAILABLE,
                "The server has too much to do",
                Server,
                "nothing was changed: send the same request again after Retry-After",
            ),
            Self::Unavailable => (
                "urn:rallypoint:problem:unavailable",
                StatusCode::SERVICE_UNAVAILABLE,
                "The store gives no answer",
                Server,
                "send the same request again, with the same Idempotency-Key: it is not done twice",
            ),
            Self::Internal => (
                "urn:rallypoint:problem:internal",
                StatusCode::INTERNAL_SERVER_ERROR,
                "The server could not do this",
                Server,
                "look at the server's log and at `rallypoint events`",
            ),
        }
    }
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let (name, status, title, fault, advice) = kind.row();
        Self {
            kind: name,
            title,
            status: status.as_u16(),
            detail: detail.into(),
            fault,
            advice: advice.to_owned(),
            findings: Vec::new(),
        }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Kind::Malformed, detail)
    }

    pub(crate) fn with_findings(mut self, findings: Vec<Finding>) -> Self {
        self.findings = findings;
        self
    }

    fn store(error: &SagaStoreError) -> Self {
        match error {
            SagaStoreError::Turned(_) => Self::new(Kind::Busy, error.to_string()),
            SagaStoreError::Failed(_) => Self::new(Kind::Internal, error.to_string()),
            _ => Self::new(Kind::Unavailable, error.to_string()),
        }
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Unregistered(name) => {
                Self::new(Kind::NoSuchDefinition, format!("no saga is defined as {name:?}"))
            }
            StartError::OtherInput(_) => Self::new(Kind::OtherInput, error.to_string()),
            StartError::Deleted(_) => Self::new(Kind::Deleted, error.to_string()),
            StartError::Store(error) => Self::store(error),
            _ => Self::malformed(error.to_string()),
        }
    }
}

impl From<SagaStoreError> for Problem {
    fn from(error: SagaStoreError) -> Self {
        Self::store(&error)
    }
}

impl From<SagaRequestError> for Problem {
    fn from(error: SagaRequestError) -> Self {
        match &error {
            SagaRequestError::Refused { refusal: Refusal::NoSuchSaga, .. } => {
                Self::new(Kind::NoSuchSaga, error.to_string())
            }
            SagaRequestError::Refused { refusal: Refusal::NoSuchStep(_), .. } => {
                Self::new(Kind::NoSuchStep, error.to_string())
            }
            SagaRequestError::Refused { .. } => Self::new(Kind::NotNow, error.to_string()),
            SagaRequestError::Store(error) => Self::store(error),
            _ => Self::malformed(error.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Nothing in a problem can fail to be written.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The problems that any request may end in, as the description of the API names them.
pub(crate) struct Problems;

impl IntoResponses for Problems {
    fn responses() -> BTreeMap<String, RefOr<ApiResponse>> {
        let all = [
            (400, "The request is malformed."),
            (401, "The token is missing or wrong."),
            (404, "There is no such saga, step or definition."),
            (405, "The path does not take this method."),
            (408, "The body takes too long to come."),
            (409, "It contradicts what is there; nothing was changed."),
            (413, "The body is too large."),
            (415, "The body is of another kind."),
            (422, "The definition cannot be used."),
            (500, "The server could not do this."),
            (503, "Not now; the same request may be sent again."),
        ];
        let problem = |text: &str| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
            RefOr::T(ResponseBuilder::new().description(text).content(MEDIA_TYPE, content).build())
        };
        all.into_iter().map(|(status, text)| (status.to_string(), problem(text))).collect()
    }
}
