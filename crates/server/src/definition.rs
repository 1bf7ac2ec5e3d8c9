//! Declared sagas: what a definition may hold, and what its templates make of it.
//!
//! Decides what is a definition and what each of its calls says. Never performs one. Rendering is
//! deterministic: the same input and outputs give the same calls, so that a saga can be told again
//! what its journal says.

use crate::finding::Finding;
use minijinja::{Environment, UndefinedBehavior};
use rallypoint_base::hash::xxh3;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Steps that a template may run: a loop ends.
const FUEL: u64 = 100_000;

/// One version of a declared saga.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Definition {
    file: File,
    digest: u64,
}

/// A definition as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    version: u32,
    #[serde(default)]
    concurrency: Option<u32>,
    #[serde(default)]
    deadline: Option<Length>,
    steps: Vec<Node>,
    #[serde(default)]
    output: Option<Value>,
}

/// What a saga does next.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Node {
    /// A call.
    Step(Box<StepNode>),
    /// Calls side by side.
    Parallel(ParallelNode),
    /// A signal from outside.
    Signal(SignalNode),
    /// A time.
    Sleep(SleepNode),
}

/// Calls side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParallelNode {
    pub(crate) parallel: Vec<StepNode>,
}

/// A signal from outside: its value is the output of this name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignalNode {
    pub(crate) signal: String,
    #[serde(default)]
    pub(crate) within: Option<Length>,
}

/// A time to wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SleepNode {
    pub(crate) sleep: Length,
}

/// A call, and how it is attempted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StepNode {
    name: String,
    call: Call,
    #[serde(default)]
    undo: Option<Call>,
    #[serde(default)]
    timeout: Option<Length>,
    #[serde(default)]
    retry: Option<Retry>,
    #[serde(default)]
    undo_attempts: Option<u32>,
    #[serde(default)]
    pivot: bool,
    #[serde(default)]
    atomic: bool,
}

/// How often, and how far apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retry {
    #[serde(default)]
    attempts: Option<u32>,
    #[serde(default)]
    base: Option<Length>,
    #[serde(default)]
    cap: Option<Length>,
}

/// A call whose texts are templates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    #[serde(default = "post")]
    method: Method,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<Value>,
}

fn post() -> Method {
    Method::Post
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

/// A length of time: `250ms`, `10s`, `5m`, `24h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Length(pub(crate) Duration);

impl Serialize for Length {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}ms", self.0.as_millis()))
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong =
            || serde::de::Error::custom(format!("{text:?} is no length of time: 250ms, 10s, 5m, 24h, 7d"));
        let end = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..end].parse().map_err(|_| wrong())?;
        let unit = match &text[end..] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let millis = number.checked_mul(unit).filter(|&millis| millis <= 36_500 * 86_400_000);
        millis.map(|millis| Self(Duration::from_millis(millis))).ok_or_else(wrong)
    }
}

/// A call as it is made. Texts of the form `${NAME}` in its headers are put in from the environment
/// when it is made, and stand in no journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HttpCall {
    pub(crate) method: Method,
    pub(crate) url: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Option<Value>,
}

/// What is journaled of a step: enough to make its call, and to undo it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CallPlan {
    pub(crate) call: HttpCall,
    pub(crate) undo: Option<UndoPlan>,
}

/// An undo, whose templates wait for what is known of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct UndoPlan {
    call: Call,
    scope: Value,
}

/// How a step is attempted.
pub(crate) struct Attempts {
    pub(crate) timeout: Duration,
    pub(crate) attempts: u32,
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
    pub(crate) undo_attempts: u32,
    pub(crate) pivot: bool,
    pub(crate) atomic: bool,
}

