use super::super::piece::pieces;
use super::super::read::CHUNK_BYTES;
use super::*;
use crate::degraded::Degraded;
use crate::memory::{Reserved, charge_for};

/// More than is allocated at once, by more than one step.
const BYTES: u64 = (150 << 20) + 5;

fn reserved() -> Reserved {
    Reserved::take(BYTES, charge_for(BYTES), &Degraded::new()).expect("memory")
}

#[test]
fn pieces_come_when_their_pages_are_there_and_all_of_them_come() {
    let mut memory = reserved();
    let bytes = usize::try_from(BYTES).expect("fits");
    let (pages, mut populator) = memory.parts().expect("mapped");
    let seen = filled_meanwhile(&mut populator, 0, &|| false, |gate| {
        gate.giving_way(None)
            .pass(pieces(pages, bytes))
            .map(|mut piece| piece.rest(usize::MAX).len())
            .sum::<usize>()
    });
    assert_eq!(seen.expect("memory"), bytes);
    assert!(populator.is_done());
    let huge = populator.finish(&Degraded::new());
    assert_eq!(huge.requested_bytes, 150 << 20);
    let segment = memory.populated(huge).expect("all there");
    assert_eq!(segment.bytes(), BYTES);
}

#[test]
fn a_reader_that_gives_up_is_not_waited_for_by_the_rest() {
    let mut memory = reserved();
    let (_, mut populator) = memory.parts().expect("mapped");
    let outcome = filled_meanwhile(&mut populator, 0, &|| false, |_| Err::<(), _>("gave up"));
    assert_eq!(outcome.expect("no lack of memory"), Err("gave up"));
}

#[test]
fn what_is_short_of_pages_lets_none_through_and_says_why() {
    let gate = Gate::at(CHUNK_BYTES);
    let mut pages = vec![0; 3 * CHUNK_BYTES];
    let error = MemoryError::TooLarge { bytes: 7 };
    gate.tell(Err(error), false);
    let length = pages.len();
    assert_eq!(
        gate.giving_way(None)
            .pass(pieces(&mut pages, length))
            .count(),
        1
    );
    assert!(matches!(
        gate.lock().error,
        Some(MemoryError::TooLarge { bytes: 7 })
    ));
    gate.tell(Ok(length), true);
    assert_eq!(
        gate.giving_way(None)
            .pass(pieces(&mut pages, length))
            .count(),
        3
    );
}

#[test]
fn a_piece_waits_for_its_pages() {
    let gate = Gate::at(CHUNK_BYTES);
    let mut pages = vec![0; 2 * CHUNK_BYTES];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            gate.giving_way(None)
                .pass(pieces(&mut pages, 2 * CHUNK_BYTES))
                .count()
        });
        gate.tell(Ok(2 * CHUNK_BYTES), false);
        assert_eq!(reader.join().expect("no panic"), 2);
    });
}
