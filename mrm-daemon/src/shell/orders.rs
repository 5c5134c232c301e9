//! In which order the pieces of models are needed, as their clients said: for the next load.
//!
//! Kept by the digest of the tensor table, which outlives the version, and the daemon. Bounded.

use crate::statistics::Order;
use std::collections::HashMap;
use std::sync::Arc;

/// Most models.
const MODELS_MAX: usize = 1024;
/// Most pieces, over all models.
const PIECES_MAX: usize = 65_536;

type Digest = [u8; 32];

/// What was learned.
#[derive(Default)]
pub(super) struct Orders {
    by_table: HashMap<Digest, Learned>,
    pieces: usize,
    turn: u64,
}

struct Learned {
    files: Vec<Arc<[u32]>>,
    pieces: usize,
    /// The higher, the later it came.
    turn: u64,
}

impl Orders {
    pub(super) fn is_empty(&self) -> bool {
        self.by_table.is_empty()
    }

    /// How often something was learned.
    pub(super) const fn turns(&self) -> u64 {
        self.turn
    }

    /// All that is known, the one that was learned first first.
    pub(super) fn all(&self) -> Vec<Order> {
        let mut learned: Vec<_> = self.by_table.iter().collect();
        learned.sort_by_key(|(_, learned)| learned.turn);
        let order = |(table, learned): (&Digest, &Learned)| Order {
            table: *table,
            files: learned.files.iter().map(|file| file.to_vec()).collect(),
        };
        learned.into_iter().map(order).collect()
    }

    pub(super) fn knows(&self, table: &Digest) -> bool {
        self.by_table.contains_key(table)
    }

    /// The pieces of a file, the first needed first.
    pub(super) fn get(&self, table: &Digest, file: usize) -> Option<Arc<[u32]>> {
        self.by_table.get(table)?.files.get(file).cloned()
    }

    /// Notes the pieces of each file. What came first goes first, when it is too much.
    pub(super) fn learn(&mut self, table: Digest, files: Vec<Vec<u32>>) {
        let pieces: usize = files.iter().map(Vec::len).sum();
        if pieces == 0 || pieces > PIECES_MAX {
            return;
        }
        self.forget(&table);
        while self.by_table.len() >= MODELS_MAX || self.pieces + pieces > PIECES_MAX {
            let oldest = self.by_table.iter().min_by_key(|(_, learned)| learned.turn);
            let Some(oldest) = oldest.map(|(table, _)| *table) else {
                break;
            };
            self.forget(&oldest);
        }
        self.turn += 1;
        self.pieces += pieces;
        let learned = Learned {
            files: files.into_iter().map(Arc::from).collect(),
            pieces,
            turn: self.turn,
        };
        self.by_table.insert(table, learned);
    }

    fn forget(&mut self, table: &Digest) {
        if let Some(gone) = self.by_table.remove(table) {
            self.pieces -= gone.pieces;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_le_bytes());
        digest
    }

    #[test]
    fn what_is_taken_out_can_be_learned_again_in_the_same_order() {
        let (mut orders, mut again) = (Orders::default(), Orders::default());
        for n in [3, 1, 2] {
            orders.learn(digest(n), vec![vec![7, u32::try_from(n).unwrap()], vec![]]);
        }
        for order in orders.all() {
            again.learn(order.table, order.files);
        }
        assert_eq!(again.all(), orders.all());
        assert_eq!(again.all()[0].table, digest(3));
        assert_eq!(again.get(&digest(1), 0).as_deref(), Some(&[7, 1][..]));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_models_or_pieces() {
        let mut orders = Orders::default();
        for n in 0..MODELS_MAX + 3 {
            orders.learn(digest(n), vec![vec![7], vec![]]);
        }
        assert!(!orders.knows(&digest(2)) && orders.knows(&digest(3)));
        assert_eq!(orders.get(&digest(3), 0).as_deref(), Some(&[7][..]));
        assert_eq!(orders.get(&digest(3), 2), None);
        orders.learn(digest(5000), vec![vec![1; PIECES_MAX - 1]]);
        assert!(orders.knows(&digest(5000)) && orders.by_table.len() <= 2);
        orders.learn(digest(5001), vec![vec![1; PIECES_MAX + 1]]);
        assert!(!orders.knows(&digest(5001)), "too much for all");
        assert!(orders.pieces <= PIECES_MAX);
    }
}
