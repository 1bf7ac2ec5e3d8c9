//! The templates of a definition: what they may name, and what they come to.
//!
//! Decides what a text with `{{ .. }}` becomes. Never reads a clock, a file or chance: the same scope
//! gives the same texts, so that a saga can be told again what its journal says.
//!
//! Invariants: what has no value is an error, never an empty text; a text that is exactly one
//! `{{ expression }}` keeps the type of its value; in an address each inserted value is one
//! percent-encoded segment (or part of the query) and never touches scheme, host or port, except
//! what comes from `vars`.

use minijinja::value::{Object, ObjectRepr, Serde};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io;
use std::sync::{Arc, LazyLock};

type Found = minijinja::Value;

/// Steps that a template may run: a loop ends.
const FUEL: u64 = 100_000;
/// Longest text that a template may come to.
const TEXT_BYTES: usize = 1 << 20;
/// Stands before each inserted value while an address is put together.
const INSERTED: char = '\0';

fn environment(undefined: UndefinedBehavior) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(undefined);
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment
}

fn for_addresses(undefined: UndefinedBehavior) -> Environment<'static> {
    let mut environment = environment(undefined);
    environment.set_formatter(|out, _, value| {
        if let Some(Var(text)) = value.downcast_object_ref::<Var>() {
            return out.write_str(text).map_err(Error::from);
        }
        let text = if value.downcast_object_ref::<Anything>().is_some() {
            "x".to_owned()
        } else if value.is_undefined() || value.is_none() {
            return Err(wrong("a value that is put into an address is missing or null"));
        } else if matches!(
            value.kind(),
            minijinja::value::ValueKind::String
                | minijinja::value::ValueKind::Number
                | minijinja::value::ValueKind::Bool
        ) {
            value.to_string()
        } else {
            return Err(wrong("only texts, numbers and truth values can be put into an address"));
        };
        out.write_char(INSERTED).and_then(|()| out.write_str(&segment(&text))).map_err(Error::from)
    });
    environment
}

fn wrong(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

static TEXTS: LazyLock<Environment<'static>> = LazyLock::new(|| environment(UndefinedBehavior::Strict));
static ADDRESSES: LazyLock<Environment<'static>> = LazyLock::new(|| for_addresses(UndefinedBehavior::Strict));
static TRIAL: LazyLock<Environment<'static>> = LazyLock::new(|| environment(UndefinedBehavior::Chainable));
static TRIAL_ADDRESSES: LazyLock<Environment<'static>> =
    LazyLock::new(|| for_addresses(UndefinedBehavior::Chainable));

/// A value as one segment of an address: everything but the unreserved characters is encoded.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A text of `vars` in an address: the definition's author wrote it, it is not encoded. Whatever is
/// made of it by a filter or an operator is an ordinary text again.
#[derive(Debug)]
struct Var(String);

impl Object for Var {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Stands for what is known only when a saga runs.
#[derive(Debug)]
struct Anything;

impl Object for Anything {
    fn get_value(self: &Arc<Self>, _: &Found) -> Option<Found> {
        Some(Found::from_object(Self))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("x")
    }
}

fn vars_in_addresses(vars: &Value) -> Found {
    match vars {
        Value::String(text) => Found::from_object(Var(text.clone())),
        Value::Array(items) => items.iter().map(vars_in_addresses).collect(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.as_str(), vars_in_addresses(value)));
            Found::from(fields.collect::<BTreeMap<_, _>>())
        }
        plain => Found::from(Serde(plain)),
    }
}

fn explain(template: &str, error: &Error) -> String {
    let mut text = error.to_string();
    if let Some(end) = text.find('\n') {
        text.truncate(end);
    }
    // The name that the library gives to a template that has none.
    let text = text.replace(" (in <string>:1)", "").replace(" (in <expression>:1)", "");
    format!("the template {template:?} cannot be filled in: {text}")
}

/// The expression, if the text is exactly one.
fn expression(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?;
    TEXTS.compile_expression(inner).is_ok().then_some(inner)
}

fn is_plain(text: &str) -> bool {
    !(text.contains("{{") || text.contains("{%") || text.contains("{#"))
}

