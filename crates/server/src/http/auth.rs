//! The bearer token: read from a file, compared in constant time, shown nowhere.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Shortest token: a shorter one is guessed.
const SHORTEST: usize = 16;

/// A secret that requests must carry.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why a token file is of no use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It cannot be read.
    #[error("the token file {} cannot be read: {error}; check the name and who may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It holds no token.
    #[error(
        "the token file {} holds no token: write one line of at least {SHORTEST} visible ASCII characters \
         into it (`openssl rand -hex 32`)",
        path.display()
    )]
    Unfit {
        /// The file.
        path: PathBuf,
    },
}

impl Token {
    /// Reads the token, which is the file's content without white space around it.
    ///
    /// # Errors
    /// [`TokenError`]; it never shows what the file holds.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| TokenError::Unreadable { path: path.to_owned(), error })?;
        let token = text.trim();
        if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::Unfit { path: path.to_owned() });
        }
        Ok(Self(token.to_owned()))
    }

    /// The header `Authorization` that a client sends.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// True when the value of `Authorization` carries this token. Takes as long for a wrong token as
    /// for the right one, whatever they have in common.
    #[must_use]
    pub fn admits(&self, authorization: &[u8]) -> bool {
        let Some((scheme, given)) = authorization.split_at_checked(7) else { return false };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let own = self.0.as_bytes();
        let mut differs = usize::from(own.len() != given.len());
        for (at, byte) in given.iter().enumerate() {
            differs |= usize::from(byte ^ own[at % own.len()]);
        }
        std::hint::black_box(differs) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_admitted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert!(token.admits(b"Bearer 0123456789abcdef"));
        assert!(token.admits(b"bearer 0123456789abcdef"));
        let wrong: [&[u8]; 7] = [
            b"",
            b"Bearer",
            b"Bearer ",
            b"Bearer 0123456789abcde",
            b"Bearer 0123456789abcdef0",
            b"Bearer 0123456789abcdef0123456789abcdef",
            b"Basic  0123456789abcdef",
        ];
        for header in wrong {
            assert!(!token.admits(header), "{}", String::from_utf8_lossy(header));
        }
        assert!(!format!("{token:?}").contains("0123"));
        std::fs::write(&path, "too short").unwrap();
        let error = Token::read(&path).unwrap_err().to_string();
        assert!(error.contains("holds no token") && !error.contains("too short"), "{error}");
    }
}
