//! Whose turn it is on the thread that decides, when several users want it at once.
//!
//! Sessions of one user take turns with each other, and between two turns of a user the thread looks
//! at what else has come: so another user waits for one turn of each, however many sessions these
//! have and however much they ask. Where all sessions are one user's there is nothing to share, and
//! no turn is waited for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The users who have sessions. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Rc<RefCell<HashMap<u32, Rc<Semaphore>>>>);

/// One session's place among its user's.
#[derive(Debug)]
pub(crate) struct UserTurns {
    all: Turns,
    uid: u32,
    own: Rc<Semaphore>,
}

/// A turn. It is the next one's after [`end`](Turn::end); dropped, at once.
#[derive(Debug)]
pub(crate) struct Turn<'a>(Option<SemaphorePermit<'a>>);

impl Turns {
    /// For a session of the user `uid`.
    pub(crate) fn of_user(&self, uid: u32) -> UserTurns {
        let mut users = self.0.borrow_mut();
        let own = users
            .entry(uid)
            .or_insert_with(|| Rc::new(Semaphore::new(1)));
        UserTurns {
            all: self.clone(),
            uid,
            own: Rc::clone(own),
        }
    }

    /// Whether there is more than one user.
    pub(crate) fn are_shared(&self) -> bool {
        self.0.borrow().len() > 1
    }
}

impl UserTurns {
    /// Waits until it is this session's turn.
    pub(crate) async fn begin(&self) -> Turn<'_> {
        match self.all.are_shared() {
            // Nobody closes the semaphore.
            true => Turn(self.own.acquire().await.ok()),
            false => Turn(None),
        }
    }
}

impl Drop for UserTurns {
    fn drop(&mut self) {
        // The table and this one.
        if Rc::strong_count(&self.own) == 2 {
            self.all.0.borrow_mut().remove(&self.uid);
        }
    }
}

impl Turn<'_> {
    /// Whether others wait for it to end.
    pub(crate) const fn is_shared(&self) -> bool {
        self.0.is_some()
    }

    /// Lets the thread look at what has come, and then the user's next session have its turn.
    pub(crate) async fn end(self) {
        if self.is_shared() {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn one_user_alone_waits_for_nobody() {
        run(async {
            let turns = Turns::default();
            let (one, two) = (turns.of_user(7), turns.of_user(7));
            let first = one.begin().await;
            let second = two.begin().await;
            assert!(!first.is_shared() && !second.is_shared() && !turns.are_shared());
        });
    }

    #[test]
    fn who_is_gone_is_no_user() {
        let turns = Turns::default();
        let (one, two, other) = (turns.of_user(7), turns.of_user(7), turns.of_user(8));
        assert!(turns.are_shared());
        drop(one);
        assert!(turns.are_shared());
        drop(two);
        assert!(!turns.are_shared());
        drop(other);
        assert!(turns.0.borrow().is_empty());
    }

    /// Of two users, one with many sessions that never have enough and one with a single one: the
    /// single one's turns come as often as those of all the others together.
    #[test]
    fn a_user_with_many_sessions_gets_no_more_turns() {
        run(async {
            let turns = Turns::default();
            let single = turns.of_user(1);
            let (taken, over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
            let mut greedy = Vec::new();
            for _ in 0..64 {
                let user = turns.of_user(2);
                let (taken, over) = (Rc::clone(&taken), Rc::clone(&over));
                greedy.push(tokio::task::spawn_local(async move {
                    while !over.get() {
                        let turn = user.begin().await;
                        taken.set(taken.get() + 1);
                        turn.end().await;
                    }
                }));
            }
            for _ in 0..100 {
                single.begin().await.end().await;
            }
            over.set(true);
            for task in greedy {
                task.await.unwrap();
            }
            let greedy = taken.get() - 64;
            assert!((1..=300).contains(&greedy), "{greedy} turns to 100");
        });
    }
}
