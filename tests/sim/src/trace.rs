//! The way that a run went, as one number, and as text for people.

use std::fmt::{self, Write};

/// How many lines are kept for a report.
const LINES_KEPT: usize = 60;

/// FNV-1a (Fowler, Noll, Vo) over what happened.
#[derive(Debug)]
pub(crate) struct Trace {
    sum: u64,
    /// The last lines; `None` when nobody will read them.
    lines: Option<Vec<String>>,
    printed: bool,
}

impl Trace {
    /// `told`: keep the last lines. `printed`: print all.
    pub(crate) const fn new(told: bool, printed: bool) -> Self {
        Self {
            sum: 0xcbf2_9ce4_8422_2325,
            lines: if told { Some(Vec::new()) } else { None },
            printed,
        }
    }

    /// Takes note of something that happened.
    #[expect(clippy::print_stdout, reason = "on demand")]
    pub(crate) fn note(&mut self, now: u64, what: &impl fmt::Debug) {
        // Writing to a number cannot fail.
        let _ = write!(self, "{now} {what:?}");
        if self.printed {
            println!("{now:>9} {what:?}");
        }
        if let Some(lines) = &mut self.lines {
            if lines.len() >= 2 * LINES_KEPT {
                lines.drain(..LINES_KEPT);
            }
            lines.push(format!("{now:>9} {what:?}"));
        }
    }

    pub(crate) const fn sum(&self) -> u64 {
        self.sum
    }

    /// The last lines.
    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.sum ^= u64::from_le_bytes(word);
            self.sum = self.sum.wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
