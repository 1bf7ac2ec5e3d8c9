//! Declared sagas: what a definition holds, and what its calls come to.
//!
//! Decides what each call of a saga says. Never performs one, and never learns a secret: a header that
//! is one stays the name of a variable until it is sent. Filling in is deterministic: the same input
//! and outputs give the same calls, so that a saga can be told again what its journal says.
//!
//! Invariant: what is journaled of a step is enough to run and to undo it, whatever became of the
//! definition.

mod read;
mod template;
mod tree;

use crate::finding::Finding;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One version of a declared saga.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Definition {
    name: String,
    version: u32,
    vars: Value,
    concurrency: Option<u32>,
    deadline: Option<Duration>,
    nodes: Vec<Node>,
    output: Option<Value>,
    #[serde(skip)]
    digest: u64,
}

/// What a saga does next.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) enum Node {
    /// A call.
    Step(Box<StepNode>),
    /// Calls side by side.
    Parallel(Vec<StepNode>),
    /// A signal from outside: its value is the output of this name.
    Signal { name: String, within: Option<Duration> },
    /// A time to wait.
    Sleep(Duration),
}

/// A call, and how it is attempted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct StepNode {
    name: String,
    call: Call,
    undo: Option<Call>,
    attempts: Attempts,
}

/// How a step is attempted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Attempts {
    pub(crate) timeout: Duration,
    pub(crate) attempts: u32,
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
    pub(crate) undo_attempts: u32,
    pub(crate) pivot: bool,
    pub(crate) atomic: bool,
}

/// The methods of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

/// The value of a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeaderText {
    /// A template, or what it came to.
    Text(String),
    /// The name of a variable of the server's environment, read when the call is made.
    Secret(String),
}

/// What an answer means for its saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    /// It was done.
    Done,
    /// The business does not allow it.
    Business,
    /// It may pass.
    Transient,
    /// The other side refuses us as such.
    Misconfigured,
}

/// A call: with templates in a definition, filled in for a saga.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) headers: BTreeMap<String, HeaderText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) json: Option<Value>,
    /// Answers that mean something else than usual.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) status: BTreeMap<u16, Class>,
}

/// What is journaled of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CallPlan {
    pub(crate) call: Call,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    undo: Option<UndoPlan>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UndoPlan {
    /// Filled in.
    Call(Call),
    /// It reads the output of its own step: the step's name, its templates, and what else they read.
    Waiting { own: String, call: Call, scope: Value },
}

impl Definition {
    /// Reads a definition. `place` is what findings name: a file, or where it was put.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of its lines.
    pub(crate) fn parse(text: &str, place: &str) -> Result<Self, Vec<Finding>> {
        read::read(text, place)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Of what it says, not of how it is written.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn concurrency(&self) -> Option<u32> {
        self.concurrency
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What templates know of a saga.
    pub(crate) fn scope(&self, id: &str, input: &Value) -> Scope {
        Scope(json!({ "vars": self.vars, "input": input, "saga": { "id": id }, "steps": {} }))
    }

    /// The saga's output: what the template says, or the outputs of its steps by their names.
    ///
    /// # Errors
    /// What has no value.
    pub(crate) fn output(&self, scope: &Scope) -> Result<Value, String> {
        match &self.output {
            Some(template) => template::value(template, &scope.0),
            None => {
                let steps = scope.0["steps"].as_object().into_iter().flatten();
                Ok(Value::Object(steps.map(|(name, step)| (name.clone(), step["output"].clone())).collect()))
            }
        }
    }
}

/// What templates know: `vars`, `input`, `saga.id`, and `steps.NAME.output` of what is done.
#[derive(Clone, Debug)]
pub(crate) struct Scope(Value);

impl Scope {
    /// A step is done.
    pub(crate) fn done(&mut self, step: &str, output: Value) {
        self.0["steps"][step] = json!({ "output": output });
    }
}

impl Call {
    fn fill(&self, scope: &Value) -> Result<Self, String> {
        let mut headers = BTreeMap::new();
        for (name, value) in &self.headers {
            let value = match value {
                HeaderText::Text(text) => HeaderText::Text(template::text(text, scope)?),
                secret @ HeaderText::Secret(_) => secret.clone(),
            };
            headers.insert(name.clone(), value);
        }
        let json = self.json.as_ref().map(|json| template::value(json, scope)).transpose()?;
        let url = template::address(&self.url, scope)?;
        Ok(Self { method: self.method, url, headers, json, status: self.status.clone() })
    }

    /// The texts that are templates; the first is the address.
    fn templates(&self) -> Vec<&str> {
        let mut texts = vec![self.url.as_str()];
        texts.extend(self.headers.values().filter_map(|value| match value {
            HeaderText::Text(text) => Some(text.as_str()),
            HeaderText::Secret(_) => None,
        }));
        self.json.iter().for_each(|json| texts_of(json, &mut texts));
        texts
    }
}

fn texts_of<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| texts_of(item, texts)),
        Value::Object(fields) => fields.values().for_each(|field| texts_of(field, texts)),
        _ => {}
    }
}

impl StepNode {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// What is journaled of it.
    ///
    /// # Errors
    /// What has no value.
    pub(crate) fn plan(&self, scope: &Scope) -> Result<CallPlan, String> {
        let undo = self.undo.as_ref().map(|undo| self.undo_plan(undo, &scope.0)).transpose();
        let undo = undo.map_err(|why| format!("in its undo: {why}"))?;
        Ok(CallPlan { call: self.call.fill(&scope.0)?, undo })
    }

    fn undo_plan(&self, undo: &Call, scope: &Value) -> Result<UndoPlan, String> {
        let templates = undo.templates();
        let mut read = BTreeSet::new();
        templates.iter().for_each(|text| read.extend(template::reads(text)));
        let is_own = |path: &String| path.split('.').nth(1) == Some(self.name.as_str());
        if !read.iter().any(|path| path.starts_with("steps.") && is_own(path)) {
            return undo.fill(scope).map(UndoPlan::Call);
        }
        // Only what it reads is kept: outputs may be large, and there is one such plan per step.
        let mut kept = Map::new();
        for path in &read {
            let mut parts = path.split('.');
            let (root, name) = (parts.next().unwrap_or_default(), parts.next());
            match (root, name) {
                ("steps", Some(name)) => {
                    let steps = kept.entry("steps").or_insert_with(|| json!({}));
                    if let Some(step) = scope["steps"].get(name) {
                        steps[name] = step.clone();
                    }
                }
                (root, _) => {
                    if let Some(value) = scope.get(root) {
                        kept.insert(root.to_owned(), value.clone());
                    }
                }
            }
        }
        Ok(UndoPlan::Waiting { own: self.name.clone(), call: undo.clone(), scope: Value::Object(kept) })
    }
}

impl CallPlan {
    /// The call that undoes the step, which gave this; `None` without an undo.
    pub(crate) fn undo(&self, output: Option<&Value>) -> Option<Result<Call, String>> {
        Some(match self.undo.as_ref()? {
            UndoPlan::Call(call) => Ok(call.clone()),
            UndoPlan::Waiting { own, call, scope } => {
                let mut scope = scope.clone();
                if let Some(output) = output {
                    scope["steps"][own] = json!({ "output": output });
                }
                call.fill(&scope)
            }
        })
    }
}
