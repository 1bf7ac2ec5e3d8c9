//! The input file: `id,from,to,amount`.
//!
//! Decides which lines are transfers, which are duplicates and which are rejected, and why. A line
//! that does not parse costs exactly itself: a quote that is opened and not closed, the commonest
//! mistake, takes no other line with it. Therefore not a general CSV reader, which would swallow the
//! file up to the next quote: quoted fields follow RFC 4180, may hold commas, quotes and newlines,
//! and are given up at the first sign that the quote was a mistake, from where reading starts again
//! on the next physical line.
//!
//! Never keeps more in memory than one line and the ids seen so far. Never changes the file.
//!
//! Invariants: every physical line belongs to exactly one [`Line`]; numbers only grow; two passes over
//! one [`Input`] give the same lines, or the second one ends in [`InputError::Changed`].

use crate::output::advice;
use rallypoint_base::hash::Xxh3;
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The fields, in this order, and with these names in the first line.
pub(crate) const HEADER: &str = "id,from,to,amount";
/// Longest name of an account, in bytes.
pub(crate) const NAME_BYTES: usize = 64;
/// Largest amount, in cents: the largest whole number that every reader of JSON gets right.
pub(crate) const AMOUNT: u64 = 1 << 53;
/// Longest record that is looked at, in bytes. A valid one has at most about 300 (two quoted names).
const RECORD_BYTES: usize = 1024;

/// The input cannot be used at all.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum InputError {
    /// The file is missing or cannot be read.
    #[error("cannot read the input {}: {source}; {}", path.display(), advice(source))]
    Read { path: PathBuf, source: io::Error },
    /// A directory, pipe or device.
    #[error("the input {} is not a regular file; the demo reads it more than once, so store it first", path.display())]
    NotAFile { path: PathBuf },
    /// The first line is not the header.
    #[error(
        "the input {} begins with {found}, not with the header `{HEADER}`; make that its first line",
        path.display()
    )]
    Header { path: PathBuf, found: String },
    /// Another pass saw other bytes.
    #[error(
        "the input {} was changed while the demo used it; start again in a new directory, \
         and leave the file alone",
        path.display()
    )]
    Changed { path: PathBuf },
}

/// xxh3-64 of all bytes of an input file: tells `--resume` that it has the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentHash(pub(crate) u64);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One transfer that the file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// As in the file; a number seen before makes a duplicate.
    pub(crate) id: u64,
    /// Account that pays.
    pub(crate) from: String,
    /// Account that is paid.
    pub(crate) to: String,
    /// Cents, from 1 to [`AMOUNT`].
    pub(crate) amount: u64,
}

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// To be done.
    Transfer(Transfer),
    /// Its id was seen before, on a line that was not rejected: opens both accounts, moves nothing.
    Duplicate(Transfer),
    /// No transfer; opens nothing, and its id counts as not seen.
    Rejected(Reason),
}

/// One line (a record, which in quotes may span several) after the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Number in the file of the physical line on which it starts; the header is 1.
    pub(crate) number: u64,
    /// What it says.
    pub(crate) content: Content,
}

/// Why a line was rejected. What was found is cut to a readable length.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum Reason {
    /// Nothing on it.
    #[error("the line is empty")]
    Empty,
    /// Too few or too many fields.
    #[error("4 fields are needed, not {found}")]
    Fields { found: usize },
    /// A quoted field without end.
    #[error("a quote is opened and never closed")]
    QuoteOpen,
    /// `"like"this`.
    #[error("there is text between a closing quote and the next comma")]
    QuoteText,
    /// Longer than anything valid.
    #[error("the line is longer than {RECORD_BYTES} bytes")]
    TooLong,
    /// Bytes that are no text.
    #[error("the line is not UTF-8")]
    NotUtf8,
    /// Not an unsigned 64-bit number.
    #[error("the id {found} is not a whole number from 0 to {}", u64::MAX)]
    Id { found: String },
    /// No name.
    #[error("the account name in `{field}` is empty")]
    NameEmpty { field: &'static str },
    /// Too long a name.
    #[error("the account name in `{field}` has {bytes} bytes; at most {NAME_BYTES} are allowed")]
    NameTooLong { field: &'static str, bytes: usize },
    /// Not whole cents in range.
    #[error("the amount {found} is not a whole number of cents from 1 to {AMOUNT}")]
    Amount { found: String },
    /// Pays itself.
    #[error("`from` and `to` are the same account {name}")]
    SameAccount { name: String },
}

/// An input file whose header is right and whose bytes are known by their hash.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    path: PathBuf,
    hash: ContentHash,
}

