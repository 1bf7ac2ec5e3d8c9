//! How a user's values become bytes.
//!
//! Decides: which codec writes, and that every encoded value says codec and schema version in
//! front of its bytes. Never guesses: bytes of an unknown codec or schema are an error with both
//! numbers in it. Engine records never come here; they have a hand-written layout.

use rallypoint_base::wire::Reader;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How values of one actor kind are written. Reading always follows what stands with the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// MessagePack with named fields: self-describing, optional fields may be added freely.
    #[default]
    Named,
    /// postcard: smaller and faster, any change of a type needs a new schema version.
    Compact,
}

impl Codec {
    const fn id(self) -> u8 {
        match self {
            Self::Named => 1,
            Self::Compact => 2,
        }
    }
}

/// A value could not be turned into bytes or back.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value cannot be written: its `Serialize` failed.
    #[error("a value of {what} could not be encoded: {detail}; this is a bug in its Serialize")]
    Encode {
        /// The Rust type.
        what: &'static str,
        /// What the codec said.
        detail: String,
    },
    /// The bytes are no value of this type.
    #[error("{len} bytes are no {what} (codec {codec}, schema {schema}): {detail}")]
    Decode {
        /// The Rust type.
        what: &'static str,
        /// Codec id that stands with the bytes.
        codec: u8,
        /// Schema version that stands with the bytes.
        schema: u16,
        /// Length in bytes.
        len: usize,
        /// What the codec said.
        detail: String,
    },
    /// The bytes were written by another schema version and the actor has no `migrate` for it.
    #[error("{what} has schema {expected}, the stored bytes have schema {found}; write `migrate` for it")]
    Schema {
        /// The Rust type.
        what: &'static str,
        /// The schema version of the running program.
        expected: u16,
        /// The schema version of the bytes.
        found: u16,
    },
}

/// An encoded value as it stands in messages and checkpoints: codec, schema version, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// Which codec wrote the bytes.
    pub codec: u8,
    /// Schema version of the writer.
    pub schema: u16,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Encoded<'a> {
    /// Splits codec and schema off the front; `None` when there are fewer than three bytes.
    #[must_use]
    pub fn split(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let codec = reader.u8("codec").ok()?;
        let schema = reader.u16("schema").ok()?;
        Some(Self { codec, schema, bytes: reader.rest() })
    }

    /// Reads the value, whatever its schema version.
    ///
    /// # Errors
    /// [`CodecError::Decode`].
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        let fail = |detail: String| CodecError::Decode {
            what: std::any::type_name::<T>(),
            codec: self.codec,
            schema: self.schema,
            len: self.bytes.len(),
            detail,
        };
        match self.codec {
            1 => rmp_serde::from_slice(self.bytes).map_err(|e| fail(e.to_string())),
            2 => postcard::from_bytes(self.bytes).map_err(|e| fail(e.to_string())),
            other => Err(fail(format!("codec {other} is unknown to this release"))),
        }
    }
}

/// Appends codec, schema version and the encoded value.
///
/// # Errors
/// [`CodecError::Encode`]; `out` may then hold a part of the value.
pub fn encode<T: Serialize + ?Sized>(
    codec: Codec,
    schema: u16,
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let fail = |detail: String| CodecError::Encode { what: std::any::type_name::<T>(), detail };
    out.push(codec.id());
    out.extend_from_slice(&schema.to_le_bytes());
    match codec {
        Codec::Named => rmp_serde::encode::write_named(out, value).map_err(|e| fail(e.to_string())),
        Codec::Compact => postcard::serialize_with_flavor(value, Sink(out)).map_err(|e| fail(e.to_string())),
    }
}

/// postcard appends to anything that is `Extend<u8>`; this lends it a vector.
/// Whole slices at once: postcard's own flavor for what can be extended goes byte by byte.
struct Sink<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Sink<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
