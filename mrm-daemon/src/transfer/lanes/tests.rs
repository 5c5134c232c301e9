use super::super::rank::Tenant;
use super::*;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn lanes(waiting_max: usize) -> Lanes {
    let config = LanesConfig {
        registered_threads: 1,
        foreign_threads: 2,
        short_threads: 0,
        waiting_max,
    };
    Lanes::start(config).expect("threads")
}

fn to<T: Send + 'static>(events: &Sender<Result<T, Lost>>) -> Completion<T> {
    let events = events.clone();
    Completion::new(move |outcome| drop(events.send(outcome)))
}

fn next<T>(inbox: &Receiver<T>) -> T {
    inbox.recv_timeout(SOON).expect("an event in time")
}

/// Keeps a thread of the lane busy until the sender is dropped; returns once it runs.
fn occupy(lanes: &Lanes, lane: Lane) -> Sender<()> {
    let (release, held) = channel::<()>();
    let (started, running) = channel();
    let job = move || {
        started.send(()).expect("the test listens");
        let _ = held.recv();
    };
    lanes.submit(lane, Box::new(job)).expect("room");
    next(&running);
    release
}

#[test]
fn results_come_back_from_named_threads() {
    let lanes = lanes(8);
    let (events, inbox) = channel();
    for (lane, prefix) in [
        (Lane::Registered, "mrm-load-"),
        (Lane::Foreign, "mrm-foreign-"),
        (Lane::Freeing, "mrm-free-"),
    ] {
        lanes.run(lane, to(&events), || {
            std::thread::current().name().map(str::to_owned)
        });
        let name = next(&inbox).expect("a result").expect("a name");
        assert!(name.starts_with(prefix) && name.len() <= 15, "{name}");
    }
    assert_eq!(lanes.shut_down(Instant::now() + SOON), []);
}

#[test]
fn a_panic_is_an_outcome_and_the_thread_goes_on() {
    let lanes = lanes(8);
    let (events, inbox) = channel::<Result<u8, Lost>>();
    lanes
        .submit(Lane::Registered, Box::new(|| panic!("untracked")))
        .expect("room");
    lanes.run(Lane::Registered, to(&events), || panic!("with {}", "words"));
    let lost = next(&inbox).expect_err("a panic");
    assert_eq!(
        lost,
        Lost::Panicked {
            message: "with words".to_owned()
        }
    );
    assert_eq!(lost.code(), mrm_proto::error::ErrorCode::Internal);
    lanes.run(Lane::Registered, to(&events), || 7);
    assert_eq!(next(&inbox), Ok(7));
}

#[test]
fn a_hanging_lane_does_not_hold_up_another() {
    let lanes = lanes(8);
    let _first = occupy(&lanes, Lane::Foreign);
    let _second = occupy(&lanes, Lane::Foreign);
    let (events, inbox) = channel();
    lanes.run(Lane::Foreign, to(&events), || "foreign");
    lanes.run(Lane::Registered, to(&events), || "registered");
    assert_eq!(next(&inbox), Ok("registered"));
    assert_eq!(lanes.waiting(Lane::Foreign), 1);
}

#[test]
fn a_full_queue_refuses_at_once_and_drops_the_work_first() {
    let lanes = lanes(1);
    let busy = occupy(&lanes, Lane::Registered);
    let (events, inbox) = channel();
    lanes.run(Lane::Registered, to(&events), || 1);
    let held = Arc::new(());
    let inside = Arc::clone(&held);
    let (answer, answered) = channel();
    let completion = Completion::new({
        let held = Arc::clone(&held);
        move |outcome| {
            answer
                .send((outcome, Arc::strong_count(&held)))
                .expect("the test listens")
        }
    });
    lanes.run(Lane::Registered, completion, move || drop(inside));
    // Both are on this thread, so the answer is there; the work's share of `held` is gone.
    let (outcome, count) = answered.try_recv().expect("an answer without waiting");
    assert_eq!((outcome, count), (Err(Lost::QueueFull { waiting: 1 }), 2));
    let full = lanes.submit(Lane::Registered, Box::new(|| {}));
    assert_eq!(full, Err(Lost::QueueFull { waiting: 1 }));
    drop(busy);
    assert_eq!(next(&inbox), Ok(1));
}

#[test]
fn shutting_down_settles_everything_and_names_what_hangs() {
    let lanes = lanes(8);
    let busy = occupy(&lanes, Lane::Foreign);
    let _other = occupy(&lanes, Lane::Registered);
    let (events, inbox) = channel();
    for _ in 0..3 {
        lanes.run(Lane::Registered, to(&events), || 1);
    }
    // A deadline in the past: what runs now is what hangs.
    let hung = lanes.shut_down(Instant::now());
    assert!(
        hung.iter().any(|hung| hung.thread == "mrm-load-0"),
        "{hung:?}"
    );
    for _ in 0..3 {
        assert_eq!(next(&inbox), Err(Lost::ShuttingDown));
    }
    drop((busy, events));
    assert!(inbox.recv_timeout(SOON).is_err(), "each is settled once");
}