impl Input {
    /// Checks the header and hashes the whole file.
    pub(crate) fn open(path: &Path) -> Result<Self, InputError> {
        let mut file = open(path)?;
        let failed = |source| InputError::Read { path: path.to_owned(), source };
        let mut hasher = Xxh3::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => hasher.update(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let input = Self { path: path.to_owned(), hash: ContentHash(hasher.digest()) };
        input.lines()?;
        Ok(input)
    }

    #[cfg(test)]
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What its bytes are.
    pub(crate) fn hash(&self) -> ContentHash {
        self.hash
    }

    /// One pass over its lines.
    pub(crate) fn lines(&self) -> Result<Lines<BufReader<File>>, InputError> {
        let reader = BufReader::with_capacity(1 << 18, open(&self.path)?);
        Lines::new(&self.path, reader, Some(self.hash))
    }
}

fn open(path: &Path) -> Result<File, InputError> {
    let failed = |source| InputError::Read { path: path.to_owned(), source };
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(InputError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(failed)
}

/// The lines of an input, in file order.
pub(crate) struct Lines<R> {
    path: PathBuf,
    source: Source<R>,
    /// What the bytes must hash to at the end.
    expected: Option<ContentHash>,
    seen: HashSet<u64>,
    fields: Fields,
    ended: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads the header of `reader`; `path` is for messages. With `expected`, the end of the pass is
    /// an error unless these were the bytes.
    pub(crate) fn new(path: &Path, reader: R, expected: Option<ContentHash>) -> Result<Self, InputError> {
        let mut source = Source { reader, hasher: Xxh3::new(), back: VecDeque::new(), number: 0 };
        let first = source.next().map_err(|source| InputError::Read { path: path.to_owned(), source })?;
        let mut fields = Fields::default();
        let wrong = |found| InputError::Header { path: path.to_owned(), found };
        let Some(mut first) = first else { return Err(wrong("nothing (it is empty)".to_owned())) };
        if first.bytes.starts_with(b"\xEF\xBB\xBF") {
            first.bytes.drain(..3);
        }
        fields.clear();
        let complete = first.whole && matches!(fields.feed(first.content()), Ok(Progress::Complete));
        if !complete || !fields.iter().eq(HEADER.split(',').map(str::as_bytes)) {
            let found = String::from_utf8_lossy(first.content()).into_owned();
            return Err(wrong(if found.is_empty() { "an empty line".to_owned() } else { shown(&found) }));
        }
        Ok(Self { path: path.to_owned(), source, expected, seen: HashSet::new(), fields, ended: false })
    }

    fn line(&mut self) -> io::Result<Option<Line>> {
        let Some(first) = self.source.next()? else { return Ok(None) };
        let number = first.number;
        let content = match self.record(first)?.and_then(|()| self.transfer()) {
            Err(reason) => Content::Rejected(reason),
            Ok(transfer) if self.seen.insert(transfer.id) => Content::Transfer(transfer),
            Ok(transfer) => Content::Duplicate(transfer),
        };
        Ok(Some(Line { number, content }))
    }

    /// Takes the record that starts with `first` apart, into `fields`. Where that fails, only `first`
    /// is used up; what was read beyond it goes back.
    fn record(&mut self, first: Physical) -> io::Result<Result<(), Reason>> {
        if !first.whole {
            return Ok(Err(Reason::TooLong));
        }
        if first.content().is_empty() {
            return Ok(Err(Reason::Empty));
        }
        self.fields.clear();
        let mut length = first.bytes.len();
        let mut last = first;
        let mut beyond: Vec<Physical> = Vec::new();
        let failure = loop {
            match self.fields.feed(last.content()) {
                Ok(Progress::Complete) => return Ok(Ok(())),
                Err(reason) => break reason,
                Ok(Progress::InQuotes) => {}
            }
            // The newline is part of the quoted field, and so is the `\r` in front of it.
            self.fields.text.extend_from_slice(last.newline());
            let Some(next) = self.source.next()? else { break Reason::QuoteOpen };
            length += next.bytes.len();
            beyond.push(next.clone());
            if !next.whole || length > RECORD_BYTES {
                break Reason::QuoteOpen;
            }
            last = next;
        };
        // A record of several lines that is wrong in the end began with a quote that was a mistake.
        let failure = if beyond.is_empty() { failure } else { Reason::QuoteOpen };
        for physical in beyond.into_iter().rev() {
            self.source.back.push_front(physical);
        }
        Ok(Err(failure))
    }

    fn transfer(&self) -> Result<Transfer, Reason> {
        let mut fields = ["", "", "", ""];
        let found = self.fields.ends.len();
        if found != fields.len() {
            return Err(Reason::Fields { found });
        }
        for (text, bytes) in fields.iter_mut().zip(self.fields.iter()) {
            // Each alone: two halves of a character, left and right of a comma, are no text.
            *text = std::str::from_utf8(bytes).map_err(|_| Reason::NotUtf8)?;
        }
        let [id, from, to, amount] = fields;
        let transfer = Transfer {
            id: whole_number(id).ok_or_else(|| Reason::Id { found: shown(id) })?,
            from: name("from", from)?,
            to: name("to", to)?,
            amount: whole_number(amount)
                .filter(|amount| (1..=AMOUNT).contains(amount))
                .ok_or_else(|| Reason::Amount { found: shown(amount) })?,
        };
        if transfer.from == transfer.to {
            return Err(Reason::SameAccount { name: shown(&transfer.from) });
        }
        Ok(transfer)
    }

    fn check_hash(&self) -> Option<InputError> {
        let found = ContentHash(self.source.hasher.digest());
        let changed = self.expected.is_some_and(|expected| expected != found);
        changed.then(|| InputError::Changed { path: self.path.clone() })
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.line() {
            Ok(Some(line)) => Some(Ok(line)),
            Ok(None) => {
                self.ended = true;
                self.check_hash().map(Err)
            }
            Err(source) => {
                self.ended = true;
                Some(Err(InputError::Read { path: self.path.clone(), source }))
            }
        }
    }
}

/// Digits only: no sign, no space, no point. Leading zeros do not change a number.
fn whole_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn name(field: &'static str, name: &str) -> Result<String, Reason> {
    match name.len() {
        0 => Err(Reason::NameEmpty { field }),
        1..=NAME_BYTES => Ok(name.to_owned()),
        bytes => Err(Reason::NameTooLong { field, bytes }),
    }
}

/// What was found, in backquotes, on one line, at a readable length.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    let more = if text.chars().nth(40).is_some() { ".." } else { "" };
    format!("`{cut}{more}`")
}

/// A line as the file has it.
#[derive(Clone, Debug)]
struct Physical {
    number: u64,
    /// With its newline, if it has one; the first [`RECORD_BYTES`] where it is longer.
    bytes: Vec<u8>,
    /// False: it is longer.
    whole: bool,
}

impl Physical {
    fn content(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - self.newline().len()]
    }

