use super::super::piece::{Next, pieces};
use super::super::read::CHUNK_BYTES;
use super::*;
use std::fs::File;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A ring, where the machine that the test runs on allows one.
fn ring(depth: u32) -> Option<Ring> {
    match Ring::new(depth) {
        Ok(ring) => Some(ring),
        Err(error) => {
            let errno = Errno::from_io_error(&error);
            let refused = [Errno::PERM, Errno::NOSYS, Errno::ACCESS];
            assert!(refused.contains(&errno.expect("an errno")), "{error}");
            eprintln!("not tested: io_uring is refused here: {error}");
            None
        }
    }
}

fn file(bytes: usize) -> (File, Vec<u8>) {
    let mut content = (0..251).collect::<Vec<u8>>().repeat(bytes / 251 + 1);
    content.truncate(bytes);
    let file = tempfile::tempfile().expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&file, &content, 0).expect("written");
    (file, content)
}

#[test]
fn every_piece_is_read_once_at_any_depth() {
    let bytes = 5 * CHUNK_BYTES + 4097;
    let (file, content) = file(bytes);
    for depth in [1, 2, 4, 16] {
        let Some(ring) = ring(depth) else { return };
        let mut pages = vec![0; bytes.next_multiple_of(4096)];
        let mut seen = Vec::new();
        ring.run(
            file.as_fd(),
            pieces(&mut pages, bytes),
            |mut piece, read| match piece.took(read.expect("read"), 1) {
                Next::Nothing => {
                    seen.push(piece.index);
                    Then::Kept
                }
                Next::On | Next::Rest => Then::Again(piece),
            },
        )
        .expect("run");
        seen.sort_unstable();
        assert_eq!(seen, (0..6).collect::<Vec<_>>(), "depth {depth}");
        assert!(pages[..bytes] == content[..], "depth {depth}");
    }
}

#[test]
fn a_short_read_is_continued_where_it_ended() {
    let (file, content) = file(CHUNK_BYTES / 2 + 5);
    let Some(ring) = ring(2) else { return };
    let mut pages = vec![9; 2 * CHUNK_BYTES];
    let mut counts = Vec::new();
    ring.run(
        file.as_fd(),
        pieces(&mut pages, 2 * CHUNK_BYTES),
        |mut piece, read| {
            let count = read.expect("read");
            counts.push((piece.index, count));
            piece.took(count, 1);
            if count == 0 {
                Then::Kept
            } else {
                Then::Again(piece)
            }
        },
    )
    .expect("run");
    counts.sort_unstable();
    assert_eq!(counts, [(0, 0), (0, content.len()), (1, 0)]);
    assert!(pages[..content.len()] == content[..]);
    assert!(pages[content.len()..].iter().all(|&byte| byte == 9));
}

#[test]
fn an_error_comes_out_and_the_others_are_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = File::create(dir.path().join("write-only")).expect("a file");
    let Some(ring) = ring(4) else { return };
    let mut pages = vec![0; 4 * CHUNK_BYTES];
    let mut errors = Vec::new();
    ring.run(
        file.as_fd(),
        pieces(&mut pages, 4 * CHUNK_BYTES),
        |_, read| {
            errors.push(read.expect_err("not open for reading"));
            Then::Stop
        },
    )
    .expect("run");
    assert_eq!(errors, [Errno::BADF]);
}

#[test]
fn nothing_is_written_after_a_stop_or_a_panic() {
    let bytes = 8 * CHUNK_BYTES;
    let (file, _) = file(bytes);
    for panics in [false, true] {
        let Some(ring) = ring(4) else { return };
        let mut pages = vec![0; bytes];
        let run = AssertUnwindSafe(|| {
            ring.run(file.as_fd(), pieces(&mut pages, bytes), |_, _| {
                assert!(!panics, "told to");
                Then::Stop
            })
        });
        assert_eq!(catch_unwind(run).is_err(), panics);
        // A read that is still under way would come through.
        pages.fill(0xEE);
        let Some(again) = self::ring(1) else { return };
        let mut other = vec![0; bytes];
        again
            .run(file.as_fd(), pieces(&mut other, bytes), |_, _| Then::Kept)
            .expect("run");
        assert!(pages.iter().all(|&byte| byte == 0xEE));
    }
}
