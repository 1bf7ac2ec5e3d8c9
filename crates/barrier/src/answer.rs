//! What a request is answered, and why. No HTTP library is known here: a status and bytes.

/// The status of a step that came after its undo. Gone, and not one of those (409, 425, 503...) that a
/// caller takes for "try again": it never can act again.
pub const TOO_LATE: u16 = 410;
/// The status of an undo that had nothing to undo.
pub const NOTHING_TO_UNDO: u16 = 204;

/// A status and the bytes of a body, as they go back to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// An answer with this status and body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into() }
    }

    /// What a step is answered that came after its undo.
    pub fn too_late() -> Self {
        Self::new(TOO_LATE, "this step was undone before this request arrived")
    }

    /// What an undo is answered that had nothing to undo.
    pub fn nothing_to_undo() -> Self {
        Self::new(NOTHING_TO_UNDO, Vec::new())
    }
}

/// Where an answer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The handler acted, now.
    Fresh,
    /// The handler refused, now: its writes were rolled back. A step's refusal is recorded, an
    /// undo's is not.
    Refused,
    /// The answer that was recorded the first time; nothing ran.
    Repeated,
    /// An undo whose step never acted: recorded, nothing ran.
    NothingToUndo,
    /// A step whose undo came first: nothing ran.
    TooLate,
}

/// An answer and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What to send back.
    pub answer: Answer,
    /// Why it is that.
    pub source: Source,
}
