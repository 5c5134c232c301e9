use super::*;
use crate::degraded::Degraded;
use std::sync::mpsc::{Receiver, channel};
use std::thread::scope;

const SOON: Duration = Duration::from_secs(20);

fn segment(bytes: &[u8]) -> Arc<HostSegment> {
    Arc::new(HostSegment::holding(bytes, &Degraded::new()).expect("a segment"))
}

/// A notice that is sent when the feed's memory is gone.
fn notice(feed: &HostFeed) -> Receiver<()> {
    let (sender, gone) = channel();
    feed.when_gone(Box::new(move || {
        let _ = sender.send(());
    }));
    gone
}

#[test]
fn a_wait_ends_when_enough_is_filled() {
    let (feed, writer) = HostFeed::loading("file", 10);
    let there = segment(b"0123456789");
    let go_on = AtomicBool::new(false);
    scope(|scope| {
        let waiting = scope.spawn(|| {
            feed.wait_for(5, &go_on)?;
            let mut bytes = [0; 5];
            feed.read_at(0, &mut bytes)?;
            Ok::<_, FeedError>(bytes)
        });
        // What is filled without memory cannot be read.
        writer.filled(7);
        writer.begin(there.fd());
        let read = waiting.join().expect("no panic");
        assert_eq!(read.as_ref().map(|bytes| &bytes[..]), Ok(&b"01234"[..]));
        assert!(!feed.is_complete());
        writer.done(there.fd(), [7; 32]);
        assert_eq!(feed.wait_for(10, &go_on), Ok(()));
        assert_eq!(feed.digest(&go_on), Ok([7; 32]));
    });
}

#[test]
fn nobody_waits_for_a_load_that_was_given_up() {
    let go_on = AtomicBool::new(false);
    let (feed, writer) = HostFeed::loading("file", 10);
    scope(|scope| {
        let waiting = scope.spawn(|| feed.digest(&go_on));
        drop(writer);
        let error = waiting.join().expect("no panic").expect_err("given up");
        assert_eq!(error.code(), ErrorCode::Cancelled);
        assert!(error.to_string().contains("`file`"), "{error}");
    });
    let (feed, writer) = HostFeed::loading("file", 10);
    writer.failed(ErrorCode::SourceChanged, &"`file` changed");
    drop(writer);
    let error = feed.wait_for(1, &go_on).expect_err("failed");
    assert_eq!(
        error.code(),
        ErrorCode::SourceChanged,
        "the first end counts"
    );
}

#[test]
fn a_cancelled_wait_ends() {
    let cancel = AtomicBool::new(false);
    let (feed, _writer) = HostFeed::loading("file", 10);
    scope(|scope| {
        let waiting = scope.spawn(|| feed.wait_for(1, &cancel));
        cancel.store(true, Ordering::Relaxed);
        let error = waiting.join().expect("no panic").expect_err("cancelled");
        assert_eq!(error.code(), ErrorCode::Cancelled);
    });
}

#[test]
fn what_is_not_there_is_an_error() {
    let feed = HostFeed::resident("file", segment(b"01234"), [0; 32]);
    let go_on = AtomicBool::new(false);
    assert!(feed.wait_for(6, &go_on).is_err());
    let error = feed.read_at(3, &mut [0; 3]).expect_err("past the end");
    assert_eq!(error.code(), ErrorCode::Internal);
    assert!(error.to_string().contains("at byte 5"), "{error}");
    let (empty, _writer) = HostFeed::loading("file", 5);
    assert!(empty.read_at(0, &mut [0]).is_err());
}

#[test]
fn the_notice_comes_when_the_last_is_gone_and_not_before() {
    let feed = HostFeed::resident("file", segment(b"01234"), [0; 32]);
    let gone = notice(&feed);
    let again = Arc::clone(&feed);
    drop(feed);
    assert!(gone.try_recv().is_err(), "a clone is left");
    drop(again);
    assert_eq!(gone.try_recv(), Ok(()));
}

#[test]
fn a_mapping_keeps_the_notice_back() {
    let feed = HostFeed::resident("file", segment(b"01234"), [0; 32]);
    let gone = notice(&feed);
    // As a registration has it that the driver would not end.
    let mapped = feed.map().expect("a mapping");
    drop(feed);
    assert!(gone.try_recv().is_err(), "the mapping is left");
    assert_eq!(mapped.as_ref(), b"01234");
    drop(mapped);
    assert_eq!(gone.try_recv(), Ok(()));
}

#[test]
fn a_notice_sees_the_descriptor_closed() {
    let there = segment(b"01234");
    let feed = HostFeed::resident("file", Arc::clone(&there), [0; 32]);
    let (sender, gone) = channel();
    let watched = Arc::downgrade(&there);
    drop(there);
    feed.when_gone(Box::new(move || {
        let _ = sender.send(watched.strong_count());
    }));
    drop(feed);
    assert_eq!(gone.recv_timeout(SOON), Ok(0));
}
