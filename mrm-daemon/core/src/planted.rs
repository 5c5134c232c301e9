//! Bugs on purpose, so that a test of the decider can show that it would find them.
//!
//! Each is one line where it belongs, and does nothing unless it is planted. Without the feature
//! `planted` none can be, and the compiler drops the lines; a release build refuses the feature.
//!
//! ```
//! # #[cfg(feature = "planted")] {
//! use mrm_core::planted::{Bug, plant};
//! plant(Some(Bug::LeakCharge)); // on this thread, from now on
//! plant(None);
//! # }
//! ```
#![cfg_attr(
    not(feature = "planted"),
    allow(unreachable_pub, reason = "public with the feature alone")
)]

#[cfg(all(feature = "planted", not(debug_assertions)))]
compile_error!("the feature `planted` of mrm-core is for tests: it cannot be in a release build");

/// What can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// What was freed stays charged.
    LeakCharge,
    /// What a failed load was charged is not refunded.
    ForgetRefund,
    /// Wants are admitted whether they fit or not.
    ChargeAboveLimit,
    /// What is leased counts as idle.
    EvictLeased,
    /// What other loads are filled from counts as idle.
    FeedNotHeld,
    /// A session that ends leaves its leases behind.
    KeepDeadLease,
    /// An answer to a close is sent twice.
    AnswerTwice,
    /// Opens that are to fail together are forgotten instead.
    LoseWaiter,
    /// A segment is freed twice.
    DoubleFree,
    /// A copy counts as whole while parts of it are still loading.
    GrantEarly,
    /// Contents on a tier are taken for one another.
    WrongSegment,
    /// What a model was found to stand for is believed for ever.
    BelieveForever,
    /// The leases on a lost device end without a word.
    ForgetRevoke,
    /// Opens wait beyond their deadline.
    SleepThroughDeadline,
    /// Nobody looks at the queue when memory comes free.
    SleepThroughFree,
    /// What is above a limit that fell stays.
    KeepAboveLimit,
    /// The want of an open that was given up stays.
    KeepEmptyWant,
    /// The shell is not told of a version that is forgotten.
    ForgetInSilence,
    /// What was found damaged is lent as before.
    LendDamaged,
    /// What was filled from damaged memory counts as good.
    KeepSpoilt,
    /// What is loaded ahead does not mind who waits.
    LoadAheadOfOthers,
    /// What has no memory yet is lent to those who asked for the layout alone.
    LendUnlaid,
    /// Who was granted before the load ended is not told that it failed.
    KeepFailedLease,
    /// What turns out to be there twice is freed though it is lent.
    FreeTwin,
    /// What turns out to be there twice once it is hashed stands for its content as the other does.
    OverlookTwin,
    /// What a lease kept free on a device stays kept free after it.
    LeakReserve,
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

#[cfg(feature = "planted")]
impl Bug {
    /// Each of them.
    pub const ALL: [Self; 26] = [
        Self::LeakCharge,
        Self::ForgetRefund,
        Self::ChargeAboveLimit,
        Self::EvictLeased,
        Self::FeedNotHeld,
        Self::KeepDeadLease,
        Self::AnswerTwice,
        Self::LoseWaiter,
        Self::DoubleFree,
        Self::GrantEarly,
        Self::WrongSegment,
        Self::BelieveForever,
        Self::ForgetRevoke,
        Self::SleepThroughDeadline,
        Self::SleepThroughFree,
        Self::KeepAboveLimit,
        Self::KeepEmptyWant,
        Self::ForgetInSilence,
        Self::LendDamaged,
        Self::KeepSpoilt,
        Self::LoadAheadOfOthers,
        Self::LendUnlaid,
        Self::KeepFailedLease,
        Self::FreeTwin,
        Self::OverlookTwin,
        Self::LeakReserve,
    ];
}

/// Plants a bug in all deciders of this thread, or takes it out.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether a bug is planted.
#[cfg(feature = "planted")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// No bug is planted.
#[cfg(not(feature = "planted"))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