impl Definition {
    /// Reads a definition. `place` is what findings name: a file, or where it was put.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn parse(text: &str, place: &str) -> Result<Self, Vec<Finding>> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| {
            let at = error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
            vec![Finding {
                place: format!("{place}{at}"),
                message: error.to_string().lines().next().unwrap_or_default().to_owned(),
                hint: Some("a definition has name, version and steps; each step name and call".into()),
            }]
        })?;
        let mut findings = Vec::new();
        check(&file, place, &mut findings);
        if !findings.is_empty() {
            return Err(findings);
        }
        // What it says, not how it is written.
        let said = serde_json::to_vec(&file).map_err(|error| {
            vec![Finding { place: place.to_owned(), message: error.to_string(), hint: None }]
        })?;
        Ok(Self { digest: xxh3(&said).max(1), file })
    }

    pub(crate) fn name(&self) -> &str {
        &self.file.name
    }

    pub(crate) fn version(&self) -> u32 {
        self.file.version
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn concurrency(&self) -> Option<u32> {
        self.file.concurrency
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.file.deadline.map(|deadline| deadline.0)
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.file.steps
    }

    /// The saga's output: what the template says, or the outputs of its steps.
    pub(crate) fn output(&self, scope: &Value) -> Result<Value, String> {
        match &self.file.output {
            Some(template) => render_value(template, scope),
            None => Ok(scope.get("steps").cloned().unwrap_or_default()),
        }
    }
}

fn check(file: &File, place: &str, findings: &mut Vec<Finding>) {
    let mut find = |at: &str, message: String, hint: &str| {
        findings.push(Finding { place: format!("{place}: {at}"), message, hint: Some(hint.to_owned()) });
    };
    let is_name = |name: &str| {
        (1..=100).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    const NAME: &str = "a name has 1 to 100 letters, digits, '-', '_' or '.'";
    if !is_name(&file.name) {
        find("name", format!("{:?} is no name", file.name), NAME);
    }
    if file.version == 0 {
        find("version", "0 is no version".into(), "versions begin with 1");
    }
    if file.steps.is_empty() {
        find("steps", "there are none".into(), "a saga has at least one step");
    }
    let mut names = BTreeSet::new();
    let mut steps: Vec<(String, &StepNode)> = Vec::new();
    for (index, node) in file.steps.iter().enumerate() {
        match node {
            Node::Step(step) => steps.push((format!("steps[{index}]"), step)),
            Node::Parallel(node) => {
                let inner = node.parallel.iter().enumerate();
                steps.extend(inner.map(|(at, step)| (format!("steps[{index}].parallel[{at}]"), step)));
            }
            Node::Signal(node) if !is_name(&node.signal) => {
                find(&format!("steps[{index}].signal"), format!("{:?} is no name", node.signal), NAME);
            }
            Node::Signal(node) => drop(names.insert(node.signal.clone())),
            Node::Sleep(_) => {}
        }
    }
    for (at, step) in steps {
        if !is_name(&step.name) {
            find(&format!("{at}.name"), format!("{:?} is no name", step.name), NAME);
        }
        if !names.insert(step.name.clone()) {
            find(
                &format!("{at}.name"),
                format!("{:?} is the name of another step", step.name),
                "give each step its own name: outputs are found by it",
            );
        }
        for (which, call) in
            std::iter::once(("call", &step.call)).chain(step.undo.iter().map(|c| ("undo", c)))
        {
            let at = format!("{at}.{which}");
            if !call.url.contains("{{")
                && !call.url.starts_with("http://")
                && !call.url.starts_with("https://")
            {
                find(
                    &format!("{at}.url"),
                    format!("{:?} is no address", call.url),
                    "write http://… or https://…",
                );
            }
            let mut texts = vec![("url", call.url.clone())];
            texts.extend(call.headers.values().map(|value| ("headers", value.clone())));
            call.body
                .iter()
                .for_each(|body| texts_of(body, &mut |text| texts.push(("body", text.to_owned()))));
            for (part, text) in texts {
                if let Err(error) = environment().template_from_str(&text) {
                    find(&format!("{at}.{part}"), first_line(&error), "see the syntax of templates");
                }
            }
        }
    }
}

fn texts_of(value: &Value, visit: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| texts_of(item, visit)),
        Value::Object(fields) => fields.values().for_each(|field| texts_of(field, visit)),
        _ => {}
    }
}

fn first_line(error: &minijinja::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment
}

fn render(template: &str, scope: &Value) -> Result<String, String> {
    environment()
        .render_str(template, minijinja::value::Serde(scope))
        .map_err(|error| format!("template {template:?}: {}", first_line(&error)))
}

