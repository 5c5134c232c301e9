//! Random events against the invariants and an oracle; then the faults stop, and everything must
//! come to rest.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and prints its seed"
)]

mod files;
mod flat;
mod oracle;
mod policies;
mod world;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use world::{Act, World};

/// Cases and seed can be set from outside; a failure prints the case, shrunk.
fn settings() -> ProptestConfig {
    let number = |name: &str| var(name)?.parse::<u64>().ok();
    let seed = number("MRM_SEED").unwrap_or(20_261_122);
    let cases = number("MRM_CASES").unwrap_or(256);
    println!("MRM_SEED={seed} MRM_CASES={cases}");
    ProptestConfig {
        rng_seed: RngSeed::Fixed(seed),
        cases: u32::try_from(cases).unwrap(),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the seed of a test comes from outside"
)]
fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::Connect),
        1 => any::<u8>().prop_map(Act::Disconnect),
        10 => (any::<u8>(), 0..6u8, 0..16u8, 0..40u8).prop_map(|(who, model, place, wait)| Act::Open { who, model, place, wait }),
        5 => (any::<u8>(), any::<bool>()).prop_map(|(lease, answer)| Act::Close { lease, answer }),
        1 => any::<u8>().prop_map(Act::CloseUnknown),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(which, answer)| Act::Cancel { which, answer }),
        2 => (any::<u8>(), 0..6u8, 0..4u8).prop_map(|(who, model, tier)| Act::Evict { who, model, tier }),
        2 => (0..6u8, any::<bool>(), any::<bool>()).prop_map(|(model, pinned, eager)| Act::Wish { model, pinned, eager }),
        1 => (0..6u8).prop_map(Act::Changed),
        2 => (0..6u8, any::<u8>()).prop_map(|(model, version)| Act::Rewrite { model, version }),
        2 => (0..3u8, 0..20u8, 0..4u8).prop_map(|(tier, budget, less)| Act::Limit { tier, budget, less }),
        1 => (0..3u8, any::<u8>()).prop_map(|(tier, which)| Act::Policy { tier, which }),
        2 => any::<u8>().prop_map(Act::Damage),
        14 => (any::<u8>(), 0..14u8).prop_map(|(which, luck)| Act::Complete { which, luck }),
        1 => (0..6u8, 0..200u8).prop_map(|(model, in_s)| Act::Hint { model, in_s }),
        1 => (0..40u8).prop_map(Act::Sleep),
        1 => (0..3u8).prop_map(Act::Prefetch),
        7 => any::<u8>().prop_map(Act::Lay),
        2 => any::<u8>().prop_map(Act::Unlay),
        4 => (0..20u8).prop_map(Act::Advance),
    ]
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn any_order_of_events_keeps_the_books_and_comes_to_rest(
        acts in prop::collection::vec(act(), 1..250),
        // Few runs lose a device, or none would have one for long.
        losses in prop::collection::vec((0..500usize, 0..2u8), 0..3),
        drain in any::<bool>(),
        policies in any::<[u8; 3]>(),
        prefetch in any::<bool>(),
    ) {
        let mut world = World::new(policies, prefetch);
        for (nth, act) in acts.iter().enumerate() {
            for (_, device) in losses.iter().filter(|(at, _)| *at == nth) {
                world.act(&Act::Lose(*device));
            }
            world.act(act);
        }
        world.come_to_rest(drain);
    }
}