    /// `\n`, `\r\n`, or on the last line nothing (or `\r`, when the file was cut between the two).
    fn newline(&self) -> &[u8] {
        let body = self.bytes.strip_suffix(b"\n").unwrap_or(&self.bytes);
        let body = body.strip_suffix(b"\r").unwrap_or(body);
        &self.bytes[body.len()..]
    }
}

/// Gives physical lines, and takes them back.
struct Source<R> {
    reader: R,
    hasher: Xxh3,
    back: VecDeque<Physical>,
    /// Number of the line last read.
    number: u64,
}

impl<R: BufRead> Source<R> {
    fn next(&mut self) -> io::Result<Option<Physical>> {
        if let Some(physical) = self.back.pop_front() {
            return Ok(Some(physical));
        }
        let mut bytes = Vec::new();
        (&mut self.reader).take(RECORD_BYTES as u64).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.hasher.update(&bytes);
        self.number += 1;
        let whole = bytes.len() < RECORD_BYTES || bytes.ends_with(b"\n") || self.skip()? == 0;
        Ok(Some(Physical { number: self.number, bytes, whole }))
    }

    /// Skips the rest of a line, of any length, and says how long it was.
    fn skip(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let len = end.map_or(buffer.len(), |end| end + 1);
            self.hasher.update(&buffer[..len]);
            self.reader.consume(len);
            skipped += len as u64;
            if len == 0 || end.is_some() {
                return Ok(skipped);
            }
        }
    }
}

/// The fields of one record, without their quotes.
#[derive(Default)]
struct Fields {
    /// One after the other.
    text: Vec<u8>,
    /// Where each ends in `text`.
    ends: Vec<usize>,
    in_quotes: bool,
}

enum Progress {
    /// The record ended.
    Complete,
    /// The line ended inside of a quoted field.
    InQuotes,
}

impl Fields {
    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.in_quotes = false;
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(&start, &end)| &self.text[start..end])
    }

    /// Takes one physical line (without its newline) of the record.
    fn feed(&mut self, mut line: &[u8]) -> Result<Progress, Reason> {
        loop {
            if !self.in_quotes
                && let Some(rest) = line.strip_prefix(b"\"")
            {
                self.in_quotes = true;
                line = rest;
            }
            if self.in_quotes {
                let Some(quote) = line.iter().position(|&byte| byte == b'"') else {
                    self.text.extend_from_slice(line);
                    return Ok(Progress::InQuotes);
                };
                self.text.extend_from_slice(&line[..quote]);
                line = &line[quote + 1..];
                if let Some(rest) = line.strip_prefix(b"\"") {
                    self.text.push(b'"');
                    line = rest;
                    continue;
                }
                self.in_quotes = false;
            } else {
                // A quote in the middle of an unquoted field is an ordinary character.
                let end = line.iter().position(|&byte| byte == b',').unwrap_or(line.len());
                self.text.extend_from_slice(&line[..end]);
                line = &line[end..];
            }
            self.ends.push(self.text.len());
            match line.split_first() {
                None => return Ok(Progress::Complete),
                Some((b',', rest)) => line = rest,
                Some(_) => return Err(Reason::QuoteText),
            }
        }
    }
}

#[cfg(test)]
mod tests;
