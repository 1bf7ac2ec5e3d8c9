//! A YAML document (JSON is YAML) as a tree that knows where each of its parts stands.
//!
//! Decides nothing about definitions: it only keeps lines and columns, so that whoever reads a
//! definition can name the place of everything that is wrong with it.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;
use std::fmt;

/// Line and column, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl From<serde_saphyr::Location> for Place {
    fn from(at: serde_saphyr::Location) -> Self {
        Self { line: at.line(), column: at.column() }
    }
}

/// A part of the document.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) at: Place,
    pub(super) is: Is,
}

/// What a part is.
#[derive(Clone, Debug)]
pub(super) enum Is {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<Field>),
}

/// A name with its value.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) at: Place,
    pub(super) name: String,
    pub(super) value: Tree,
}

impl Tree {
    /// The same without places.
    pub(super) fn value(&self) -> Value {
        match &self.is {
            Is::Null => Value::Null,
            Is::Bool(truth) => Value::Bool(*truth),
            Is::Number(number) => Value::Number(number.clone()),
            Is::Text(text) => Value::String(text.clone()),
            Is::List(items) => Value::Array(items.iter().map(Self::value).collect()),
            Is::Map(fields) => {
                let fields = fields.iter().map(|field| (field.name.clone(), field.value.value()));
                Value::Object(fields.collect::<Map<_, _>>())
            }
        }
    }

    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match &self.is {
            Is::Null => "nothing",
            Is::Bool(_) => "a truth value",
            Is::Number(_) => "a number",
            Is::Text(_) => "a text",
            Is::List(_) => "a list",
            Is::Map(_) => "a map",
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let found = Spanned::<Is>::deserialize(deserializer)?;
        Ok(Self { at: found.referenced.into(), is: found.value })
    }
}

impl<'de> Deserialize<'de> for Is {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IsVisitor)
    }
}

struct IsVisitor;

impl<'de> Visitor<'de> for IsVisitor {
    type Value = Is;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON knows")
    }

    fn visit_unit<E>(self) -> Result<Is, E> {
        Ok(Is::Null)
    }

    fn visit_none<E>(self) -> Result<Is, E> {
        Ok(Is::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Is, D::Error> {
        Is::deserialize(deserializer)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Is, E> {
        Ok(Is::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Is, E> {
        Ok(Is::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Is, E> {
        Ok(Is::Number(number.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Is, E> {
        let number = Number::from_f64(number).ok_or_else(|| E::custom("JSON has no such number"))?;
        Ok(Is::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Is, E> {
        Ok(Is::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Is, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Is::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Is, A::Error> {
        let mut map = Vec::new();
        while let Some((name, value)) = fields.next_entry::<Spanned<String>, Tree>()? {
            map.push(Field { at: name.referenced.into(), name: name.value, value });
        }
        Ok(Is::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_knows_its_place() {
        let text = "a: 1\nb:\n  - x: two\n    y: {z: null, w: 'it''s'}\n";
        let tree: Tree = serde_saphyr::from_str(text).unwrap();
        let Is::Map(fields) = &tree.is else { panic!("{tree:?}") };
        assert_eq!((fields[1].name.as_str(), fields[1].at), ("b", Place { line: 2, column: 1 }));
        let Is::List(items) = &fields[1].value.is else { panic!("{tree:?}") };
        let Is::Map(inner) = &items[0].is else { panic!("{tree:?}") };
        assert_eq!(inner[1].at, Place { line: 4, column: 5 });
        assert_eq!(inner[0].value.at, Place { line: 3, column: 8 });
        let json = serde_json::json!({"a": 1, "b": [{"x": "two", "y": {"z": null, "w": "it's"}}]});
        assert_eq!(tree.value(), json);
    }

    #[test]
    fn json_is_read_too() {
        let json = r#"{"a": [true, 1.5, -2, "x"]}"#;
        let tree: Tree = serde_saphyr::from_str(json).unwrap();
        assert_eq!(tree.value(), serde_json::from_str::<Value>(json).unwrap());
    }
}
