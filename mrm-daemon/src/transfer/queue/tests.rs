use super::super::rank::Urgency;
use super::*;

fn queue() -> Queue<&'static str> {
    Queue::new(100, 2)
}

fn push(
    queue: &Queue<&'static str>,
    urgency: Urgency,
    tenant: u32,
    bytes: u64,
    item: &'static str,
) {
    let rank = Rank {
        urgency,
        tenant: Tenant(tenant),
        bytes,
    };
    assert!(queue.push(rank, item).is_ok());
}

fn all(queue: &Queue<&'static str>, takes: Takes) -> Vec<&'static str> {
    let take = || queue.lock().take(takes);
    std::iter::from_fn(take).collect()
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn clients_come_before_the_operator_and_the_operator_before_guesses() {
    let queue = queue();
    push(&queue, Urgency::Ahead, 1, MIB, "guess");
    push(&queue, Urgency::Warm, 0, MIB, "warm");
    push(&queue, Urgency::Foreground, 1, GIB, "client");
    push(&queue, Urgency::Foreground, 1, MIB, "client, later");
    let order = all(&queue, Takes::Any);
    assert_eq!(order, ["client", "client, later", "warm", "guess"]);
}

#[test]
fn tenants_take_turns_by_bytes_and_each_in_the_order_of_asking() {
    let queue = queue();
    for item in ["a1", "a2", "a3"] {
        push(&queue, Urgency::Foreground, 1, GIB, item);
    }
    push(&queue, Urgency::Foreground, 2, GIB, "b1");
    push(&queue, Urgency::Foreground, 3, 100 * MIB, "c1");
    push(&queue, Urgency::Foreground, 3, 100 * MIB, "c2");
    let order = all(&queue, Takes::Any);
    assert_eq!(order, ["c1", "c2", "a1", "b1", "a2", "a3"]);
    // Who had nothing to do meanwhile has saved up nothing.
    push(&queue, Urgency::Foreground, 1, GIB, "a4");
    push(&queue, Urgency::Foreground, 9, GIB, "d1");
    push(&queue, Urgency::Foreground, 9, GIB, "d2");
    assert_eq!(all(&queue, Takes::Any), ["a4", "d1", "d2"]);
}

#[test]
fn who_takes_short_work_leaves_the_rest() {
    let queue = queue();
    push(&queue, Urgency::Foreground, 1, GIB, "long");
    push(&queue, Urgency::Ahead, 1, MIB, "short");
    assert_eq!(all(&queue, Takes::Short), ["short"]);
    assert_eq!(all(&queue, Takes::Any), ["long"]);
}

#[test]
fn every_item_finds_a_worker_that_takes_it_whoever_sleeps() {
    let queue = Queue::new(10_000, 3);
    let taken = Mutex::new(0_usize);
    let enough = Condvar::new();
    std::thread::scope(|scope| {
        for takes in [Takes::Any, Takes::Short, Takes::Short] {
            let (queue, taken, enough) = (&queue, &taken, &enough);
            scope.spawn(move || {
                while let Some(()) = queue.pop(takes) {
                    *taken.lock().expect("no panic") += 1;
                    enough.notify_all();
                }
            });
        }
        for round in 1..=500 {
            for bytes in [GIB, 0, 0, GIB] {
                let rank = Rank {
                    bytes,
                    ..Rank::default()
                };
                assert!(queue.push(rank, ()).is_ok());
            }
            let there = taken.lock().expect("no panic");
            let limit = std::time::Duration::from_secs(60);
            let wait = enough.wait_timeout_while(there, limit, |taken| *taken < 4 * round);
            assert!(!wait.expect("no panic").1.timed_out(), "one was forgotten");
        }
        queue.close();
    });
}
