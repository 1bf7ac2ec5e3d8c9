//! The client's own ledger: which lines were acknowledged, and how.
//!
//! Decides how an acknowledgement is written down outside of the store, in a text file that anybody
//! can read:
//!
//! ```text
//! rallypoint demo ledger 1 input=8d1f6a0c5e3b7924 opening=100000 session=4711
//! 2,applied
//! 3,refused
//! 4,duplicate
//! ```
//!
//! A line is appended after its acknowledgement was received and never before; a batch is one write.
//! It is not synced: a client that dies with its machine asks again in the same session, and gets the
//! same answers. Therefore the client writes a batch here *before* it tells the system that it has the
//! answers, and calls [`Ledger::sync`] in between where a power cut counts.
//!
//! Never trusts a file that is not whole: a last line without its newline was torn by a crash, is cut
//! and reported; anything else that is not as above belongs to somebody else and is refused.
//!
//! Invariant: one line of the input has at most one outcome.

use crate::demo::input::ContentHash;
use crate::output::{OutputError, advice, write_file};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

const FORMAT: &str = "rallypoint demo ledger 1";
/// Longer than any line of ours.
const LINE_BYTES: u64 = 256;

/// The ledger cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum LedgerError {
    /// It is missing or cannot be read.
    #[error("cannot read the ledger {}: {source}; {}", path.display(), advice(source))]
    Read { path: PathBuf, source: io::Error },
    /// An acknowledgement could not be appended.
    #[error("cannot append to the ledger {}: {source}; {}", path.display(), advice(source))]
    Append { path: PathBuf, source: io::Error },
    /// The file could not be begun.
    #[error(transparent)]
    Create(#[from] OutputError),
    /// One is there already.
    #[error("there is a ledger {} already; continue with `--resume`, or choose another directory", .0.display())]
    Exists(PathBuf),
    /// Not written by this program.
    #[error(
        "{} is not a ledger of this demo (line {line} is {found}); choose another directory",
        path.display()
    )]
    Foreign { path: PathBuf, line: u64, found: String },
    /// Of another run.
    #[error(
        "the ledger {} belongs to a run with {found}, this is one with {wanted}; \
         resume with the same input and the same `--opening`, or choose another directory",
        path.display()
    )]
    OtherRun { path: PathBuf, found: String, wanted: String },
    /// The system gave two answers to one question.
    #[error("the ledger {} has line {line} of the input twice: {first}, then {second}", path.display())]
    Contradiction { path: PathBuf, line: u64, first: Outcome, second: Outcome },
}

/// What was acknowledged of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The money is on its way.
    Applied,
    /// There was too little money.
    Refused,
    /// The id was seen before; the accounts are open.
    Duplicate,
}

impl Outcome {
    const ALL: [Self; 3] = [Self::Applied, Self::Refused, Self::Duplicate];

    const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Duplicate => "duplicate",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which run a ledger belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Of the input file.
    pub(crate) input: ContentHash,
    /// Cents that an account opens with.
    pub(crate) opening: u64,
    /// The client's session with the system, in which a question asked again is not done again.
    pub(crate) session: u64,
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORMAT} input={} opening={} session={}", self.input, self.opening, self.session)
    }
}

impl Header {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix(FORMAT)?.strip_prefix(' ')?.split(' ');
        let input = u64::from_str_radix(words.next()?.strip_prefix("input=")?, 16).ok()?;
        let opening = words.next()?.strip_prefix("opening=")?.parse().ok()?;
        let session = words.next()?.strip_prefix("session=")?.parse().ok()?;
        let header = Self { input: ContentHash(input), opening, session };
        // Only what this program writes, character by character.
        (header.to_string() == line).then_some(header)
    }

    fn run(&self) -> String {
        format!("input {} and opening {}", self.input, self.opening)
    }
}

/// The outcome of each acknowledged line, one byte per line of the input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    /// 0 or 1 + the outcome; by line number / [`PAGE`].
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    count: u64,
}

const PAGE: u64 = 4096;

