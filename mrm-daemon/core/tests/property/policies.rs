//! Each policy that can be chosen, and one whose numbers mean nothing.

use mrm_core::Core;
use mrm_core::id::VersionId;
use mrm_core::ledger::Tier;
use mrm_core::policy::{Candidate, Choice, Decision, Facts, GiveBack, Policy};

/// What an index stands for.
pub(crate) fn choice(which: u8) -> Choice {
    let texts = [
        "lru",
        "lfu",
        "fifo,second-use=yes",
        "lru,exclusive=yes",
        "gc,exclusive=yes",
        "random,seed=3",
        "gdsf",
        "sieve",
        "s3-fifo,give-back=no",
        "cremebrulee",
        "cremebrulee,beta=0.5,gamma=2,cost=increase,size=no",
        "gc",
        "mix,second-use=yes",
    ];
    texts[usize::from(which) % texts.len()].parse().unwrap()
}

/// One case in eight has a policy that no choice names.
pub(crate) fn install(core: &mut Core, tier: Tier, which: u8) {
    if which.is_multiple_of(8) {
        let wild = Wild(u64::from(which));
        core.install_policy(tier, Box::new(wild)).unwrap();
    }
}

/// Says anything: no numbers, endless ones, too many or too few of them, each time something else.
#[derive(Debug)]
struct Wild(u64);

impl Wild {
    fn draw(&mut self) -> f64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from_bits(bits ^ (bits >> 31))
    }
}

impl Policy for Wild {
    fn name(&self) -> &'static str {
        "wild"
    }

    fn score(&self, _: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let mut wild = Self(self.0);
        scores.extend([f64::NAN, f64::INFINITY, -0.0, f64::NEG_INFINITY]);
        let more = candidates.len() * (self.0 % 3) as usize;
        scores.extend((0..more).map(|_| wild.draw()));
    }

    fn used(&mut self, _: &Facts<'_>, _: &Candidate) {
        self.draw();
    }

    fn decided(&mut self, _: &Facts<'_>, _: &Decision<'_>) {
        self.draw();
    }

    fn dropped(&mut self, _: VersionId) {
        self.draw();
    }

    fn yields(&self) -> bool {
        self.0.is_multiple_of(2)
    }

    fn give_back(&self) -> GiveBack {
        match self.0 % 2 {
            0 => GiveBack::BestFirst,
            _ => GiveBack::KeepLargest,
        }
    }
}