#[test]
fn what_runs_may_finish_before_the_deadline() {
    let lanes = lanes(8);
    let busy = occupy(&lanes, Lane::Registered);
    let closer = std::thread::spawn(move || lanes.shut_down(Instant::now() + SOON));
    drop(busy);
    assert_eq!(closer.join().expect("shut down"), []);
}

#[test]
fn a_completion_that_is_forgotten_still_answers_once() {
    let (events, inbox) = channel::<Result<u8, Lost>>();
    drop(to(&events));
    to(&events).done(3);
    drop(events);
    assert_eq!(
        inbox.iter().collect::<Vec<_>>(),
        [Err(Lost::Dropped), Ok(3)]
    );
}

#[test]
fn dropping_the_lanes_settles_what_waits() {
    let lanes = lanes(8);
    let _busy = occupy(&lanes, Lane::Freeing);
    let (events, inbox) = channel();
    lanes.run(Lane::Freeing, to(&events), || 1);
    drop(lanes);
    assert_eq!(next(&inbox), Err(Lost::ShuttingDown));
}

fn rank(urgency: Urgency, tenant: u32, bytes: u64) -> Rank {
    Rank {
        urgency,
        tenant: Tenant(tenant),
        bytes,
    }
}

/// A stalled load: runs until the sender is dropped.
fn stall(lanes: &Lanes, place: Rank) -> Sender<()> {
    let (release, held) = channel::<()>();
    let (started, running) = channel();
    let done = Completion::new(|_: Result<(), Lost>| {});
    let task = Task::new(done, move || {
        started.send(()).expect("the test listens");
        let _ = held.recv();
    });
    lanes.run_all(Lane::Registered, place, None, vec![task]);
    next(&running);
    release
}

fn names(lanes: &Lanes, events: &Sender<Result<u32, Lost>>, place: Rank, name: u32) -> Ticket {
    let task = Task::new(to(events), move || name);
    lanes.run_all(Lane::Registered, place, None, vec![task])
}

#[test]
fn ten_small_loads_do_not_wait_behind_large_ones_that_stall() {
    let lanes = Lanes::start(LanesConfig {
        registered_threads: 2,
        ..LanesConfig::default()
    });
    let lanes = lanes.expect("threads");
    let large = rank(Urgency::Foreground, 1, 4 << 30);
    let stalled = [stall(&lanes, large), stall(&lanes, large)];
    let (events, inbox) = channel();
    for name in 0..10 {
        names(&lanes, &events, rank(Urgency::Foreground, 1, 1 << 20), name);
    }
    let mut done: Vec<u32> = (0..10).map(|_| next(&inbox).expect("a result")).collect();
    done.sort_unstable();
    assert_eq!(done, (0..10).collect::<Vec<_>>());
    drop(stalled);
    assert_eq!(lanes.shut_down(Instant::now() + SOON), []);
}

#[test]
fn what_a_client_comes_to_wait_for_overtakes_the_other_warm_ups() {
    let lanes = lanes(8);
    let stalled = stall(&lanes, rank(Urgency::Warm, 0, 1 << 30));
    let (events, inbox) = channel();
    let warm = rank(Urgency::Warm, 0, 1 << 30);
    let first = names(&lanes, &events, warm, 1);
    let second = names(&lanes, &events, warm, 2);
    lanes.raise(&second, Urgency::Foreground);
    lanes.raise(&second, Urgency::Warm);
    drop((stalled, first));
    let done: Vec<_> = (0..2).map(|_| next(&inbox)).collect();
    assert_eq!(done, [Ok(2), Ok(1)]);
    assert_eq!(lanes.shut_down(Instant::now() + SOON), []);
    assert!(inbox.try_recv().is_err(), "once each");
}

#[test]
fn work_that_is_done_together_is_answered_each_for_itself() {
    let lanes = lanes(8);
    let (events, inbox) = channel::<Result<u32, Lost>>();
    let (told, was_told) = channel();
    let first: Job = Box::new(move || told.send(()).expect("the test listens"));
    let tasks = vec![
        Task::new(to(&events), || 1),
        Task::new(to(&events), || panic!("no such luck")),
        Task::new(to(&events), || 3),
    ];
    lanes.run_all(Lane::Registered, Rank::default(), Some(first), tasks);
    assert_eq!(next(&inbox), Ok(1));
    next(&was_told);
    assert!(matches!(next(&inbox), Err(Lost::Panicked { .. })));
    assert_eq!(next(&inbox), Ok(3));
    let stalled = stall(&lanes, Rank::default());
    let tasks = vec![Task::new(to(&events), || 4), Task::new(to(&events), || 5)];
    lanes.run_all(Lane::Registered, Rank::default(), None, tasks);
    drop(stalled);
    drop(lanes);
    for _ in 0..2 {
        let outcome = next(&inbox);
        assert!(matches!(outcome, Ok(4 | 5) | Err(Lost::ShuttingDown)));
    }
}