impl Outcomes {
    /// The outcome of `line`, or `None`: not acknowledged.
    pub(crate) fn get(&self, line: u64) -> Option<Outcome> {
        let byte = self.pages.get(&(line / PAGE))?[(line % PAGE) as usize];
        Outcome::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// Number of acknowledged lines.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Notes `outcome` for `line`. A line noted before keeps what it has, which is returned.
    pub(crate) fn note(&mut self, line: u64, outcome: Outcome) -> Option<Outcome> {
        let known = self.get(line);
        if known.is_none() {
            let page = self.pages.entry(line / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[(line % PAGE) as usize] = 1 + outcome as u8;
            self.count += 1;
        }
        known
    }
}

/// What stands in a ledger.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Which run it belongs to.
    pub(crate) header: Header,
    /// What was acknowledged.
    pub(crate) outcomes: Outcomes,
    /// Bytes of a torn last line, which do not count.
    pub(crate) torn: u64,
    /// Bytes before them.
    length: u64,
}

/// Reads a ledger and changes nothing.
pub(crate) fn read(path: &Path) -> Result<Reading, LedgerError> {
    let failed = |source| LedgerError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::with_capacity(1 << 18, File::open(path).map_err(failed)?);
    let mut number = 0;
    let mut length = 0;
    let mut header = None;
    let mut outcomes = Outcomes::default();
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        (&mut reader).take(LINE_BYTES).read_until(b'\n', &mut bytes).map_err(failed)?;
        number += 1;
        let foreign = |bytes: &[u8]| LedgerError::Foreign {
            path: path.to_owned(),
            line: number,
            found: format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)])),
        };
        let Some(whole) = bytes.strip_suffix(b"\n") else {
            // The header is written whole or not at all, and a torn line is shorter than a line.
            let Some(header) = header.filter(|_| (bytes.len() as u64) < LINE_BYTES) else {
                return Err(foreign(&bytes));
            };
            return Ok(Reading { header, outcomes, torn: bytes.len() as u64, length });
        };
        length += bytes.len() as u64;
        let line = std::str::from_utf8(whole).map_err(|_| foreign(&bytes))?;
        if header.is_none() {
            header = Some(Header::parse(line).ok_or_else(|| foreign(&bytes))?);
            continue;
        }
        let (line, outcome) = parse(line).ok_or_else(|| foreign(&bytes))?;
        if let Some(first) = outcomes.note(line, outcome)
            && first != outcome
        {
            return Err(LedgerError::Contradiction { path: path.to_owned(), line, first, second: outcome });
        }
    }
}

fn parse(line: &str) -> Option<(u64, Outcome)> {
    let (number, name) = line.split_once(',')?;
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse().ok().filter(|_| digits)?;
    Some((number, Outcome::ALL.into_iter().find(|outcome| outcome.name() == name)?))
}

/// A ledger that is being written.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    /// Bytes that are whole.
    length: u64,
    text: String,
    failed: bool,
}

impl Ledger {
    /// Begins the ledger `path`, where none may be.
    pub(crate) fn create(path: &Path, header: &Header) -> Result<Self, LedgerError> {
        if path.exists() {
            return Err(LedgerError::Exists(path.to_owned()));
        }
        let line = format!("{header}\n");
        write_file(path, |out| out.write_all(line.as_bytes()))?;
        Self::open(path, line.len() as u64)
    }

    /// Goes on with the ledger `path` of the same input and opening: cuts a torn last line off, and
    /// says what was acknowledged and in which session.
    pub(crate) fn resume(
        path: &Path,
        input: ContentHash,
        opening: u64,
    ) -> Result<(Self, Reading), LedgerError> {
        let reading = read(path)?;
        let wanted = Header { input, opening, ..reading.header };
        if wanted != reading.header {
            let (found, wanted) = (reading.header.run(), wanted.run());
            return Err(LedgerError::OtherRun { path: path.to_owned(), found, wanted });
        }
        let ledger = Self::open(path, reading.length)?;
        if reading.torn > 0 {
            ledger.file.set_len(reading.length).map_err(|source| ledger.failed_with(source))?;
        }
        Ok((ledger, reading))
    }

