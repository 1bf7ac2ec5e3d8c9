//! From a document to a definition, or to everything that is wrong with it.
//!
//! Decides what is a definition. Never guesses: an unknown field, a template that cannot be resolved,
//! an undo that could never be kept are findings with line and hint.

use super::template::{self, Names};
use super::tree::{Field, Is, Place, Tree};
use super::{Attempts, Call, Class, Definition, HeaderText, Method, Node, StepNode};
use crate::finding::Finding;
use rallypoint_base::hash::xxh3;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most operations of a saga: each of its results is compared with all of them.
const MOST_STEPS: usize = 1_000;
/// Headers that are ours, or follow from the address and the body.
const RESERVED: [&str; 8] = [
    "idempotency-key",
    "idempotency-key-of",
    "traceparent",
    "host",
    "content-length",
    "connection",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn read(text: &str, place: &str) -> Result<Definition, Vec<Finding>> {
    // `n` and `on` are texts.
    let options = serde_saphyr::options! { strict_booleans: true };
    let tree: Tree = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let at = error.location().map(|at| format!(":{}:{}", at.line(), at.column())).unwrap_or_default();
        vec![Finding {
            place: format!("{place}{at}"),
            message: error.to_string().lines().next().unwrap_or_default().to_owned(),
            hint: Some("this is no YAML; texts with {{ .. }} stand in quotes".into()),
        }]
    })?;
    let mut reader = Reader { place, findings: Vec::new(), lines: BTreeMap::new() };
    let definition = reader.definition(&tree);
    let mut findings = reader.findings;
    findings.sort_by_key(|(at, _)| (at.line, at.column));
    match definition {
        Some(definition) if findings.is_empty() => Ok(definition),
        _ => Err(findings.into_iter().map(|(_, finding)| finding).collect()),
    }
}

struct Reader<'a> {
    place: &'a str,
    findings: Vec<(Place, Finding)>,
    /// Where the name of each step stands.
    lines: BTreeMap<String, Place>,
}

/// The fields of a map that are known.
struct Fields<'t> {
    at: Place,
    path: String,
    fields: BTreeMap<&'t str, &'t Field>,
}

impl<'t> Fields<'t> {
    fn get(&self, name: &str) -> Option<&'t Tree> {
        self.fields.get(name).map(|field| &field.value)
    }

    fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

fn is_name(name: &str, others: &[u8]) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || others.contains(&byte))
}

