//! A user's value as it is journaled: MessagePack with named fields, so that a person and another
//! program can read it without the type.

use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// A journaled value. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob(Arc<[u8]>);

/// A value that cannot be written, or bytes that are no such value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

impl Blob {
    /// Writes a value.
    ///
    /// ```
    /// use rallypoint_saga::value::Blob;
    /// let blob = Blob::of(&("sku", 3)).unwrap();
    /// assert_eq!(blob.read::<(String, u32)>().unwrap(), ("sku".into(), 3));
    /// ```
    ///
    /// # Errors
    /// [`ValueError`] when its `Serialize` fails.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, ValueError> {
        rmp_serde::to_vec_named(value).map(Self::from).map_err(|error| ValueError(error.to_string()))
    }

    /// Reads the value.
    ///
    /// # Errors
    /// [`ValueError`] when the bytes are no `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, ValueError> {
        rmp_serde::from_slice(&self.0).map_err(|error| {
            ValueError(format!("journaled bytes are no {}: {error}", std::any::type_name::<T>()))
        })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Default for Blob {
    /// MessagePack's nil.
    fn default() -> Self {
        Self(Arc::from([0xC0].as_slice()))
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} B)", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl<'de> Visitor<'de> for Bytes {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(bytes.into())
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Blob, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element::<u8>()? {
                    bytes.push(byte);
                }
                if bytes.is_empty() {
                    return Err(A::Error::custom("an empty value"));
                }
                Ok(bytes.into())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
