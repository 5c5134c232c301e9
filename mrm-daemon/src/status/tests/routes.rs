//! Every route, and what it answers.

use super::Rig;
use super::fake::{self, Fake};
use super::http::request;
use crate::status::access::{Access, Peer};
use crate::status::service::Service;
use crate::status::view::DaemonState;
use crate::status::{Limits, Metrics};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use serde_json::{Value, json};
use tokio::sync::watch;

fn bert() -> Value {
    json!({
        "name": "org/bert", "registered": true, "kind": "safetensors", "state": "resident",
        "bytes": 91, "charged_bytes": 96, "huge_bytes": 64, "loaded_bytes": 91, "eta_ms": null, "leases": 2,
        "sessions": 1, "pinned": false, "eager": true, "version": 3, "digest": null,
        "last_used_s_ago": 0.25, "load_ms": null, "path": "/models/bert",
        "devices": [{"uuid": fake::LOST, "state": "loading", "bytes": 96, "reserved_bytes": 7,
            "loaded_bytes": 48, "leases": 1}],
    })
}

/// The `devices` of the status.
fn devices() -> Value {
    let ready = json!({
        "uuid": "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab", "name": "H100",
        "pci_bus_id": "0000:3b:00.0", "state": "ready", "cause": null, "cure": null,
        "sharing": "vmm", "sharing_why": "a child process could read",
        "granularity": "block", "block_bytes": 256, "total_bytes": 1000, "free_bytes": 400,
        "reserve_bytes": 100, "budget_bytes": 900, "limit_bytes": 800, "charged_bytes": 300,
        "reserved_bytes": 30,
        "freeing_bytes": 20, "resident_bytes": 250, "context_bytes": 5, "images": 2,
        "loading": 1, "leases": 3, "peers": [fake::LOST],
        "registration": {"state": "failed", "cause": "refused"},
    });
    let mut lost = ready.clone();
    for (key, value) in [
        ("uuid", json!(fake::LOST)),
        ("state", json!("lost")),
        ("cause", json!("CUDA error 719")),
        ("cure", json!("see dmesg")),
        ("granularity", json!("model")),
        ("block_bytes", Value::Null),
        ("free_bytes", Value::Null),
        ("limit_bytes", json!(0)),
        ("context_bytes", Value::Null),
        ("peers", json!([])),
        ("registration", json!({"state": "on", "cause": null})),
    ] {
        lost[key] = value;
    }
    json!({
        "driver": {"state": "ready", "version": "12.4", "library": "/usr/lib64/libcuda.so.1",
            "cause": null, "cure": null},
        "devices": [ready, lost],
    })
}

#[test]
fn the_status_is_exactly_the_documented_json() {
    let answer = Rig::new().get("/v1/status");
    assert_eq!(answer.status, 200);
    let expected = json!({
        "daemon": {"version": "0.1.0", "pid": 812, "instance": "9f0c", "uptime_s": 1.5,
            "state": "serving", "protocol": {"min": 1, "max": 1}, "runtime_dir": "/run/mrm"},
        "host": {"limit_bytes": 100, "charged_bytes": 60, "freeing_bytes": 10,
            "resident_bytes": 50, "huge_bytes": 40, "segments": 2,
            "stock_bytes": 67_108_864, "stock_pending_bytes": 16_777_216},
        "devices": devices(),
        "sessions": 1, "leases": 2, "waiting": 3, "loading": 4,
        "counters": {"opens_total": 9, "hits_total": 8, "misses_total": 0, "joined_total": 0,
            "promoted_total": 0, "loads_total": 0, "load_failures_total": 0, "evictions_total": 0,
            "refusals_total": 0, "loaded_bytes_total": 0, "sessions_total": 0,
            "protocol_errors_total": 0},
        "integrity": {"waiting": 0, "waiting_bytes": 0, "done_bytes": 0, "checked_total": 0,
            "checked_bytes_total": 0, "damaged_total": 0},
        "degraded": [{"id": "huge_\"pages\"\\\n", "cause": "never", "cure": "echo"}],
    });
    assert_eq!(answer.json(), expected);
}