impl Reader<'_> {
    fn wrong(&mut self, at: Place, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        let place = match path {
            "" => format!("{}:{at}", self.place),
            path => format!("{}:{at}: {path}", self.place),
        };
        self.findings.push((at, Finding { place, message: message.into(), hint: Some(hint.into()) }));
    }

    fn fields<'t>(&mut self, tree: &'t Tree, path: &str, known: &[&str]) -> Option<Fields<'t>> {
        let Is::Map(all) = &tree.is else {
            let hint = format!("write a map with {}", known.join(", "));
            self.wrong(tree.at, path, format!("here stands {}", tree.kind()), hint);
            return None;
        };
        let mut fields = BTreeMap::new();
        for field in all {
            if known.contains(&field.name.as_str()) {
                fields.insert(field.name.as_str(), field);
            } else {
                let hint = format!("known here: {}", known.join(", "));
                self.wrong(field.at, path, format!("unknown field {:?}", field.name), hint);
            }
        }
        Some(Fields { at: tree.at, path: path.to_owned(), fields })
    }

    fn missing(&mut self, fields: &Fields<'_>, name: &str, hint: &str) {
        self.wrong(fields.at, &fields.path, format!("{name:?} is missing"), hint);
    }

    fn text<'t>(&mut self, fields: &Fields<'t>, name: &str, hint: &str) -> Option<(&'t str, Place)> {
        let tree = fields.get(name)?;
        match &tree.is {
            Is::Text(text) => Some((text, tree.at)),
            _ => {
                self.wrong(
                    tree.at,
                    &fields.path(name),
                    format!("here stands {}, not a text", tree.kind()),
                    hint,
                );
                None
            }
        }
    }

    fn truth(&mut self, fields: &Fields<'_>, name: &str) -> bool {
        match fields.get(name).map(|tree| (tree, &tree.is)) {
            None => false,
            Some((_, Is::Bool(truth))) => *truth,
            Some((tree, _)) => {
                let message = format!("here stands {}", tree.kind());
                self.wrong(tree.at, &fields.path(name), message, "write true or false");
                false
            }
        }
    }

    /// A number from 1 on.
    fn number(&mut self, fields: &Fields<'_>, name: &str) -> Option<u32> {
        let tree = fields.get(name)?;
        let number = match &tree.is {
            Is::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
            _ => None,
        };
        let number = number.filter(|&number| number > 0);
        if number.is_none() {
            let message = format!("{} is no number from 1 on", tree.value());
            self.wrong(tree.at, &fields.path(name), message, format!("write {name}: 1, say"));
        }
        number
    }

    /// A length of time.
    fn length(&mut self, fields: &Fields<'_>, name: &str) -> Option<Duration> {
        let tree = fields.get(name)?;
        let length = match &tree.is {
            Is::Text(text) => length(text),
            _ => None,
        };
        if length.is_none() {
            let message = format!("{} is no length of time", tree.value());
            self.wrong(tree.at, &fields.path(name), message, "write 250ms, 10s, 5m, 24h or 7d");
        }
        length
    }

    fn definition(&mut self, tree: &Tree) -> Option<Definition> {
        const KNOWN: [&str; 6] = ["saga", "version", "vars", "limits", "steps", "output"];
        let fields = self.fields(tree, "", &KNOWN)?;
        const NAME: &str = "a name has 1 to 100 letters, digits, '-', '_' or '.'";
        let name = match self.text(&fields, "saga", NAME) {
            Some((name, at)) => {
                if !is_name(name, b"-.") {
                    self.wrong(at, "saga", format!("{name:?} is no name"), NAME);
                }
                name.to_owned()
            }
            None => {
                if fields.get("saga").is_none() {
                    self.missing(&fields, "saga", "give it a name: saga: order");
                }
                String::new()
            }
        };
        let version = self.number(&fields, "version");
        if fields.get("version").is_none() {
            self.missing(&fields, "version", "begin with version: 1, and raise it with each change");
        }
        let vars = match fields.get("vars") {
            Some(tree @ Tree { is: Is::Map(_), .. }) => tree.value(),
            Some(tree) => {
                let message = format!("here stands {}", tree.kind());
                self.wrong(tree.at, "vars", message, "write a map of names and values");
                json!({})
            }
            None => json!({}),
        };
        let mut limits = (None, None);
        if let Some(tree) = fields.get("limits")
            && let Some(fields) = self.fields(tree, "limits", &["concurrency", "deadline"])
        {
            limits = (self.number(&fields, "concurrency"), self.length(&fields, "deadline"));
        }
        let nodes = match fields.get("steps") {
            Some(Tree { is: Is::List(items), .. }) if !items.is_empty() => self.nodes(items, &vars),
            Some(tree) => {
                let message = format!("here stands {}, not a list of steps", tree.kind());
                let hint = "write at least one step: - { name: .., call: { method: POST, url: .. } }";
                self.wrong(tree.at, "steps", message, hint);
                Vec::new()
            }
            None => {
                self.missing(&fields, "steps", "a saga has at least one step");
                Vec::new()
            }
        };
        let output = fields.get("output");
        if let Some(tree) = output {
            let steps: Vec<String> = self.lines.keys().cloned().collect();
            let steps = steps.iter().map(String::as_str).collect();
            let names = Names { vars: Some(&vars), steps, own: None };
            self.templates(tree, "output", false, &names);
        }
        let (concurrency, deadline) = limits;
        let output = output.map(Tree::value);
        let mut definition =
            Definition { name, version: version?, vars, concurrency, deadline, nodes, output, digest: 0 };
        // A definition has only what JSON can hold.
        let said = serde_json::to_vec(&definition).ok()?;
        definition.digest = xxh3(&said).max(1);
        Some(definition)
    }

    fn nodes(&mut self, items: &[Tree], vars: &Value) -> Vec<Node> {
        if items.len() > MOST_STEPS {
            let message = format!("{} steps, at most {MOST_STEPS} are allowed", items.len());
            self.wrong(items[MOST_STEPS].at, "steps", message, "split it into several sagas");
            return Vec::new();
        }
        let mut nodes = Vec::new();
        let mut done: BTreeSet<String> = BTreeSet::new();
        let mut pivot: Option<String> = None;
        for (index, item) in items.iter().enumerate() {
            let path = format!("steps[{index}]");
            let has = |name: &str| match &item.is {
                Is::Map(fields) => fields.iter().any(|field| field.name == name),
                _ => false,
            };
            let node = if has("parallel") {
                self.parallel(item, &path, vars, &done, pivot.as_deref())
            } else if has("signal") {
                self.signal(item, &path)
            } else if has("sleep") {
                let fields = self.fields(item, &path, &["sleep"]);
                fields.and_then(|fields| self.length(&fields, "sleep")).map(Node::Sleep)
            } else {
                self.step(item, &path, vars, &done, pivot.as_deref()).map(|step| Node::Step(Box::new(step)))
            };
            match &node {
                Some(Node::Step(step)) => {
                    done.insert(step.name.clone());
                    if step.attempts.pivot {
                        pivot = Some(step.name.clone());
                    }
                }
                Some(Node::Parallel(steps)) => {
                    done.extend(steps.iter().map(|step| step.name.clone()));
                    if let Some(step) = steps.iter().find(|step| step.attempts.pivot) {
                        let hint = "let the pivot stand alone, after the parallel steps";
                        let message = format!("the pivot {:?} runs beside other steps", step.name);
                        self.wrong(item.at, &path, message, hint);
                    }
                }
                Some(Node::Signal { name, .. }) => drop(done.insert(name.clone())),
                Some(Node::Sleep(_)) | None => {}
            }
            nodes.extend(node);
        }
        nodes
    }

    fn parallel(
        &mut self,
        item: &Tree,
        path: &str,
        vars: &Value,
        done: &BTreeSet<String>,
        pivot: Option<&str>,
    ) -> Option<Node> {
        let fields = self.fields(item, path, &["parallel"])?;
        let tree = fields.get("parallel")?;
        let Is::List(items) = &tree.is else {
            self.wrong(tree.at, path, format!("here stands {}", tree.kind()), "write a list of steps");
            return None;
        };
        if items.len() > MOST_STEPS {
            let message = format!("{} steps, at most {MOST_STEPS} are allowed", items.len());
            self.wrong(tree.at, path, message, "split it into several sagas");
            return None;
        }
        let mut steps = Vec::new();
        for (index, item) in items.iter().enumerate() {
            steps.extend(self.step(item, &format!("{path}.parallel[{index}]"), vars, done, pivot));
        }
        Some(Node::Parallel(steps))
    }

    fn signal(&mut self, item: &Tree, path: &str) -> Option<Node> {
        let fields = self.fields(item, path, &["signal", "within"])?;
        let name = self.own_name(&fields, "signal");
        Some(Node::Signal { name: name?, within: self.length(&fields, "within") })
    }

    /// The name of an operation: templates find its output by it.
    fn own_name(&mut self, fields: &Fields<'_>, field: &str) -> Option<String> {
        const NAME: &str = "a name has 1 to 100 letters, digits or '_' and begins with none of the digits: \
                            templates write steps.NAME.output";
        let Some((name, at)) = self.text(fields, field, NAME) else {
            if fields.get(field).is_none() {
                self.missing(fields, field, NAME);
            }
            return None;
        };
        if !is_name(name, b"") || name.starts_with(|first: char| first.is_ascii_digit()) {
            self.wrong(at, &fields.path(field), format!("{name:?} is no name"), NAME);
            return None;
        }
        if let Some(other) = self.lines.insert(name.to_owned(), at) {
            let message = format!("{name:?} is also the name at line {}", other.line);
            self.wrong(at, &fields.path(field), message, "give each its own name: outputs are found by it");
            return None;
        }
        Some(name.to_owned())
    }

    fn step(
        &mut self,
        item: &Tree,
        path: &str,
        vars: &Value,
        done: &BTreeSet<String>,
        pivot: Option<&str>,
    ) -> Option<StepNode> {
        const KNOWN: [&str; 9] =
            ["name", "call", "undo", "timeout", "retry", "undo_attempts", "pivot", "atomic", "status"];
        let fields = self.fields(item, path, &KNOWN)?;
        let name = self.own_name(&fields, "name");
        let attempts = self.attempts(&fields);
        let steps: BTreeSet<&str> = done.iter().map(String::as_str).collect();
        let names = Names { vars: Some(vars), steps, own: None };
        let mut call = match fields.get("call") {
            Some(tree) => self.call(tree, &fields.path("call"), &names),
            None => {
                self.missing(&fields, "call", "write call: { method: POST, url: .. }");
                None
            }
        };
        if let Some(tree) = fields.get("status") {
            let classes = self.classes(tree, &fields.path("status"));
            if let Some(call) = &mut call {
                if !call.status.is_empty() {
                    let hint = "write it once: beside the call, or in it";
                    self.wrong(tree.at, &fields.path("status"), "the call has a status of its own", hint);
                }
                call.status = classes;
            }
        }
        let own = Some((name.as_deref().unwrap_or_default(), attempts.atomic));
        let undo = fields.get("undo").and_then(|tree| {
            let at = fields.fields["undo"].at;
            if let Some(pivot) = pivot {
                let message = format!("an undo after the pivot {pivot:?} never runs");
                self.wrong(
                    at,
                    &fields.path("undo"),
                    message,
                    "after a pivot there is only forward: leave it out",
                );
            } else if attempts.pivot {
                let hint = "a pivot that acted is never undone: leave it out, or leave pivot out";
                self.wrong(at, &fields.path("undo"), "a pivot has no undo", hint);
            }
            self.call(tree, &fields.path("undo"), &Names { own, ..names.clone() })
        });
        Some(StepNode { name: name?, call: call?, undo, attempts })
    }

    fn attempts(&mut self, fields: &Fields<'_>) -> Attempts {
        let mut attempts = Attempts {
            timeout: self.length(fields, "timeout").unwrap_or(Duration::from_secs(30)),
            attempts: 5,
            base: Duration::from_secs(1),
            cap: Duration::from_secs(30),
            undo_attempts: self.number(fields, "undo_attempts").unwrap_or(10),
            pivot: self.truth(fields, "pivot"),
            atomic: self.truth(fields, "atomic"),
        };
        if let Some(tree) = fields.get("retry")
            && let Some(retry) = self.fields(tree, &fields.path("retry"), &["attempts", "base", "cap"])
        {
            attempts.attempts = self.number(&retry, "attempts").unwrap_or(attempts.attempts);
            attempts.base = self.length(&retry, "base").unwrap_or(attempts.base);
            // A longer first wait than the usual longest one is meant.
            attempts.cap = self.length(&retry, "cap").unwrap_or(attempts.cap.max(attempts.base));
            if attempts.cap < attempts.base {
                let message = "the longest wait is shorter than the first";
                self.wrong(tree.at, &fields.path("retry"), message, "let cap be at least base");
            }
        }
        attempts
    }

    fn call(&mut self, tree: &Tree, path: &str, names: &Names<'_>) -> Option<Call> {
        let fields = self.fields(tree, path, &["method", "url", "headers", "json", "status"])?;
        const METHODS: &str = "write GET, POST, PUT, PATCH or DELETE";
        let method = match self.text(&fields, "method", METHODS) {
            Some(("GET", _)) => Some(Method::Get),
            Some(("POST", _)) => Some(Method::Post),
            Some(("PUT", _)) => Some(Method::Put),
            Some(("PATCH", _)) => Some(Method::Patch),
            Some(("DELETE", _)) => Some(Method::Delete),
            Some((other, at)) => {
                self.wrong(at, &fields.path("method"), format!("{other:?} is no method"), METHODS);
                None
            }
            None => {
                if fields.get("method").is_none() {
                    self.missing(&fields, "method", METHODS);
                }
                None
            }
        };
        const URL: &str = "write http://HOST/.. or \"{{ vars.NAME }}/..\"";
        let url = self.text(&fields, "url", URL).map(|(url, _)| url.to_owned());
        match fields.get("url") {
            None => self.missing(&fields, "url", URL),
            Some(tree) => self.templates(tree, &fields.path("url"), true, names),
        }
        let json = fields.get("json");
        if let Some(tree) = json {
            self.templates(tree, &fields.path("json"), false, names);
        }
        let mut headers = BTreeMap::new();
        if let Some(tree) = fields.get("headers") {
            headers = self.headers(tree, &fields.path("headers"), names);
        }
        let status = fields.get("status").map(|tree| self.classes(tree, &fields.path("status")));
        Some(Call {
            method: method?,
            url: url?,
            headers,
            json: json.map(Tree::value),
            status: status.unwrap_or_default(),
        })
    }

    fn headers(&mut self, tree: &Tree, path: &str, names: &Names<'_>) -> BTreeMap<String, HeaderText> {
        let mut headers = BTreeMap::new();
        let Is::Map(fields) = &tree.is else {
            self.wrong(
                tree.at,
                path,
                format!("here stands {}", tree.kind()),
                "write a map: Accept: text/plain",
            );
            return headers;
        };
        const SECRET: &str = "write Authorization: { secret: \"env:NAME\" }";
        for Field { at, name, value } in fields {
            let path = format!("{path}.{name}");
            let lower = name.to_ascii_lowercase();
            if reqwest::header::HeaderName::try_from(&lower).is_err() {
                self.wrong(
                    *at,
                    &path,
                    format!("{name:?} is no name of a header"),
                    "write letters, digits and '-'",
                );
            } else if RESERVED.contains(&lower.as_str()) {
                self.wrong(*at, &path, format!("{name:?} is set by rallypoint"), "leave it out");
            } else if headers.contains_key(&lower) {
                self.wrong(*at, &path, format!("{name:?} stands twice"), "write it once");
            }
            let text = match &value.is {
                Is::Text(text) => {
                    self.templates(value, &path, false, names);
                    HeaderText::Text(text.clone())
                }
                Is::Map(_) => {
                    let Some(fields) = self.fields(value, &path, &["secret"]) else { continue };
                    let variable =
                        self.text(&fields, "secret", SECRET).and_then(|(text, _)| text.strip_prefix("env:"));
                    let Some(variable) = variable.filter(|name| is_name(name, b"")) else {
                        self.wrong(
                            value.at,
                            &path,
                            "a secret is the name of a variable of the environment",
                            SECRET,
                        );
                        continue;
                    };
                    HeaderText::Secret(variable.to_owned())
                }
                _ => {
                    let message = format!("here stands {}", value.kind());
                    self.wrong(value.at, &path, message, "write the value in quotes");
                    continue;
                }
            };
            headers.insert(lower, text);
        }
        headers
    }

    fn classes(&mut self, tree: &Tree, path: &str) -> BTreeMap<u16, Class> {
        let classes = [
            ("done", Class::Done),
            ("business", Class::Business),
            ("transient", Class::Transient),
            ("misconfigured", Class::Misconfigured),
        ];
        let mut found = BTreeMap::new();
        let Some(fields) = self.fields(tree, path, &classes.map(|(name, _)| name)) else { return found };
        for (name, class) in classes {
            let Some(tree) = fields.get(name) else { continue };
            let path = fields.path(name);
            const HINT: &str = "write a list of numbers from 200 to 599: business: [402, 422]";
            let Is::List(items) = &tree.is else {
                self.wrong(tree.at, &path, format!("here stands {}", tree.kind()), HINT);
                continue;
            };
            for item in items {
                let status = match &item.is {
                    Is::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
                    _ => None,
                };
                match status.filter(|status| (200..600).contains(status)) {
                    None => self.wrong(
                        item.at,
                        &path,
                        format!("{} is no status of an answer", item.value()),
                        HINT,
                    ),
                    Some(status) => {
                        if found.insert(status, class).is_some() {
                            self.wrong(
                                item.at,
                                &path,
                                format!("{status} stands twice"),
                                "let it mean one thing",
                            );
                        }
                    }
                }
            }
        }
        found
    }

    /// Checks all texts of a tree.
    fn templates(&mut self, tree: &Tree, path: &str, is_address: bool, names: &Names<'_>) {
        match &tree.is {
            Is::Text(text) => {
                for (message, hint) in template::check(text, is_address, names) {
                    self.wrong(tree.at, path, message, hint);
                }
            }
            Is::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.templates(item, &format!("{path}[{index}]"), is_address, names);
                }
            }
            Is::Map(fields) => {
                for field in fields {
                    self.templates(&field.value, &format!("{path}.{}", field.name), is_address, names);
                }
            }
            _ => {}
        }
    }
}

