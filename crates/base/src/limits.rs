//! Every limit in one table. The error that reports each one stands in its doc.

use std::time::Duration;

/// Size of a block on disk, in bytes.
pub const BLOCK: usize = 4096;
/// Number of key slots.
pub const KEY_SLOTS: u16 = 1024;
/// Longest key of an actor, in bytes (`KeyTooLong`).
pub const KEY_BYTES: usize = 256;
/// Largest message or reply, encoded, in bytes (`MessageTooLarge`).
pub const MESSAGE_BYTES: usize = 1 << 20;
/// Largest reply to a read-only ask, which stands in no log, and largest request of an effect
/// (`MessageTooLarge`).
pub const VIEW_BYTES: usize = 4 * MESSAGE_BYTES - (64 << 10);
/// What the values and outputs of a saga may come to together. What goes beyond stops that saga alone.
pub const SAGA_BYTES: usize = 3 * MESSAGE_BYTES;
/// Shortest log segment of a store with sagas: a record fits into half a segment, and one that holds a
/// saga's largest answer must fit (`RootError::SmallSegments`).
pub const SAGA_SEGMENT_BYTES: u64 = 8 << 20;
/// Longest name of a timer or an effect, in bytes (`NameTooLong`).
pub const NAME_BYTES: usize = 256;
/// Largest state of one actor, encoded, in bytes. A larger one is reported by each checkpoint that
/// writes it (`ActorTooLarge`) and goes on: to refuse the input that makes it too large, every run
/// would have to encode the state.
pub const ACTOR_BYTES: usize = 1 << 20;
/// Most messages, timers and effects that one run may cause (`FanOutTooLarge`).
pub const FAN_OUT: usize = 10_000;
/// Most partitions of a store (`TooManyPartitions`).
pub const PARTITIONS: usize = 1024;
/// Most journal directories of a store (`TooManyDirectories`).
pub const DIRECTORIES: usize = 256;
/// Most inputs that a partition's door lets in before it answers `Overloaded`.
pub const DOOR_CREDITS: usize = 8192;
/// How long an idle session keeps its replies.
pub const SESSION_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