#[test]
fn models_are_listed_in_pages() {
    let rig = Rig::new();
    let answer = rig.get("/v1/models?prefix=org%2f&after=org/a&limit=7");
    assert_eq!(answer.json(), json!({"models": [bert()], "more": true}));
    assert_eq!(rig.fake.asked(), [r#"models "org/" Some("org/a") 7"#]);
    rig.get("/v1/models");
    assert_eq!(rig.fake.asked(), [r#"models "" None 256"#]);
}

#[test]
fn a_model_has_its_row_and_its_parts_at_one_level() {
    let rig = Rig::new();
    let mut expected = bert();
    expected["segments"] = json!([{"name": "model.safetensors", "bytes": 91, "state": "resident",
        "huge_bytes": 64, "digest": "ab", "leases": 2, "way": "direct_ring"}]);
    expected["tensors"] = json!(103);
    expected["holders"] = json!([{"session": 5, "pid": 77, "uid": 1000, "client": "py", "tier": "host",
            "leases": 2}]);
    expected["worth"] = json!([{"tier": "host", "policy": "gdsf", "worth": 0.5, "factors": {"uses": 2.0},
        "rank": 1, "candidates": 4}]);
    expected["reserve_lately_bytes"] = json!(21);
    assert_eq!(rig.get("/v1/models/org/bert").json(), expected);
    assert_eq!(rig.get("/v1/models/org%2Fbert").json(), expected);
}

#[test]
fn sessions_are_listed_with_what_they_hold() {
    let expected = json!({"sessions": [{"id": 5, "pid": 77, "uid": 1000, "gid": 100,
        "client": "py", "leases": 2, "waiting": 0, "connected_s": 3.5,
        "models": [{"name": "org/bert", "leases": 2}]}]});
    assert_eq!(Rig::new().get("/v1/sessions").json(), expected);
}

#[test]
fn policies_are_seen_and_set() {
    let rig = Rig::new();
    let mut expected = json!({"tiers": [{"tier": "host", "policy": "gc", "configured": "lru", "differs": true}],
        "prefetch": {"enabled": false, "share_percent": 20, "started_total": 0, "used_total": 0,
            "wasted_total": 0, "failed_total": 0, "hints": 1}});
    assert_eq!(rig.get("/v1/policy").json(), expected);
    expected["ok"] = json!(true);
    let answer = rig.post("/v1/policy?tier=host&policy=gdsf,give-back=no");
    assert_eq!(answer.json(), expected);
    rig.post("/v1/policy?policy=configured");
    let hinted = rig.post("/v1/models/m/hint?in_ms=30000").json();
    assert_eq!(hinted, json!({"ok": true, "name": "m", "in_ms": 30_000}));
    let asked = [
        "policy host gdsf,give-back=no",
        "policy everywhere configured",
        "hint m 30000",
    ];
    assert_eq!(rig.fake.asked(), asked);
    for bad in [
        "",
        "?policy=",
        "?policy=best",
        "?policy=lru&tier=disk",
        "?policy=lru,seed=1",
    ] {
        let answer = rig.post(&format!("/v1/policy{bad}"));
        assert_eq!(answer.json()["error"]["code"], "bad_parameter", "{bad}");
    }
    assert_eq!(rig.fake.asked(), [""; 0]);
}

#[test]
fn verbs_answer_what_they_did() {
    let rig = Rig::new();
    let pinned = |on| json!({"ok": true, "name": "org/bert", "pinned": on, "changed": true});
    assert_eq!(rig.post("/v1/models/org/bert/pin").json(), pinned(true));
    assert_eq!(rig.post("/v1/models/org/bert/unpin").json(), pinned(false));
    assert_eq!(
        rig.post("/v1/models/m/warm?wait_ms=9").json(),
        json!({"ok": true, "name": "m", "tier": "host", "origin": "loaded", "bytes": 7,
            "took_ms": 1.5})
    );
    rig.post("/v1/models/m/warm");
    let on_device = format!("/v1/models/m/warm?wait_ms=9&tier={}", fake::LOST);
    assert_eq!(rig.post(&on_device).json()["tier"], fake::LOST);
    assert_eq!(
        rig.post("/v1/models/m/evict").json(),
        json!({"ok": true, "name": "m", "freed_bytes": 4096})
    );
    rig.post(&format!("/v1/models/m/evict?tier={}", fake::LOST));
    let drained = json!({"ok": true, "sessions": 2, "leases": 3});
    assert_eq!(rig.post("/v1/drain").json(), drained);
    let asked = [
        "pin org/bert true",
        "pin org/bert false",
        "warm m host 9",
        "warm m host 30000",
        &format!("warm m {} 9", fake::LOST),
        "evict m everywhere",
        &format!("evict m {}", fake::LOST),
        "drain",
    ];
    assert_eq!(rig.fake.asked(), asked);
}

#[test]
fn refusals_have_their_status_and_shape() {
    let rig = Rig::new();
    let cases = [
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/models/a%00b", 400, "bad_name"),
        ("GET", "/v1/models?limt=3", 400, "bad_parameter"),
        ("POST", "/v1/models/m/warm?tier=gpu", 400, "bad_parameter"),
        ("GET", "/nothing", 404, "unknown_route"),
        ("DELETE", "/v1/status", 405, "method_not_allowed"),
        ("POST", "/v1/models/held/evict", 409, "in_use"),
        ("POST", "/v1/models/big/warm", 503, "no_room"),
        ("POST", "/v1/models/slow/warm", 504, "timed_out"),
        ("POST", "/v1/models/giant/warm", 507, "too_large"),
    ];
    let mut peer = rig.connect();
    for (method, target, status, code) in cases {
        let answer = peer.ask(method, target);
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (status, code),
            "{target}"
        );
    }
    let slow = peer.ask("POST", "/v1/models/slow/warm").json();
    assert_eq!(slow["error"]["took_effect"], json!(true));
    assert_eq!(peer.ask("PUT", "/v1/drain").header("allow"), Some("POST"));
}

#[test]
fn probes_follow_the_state() {
    let rig = Rig::new();
    assert_eq!(rig.get("/healthz").json(), json!({"ok": true}));
    assert_eq!(rig.get("/readyz").json(), json!({"ready": true}));
    for state in [DaemonState::Starting, DaemonState::Draining] {
        rig.fake.become_state(state);
        let answer = rig.get("/readyz");
        assert_eq!((answer.status, answer.error().as_str()), (503, "not_ready"));
        assert_eq!(rig.get("/healthz").status, 200);
    }
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    for target in [
        "/v1/status",
        "/v1/models/org/bert",
        "/healthz",
        "/v1/models/none",
        "/x",
    ] {
        let get = peer.ask("GET", target);
        let head = peer.ask("HEAD", target);
        assert_eq!(head.status, get.status);
        for name in ["content-length", "content-type", "cache-control", "server"] {
            assert_eq!(head.header(name), get.header(name), "{target} {name}");
        }
    }
    assert_eq!(
        peer.ask("GET", "/healthz").status,
        200,
        "still in step after HEAD"
    );
}

#[test]
fn answers_say_who_serves_and_are_not_to_be_kept() {
    let rig = Rig::new();
    for target in ["/v1/status", "/nothing", "/metrics"] {
        let answer = rig.get(target);
        let server = concat!("mrmd/", env!("CARGO_PKG_VERSION"));
        assert_eq!(answer.header("server"), Some(server));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let kind = rig
        .get("/metrics")
        .header("content-type")
        .map(str::to_owned);
    assert_eq!(
        kind.as_deref(),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
}

#[test]
fn a_connection_is_kept_and_requests_may_be_pipelined() {
    let rig = Rig::new();
    let mut peer = rig.connect();
    for _ in 0..50 {
        assert_eq!(peer.ask("GET", "/healthz").status, 200);
    }
    let both = request("GET", "/healthz") + &request("GET", "/nothing");
    peer.send(both.as_bytes()).unwrap();
    assert_eq!(peer.answer(true).status, 200);
    assert_eq!(peer.answer(true).status, 404);
}

/// Below the socket, because a test cannot choose the credentials it connects with.
#[test]
fn others_may_read_and_their_verbs_never_reach_the_decider() {
    let (handle, fake) = Fake::start();
    let (_stop, stop) = watch::channel(None);
    let mut service = Service {
        handle,
        metrics: Metrics::new().unwrap(),
        access: Access::new(990, Some(27)).with_lookup(|_| Ok(vec![4, 5])),
        warm_wait_ms_default: 1,
        limits: Limits::default(),
        stop,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let ask = |service: &Service, method: &str, target: &str| {
        let request = Request::builder().method(method).uri(target);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        runtime.block_on(async {
            let answer = service
                .call(
                    Peer {
                        uid: 1000,
                        gid: 100,
                    },
                    request,
                )
                .await;
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice::<Value>(&body).unwrap())
        })
    };
    assert_eq!(ask(&service, "GET", "/v1/status").0, 200);
    for verb in [
        "/v1/models/m/pin",
        "/v1/models/m/unpin",
        "/v1/models/m/warm",
        "/v1/drain",
    ] {
        let (status, body) = ask(&service, "POST", verb);
        assert_eq!(status, 403);
        assert_eq!(
            (&body["error"]["code"], &body["error"]["number"]),
            (&json!("not_permitted"), &json!(205))
        );
        assert!(
            body["error"]["message"]
                .as_str()
                .unwrap()
                .contains("uid 1000")
        );
    }
    assert!(fake.asked().is_empty());

    service.access = service.access.with_lookup(|_| Ok(vec![4, 27]));
    assert_eq!(ask(&service, "POST", "/v1/models/m/pin").0, 200);
    assert_eq!(fake.asked(), ["pin m true"]);

    service.access = service
        .access
        .with_lookup(|_| panic!("a broken name service"));
    assert_eq!(ask(&service, "POST", "/v1/models/m/pin").0, 500);
    assert!(fake.asked().is_empty());
}