/// What most templates consist of: words, and paths between `{{` and `}}`.
enum Part<'a> {
    Words(&'a str),
    Path(&'a str),
}

/// The parts of a text that has nothing but words and plain paths; nothing for any other one. What a
/// path means is the same here and in the library, which takes many times as long for it.
fn simple_parts(text: &str) -> Option<Vec<Part<'_>>> {
    // The library leaves out a line's end at the end.
    if text.contains("{%") || text.contains("{#") || text.ends_with(['\n', '\r']) {
        return None;
    }
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(begin) = rest.find("{{") {
        let (words, inner) = (&rest[..begin], &rest[begin + 2..]);
        let end = inner.find("}}")?;
        let path = inner[..end].trim_matches(' ');
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with(|first: char| first.is_ascii_digit())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        if !path.contains('.') || !path.split('.').all(is_name) {
            return None;
        }
        parts.extend([Part::Words(words), Part::Path(path)]);
        rest = &inner[end + 2..];
    }
    parts.push(Part::Words(rest));
    Some(parts)
}

/// What stands at a path, if it is a text, a whole number or a truth value. Anything else is the
/// library's.
fn plain_at<'a>(path: &str, scope: &'a Value) -> Option<&'a Value> {
    let mut at = scope;
    for name in path.split('.') {
        at = at.as_object()?.get(name)?;
    }
    (at.is_string() || at.is_boolean() || at.is_i64() || at.is_u64()).then_some(at)
}

