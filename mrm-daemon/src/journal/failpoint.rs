//! A planted fault, for the test that a real one leaves a journal. Not in any release: debug
//! builds with the feature `failpoints` only.

use mrm_core::event::Event;
use mrm_core::id::OpId;

/// After how many events the next is one that cannot happen.
const VARIABLE: &str = "MRM_FAILPOINT_IMPOSSIBLE_EVENT";

/// The completion of what was never started, if it is time for it.
pub(crate) fn impossible_event(events: u64) -> Option<Event> {
    let wanted: u64 = std::env::var(VARIABLE).ok()?.parse().ok()?;
    (wanted == events).then_some(Event::Freed { op: OpId(u64::MAX) })
}
