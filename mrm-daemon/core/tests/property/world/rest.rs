//! The faults stop, and everything comes to rest.

use super::{Act, MODELS, World, tiers};
use mrm_core::event::Event;
use mrm_core::id::{Bytes, Time};
use mrm_core::ledger::Tier;
use mrm_core::view::RecordsView;

impl World {
    fn complete_all(&mut self) {
        // Each completion starts at most a bounded number of effects, each for a waiting open.
        for _ in 0..10_000 {
            let Some(op) = self.oracle.in_flight.keys().next().copied() else {
                return;
            };
            self.complete(op, 3);
        }
        panic!("effects without end: {:?}", self.oracle.in_flight);
    }

    /// The faults stop. All is answered within the longest deadline, and the ledger settles.
    pub(crate) fn come_to_rest(&mut self, drain: bool) {
        if drain {
            self.handle(Event::Drain);
            assert_eq!(self.core.view().records().waiting, 0);
        }
        self.complete_all();
        self.now = Time(self.now.0 + 1_000_000);
        self.tick_if_due();
        self.complete_all();
        assert!(
            self.oracle.asked.is_empty(),
            "unanswered: {:?}",
            self.oracle.asked
        );
        while self.who(0).is_some() {
            self.act(&Act::Disconnect(0));
        }
        self.complete_all();
        for tier in tiers() {
            self.is_at_rest(tier);
        }
        for model in 0..u8::try_from(MODELS).unwrap() {
            self.act(&Act::Wish {
                model,
                pinned: false,
                eager: false,
            });
        }
        for tier in tiers() {
            self.limit(tier, 0, 0);
        }
        self.complete_all();
        assert_eq!(
            self.core.view().records(),
            RecordsView::default(),
            "every gauge is at zero"
        );
        for tier in tiers() {
            assert_eq!(self.core.view().ledger(tier).charged, Bytes::ZERO);
        }
    }

    fn is_at_rest(&self, tier: Tier) {
        let ledger = self.core.view().ledger(tier);
        assert_eq!(
            (ledger.freeing, ledger.reserved, ledger.charged),
            (Bytes::ZERO, Bytes::ZERO, ledger.resident)
        );
        assert_eq!(ledger.resident.0, self.oracle.charged(tier).0);
        let pinned = ledger.resident.saturating_sub(ledger.idle);
        assert!(
            ledger.charged <= ledger.limit || ledger.idle == Bytes::ZERO,
            "{ledger:?}"
        );
        assert!(
            pinned == Bytes::ZERO || !self.oracle.pinned.is_empty(),
            "{ledger:?}"
        );
    }
}
