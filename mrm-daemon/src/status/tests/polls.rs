//! Waiting: long polls, a decider that does not answer, the end of the server.

use super::Rig;
use super::http::request;
use crate::status::{Event, EventKind, Limits};
use serde_json::json;

fn load_done() -> Event {
    Event::of(EventKind::LoadDone)
        .model("org/bert")
        .session(5)
        .bytes(91)
        .detail("2 ms")
}

#[test]
fn events_are_the_documented_json() {
    let rig = Rig::new();
    assert_eq!(
        rig.get("/v1/events").json(),
        json!({"events": [], "next": 1, "dropped": 0})
    );
    rig.fake.push(load_done());
    rig.fake.push(Event::of(EventKind::Drain));
    let expected = json!({"next": 3, "dropped": 0, "events": [
        {"seq": 1, "time_ms": 1_700_000_000_000u64, "kind": "load_done", "model": "org/bert",
            "session": 5, "bytes": 91, "detail": "2 ms", "why": null},
        {"seq": 2, "time_ms": 1_700_000_000_000u64, "kind": "drain", "model": null,
            "session": null, "bytes": null, "detail": null, "why": null},
    ]});
    assert_eq!(rig.get("/v1/events?since=1").json(), expected);
    assert_eq!(
        rig.get("/v1/events?since=1&limit=1").json()["next"],
        json!(2)
    );
}

#[test]
fn a_poll_with_events_at_hand_or_a_number_from_the_future_returns_at_once() {
    let rig = Rig::new();
    rig.fake.push(load_done());
    let at_hand = rig.get("/v1/events?since=1&wait_ms=30000").json();
    assert_eq!(at_hand["next"], json!(2));
    let end = rig
        .get("/v1/events?since=18446744073709551615&wait_ms=30000")
        .json();
    assert_eq!(end, json!({"events": [], "next": 2, "dropped": 0}));
}

#[test]
fn a_poll_waits_for_the_next_event() {
    let rig = Rig::new();
    let mut peers: Vec<_> = (0..4).map(|_| rig.connect()).collect();
    for peer in &mut peers {
        peer.send(request("GET", "/v1/events?since=1&wait_ms=30000").as_bytes())
            .unwrap();
    }
    rig.fake.wait_asked(4);
    rig.fake.push(load_done());
    for peer in &mut peers {
        let page = peer.answer(true).json();
        assert_eq!(
            (&page["next"], &page["events"][0]["seq"]),
            (&json!(2), &json!(1))
        );
    }
}

#[test]
fn a_poll_ends_empty_when_its_wait_is_over() {
    let page = Rig::new().get("/v1/events?since=1&wait_ms=10");
    assert_eq!(page.json(), json!({"events": [], "next": 1, "dropped": 0}));
}

#[test]
fn a_shutdown_ends_polls_with_an_answer_and_closes_idle_connections() {
    let mut rig = Rig::new();
    let (mut idle, mut poll) = (rig.connect(), rig.connect());
    assert_eq!(idle.ask("GET", "/healthz").status, 200);
    poll.send(request("GET", "/v1/events?since=1&wait_ms=30000").as_bytes())
        .unwrap();
    rig.fake.wait_asked(1);
    rig.server.take().unwrap().shutdown(30_000);
    assert_eq!(poll.answer(true).json()["next"], json!(1));
    assert!(poll.at_end() && idle.at_end());
    assert!(std::os::unix::net::UnixStream::connect(rig.path()).is_err());
}

#[test]
fn a_shutdown_does_not_wait_beyond_its_grace() {
    let mut rig = Rig::new();
    let mut peer = rig.connect();
    peer.send(request("POST", "/v1/models/stuck/evict?wait_ms=3600000").as_bytes())
        .unwrap();
    rig.fake.wait_asked(1);
    rig.server.take().unwrap().shutdown(1);
    assert!(peer.at_end());
}

#[test]
fn a_silent_decider_is_reported_in_time() {
    let rig = Rig::with(Limits {
        answer_timeout_ms: 20,
        ..Limits::default()
    });
    let answer = rig.post("/v1/models/stuck/evict?wait_ms=1");
    assert_eq!((answer.status, answer.error().as_str()), (503, "no_answer"));
    assert_eq!(answer.json()["error"]["took_effect"], json!(true));
    assert_eq!(rig.get("/healthz").status, 200, "others do not wait for it");
}

#[test]
fn a_decider_that_has_ended_is_reported_at_once() {
    let mut rig = Rig::new();
    rig.fake.stop();
    for target in ["/v1/status", "/metrics", "/healthz", "/readyz"] {
        let answer = rig.get(target);
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (503, "no_answer"),
            "{target}"
        );
    }
}
