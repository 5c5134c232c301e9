//! Grants that come together: each must be what the client asked for, and none is lost.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "helpers of tests fail the test"
)]

mod fake;

use fake::{Content, Fake, Session};
use mrm_client::{Client, OpenOptions};
use mrm_proto::ids::RequestId;
use mrm_proto::reply::{OpenedMany, OpenedOne, Reply};
use mrm_proto::request::Request;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Answers the opens that came with one frame, whose descriptors `cut` makes of the right ones.
fn together(
    session: &mut Session,
    contents: &[Content],
    ids: &[RequestId],
    cut: impl Fn(&mut Vec<BorrowedFd<'_>>),
) {
    let opens = ids.iter().zip(contents).zip(1..);
    let opens = opens.map(|((request, content), number)| OpenedOne {
        request: *request,
        opened: content.opened(number, number),
    });
    let many = Reply::OpenedMany(OpenedMany {
        opens: opens.collect(),
    });
    let mut fds: Vec<_> = contents.iter().flat_map(Content::fds).collect();
    cut(&mut fds);
    session.send(RequestId::NO_REPLY, &many, &fds);
}

fn next_opens(session: &mut Session, count: usize) -> Vec<RequestId> {
    let next = |_| match session.next() {
        Some((id, Request::Open(_), _)) => id,
        other => panic!("an open, not {other:?}"),
    };
    (0..count).map(next).collect()
}

fn open_two(client: &Client) -> Vec<Result<mrm_client::Model, mrm_client::OpenError>> {
    let options = OpenOptions::new().wait(Duration::ZERO);
    client.open_many(&["a", "b"], &options)
}

#[test]
fn grants_of_one_frame_go_to_whom_they_belong_and_are_given_back_one_by_one() {
    let contents = [Content::sample(5000), Content::sample(9000)];
    let lengths = [&contents[0], &contents[1]].map(|content| content.opened(1, 1).segments_bytes);
    let fake = Fake::start(move |_, session| {
        session.hello();
        let mut ids = next_opens(session, 2);
        // In any order.
        ids.reverse();
        together(session, &contents, &ids, |_| {});
        session.until_gone();
    });
    let client = fake.client();
    let mut opened = open_two(&client);
    for (model, lengths) in opened.drain(..).zip(lengths.into_iter().rev()) {
        let model = model.expect("opens");
        let mapped = model.segments().map(|segment| segment.bytes().len() as u64);
        assert_eq!(mapped.collect::<Vec<_>>(), lengths);
    }
    fake.seen.wait_closed(1);
    fake.seen.wait_closed(2);
}

#[test]
fn what_does_not_fit_together_ends_the_session_and_maps_nothing() {
    for case in 0..3 {
        let fake = Fake::start(move |n, session| {
            session.hello();
            if n > 0 {
                // Whoever asks again is told that nothing is there.
                while let Some((id, _, _)) = session.next_asking() {
                    session.error(id, mrm_proto::error::ErrorCode::ModelNotFound, "no");
                }
                return;
            }
            let contents = [Content::sample(100), Content::sample(100)];
            let ids = next_opens(session, 2);
            match case {
                0 => together(session, &contents, &ids, |fds| fds.truncate(2)),
                1 => together(session, &contents, &ids, |fds| fds.push(fds[0])),
                _ => together(session, &contents, &[ids[0], RequestId(999)], |_| {}),
            }
            session.until_gone();
        });
        let client = fake.client();
        for outcome in open_two(&client) {
            // The first of two may have been whole before what is wrong was found.
            assert!(case == 2 || outcome.is_err(), "case {case}: {outcome:?}");
        }
    }
}