/// As it is inserted into a text. How a truth value is written is the library's.
fn written(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

/// [`text`], where it is simple.
fn simple_text(template: &str, scope: &Value) -> Option<String> {
    let mut out = String::with_capacity(template.len() + 32);
    for part in simple_parts(template)? {
        match part {
            Part::Words(words) => out.push_str(words),
            Part::Path(path) => out.push_str(&written(plain_at(path, scope)?)?),
        }
    }
    Some(out)
}

/// An address with [`INSERTED`] before each value but the texts of `vars`, where it is simple.
fn simple_address(template: &str, scope: &Value) -> Option<String> {
    let mut out = String::with_capacity(template.len() + 64);
    for part in simple_parts(template)? {
        match part {
            Part::Words(words) => out.push_str(words),
            Part::Path(path) => {
                let value = plain_at(path, scope)?;
                match value {
                    Value::String(text) if path.starts_with("vars.") => out.push_str(text),
                    value => {
                        out.push(INSERTED);
                        out.push_str(&segment(&written(value)?));
                    }
                }
            }
        }
    }
    Some(out)
}

/// Fills in a text.
///
/// # Errors
/// What has no value, for people.
pub(crate) fn text(template: &str, scope: &Value) -> Result<String, String> {
    if is_plain(template) {
        return Ok(template.to_owned());
    }
    if let Some(filled) = simple_text(template, scope) {
        return bounded(template, filled);
    }
    text_by_library(template, scope)
}

fn text_by_library(template: &str, scope: &Value) -> Result<String, String> {
    render(&TEXTS, template, Found::from(Serde(scope)))
}

/// Takes as much as is allowed, so that what is longer is never held.
struct Bounded {
    taken: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.taken.len() + bytes.len() > TEXT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_long(template: &str) -> String {
    format!("the template {template:?} comes to more than {TEXT_BYTES} bytes")
}

/// What a text comes to; `None` as the error when it is too long.
fn rendered(environment: &Environment<'_>, text: &str, scope: Found) -> Result<String, Option<Error>> {
    let mut out = Bounded { taken: Vec::new(), is_full: false };
    let done = environment
        .template_from_str(text)
        .and_then(|found| found.render_captured_to(scope, &mut out).map(drop));
    match done {
        // Only texts were written.
        Ok(_) => Ok(String::from_utf8_lossy(&out.taken).into_owned()),
        Err(_) if out.is_full => Err(None),
        Err(error) => Err(Some(error)),
    }
}

fn render(environment: &Environment<'_>, template: &str, scope: Found) -> Result<String, String> {
    rendered(environment, template, scope)
        .map_err(|error| error.map_or_else(|| too_long(template), |error| explain(template, &error)))
}

fn bounded(template: &str, filled: String) -> Result<String, String> {
    if filled.len() > TEXT_BYTES {
        return Err(too_long(template));
    }
    Ok(filled)
}

/// Fills in all texts of a value. A text that is exactly one expression keeps the type of its value.
///
/// # Errors
/// What has no value, for people.
pub(crate) fn value(template: &Value, scope: &Value) -> Result<Value, String> {
    Ok(match template {
        Value::String(text) if is_plain(text) => template.clone(),
        Value::String(text) => {
            if let Some([Part::Words(""), Part::Path(path), Part::Words("")]) = simple_parts(text).as_deref()
                && let Some(found) = plain_at(path, scope)
            {
                return Ok(found.clone());
            }
            value_by_library(text, scope)?
        }
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| value(item, scope)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let mut object = Map::new();
            for (name, field) in fields {
                object.insert(name.clone(), value(field, scope)?);
            }
            Value::Object(object)
        }
        plain => plain.clone(),
    })
}

/// A text that may be exactly one expression.
fn value_by_library(text: &str, scope: &Value) -> Result<Value, String> {
    Ok(match expression(text) {
        None => Value::String(self::text(text, scope)?),
        Some(inner) => {
            let found = TEXTS.compile_expression(inner).and_then(|found| found.eval(Serde(scope)));
            let found = found.map_err(|error| explain(text, &error))?;
            if found.is_undefined() {
                return Err(format!("the template {text:?} cannot be filled in: there is no such value"));
            }
            let mut out = Bounded { taken: Vec::new(), is_full: false };
            if serde_json::to_writer(&mut out, &found).is_err() && out.is_full {
                return Err(too_long(text));
            }
            serde_json::to_value(&found).map_err(|error| format!("the template {text:?}: {error}"))?
        }
    })
}

/// Fills in an address.
///
/// # Errors
/// What has no value, or would lead elsewhere, for people.
pub(crate) fn address(template: &str, scope: &Value) -> Result<String, String> {
    let filled = if is_plain(template) {
        template.to_owned()
    } else if let Some(filled) = simple_address(template, scope) {
        filled
    } else {
        address_by_library(template, scope)?
    };
    let filled = bounded(template, filled)?;
    whole(&filled).map_err(|why| format!("the address {template:?}: {why}"))
}

fn address_by_library(template: &str, scope: &Value) -> Result<String, String> {
    let mut names = BTreeMap::new();
    for (name, part) in scope.as_object().into_iter().flatten() {
        let part = if name == "vars" { vars_in_addresses(part) } else { Found::from(Serde(part)) };
        names.insert(name.as_str(), part);
    }
    render(&ADDRESSES, template, Found::from(names))
}

/// Checks an address in which [`INSERTED`] stands before each value, and takes that out.
fn whole(filled: &str) -> Result<String, String> {
    const SCHEME: &str = "write http://HOST/.. or https://HOST/..";
    let rest = filled.strip_prefix("https://").or_else(|| filled.strip_prefix("http://"));
    let rest = rest.ok_or_else(|| format!("{filled:?} is no address: {SCHEME}"))?;
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if authority.contains(INSERTED) {
        return Err("only `vars` may give a host or a port: put the place into `vars`".into());
    }
    if authority.is_empty() {
        return Err(format!("{filled:?} names no host: {SCHEME}"));
    }
    if authority.contains('@') {
        return Err(
            "user and password do not belong into an address: use a header with `secret: env:NAME`".into()
        );
    }
    let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
    for part in path.split(['/', '\\']).filter(|part| part.contains(INSERTED)) {
        let part = part.replace(INSERTED, "").replace("%2e", ".").replace("%2E", ".");
        if matches!(part.as_str(), "" | "." | "..") {
            return Err(format!("an inserted value makes the segment {part:?}, which is another address"));
        }
    }
    let address = filled.replace(INSERTED, "");
    // Behind a good place any path and query can be read: only a place that is new is looked at.
    let place = &address[..filled.len() - rest.len()];
    if PLACES.with_borrow(|places| places.contains(place)) {
        return Ok(address);
    }
    match url::Url::parse(&address) {
        Ok(_) => {
            PLACES.with_borrow_mut(|places| {
                if places.len() >= PLACES_KEPT {
                    places.clear();
                }
                places.insert(place.to_owned());
            });
            Ok(address)
        }
        Err(error) => Err(format!("{address:?} is no address ({error}): {SCHEME}")),
    }
}

/// Most places of a thread that are known to be good.
const PLACES_KEPT: usize = 64;

thread_local! {
    /// Scheme, host and port of addresses that were found to be good.
    static PLACES: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// The paths that a text reads: `input.id`, `steps.reserve.output`.
pub(super) fn reads(text: &str) -> BTreeSet<String> {
    // An expression stands in a text in the same words.
    let found = TEXTS.template_from_str(text).map(|template| template.undeclared_variables(true));
    found.unwrap_or_default().into_iter().collect()
}

/// What templates of a place may name.
#[derive(Clone, Debug, Default)]
pub(super) struct Names<'a> {
    /// The definition's.
    pub(super) vars: Option<&'a Value>,
    /// Steps that are done before.
    pub(super) steps: BTreeSet<&'a str>,
    /// In an undo, its own step, and whether only a known outcome is undone.
    pub(super) own: Option<(&'a str, bool)>,
}

/// What is wrong with a template, and what to write instead.
pub(super) type Wrong = (String, String);

/// Checks a text, or, if it `is_address`, an address.
pub(super) fn check(text: &str, is_address: bool, names: &Names<'_>) -> Vec<Wrong> {
    if text.contains(INSERTED) {
        return vec![("the text contains the character 0".into(), "leave it out".into())];
    }
    let mut found = Vec::new();
    if !is_plain(text) {
        let inner = if is_address { None } else { expression(text) };
        let paths = match inner {
            Some(inner) => TEXTS.compile_expression(inner).map(|e| e.undeclared_variables(true)),
            None => TEXTS.template_from_str(text).map(|template| template.undeclared_variables(true)),
        };
        match paths {
            Ok(paths) => {
                let sorted: BTreeSet<String> = paths.into_iter().collect();
                found.extend(sorted.iter().filter_map(|path| unresolvable(path, names)));
            }
            Err(error) => {
                let why = explain(text, &error);
                return vec![(why, "templates are written {{ expression }}, as in Jinja".into())];
            }
        }
    }
    if found.is_empty() {
        found.extend(try_out(text, is_address, names));
    }
    found
}

const KNOWN: &str = "templates know input, vars, steps.NAME.output of the steps before, and saga.id";

fn unresolvable(path: &str, names: &Names<'_>) -> Option<Wrong> {
    let parts: Vec<&str> = path.split('.').collect();
    match parts[0] {
        "input" | "range" | "dict" | "namespace" => None,
        "saga" => (parts.get(1) != Some(&"id"))
            .then(|| (format!("`{path}` is not known"), "of the saga only saga.id is known".into())),
        "vars" => {
            let mut at = names.vars?;
            for (index, part) in parts.iter().enumerate().skip(1) {
                match at.get(part) {
                    Some(inner) => at = inner,
                    None => {
                        let known = match at {
                            Value::Object(fields) if !fields.is_empty() => {
                                fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
                            }
                            _ => "nothing".into(),
                        };
                        let above = parts[..index].join(".");
                        return Some((
                            format!("`{path}` is not known"),
                            format!("{above} has {known}: declare it under vars"),
                        ));
                    }
                }
            }
            None
        }
        "steps" => {
            let name = parts.get(1).copied().unwrap_or_default();
            if let Some((own, is_atomic)) = names.own
                && own == name
            {
                return (!is_atomic).then(|| {
                    (
                        format!("the undo of {name:?} reads the output of its own step"),
                        "a step that may have acted has none: use input and outputs of earlier steps, or say \
                         `atomic: true` if an attempt without a good answer leaves nothing behind"
                            .into(),
                    )
                });
            }
            if !names.steps.contains(name) {
                let before: Vec<&str> = names.steps.iter().copied().collect();
                let before = if before.is_empty() { "none".into() } else { before.join(", ") };
                return Some((
                    format!("`{path}` names no step that is done before"),
                    format!("steps done before: {before}; write steps.NAME.output"),
                ));
            }
            (parts.get(2) != Some(&"output"))
                .then(|| (format!("`{path}` is not known"), format!("write steps.{name}.output")))
        }
        _ => Some((format!("`{path}` is not known"), KNOWN.into())),
    }
}

/// Fills the text in with something for everything: what is unknown as such shows.
fn try_out(text: &str, is_address: bool, names: &Names<'_>) -> Option<Wrong> {
    let anything = || Found::from_object(Anything);
    let vars = names.vars.cloned().unwrap_or_default();
    let vars = if is_address { vars_in_addresses(&vars) } else { Found::from(Serde(&vars)) };
    let scope = [("input", anything()), ("steps", anything()), ("saga", anything()), ("vars", vars)];
    let scope = Found::from(BTreeMap::from(scope));
    let environment = if is_address { &TRIAL_ADDRESSES } else { &TRIAL };
    match rendered(environment, text, scope) {
        Ok(filled) if is_address => {
            whole(&filled).err().map(|why| (why, "write http://HOST/.. or {{ vars.NAME }}/..".into()))
        }
        Ok(_) => None,
        Err(None) => Some((too_long(text), "hand a reference on instead of the data".into())),
        Err(Some(error)) => match error.kind() {
            ErrorKind::UnknownFilter
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownMethod
            | ErrorKind::TemplateNotFound
            | ErrorKind::BadInclude => {
                Some((explain(text, &error), "use the filters and tests that Jinja brings".into()))
            }
            // It depends on what only a saga knows.
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn types_are_kept_and_what_is_missing_is_named() {
        let scope = json!({"input": {"cents": 4200, "id": "o-1", "list": [1, {"a": null}]}});
        let filled = value(
            &json!({"c": "{{ input.cents }}", "t": "o {{ input.id }}", "l": "{{ input.list }}"}),
            &scope,
        );
        assert_eq!(filled, Ok(json!({"c": 4200, "t": "o o-1", "l": [1, {"a": null}]})));
        assert_eq!(value(&json!("{{ {'a': {'b': input.cents}} }}"), &scope), Ok(json!({"a": {"b": 4200}})));
        assert_eq!(value(&json!("{{ input.cents }}{{ input.cents }}"), &scope), Ok(json!("42004200")));
        for missing in ["{{ input.nothing }}", "{{ input.nothing.more }}", "a {{ input.nothing }}"] {
            let why = value(&json!(missing), &scope).unwrap_err();
            assert!(
                why.contains(missing) && why.contains("undefined") || why.contains("no such value"),
                "{why}"
            );
        }
    }

    #[test]
    fn a_loop_and_a_flood_end() {
        let scope = json!({"input": {}});
        assert!(
            text("{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", &scope)
                .is_err()
        );
        assert!(text("{{ 'x' * 999999 }}{{ 'x' * 999999 }}", &scope).is_err());
    }

    #[test]
    fn nothing_but_vars_says_where_an_address_leads() {
        let scope = json!({
            "vars": {"base": "http://127.0.0.1:7001/api", "port": 80},
            "input": {"id": "a/b?c#d e", "dots": "..", "empty": "", "none": null, "list": [1], "host": "evil.example", "n": 7}
        });
        let at = |template: &str| address(template, &scope);
        assert_eq!(
            at("{{ vars.base }}/r/{{ input.id }}?q={{ input.n }}").unwrap(),
            "http://127.0.0.1:7001/api/r/a%2Fb%3Fc%23d%20e?q=7"
        );
        assert_eq!(at("http://h/{{ input.id|safe }}").unwrap(), "http://h/a%2Fb%3Fc%23d%20e");
        assert_eq!(at("http://h/{{ input.id|e }}").unwrap().matches('/').count(), 3);
        assert_eq!(at("http://h/x?q={{ input.empty }}").unwrap(), "http://h/x?q=");
        for evil in [
            "http://{{ input.host }}/",
            "http://h{{ input.host }}/",
            "{{ input.host }}",
            "http://h:{{ input.n }}/",
            "http://h/{{ input.dots }}",
            "http://h/{{ input.dots }}/x",
            "http://h/%2e{{ '.' }}",
            "http://h/{{ input.empty }}",
            "http://h/{{ input.none }}",
            "http://h/{{ input.list }}",
            "http://u:p@h/",
            "ftp://h/",
            "http:///x",
            "{{ vars.base ~ input.host }}/x",
        ] {
            assert!(at(evil).is_err(), "{evil}: {:?}", at(evil));
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_found_before_anything_runs() {
        let vars = json!({"base": "http://h", "deep": {"a": 1}});
        let names = Names { vars: Some(&vars), steps: ["reserve"].into(), own: Some(("charge", false)) };
        let ok = [
            "{{ input.x.y[0] }}",
            "{{ vars.deep.a }}",
            "{{ steps.reserve.output.x }}",
            "{{ saga.id }}",
            "plain",
            "{% for x in input.list %}{{ x.y }}{{ loop.index }}{% endfor %}",
            "{{ input.a|default(1) }}",
            "{{ input.a|join(',') }}",
        ];
        for text in ok {
            assert!(check(text, false, &names).is_empty(), "{text}: {:?}", check(text, false, &names));
        }
        for (text, says) in [
            ("{{ vars.bass }}", "`vars.bass` is not known"),
            ("{{ vars.deep.b }}", "not known"),
            ("{{ steps.ship.output }}", "names no step"),
            ("{{ steps.reserve.outptu }}", "not known"),
            ("{{ steps }}", "names no step"),
            ("{{ steps.charge.output.id }}", "its own step"),
            ("{{ inputs.id }}", "`inputs.id` is not known"),
            ("{{ saga.name }}", "not known"),
            ("{{ input.id|uper }}", "unknown filter"),
            ("{{ input.id is odder }}", "unknown test"),
            ("{{ now() }}", "not known"),
            ("{{ input.id", "cannot be filled in"),
            ("{% include 'x' %}", "cannot be filled in"),
        ] {
            let found = check(text, false, &names);
            assert!(found.len() == 1 && found[0].0.contains(says), "{text}: {found:?}");
            assert!(!found[0].1.is_empty());
        }
        let atomic = Names { own: Some(("charge", true)), ..names.clone() };
        assert!(check("{{ steps.charge.output.id }}", false, &atomic).is_empty());
        for url in [
            "nowhere",
            "http://{{ input.host }}/x",
            "ftp://h",
            "{{ vars.deep.a }}/x",
            "http://h/{{ input.a",
            "http://u@h",
        ] {
            assert_eq!(check(url, true, &names).len(), 1, "{url}");
        }
        assert!(check("{{ vars.base }}/x/{{ input.id }}?a={{ input.b|upper }}", true, &names).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_simple_comes_to_the_same_as_by_the_library(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("{{ input.a }}"), Just("{{input.b.c}}"), Just("{{ vars.base }}"), Just("{{ vars.n }}"),
                    Just("{{ vars.deep.s }}"), Just("{{ input.none }}"), Just("{{ input.list }}"),
                    Just("{{ input.float }}"), Just("{{ input.missing }}"), Just("{{ input.a|upper }}"),
                    Just("{{ input.true }}"), Just("{{ saga.id }}"), Just("{{ input.big }}"), Just("{{ input }}"),
                    Just("{{- input.a }}"), Just("{{ input . a }}"), Just("{{"), Just("}}"), Just("{"), Just(" "),
                    Just("/"), Just("x"), Just("{% if input.b.c %}y{% endif %}"), Just("\n"), Just("\r"), Just("http://h/")
                ],
                0..5,
            ),
            a in prop_oneof![any::<String>().prop_map(Value::from), any::<i64>().prop_map(Value::from),
                             any::<bool>().prop_map(Value::from), any::<u64>().prop_map(Value::from)],
        ) {
            let text = parts.concat();
            let scope = json!({
                "vars": {"base": "http://127.0.0.1:7001/api", "n": 80, "deep": {"s": "x/y"}}, "saga": {"id": "s-1"},
                "input": {"a": a, "b": {"c": true}, "none": null, "list": [1], "float": 1.5, "true": "t", "big": u64::MAX}
            });
            if let Some(simple) = simple_text(&text, &scope) {
                prop_assert_eq!(Ok(simple), text_by_library(&text, &scope));
            }
            if let Some(simple) = simple_address(&text, &scope) {
                prop_assert_eq!(Ok(simple), address_by_library(&text, &scope));
            }
            let found = value(&json!(text), &scope);
            if !is_plain(&text) {
                prop_assert_eq!(found, value_by_library(&text, &scope));
            }
        }

        #[test]
        fn an_inserted_value_never_leads_elsewhere(id in any::<String>(), literal in "[a-z/]{0,5}") {
            let scope = json!({"input": {"id": id}});
            let template = format!("https://host.example:81/p/{literal}{{{{ input.id }}}}/end");
            if let Ok(found) = address(&template, &scope) {
                let url = url::Url::parse(&found).unwrap();
                prop_assert_eq!(url.host_str(), Some("host.example"));
                prop_assert_eq!((url.scheme(), url.port()), ("https", Some(81)));
                let wanted = template.matches('/').count() - 2;
                prop_assert_eq!(url.path().matches('/').count(), wanted);
                prop_assert!(url.path().starts_with("/p/") && url.path().ends_with("/end"));
                prop_assert!(url.query().is_none() && url.fragment().is_none());
            }
        }
    }
}
