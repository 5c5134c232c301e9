//! What holds for every policy.

use super::*;

/// SplitMix64.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let other = usize::try_from(self.below(last as u64 + 1)).unwrap();
            all.swap(last, other);
        }
    }
}

fn every() -> Vec<Tier> {
    let future = Arc::new(Future::of((0..500).map(|n| ModelId(n * n % 23))));
    let oracle = CremeBruleeOracle::new(CremeBrulee::default(), Arc::clone(&future));
    let names = Rule::names().iter().map(|name| Tier::new(name));
    names
        .chain([Tier::with(Box::new(Belady::new(future)))])
        .chain([Tier::with(Box::new(oracle))])
        .collect()
}

/// Uses of a life, and how many lives. An interpreter sees in few what it sees in many.
const USES: u32 = if cfg!(miri) { 20 } else { 300 };
const LIVES: u64 = if cfg!(miri) { 1 } else { 5 };

/// A life of uses and evictions, the same for the same seed.
fn live(tier: &mut Tier, seed: u64) -> Vec<Candidate> {
    let mut random = Numbers(seed);
    tier.capacity = Bytes(400);
    let model = |id| candidate(id, 1 + id * 7 % 50, id * 13 % 11);
    let mut resident: Vec<Candidate> = Vec::new();
    for _ in 0..USES {
        let used = model(random.below(23));
        tier.use_all(&[used]);
        resident.retain(|other| other.version != used.version);
        let used = Candidate {
            last_used: tier.now,
            ..used
        };
        resident.push(used);
        if resident.len() > 12 {
            let ranked = tier.order(&resident[..resident.len() - 1]);
            tier.evict(&resident, &ranked[..2]);
            resident.retain(|other| !ranked[..2].contains(&other.version.0));
        }
    }
    resident
}

#[test]
fn the_order_of_the_candidates_means_nothing() {
    for mut tier in every() {
        for seed in 0..LIVES {
            let mut candidates = live(&mut tier, seed);
            let order = tier.order(&candidates);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), candidates.len(), "each once");
            for _ in 0..LIVES {
                Numbers(seed).shuffle(&mut candidates);
                assert_eq!(tier.order(&candidates), order, "{}", tier.policy.name());
            }
        }
    }
}

#[test]
fn the_same_life_gives_the_same_order() {
    for (mut one, mut two) in every().into_iter().zip(every()) {
        let (first, second) = (live(&mut one, 9), live(&mut two, 9));
        assert_eq!(first, second);
        assert_eq!(one.rank(&first), two.rank(&second));
    }
}

#[test]
fn what_is_dropped_is_forgotten() {
    for mut tier in every() {
        for left in live(&mut tier, 4) {
            tier.policy.dropped(left.version);
        }
        assert_eq!(tier.policy.tracked(), 0, "{}", tier.policy.name());
    }
}

#[test]
fn no_facts_are_no_trouble() {
    let odd = [
        candidate(1, 0, 0),
        candidate(2, u64::MAX, u64::MAX / S),
        Candidate {
            subject: None,
            ..candidate(3, 1, 1)
        },
    ];
    for mut tier in every() {
        assert_eq!(tier.order(&odd).len(), 3);
        tier.use_all(&odd[..2]);
        // A clock that jumps, and one that goes back.
        tier.now = Time(u64::MAX - 10 * S);
        tier.use_all(&odd[..2]);
        tier.now = Time(5);
        tier.use_all(&odd[..2]);
        assert!(tier.utilities(&odd).iter().all(|utility| !utility.is_nan()));
        tier.evict(&odd, &[1, 2, 3]);
        assert_eq!(tier.order(&odd).len(), 3);
    }
}

/// Printed, not asserted: `cargo test -p mrm-core --release cost -- --nocapture`.
#[test]
#[cfg_attr(miri, ignore = "it measures")]
#[expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures"
)]
fn the_cost_of_a_decision() {
    for mut tier in every() {
        let all: Vec<Candidate> = (0..10_000)
            .map(|id| candidate(id, 1 + id % 97, 1 + id % 7))
            .collect();
        tier.use_all(&all);
        let mut random = Numbers(1);
        for _ in 0..10_000 {
            let used = all[usize::try_from(random.below(10_000)).unwrap()];
            tier.use_all(&[used]);
        }
        for count in [2_000, 10_000] {
            let begun = std::time::Instant::now();
            let ranked = tier.rank(&all[..count]);
            let took = begun.elapsed();
            assert_eq!(ranked.len(), count);
            println!("{:>18} {count:>6} candidates {took:?}", tier.policy.name());
        }
    }
}
