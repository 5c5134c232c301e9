//! Whether what is in memory is what was loaded.

use serde::Serialize;

/// How far checks of memory are, and what came of them since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct IntegrityView {
    /// Segments that are checked, or wait for it.
    pub waiting: u64,
    /// Their size, in bytes.
    pub waiting_bytes: u64,
    /// How much of these was read so far, in bytes.
    pub done_bytes: u64,
    /// Segments that were checked.
    pub checked_total: u64,
    /// What was read for it, in bytes.
    pub checked_bytes_total: u64,
    /// Segments that did not hold what was loaded.
    pub damaged_total: u64,
}

/// `POST /v1/models/{name}/verify` and `POST /v1/verify`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verified {
    /// Whether nothing that was checked is damaged.
    pub intact: bool,
    /// Size of what was asked for, in bytes.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// Each segment, in the order in which they were done.
    pub segments: Vec<VerifiedSegment>,
}

/// A segment that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedSegment {
    /// The model that it was loaded for; null for a tensor table.
    pub model: Option<String>,
    /// What it is: `table`, `file`, or `image` (on a device).
    pub part: &'static str,
    /// Where it is: `host`, or the UUID of a device.
    pub tier: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The digest that it should have: BLAKE3, in hex.
    pub digest: String,
    /// What came of it.
    pub outcome: VerifiedOutcome,
    /// For people: what was found, or why nothing could be.
    pub detail: Option<String>,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifiedOutcome {
    /// It holds what was loaded.
    Intact,
    /// It does not: it is lent to nobody any more, and loaded anew.
    Damaged,
    /// It was freed meanwhile.
    Gone,
    /// It could not be read.
    Unchecked,
}
