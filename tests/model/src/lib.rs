//! What threads of `mrmd` share without a lock, run by [loom](https://docs.rs/loom) under every order
//! of their steps, and with every value that the memory model lets a thread see.
//!
//! The code is the daemon's own file, compiled here against loom's atomics.

#![cfg(test)]

use loom::sync::atomic;

#[path = "../../../mrm-daemon/src/shell/marks/board.rs"]
mod board;

use board::Board;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// What the decider's thread is sent.
#[derive(Default)]
struct Told(AtomicUsize);

impl Told {
    fn if_rung(&self, rung: bool) {
        if rung {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

fn seen(board: &Board) -> u64 {
    board.words().next().unwrap_or(0)
}

#[test]
fn who_begins_to_watch_sees_a_piece_or_is_told_of_it() {
    loom::model(|| {
        let (board, told) = (Arc::new(Board::new(2)), Arc::new(Told::default()));
        let (its, bell) = (Arc::clone(&board), Arc::clone(&told));
        let reader = thread::spawn(move || bell.if_rung(its.add(0..1)));
        board.look();
        let first = seen(&board);
        reader.join().expect("no panic");
        assert!(
            first == 1 || told.count() == 1,
            "a piece that nobody hears of"
        );
    });
}

#[test]
fn who_looks_sees_every_piece_or_is_told_again() {
    loom::model(|| {
        let (board, told) = (Arc::new(Board::new(2)), Arc::new(Told::default()));
        board.look();
        told.if_rung(board.add(0..1));
        assert_eq!(told.count(), 1);
        let (its, bell) = (Arc::clone(&board), Arc::clone(&told));
        let reader = thread::spawn(move || bell.if_rung(its.add(1..2)));
        board.look();
        let first = seen(&board);
        reader.join().expect("no panic");
        assert!(
            first == 3 || told.count() == 2,
            "a piece that nobody hears of"
        );
    });
}

#[test]
fn two_readers_ring_once_until_somebody_looks() {
    loom::model(|| {
        let (board, told) = (Arc::new(Board::new(2)), Arc::new(Told::default()));
        board.look();
        let add = |piece: u64| {
            let (its, bell) = (Arc::clone(&board), Arc::clone(&told));
            thread::spawn(move || bell.if_rung(its.add(piece..piece + 1)))
        };
        let readers = [add(0), add(1)];
        for reader in readers {
            reader.join().expect("no panic");
        }
        assert_eq!((seen(&board), told.count()), (3, 1));
    });
}