/// `250ms`, `10s`, `5m`, `24h`, `7d`; at most a hundred years.
fn length(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..end].parse().ok()?;
    let unit = match &text[end..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let millis = number.checked_mul(unit).filter(|&millis| millis <= 36_500 * 86_400_000)?;
    Some(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let found = read(text, "a.yaml").err().unwrap_or_default();
        assert!(found.iter().all(|finding| finding.hint.is_some()), "{found:?}");
        found.iter().map(ToString::to_string).collect()
    }

    /// The issue of each is one line of a definition that is otherwise sound.
    #[test]
    fn each_mistake_has_a_line_and_a_hint() {
        let sound = "saga: order\nversion: 1\nvars: { base: \"http://h\" }\nlimits: { concurrency: 5, deadline: 1h }\nsteps:\n\
            \x20 - name: reserve\n    call: { method: POST, url: \"{{ vars.base }}/r\", json: { order: \"{{ input.id }}\" } }\n\
            \x20   undo: { method: DELETE, url: \"{{ vars.base }}/r/{{ input.id }}\" }\n\
            \x20   retry: { attempts: 5, base: 1s, cap: 30s }\n    status: { business: [402] }\n\
            \x20 - parallel:\n\
            \x20     - { name: label, call: { method: POST, url: \"http://h/l\", headers: { X-Key: { secret: \"env:K\" } } } }\n\
            \x20 - signal: approved\n    within: 1h\n\
            \x20 - sleep: 1s\n\
            \x20 - name: ship\n    pivot: true\n    call: { method: POST, url: \"http://h/s\" }\n\
            output: { at: \"{{ steps.ship.output.at }}\" }\n";
        assert_eq!(findings(sound), Vec::<String>::new());
        let cases: [(&str, &str, &str, &str); 40] = [
            ("saga: order", "saga: or der", "1:7: saga", "is no name"),
            ("saga: order", "name: order", "1:1", "unknown field \"name\""),
            ("version: 1", "version: 0", "2:10: version", "no number from 1"),
            ("version: 1", "version: one", "2:10: version", "no number from 1"),
            ("concurrency: 5", "concurrency: 0", "4:", "no number from 1"),
            ("concurrency: 5", "speed: 5", "4:", "unknown field \"speed\""),
            ("deadline: 1h", "deadline: soon", "4:", "no length of time"),
            ("name: reserve", "name: re-serve", "6:11: steps[0].name", "is no name"),
            ("name: reserve", "name: ship", "16:11: steps[4].name", "also the name at line 6"),
            ("name: reserve", "nome: reserve", "6:5: steps[0]", "unknown field \"nome\""),
            (
                "method: POST, url: \"{{ vars.base }}/r\"",
                "url: \"{{ vars.base }}/r\"",
                "7:",
                "\"method\" is missing",
            ),
            (
                "method: POST, url: \"{{ vars.base }}/r\"",
                "method: post, url: \"http://h\"",
                "7:",
                "is no method",
            ),
            ("method: POST, url: \"{{ vars.base }}/r\"", "method: POST", "7:", "\"url\" is missing"),
            (
                "{{ vars.base }}/r\",",
                "{{ vars.bas }}/r\",",
                "7:32: steps[0].call.url",
                "`vars.bas` is not known",
            ),
            ("{{ vars.base }}/r\",", "{{ input.host }}/r\",", "7:", "is no address"),
            ("{{ vars.base }}/r\",", "http://{{ input.host }}/r\",", "7:", "only `vars`"),
            ("{{ input.id }}\" } }", "{{ inptu.id }}\" } }", "7:", "`inptu.id` is not known"),
            ("{{ input.id }}\" } }", "{{ input.id\" } }", "7:", "cannot be filled in"),
            (
                "{{ input.id }}\" } }",
                "{{ steps.ship.output }}\" } }",
                "7:",
                "names no step that is done before",
            ),
            ("{{ input.id }}\" } }", "{{ input.id|nonsense }}\" } }", "7:", "unknown filter"),
            ("json: {", "body: {", "7:", "unknown field \"body\""),
            ("r/{{ input.id }}", "r/{{ steps.reserve.output.id }}", "8:", "reads the output of its own step"),
            ("r/{{ input.id }}", "r/{{ steps.label.output.id }}", "8:", "names no step that is done before"),
            ("attempts: 5", "attempts: -1", "9:", "no number from 1"),
            ("cap: 30s", "cap: 30", "9:", "no length of time"),
            ("cap: 30s", "cap: 10ms", "9:", "shorter than the first"),
            ("business: [402]", "busines: [402]", "10:", "unknown field"),
            ("business: [402]", "business: 402", "10:", "here stands a number"),
            ("business: [402]", "business: [42]", "10:", "no status"),
            ("business: [402]", "business: [402], done: [402]", "10:", "stands twice"),
            ("secret: \"env:K\"", "secret: K", "12:", "name of a variable"),
            ("secret: \"env:K\"", "sekret: K", "12:", "unknown field"),
            ("X-Key", "Idempotency-Key", "12:", "is set by rallypoint"),
            ("X-Key", "X Key", "12:", "is no name of a header"),
            ("sleep: 1s", "sleep: 1y", "15:", "no length of time"),
            ("signal: approved", "signal: 5", "13:", "not a text"),
            ("pivot: true", "pivot: perhaps", "17:", "write true or false"),
            (
                "pivot: true",
                "pivot: true\n    undo: { method: POST, url: \"http://h\" }",
                "18:5: steps[4].undo",
                "a pivot has no undo",
            ),
            (
                "- name: reserve",
                "- name: reserve\n    pivot: true",
                "9:5: steps[0].undo",
                "a pivot has no undo",
            ),
            ("steps.ship.output.at", "steps.ships.output.at", "19:", "names no step"),
        ];
        for (line, instead, place, says) in cases {
            assert!(sound.contains(line), "{line}");
            let found = findings(&sound.replacen(line, instead, 1));
            let fits = |text: &&String| text.starts_with(&format!("a.yaml:{place}")) && text.contains(says);
            assert!(found.iter().any(|text| fits(&text)), "{instead}: {found:#?}");
        }
    }

    #[test]
    fn the_example_is_sound() {
        let text = include_str!("../../../../examples/orders/order.yaml");
        let order = read(text, "order.yaml").unwrap();
        assert_eq!((order.name(), order.version(), order.concurrency()), ("order", 1, Some(100)));
        assert_eq!(order.nodes().len(), 3);
    }

    #[test]
    fn there_is_only_forward_after_a_pivot() {
        let step =
            |more: &str| format!("  - {{ name: {more}, call: {{ method: POST, url: \"http://h\" }} }}\n");
        let undo = "b, undo: { method: POST, url: \"http://h\" }";
        let head = "saga: s\nversion: 1\nsteps:\n";
        let found = findings(&format!("{head}{}{}", step("a, pivot: true"), step(undo)));
        assert!(
            found.len() == 1 && found[0].contains("a.yaml:5:") && found[0].contains("after the pivot \"a\""),
            "{found:?}"
        );
        let beside = format!("{head}  - parallel:\n    {}    {}", step("a, pivot: true"), step("c"));
        assert!(findings(&beside)[0].contains("runs beside other steps"));
        assert!(findings(&format!("{head}{}{}", step(undo), step("a, pivot: true"))).is_empty());
    }

    #[test]
    fn an_atomic_step_may_read_its_own_output_in_its_undo() {
        let text = |atomic| {
            format!(
                "saga: s\nversion: 1\nsteps:\n  - name: a\n    atomic: {atomic}\n    call: {{ method: POST, url: \"http://h\" }}\n    undo: {{ method: DELETE, url: \"http://h/{{{{ steps.a.output.id }}}}\" }}\n"
            )
        };
        assert!(findings(&text(true)).is_empty());
        assert!(findings(&text(false))[0].starts_with("a.yaml:7:"));
    }

    #[test]
    fn everything_is_found_at_once_in_the_order_of_lines() {
        let found = findings(
            "saga: a b\nversion: x\nsteps:\n  - name: n\n    call: { url: \"nowhere\" }\nextra: 1\n",
        );
        let lines: Vec<&str> = found.iter().map(|text| text.split(':').nth(1).unwrap()).collect();
        assert_eq!(lines, ["1", "2", "5", "5", "6"], "{found:#?}");
    }

    #[test]
    fn what_is_no_map_or_no_yaml_is_refused() {
        for text in ["", "[]", "5", "saga: [", "\u{0}", "saga: s\nsaga: t\n", "a: &x [*x]", "steps:\n\t- a"] {
            let found = findings(text);
            assert!(!found.is_empty() && found[0].starts_with("a.yaml"), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn the_digest_is_of_what_is_said() {
        let one = read("saga: a\nversion: 1\nsteps: [{sleep: 1s}]\n", "a").unwrap();
        let same =
            read("{\"version\": 1, \"saga\": \"a\", \"steps\": [{\"sleep\": \"1000ms\"}]}", "a").unwrap();
        assert_eq!(one.digest(), same.digest());
        let other = read("saga: a\nversion: 1\nsteps: [{sleep: 2s}]\n", "a").unwrap();
        assert_ne!(one.digest(), other.digest());
    }

    proptest::proptest! {
        /// Whatever is put, it is read or refused: never a panic.
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z:{}\\[\\] \"'\n&*!|>%.#-]{0,80}") {
            let _ = read(&text, "a.yaml");
        }
    }
}