    fn open(path: &Path, length: u64) -> Result<Self, LedgerError> {
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|source| LedgerError::Append { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, length, text: String::new(), failed: false })
    }

    /// Appends acknowledgements, with one write. After an error nothing more is appended: a line
    /// behind a torn one would make both unreadable.
    pub(crate) fn append(&mut self, batch: &[(u64, Outcome)]) -> Result<(), LedgerError> {
        if self.failed {
            return Err(self.failed_with(io::Error::other("an earlier write failed")));
        }
        self.text.clear();
        for (line, outcome) in batch {
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, "{line},{outcome}");
        }
        match self.file.write_all(self.text.as_bytes()) {
            Ok(()) => self.length += self.text.len() as u64,
            Err(source) => {
                self.failed = true;
                // Tidy where possible; otherwise the next reader cuts it.
                let _ = self.file.set_len(self.length);
                return Err(self.failed_with(source));
            }
        }
        Ok(())
    }

    /// Makes what was appended survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), LedgerError> {
        self.file.sync_data().map_err(|source| self.failed_with(source))
    }

    fn failed_with(&self, source: io::Error) -> LedgerError {
        LedgerError::Append { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, Ledger, LedgerError, Outcome, Outcomes, read};
    use crate::demo::input::ContentHash;
    use std::fs;
    use std::path::PathBuf;

    const HEADER: Header = Header { input: ContentHash(0x1f), opening: 100_000, session: u64::MAX };

    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        (folder, path)
    }

    #[test]
    fn what_is_appended_is_read() {
        let (_folder, path) = place();
        let mut ledger = Ledger::create(&path, &HEADER).unwrap();
        ledger.append(&[(2, Outcome::Applied), (9_000, Outcome::Refused)]).unwrap();
        ledger.append(&[]).unwrap();
        ledger.append(&[(3, Outcome::Duplicate)]).unwrap();
        ledger.sync().unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "rallypoint demo ledger 1 input=000000000000001f opening=100000 session=18446744073709551615\n\
             2,applied\n9000,refused\n3,duplicate\n"
        );
        let reading = read(&path).unwrap();
        assert_eq!((reading.header, reading.torn, reading.outcomes.count()), (HEADER, 0, 3));
        assert_eq!(reading.outcomes.get(9_000), Some(Outcome::Refused));
        assert_eq!(reading.outcomes.get(3), Some(Outcome::Duplicate));
        assert_eq!(reading.outcomes.get(4), None);
        assert_eq!(reading.outcomes.get(u64::MAX), None);
    }

    #[test]
    fn every_prefix_is_resumed_or_refused_and_twice() {
        let (_folder, path) = place();
        let mut ledger = Ledger::create(&path, &HEADER).unwrap();
        let start = fs::metadata(&path).unwrap().len() as usize;
        ledger.append(&[(2, Outcome::Applied), (3, Outcome::Refused), (4, Outcome::Duplicate)]).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let resumed = Ledger::resume(&path, HEADER.input, HEADER.opening);
            if length < start {
                assert!(matches!(resumed, Err(LedgerError::Foreign { line: 1, .. })), "{length}");
                continue;
            }
            let (mut ledger, reading) = resumed.unwrap();
            let lines = whole[start..length].iter().filter(|&&byte| byte == b'\n').count() as u64;
            assert_eq!(reading.outcomes.count(), lines);
            let sound = whole[..length].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
            assert_eq!(reading.torn as usize, length - sound);
            ledger.append(&[(7, Outcome::Applied)]).unwrap();
            let (_, again) = Ledger::resume(&path, HEADER.input, HEADER.opening).unwrap();
            assert_eq!((again.torn, again.outcomes.count()), (0, lines + 1));
        }
    }

    #[test]
    fn a_ledger_of_another_run_is_refused() {
        let (_folder, path) = place();
        Ledger::create(&path, &HEADER).unwrap();
        assert!(matches!(Ledger::create(&path, &HEADER), Err(LedgerError::Exists(_))));
        let said = Ledger::resume(&path, ContentHash(0x20), 100_000).unwrap_err().to_string();
        assert!(said.contains("input 000000000000001f") && said.contains("input 0000000000000020"), "{said}");
        let other = Ledger::resume(&path, HEADER.input, 1);
        assert!(matches!(other, Err(LedgerError::OtherRun { .. })));
        let missing = Ledger::resume(&path.with_file_name("no"), HEADER.input, 1);
        assert!(matches!(missing, Err(LedgerError::Read { .. })));
    }

    #[test]
    fn foreign_files_are_refused_and_not_touched() {
        let (_folder, path) = place();
        let header = HEADER.to_string();
        let foreign = [
            String::new(),
            "id,from,to,amount\n".to_owned(),
            format!("{} \n", header),
            format!("{}\n", header.replace("ledger 1", "ledger 2")),
            format!("{header}\n2,applied\n3,done\n"),
            format!("{header}\n+2,applied\n"),
            format!("{header}\n\n"),
            format!("{header}\n{}", "x".repeat(1_000)),
        ];
        for text in foreign {
            fs::write(&path, &text).unwrap();
            let resumed = Ledger::resume(&path, HEADER.input, HEADER.opening);
            assert!(matches!(resumed, Err(LedgerError::Foreign { .. })), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn two_answers_to_one_line_are_a_contradiction() {
        let (_folder, path) = place();
        let mut ledger = Ledger::create(&path, &HEADER).unwrap();
        ledger.append(&[(2, Outcome::Applied), (2, Outcome::Applied)]).unwrap();
        assert_eq!(read(&path).unwrap().outcomes.count(), 1);
        ledger.append(&[(2, Outcome::Refused)]).unwrap();
        let said = read(&path).unwrap_err().to_string();
        assert!(said.ends_with("has line 2 of the input twice: applied, then refused"), "{said}");
    }

    #[test]
    fn after_a_failed_write_nothing_is_appended() {
        let (_folder, path) = place();
        let mut ledger = Ledger::create(&path, &HEADER).unwrap();
        // A descriptor that cannot be written: what a full disk looks like from here.
        ledger.file = fs::File::open(&path).unwrap();
        assert!(ledger.append(&[(2, Outcome::Applied)]).is_err());
        let said = ledger.append(&[(3, Outcome::Applied)]).unwrap_err().to_string();
        assert!(said.contains("an earlier write failed"), "{said}");
        assert_eq!(read(&path).unwrap().outcomes, Outcomes::default());
    }
}
