//! Aligned tables.

use crate::look::{Look, Tone, safe};

/// Two blanks between columns.
const GAP: usize = 2;
/// A name is not cut below this.
const SHRUNK_MIN: usize = 12;

/// How a column is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    /// Numbers: the digits of a row are under those of the row above.
    Right,
    /// Left, and cut in the middle where a terminal is too narrow.
    Shrink,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// An entry with a meaning.
    pub(crate) fn toned(text: &str, tone: Tone) -> Self {
        Self {
            text: safe(text),
            tone,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// A table under construction.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table with these titles. Columns without any title print no head.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Missing entries are empty, surplus ones are dropped.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut cells: Vec<Cell> = cells.into_iter().take(self.columns.len()).collect();
        cells.resize(self.columns.len(), Cell::from(""));
        self.rows.push(cells);
    }

    /// The text, one line per row, each ended by a newline.
    pub(crate) fn render(&self, look: Look) -> String {
        let widths = self.widths(look);
        let mut text = String::new();
        if self.columns.iter().any(|(title, _)| !title.is_empty()) {
            let head: Vec<Cell> = self
                .columns
                .iter()
                .map(|(title, _)| Cell::toned(title, Tone::Strong))
                .collect();
            self.line(&head, &widths, look, &mut text);
        }
        for row in &self.rows {
            self.line(row, &widths, look, &mut text);
        }
        text
    }

    fn widths(&self, look: Look) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(title, _)| width(title)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(&cell.text));
            }
        }
        let Some((columns_max, _)) = look.size else {
            return widths;
        };
        let gaps = GAP * widths.len().saturating_sub(1);
        let mut over = (widths.iter().sum::<usize>() + gaps).saturating_sub(columns_max);
        for (widest, (title, align)) in widths.iter_mut().zip(&self.columns) {
            let floor = SHRUNK_MIN.max(width(title));
            if *align == Align::Shrink && *widest > floor {
                let cut = over.min(*widest - floor);
                *widest -= cut;
                over -= cut;
            }
        }
        widths
    }

    fn line(&self, cells: &[Cell], widths: &[usize], look: Look, text: &mut String) {
        let mut line = String::new();
        // Blanks are written only before the next visible text, so that no line ends in them.
        let mut blanks = 0;
        for ((cell, &wide), (_, align)) in cells.iter().zip(widths).zip(&self.columns) {
            let shown = if *align == Align::Shrink {
                shorten(&cell.text, wide, look.unicode)
            } else {
                cell.text.clone()
            };
            let pad = wide.saturating_sub(width(&shown));
            if *align == Align::Right {
                blanks += pad;
            }
            if !shown.is_empty() {
                line.push_str(&" ".repeat(blanks));
                line.push_str(&look.paint(cell.tone, &shown));
                blanks = 0;
            }
            blanks += GAP + if *align == Align::Right { 0 } else { pad };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// `text` in at most `columns_max` columns, cut in its middle: both ends of a name tell it apart.
pub(crate) fn shorten(text: &str, columns_max: usize, unicode: bool) -> String {
    if width(text) <= columns_max {
        return text.to_owned();
    }
    let mark = if unicode { "…" } else { ".." };
    let Some(room) = columns_max.checked_sub(width(mark)) else {
        return String::new();
    };
    let head = take(text.chars(), room.div_ceil(2));
    let tail: String = take(text.chars().rev(), room - width(&head))
        .chars()
        .rev()
        .collect();
    format!("{head}{mark}{tail}")
}

fn take(chars: impl Iterator<Item = char>, columns_max: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|&c| {
            used += char_width(c);
            used <= columns_max
        })
        .collect()
}

/// Columns that `text` takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// Nothing for marks that combine, two for East Asian wide characters and pictures, else one.
/// Coarse blocks are enough: a wrong guess only misaligns one row.
fn char_width(c: char) -> usize {
    match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200d | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[
            ("NAME", Align::Shrink),
            ("SIZE", Align::Right),
            ("USE", Align::Left),
        ]);
        table.row([
            "bert".into(),
            "86.7 MiB".into(),
            Cell::toned("now", Tone::Good),
        ]);
        table.row(["a/very/long/name/of/a/model".into(), "1 B".into()]);
        table
    }

    #[test]
    fn numbers_are_aligned_right_and_no_line_ends_in_blanks() {
        let expected = "\
NAME                             SIZE  USE
bert                         86.7 MiB  now
a/very/long/name/of/a/model       1 B
";
        assert_eq!(sample().render(Look::PLAIN), expected);
    }

    #[test]
    fn a_narrow_terminal_cuts_names_in_the_middle() {
        let look = Look {
            terminal: true,
            size: Some((34, 10)),
            ..Look::PLAIN
        };
        let text = sample().render(look);
        assert!(text.contains("a/very/lo../a/model"), "{text}");
        assert!(text.lines().all(|line| width(line) <= 34), "{text}");
        let narrower = Look {
            size: Some((5, 10)),
            ..look
        };
        assert!(sample().render(narrower).contains("a/ver..model"));
    }

    #[test]
    fn colour_does_not_disturb_the_columns() {
        let look = Look {
            color: true,
            ..Look::PLAIN
        };
        let text = sample().render(look);
        assert!(text.contains("\x1b[32mnow\x1b[0m"));
        assert!(
            text.lines()
                .nth(1)
                .unwrap()
                .starts_with("bert                         86.7")
        );
    }

    #[test]
    fn wide_and_combining_characters_keep_the_columns() {
        assert_eq!(width("模型"), 4);
        assert_eq!(width("e\u{301}"), 1);
        let mut table = Table::new(&[("A", Align::Left), ("B", Align::Left)]);
        table.row(["模型".into(), "x".into()]);
        table.row(["abcd".into(), "x".into()]);
        assert_eq!(table.render(Look::PLAIN), "A     B\n模型  x\nabcd  x\n");
    }

    #[test]
    fn shortening_respects_wide_characters() {
        for columns in 0..12 {
            for text in ["模型模型模型", "abcdefghijklm", "a模b型c模d型"] {
                assert!(width(&shorten(text, columns, true)) <= columns);
                assert!(width(&shorten(text, columns, false)) <= columns);
            }
        }
        assert_eq!(shorten("abcdefgh", 5, true), "ab…gh");
    }

    #[test]
    fn a_table_without_titles_has_no_head() {
        let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
        table.row(["k".into(), "v".into()]);
        assert_eq!(table.render(Look::PLAIN), "k  v\n");
    }
}
