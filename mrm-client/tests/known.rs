//! Tensor tables that travel once: what is asked for a model that was open before, and what becomes
//! of a daemon that leaves out what the client does not have.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake, Session};
use mrm_client::OpenError;
use mrm_client::device::Tier;
use mrm_proto::hello::features;
use mrm_proto::ids::{RequestId, VersionId};
use mrm_proto::reply::{OpenedMany, OpenedOne, Reply};
use mrm_proto::request::Request;
use std::os::fd::AsFd;

/// The next open, and the version whose table the client says to have.
fn next_open(session: &mut Session) -> (RequestId, Option<u64>) {
    match session.next_asking() {
        Some((id, Request::Open(open), _)) => (id, open.known.map(|VersionId(version)| version)),
        other => panic!("an open, not {other:?}"),
    }
}

/// Grants without the tensor table.
fn grant_tableless(session: &mut Session, id: RequestId, version: u64, content: &Content) {
    let mut opened = content.opened(id.0, version);
    opened.table_bytes = 0;
    let fds = content.fds();
    session.send(id, &Reply::Opened(opened), &fds[1..]);
}

fn is_out_of_place(error: &OpenError) -> bool {
    error.to_string().contains("tensor table")
}

#[test]
fn a_table_travels_once_and_serves_every_open_of_its_version() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let (first, second) = (Content::sample(5000), Content::sample(9000));
        let (id, known) = next_open(session);
        assert_eq!(known, None);
        session.grant(id, 1, 7, &first);
        for _ in 0..2 {
            let (id, known) = next_open(session);
            assert_eq!(known, Some(7));
            grant_tableless(session, id, 7, &first);
        }
        // The file was replaced meanwhile: a table comes along, and that is the known one then.
        let (id, known) = next_open(session);
        assert_eq!(known, Some(7));
        session.grant(id, 9, 8, &second);
        let (id, known) = next_open(session);
        assert_eq!(known, Some(8));
        grant_tableless(session, id, 8, &second);
        session.until_gone();
    });
    let client = fake.client();
    for floats in [5000, 5000, 5000, 9000, 9000] {
        let model = client.open("a").expect("opens");
        assert_eq!(model.tensor("w").expect("is there").shape(), [1, floats]);
    }
}

#[test]
fn a_table_is_known_to_the_daemon_that_lent_it_and_to_no_other() {
    let fake = Fake::start(|n, session| {
        let known_features = match n {
            2 => features::ALL & !features::KNOWN,
            _ => features::ALL,
        };
        session.hello_as(42 + n as u64, known_features);
        let content = Content::sample(100);
        let opens = if n == 1 { 2 } else { 1 };
        for open in 0..opens {
            let (id, known) = next_open(session);
            assert_eq!(known, (open == 1).then_some(7), "session {n}");
            session.grant(id, id.0, 7, &content);
        }
        // The daemon goes away.
    });
    let client = fake.client();
    for _ in 0..4 {
        drop(client.open("a").expect("opens"));
    }
}

#[test]
fn a_daemon_that_leaves_out_what_is_not_known_loses_the_session() {
    for told in [None, Some(7), Some(8)] {
        let fake = Fake::start(move |_, session| {
            session.hello();
            let content = Content::sample(100);
            if told.is_some() {
                let (id, _) = next_open(session);
                session.grant(id, 1, 7, &content);
            }
            let (id, known) = next_open(session);
            assert_eq!(known, told.map(|_| 7));
            match told {
                // With a table that it says not to send.
                Some(7) => {
                    let mut opened = content.opened(2, 7);
                    opened.table_bytes = 0;
                    session.send(id, &Reply::Opened(opened), &content.fds());
                }
                // Of another version, or without being asked.
                Some(_) | None => grant_tableless(session, id, 8, &content),
            }
            session.until_gone();
        });
        let client = fake.client();
        if told.is_some() {
            drop(client.open("a").expect("opens"));
        }
        let error = client.open("a").expect_err("is not what was asked for");
        let descriptors = error.to_string().contains("descriptors");
        assert!(
            is_out_of_place(&error) || (told == Some(7) && descriptors),
            "{error}"
        );
    }
}

#[test]
fn grants_that_come_together_leave_out_each_its_own() {
    let fake = Fake::start(|_, session| {
        session.hello();
        let contents = [Content::sample(5000), Content::sample(9000)];
        let (id, _) = next_open(session);
        session.grant(id, 1, 2, &contents[1]);
        let ids = [next_open(session), next_open(session)];
        assert_eq!(ids.map(|(_, known)| known), [None, Some(2)]);
        let mut opens = Vec::new();
        for ((id, _), (content, version)) in ids.into_iter().zip(contents.iter().zip(1..)) {
            let opened = content.opened(id.0, version);
            let request = id;
            opens.push(OpenedOne { request, opened });
        }
        opens[1].opened.table_bytes = 0;
        let mut fds = contents[0].fds();
        fds.push(contents[1].segments[0].0.as_fd());
        let many = Reply::OpenedMany(OpenedMany { opens });
        session.send(RequestId::NO_REPLY, &many, &fds);
        session.until_gone();
    });
    let client = fake.client();
    drop(client.open("b").expect("opens"));
    let how = mrm_client::OpenOptions::new().tier(Tier::Host);
    let opened = client.open_many(&["a", "b"], &how);
    for (model, floats) in opened.into_iter().zip([5000, 9000]) {
        let model = model.expect("opens");
        assert_eq!(model.tensor("w").expect("is there").shape(), [1, floats]);
    }
}
