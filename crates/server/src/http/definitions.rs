//! `/v1/definitions`.

use super::Server;
use super::extract::{Path, TextBody};
use super::problem::{Finding, Kind, Problem, Problems};
use crate::catalog::{Known, PutError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// One version of a definition.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionView {
    version: u32,
    /// Digest of what the definition says, in hexadecimal.
    digest: String,
}

/// A definition with its versions, the oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct DefinitionView {
    name: String,
    versions: Vec<VersionView>,
}

/// All definitions.
#[derive(Serialize, ToSchema)]
pub(super) struct DefinitionList {
    definitions: Vec<DefinitionView>,
}

/// A definition that is kept.
#[derive(Serialize, ToSchema)]
pub(super) struct PutView {
    name: String,
    version: u32,
    /// Digest of what the definition says, in hexadecimal.
    digest: String,
}

fn digest(digest: u64) -> String {
    format!("{digest:016x}")
}

/// Keep a definition
///
/// A version is one definition for ever: the same content again changes nothing, another content
/// needs a higher version. Sagas go on with the version they began with; new ones take the highest.
#[utoipa::path(
    put,
    path = "/v1/definitions/{name}",
    tag = "definitions",
    params(("name" = String, Path, description = "The name that the definition gives itself")),
    request_body(
        content((String = "application/yaml"), (Object = "application/json")),
        description = "The definition"
    ),
    responses(
        (status = 201, description = "It is new, and kept.", body = PutView),
        (status = 200, description = "It was kept already.", body = PutView),
        Problems
    )
)]
pub(super) async fn put(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    TextBody(text): TextBody,
) -> Result<(StatusCode, Json<PutView>), Problem> {
    let put = server.catalog.put(&server.client, &text, &name, Some(&name)).await;
    let Known { name, version, digest: sum, is_new } = put.map_err(|error| {
        let text = error.to_string();
        match error {
            PutError::Invalid(findings) => {
                let findings = findings.into_iter().map(|finding| Finding {
                    place: finding.place,
                    message: finding.message,
                    hint: finding.hint,
                });
                Problem::new(Kind::InvalidDefinition, text).with_findings(findings.collect())
            }
            PutError::OtherName { .. } => Problem::new(Kind::InvalidDefinition, text),
            PutError::Taken { .. } => Problem::new(Kind::VersionTaken, text),
            PutError::Full(_) => Problem::new(Kind::Full, text),
            PutError::Busy(_) => Problem::new(Kind::Busy, text),
            PutError::Store(_) => Problem::new(Kind::Unavailable, text),
        }
    })?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(PutView { name, version, digest: digest(sum) })))
}

/// List the definitions
#[utoipa::path(
    get,
    path = "/v1/definitions",
    tag = "definitions",
    responses((status = 200, description = "All of them, by name.", body = DefinitionList), Problems)
)]
pub(super) async fn list(State(server): State<Arc<Server>>) -> Json<DefinitionList> {
    let all = server.catalog.all().into_iter();
    let definitions = all.map(|(name, versions)| {
        let versions = versions.iter();
        let versions =
            versions.map(|known| VersionView { version: known.version, digest: digest(known.digest) });
        DefinitionView { name, versions: versions.collect() }
    });
    Json(DefinitionList { definitions: definitions.collect() })
}
