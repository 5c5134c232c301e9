//! The async client against a fake daemon.
#![cfg(feature = "async")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake};
use mrm_client::asynchronous::AsyncClient;
use mrm_client::{ConnectOptions, Fault};
use mrm_proto::error::ErrorCode;
use mrm_proto::request::Request;
use std::time::Duration;

async fn connect(fake: &Fake) -> AsyncClient {
    let options = ConnectOptions::new().socket(fake.socket());
    let options = options.reply_grace(Duration::from_secs(20));
    AsyncClient::connect_with(&options)
        .await
        .expect("the fake says hello")
}

#[tokio::test]
async fn tasks_share_one_connection_and_are_answered_in_any_order() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let mut asked: Vec<_> = (0..8)
            .map(|_| session.next_asking().expect("an open").0)
            .collect();
        let content = Content::sample(8);
        while let Some(id) = asked.pop() {
            session.grant(id, id.0, id.0, &content);
        }
        session.until_gone();
    });
    let client = connect(&fake).await;
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { client.open(&format!("m{i}")).await })
        })
        .collect();
    let mut models = Vec::new();
    for task in tasks {
        models.push(task.await.expect("no panic").expect("opens"));
    }
    let again = client.open("m3").await.expect("is open");
    assert!(again.same_open(&models[3]));
    assert_eq!(fake.seen.count(), 8);
    drop((again, models));
    fake.seen
        .wait("all closes", |requests| requests.len() == 16);
}

#[tokio::test]
async fn several_are_asked_for_together_and_each_has_its_own_end() {
    let fake = Fake::start(|_, session| {
        session.hello();
        // All are asked for before any is answered; the name that comes twice is asked for once.
        let asked: Vec<_> = (0..3)
            .map(|_| session.next_asking().expect("an open"))
            .collect();
        let content = Content::sample(8);
        for (id, request, _) in asked.into_iter().rev() {
            match request {
                Request::Open(open) if open.model.as_str() == "nobody" => {
                    session.error(id, ErrorCode::ModelNotFound, "no model `nobody`");
                }
                Request::Open(_) => session.grant(id, id.0, id.0, &content),
                other => panic!("not served here: {other:?}"),
            }
        }
        session.serve_opens(&content, 50);
    });
    let client = connect(&fake).await;
    let wait = Duration::from_secs(20);
    let task = {
        let client = client.clone();
        tokio::spawn(async move { client.open_many(&["a", "nobody", "b", "a"], wait).await })
    };
    let opened = task.await.expect("no panic");
    let named = |at: usize| opened[at].as_ref().map(|model| model.name().to_owned());
    assert_eq!(named(0).expect("opens"), "a");
    assert_eq!(named(1).expect_err("refused").number(), 201);
    assert_eq!(named(2).expect("opens"), "b");
    let twice = [0, 3].map(|at| opened[at].as_ref().expect("opens"));
    assert!(twice[0].same_open(twice[1]));
    assert_eq!(fake.seen.count(), 3);
    assert!(client.open_many(&[], wait).await.is_empty());
    let alone = client.open_many(&["c", "a"], wait).await;
    assert!(alone.iter().all(Result::is_ok));
    assert_eq!(fake.seen.count(), 4, "what is open is not asked for");
}

#[tokio::test]
async fn an_open_that_nobody_waits_for_is_cancelled_and_its_grant_given_back() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let (id, ..) = session.next_asking().expect("an open");
        let (_, cancel, _) = session.next().expect("a cancel");
        assert!(matches!(cancel, Request::Cancel(cancel) if cancel.target == id));
        session.grant(id, 50, 1, &Content::sample(8));
        session.serve_opens(&Content::sample(8), 51);
    });
    let client = connect(&fake).await;
    {
        let open = client.open("m");
        tokio::pin!(open);
        let seen = std::sync::Arc::clone(&fake.seen);
        let asked = tokio::task::spawn_blocking(move || seen.wait("an open", |r| !r.is_empty()));
        tokio::select! {
            biased;
            _ = &mut open => panic!("nobody answered"),
            asked = asked => asked.expect("asked"),
        }
    }
    let _model = client.open("other").await.expect("the session goes on");
    fake.seen.wait_closed(50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_broken_sessions_are_as_with_the_blocking_client() {
    let fake = Fake::start(|n, session| {
        session.hello();
        let Some((id, ..)) = session.next_asking() else {
            return;
        };
        if n == 0 {
            return;
        }
        session.error(id, ErrorCode::ModelNotFound, "no model `m`");
        session.serve_opens(&Content::sample(8), 1);
    });
    let client = connect(&fake).await;
    assert_eq!(client.open("m").await.expect_err("refused").number(), 201);
    let path = fake.directory().join("x.bin");
    std::fs::write(&path, b"bytes").expect("writes");
    client.open_path(&path).await.expect("opens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opens_are_asked_again_and_leases_taken_up_as_with_the_blocking_client() {
    let fake = Fake::start(|n, session| {
        if (1..4).contains(&n) {
            return;
        }
        session.hello_as(42 + n as u64, mrm_proto::hello::features::ALL);
        let content = Content::sample(8);
        if n == 0 {
            let (id, ..) = session.next_asking().expect("an open");
            session.grant(id, 1, 7, &content);
            let (id, ..) = session.next_asking().expect("another");
            session.error(id, ErrorCode::Draining, "about to exit");
            // Ends with the open pending.
            session.next_asking().expect("the same again");
            return;
        }
        let (id, ..) = session.next_resume();
        session.resumed(id, [Some(100)]);
        let (id, ..) = session.next_asking().expect("an open");
        session.grant(id, 101, 8, &content);
        session.until_gone();
    });
    let client = connect(&fake).await;
    let held = client.open("held").await.expect("opens");
    let other = client.open("other").await.expect("opens at last");
    assert!(held.is_leased() && other.is_leased());
    drop((held, other));
    fake.seen.wait_closed(100);
    fake.seen.wait_closed(101);
}

#[tokio::test]
async fn a_silent_daemon_is_given_up() {
    let fake = Fake::start(|_, session| {
        session.hello();
        session.until_gone();
    });
    let options = ConnectOptions::new().socket(fake.socket());
    let options = options.reply_grace(Duration::from_millis(20));
    let client = AsyncClient::connect_with(&options).await.expect("connects");
    let error = client
        .open_within("m", Duration::ZERO)
        .await
        .expect_err("nobody answers");
    assert_eq!(error.name(), "reply_timed_out");
    assert_eq!(
        client.stat("m").await.expect_err("nobody answers").name(),
        "reply_timed_out"
    );
}