/// Renders the texts in a value. A text that is one expression keeps the type of what it gives.
fn render_value(template: &Value, scope: &Value) -> Result<Value, String> {
    Ok(match template {
        Value::String(text) => {
            let whole = text.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
            match whole.filter(|inner| !inner.contains("{{") && !inner.contains("}}")) {
                Some(expression) => {
                    let environment = environment();
                    let wrong =
                        |error: minijinja::Error| format!("template {text:?}: {}", first_line(&error));
                    let found = environment.compile_expression(expression).map_err(wrong)?;
                    let value = found.eval(minijinja::value::Serde(scope)).map_err(wrong)?;
                    if value.is_undefined() {
                        return Err(format!("template {text:?}: there is no such value"));
                    }
                    serde_json::to_value(&value).map_err(|error| format!("template {text:?}: {error}"))?
                }
                None => Value::String(render(text, scope)?),
            }
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| render_value(item, scope)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let mut object = Map::new();
            for (name, field) in fields {
                object.insert(name.clone(), render_value(field, scope)?);
            }
            Value::Object(object)
        }
        plain => plain.clone(),
    })
}

impl Call {
    fn render(&self, scope: &Value) -> Result<HttpCall, String> {
        let mut headers = BTreeMap::new();
        for (name, value) in &self.headers {
            headers.insert(name.clone(), render(value, scope)?);
        }
        let body = self.body.as_ref().map(|body| render_value(body, scope)).transpose()?;
        Ok(HttpCall { method: self.method, url: render(&self.url, scope)?, headers, body })
    }
}

impl StepNode {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What is journaled of it.
    pub(crate) fn plan(&self, scope: &Value) -> Result<CallPlan, String> {
        let undo = self.undo.clone().map(|call| UndoPlan { call, scope: scope.clone() });
        Ok(CallPlan { call: self.call.render(scope)?, undo })
    }

    pub(crate) fn attempts(&self) -> Attempts {
        let or = |length: Option<Length>, seconds| length.map_or(Duration::from_secs(seconds), |l| l.0);
        let retry = self.retry.as_ref();
        Attempts {
            timeout: or(self.timeout, 30),
            attempts: retry.and_then(|retry| retry.attempts).unwrap_or(5).max(1),
            base: or(retry.and_then(|retry| retry.base), 1),
            cap: or(retry.and_then(|retry| retry.cap), 30),
            undo_attempts: self.undo_attempts.unwrap_or(10).max(1),
            pivot: self.pivot,
            atomic: self.atomic,
        }
    }
}

impl UndoPlan {
    /// The call that undoes the step: its templates also know `output` (`none` when it is unknown).
    pub(crate) fn call(&self, output: Option<&Value>) -> Result<HttpCall, String> {
        let mut scope = self.scope.clone();
        if let Value::Object(fields) = &mut scope {
            fields.insert("output".into(), output.cloned().unwrap_or_default());
        }
        self.call.render(&scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_keep_types_and_name_what_is_missing() {
        let scope = json!({"input": {"cents": 4200, "id": "o-1"}});
        let found = render_value(&json!({"c": "{{ input.cents }}", "t": "o {{ input.id }}"}), &scope);
        assert_eq!(found, Ok(json!({"c": 4200, "t": "o o-1"})));
        let missing = render_value(&json!("{{ input.nothing }}"), &scope).unwrap_err();
        assert!(missing.contains("input.nothing"), "{missing}");
    }

    #[test]
    fn findings_name_the_place_and_what_to_write() {
        let wrong = "name: a b\nversion: 0\nsteps:\n  - name: x\n    call: {url: ftp://h}\n  - name: x\n    call: {url: http://h}\n";
        let findings = Definition::parse(wrong, "a.yaml").unwrap_err();
        let places: Vec<&str> = findings.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(
            places,
            ["a.yaml: name", "a.yaml: version", "a.yaml: steps[0].call.url", "a.yaml: steps[1].name"]
        );
        assert!(findings.iter().all(|finding| finding.hint.is_some()));
        let broken = Definition::parse("name: [", "b.yaml").unwrap_err();
        assert!(broken[0].place.starts_with("b.yaml:"), "{broken:?}");
    }

    #[test]
    fn the_digest_is_of_what_is_said() {
        let one = Definition::parse("name: a\nversion: 1\nsteps: [{sleep: 1s}]\n", "a").unwrap();
        let same =
            Definition::parse("{\"version\": 1, \"name\": \"a\", \"steps\": [{\"sleep\": \"1000ms\"}]}", "a");
        assert_eq!(one.digest(), same.unwrap().digest());
        let other = Definition::parse("name: a\nversion: 1\nsteps: [{sleep: 2s}]\n", "a").unwrap();
        assert_ne!(one.digest(), other.digest());
    }
}
