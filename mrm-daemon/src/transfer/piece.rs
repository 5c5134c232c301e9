//! The pieces that an image is read in, and what a read of one may leave to do.

use super::read::CHUNK_BYTES;

/// A part of an image that is being read.
#[derive(Debug)]
pub(super) struct Piece<'i> {
    /// How many pieces are before it.
    pub(super) index: usize,
    /// Where it is to go: whole pages, of which the last may reach beyond the end of the file.
    pages: &'i mut [u8],
    /// How much of it the file has.
    wanted: usize,
    /// How much of it is there.
    done: usize,
}

/// What is to be done next about a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: it is whole.
    Nothing,
    /// Read on in the same way.
    On,
    /// Read the rest through the page cache, which takes any offset and tells the end of a file.
    Rest,
}

/// The pieces of an image of `bytes` bytes in `pages`, in order.
pub(super) fn pieces(pages: &mut [u8], bytes: usize) -> impl Iterator<Item = Piece<'_>> + Send {
    let wanted = move |index: usize| bytes.saturating_sub(index * CHUNK_BYTES).min(CHUNK_BYTES);
    let chunks = pages.chunks_mut(CHUNK_BYTES).enumerate();
    chunks.map(move |(index, pages)| Piece {
        index,
        wanted: wanted(index).min(pages.len()),
        pages,
        done: 0,
    })
}

/// As [`pieces`], but those numbered in `first` before all others.
pub(super) fn pieces_from<'i>(
    pages: &'i mut [u8],
    bytes: usize,
    first: &[u32],
) -> Box<dyn Iterator<Item = Piece<'i>> + Send + 'i> {
    if first.is_empty() {
        return Box::new(pieces(pages, bytes));
    }
    let mut all: Vec<Option<Piece<'i>>> = pieces(pages, bytes).map(Some).collect();
    let numbers = first.iter().filter_map(|&n| usize::try_from(n).ok());
    let mut ahead: Vec<Piece<'i>> = numbers.filter_map(|n| all.get_mut(n)?.take()).collect();
    ahead.extend(all.into_iter().flatten());
    Box::new(ahead.into_iter())
}

impl<'i> Piece<'i> {
    /// The part of the file that it is.
    pub(super) const fn range(&self) -> std::ops::Range<u64> {
        let start = self.index as u64 * CHUNK_BYTES as u64;
        start..start + self.wanted as u64
    }

    /// Where its pages end in the image.
    pub(super) const fn pages_end(&self) -> usize {
        self.index * CHUNK_BYTES + self.pages.len()
    }

    /// Where in the file the next read begins.
    pub(super) const fn offset(&self) -> u64 {
        self.index as u64 * CHUNK_BYTES as u64 + self.done as u64
    }

    /// Where a read in whole blocks goes: all that is not there yet, beyond the end too.
    pub(super) fn blocks(&mut self) -> &mut [u8] {
        &mut self.pages[self.done..]
    }

    /// Where a read of at most `bytes_max` bytes goes: nothing beyond the end.
    pub(super) fn rest(&mut self, bytes_max: usize) -> &mut [u8] {
        let end = self.wanted.min(self.done.saturating_add(bytes_max));
        &mut self.pages[self.done..end]
    }

    /// How much of what the file has is there.
    pub(super) fn done(&self) -> usize {
        self.done.min(self.wanted)
    }

    /// Whether it is whole.
    pub(super) const fn is_whole(&self) -> bool {
        self.done >= self.wanted
    }

    /// Takes note of a read of `count` bytes, made in blocks of `block` bytes.
    pub(super) fn took(&mut self, count: usize, block: usize) -> Next {
        self.done = self.done.saturating_add(count).min(self.pages.len());
        if self.is_whole() {
            Next::Nothing
        } else if count == 0 || !self.done.is_multiple_of(block) {
            // The end of a file that was longer; or an odd answer, after which blocks do not fit.
            Next::Rest
        } else {
            Next::On
        }
    }

    /// The bytes `from..` of what is there.
    pub(super) fn since(&self, from: usize) -> &[u8] {
        &self.pages[from..self.done()]
    }

    /// All of it.
    pub(super) fn into_bytes(self) -> &'i [u8] {
        &self.pages[..self.wanted]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_file_and_their_pages_the_image() {
        for bytes in [1, 4096, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 5] {
            let mut pages = vec![0; bytes.next_multiple_of(4096)];
            let length = pages.len();
            let (mut wanted, mut room) = (0, 0);
            for mut piece in pieces(&mut pages, bytes) {
                assert_eq!(piece.offset(), wanted as u64);
                assert!(!piece.is_whole() && piece.done() == 0);
                room += piece.blocks().len();
                wanted += piece.rest(usize::MAX).len();
                assert_eq!(piece.rest(7).len(), piece.rest(usize::MAX).len().min(7));
            }
            assert_eq!((wanted, room), (bytes, length));
        }
    }

    #[test]
    fn pieces_named_first_come_first_and_each_comes_once() {
        let mut pages = vec![0; 5 * CHUNK_BYTES];
        let bytes = pages.len() - 7;
        let mut order = |first: &[u32]| -> Vec<usize> {
            let pieces = pieces_from(&mut pages, bytes, first);
            pieces.map(|piece| piece.index).collect()
        };
        assert_eq!(order(&[]), [0, 1, 2, 3, 4]);
        assert_eq!(order(&[3, 1, 3, 99]), [3, 1, 0, 2, 4]);
        let last = pieces_from(&mut pages, bytes, &[4]).next().expect("one");
        assert_eq!(last.range(), (4 * CHUNK_BYTES) as u64..bytes as u64);
    }

    #[test]
    fn what_a_read_leaves_decides_how_it_goes_on() {
        let mut pages = vec![0; 12_288];
        let mut piece = pieces(&mut pages, 10_000).next().expect("one");
        assert_eq!(piece.took(4096, 512), Next::On);
        assert_eq!((piece.offset(), piece.blocks().len()), (4096, 8192));
        assert_eq!(piece.took(100, 512), Next::Rest);
        assert_eq!((piece.done(), piece.rest(usize::MAX).len()), (4196, 5804));
        assert_eq!(piece.took(0, 1), Next::Rest, "the end came early");
        assert_eq!(piece.took(5804, 1), Next::Nothing);
        let mut piece = pieces(&mut pages, 10_000).next().expect("one");
        assert_eq!(piece.took(12_288, 512), Next::Nothing, "it grew");
        assert_eq!(piece.done(), 10_000);
        assert_eq!(piece.since(9_990).len(), 10);
        assert_eq!(piece.into_bytes().len(), 10_000);
    }
}
