//! How output looks: colour, width, which characters; and text that is safe to show.

use crate::args::ColorWhen;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::os::fd::AsFd;

/// What the receiver of the output can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Whether a person looks at it.
    pub(crate) terminal: bool,
    /// Whether to colour.
    pub(crate) color: bool,
    /// Whether characters beyond ASCII may be drawn.
    pub(crate) unicode: bool,
    /// Columns and rows, on a terminal.
    pub(crate) size: Option<(usize, usize)>,
}

/// What a piece of text means, from which its colour follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Faint,
    Good,
    Warning,
    Bad,
}

impl Look {
    /// Plain text: a pipe or a file.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self {
        terminal: false,
        color: false,
        unicode: false,
        size: None,
    };

    /// The look of an output stream.
    pub(crate) fn of(stream: &(impl IsTerminal + AsFd), when: ColorWhen) -> Self {
        let terminal = stream.is_terminal();
        let size = terminal.then(|| window(stream)).flatten();
        Self {
            terminal,
            color: colored(when, terminal, set_env),
            unicode: utf8(set_env),
            size,
        }
    }

    /// `text` in the colour of `tone`, or as it is.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Faint => "2",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A bar of `cells` characters, of which the share `part / whole` is filled.
    pub(crate) fn bar(self, part: u64, whole: u64, cells: usize) -> String {
        let (full, empty) = if self.unicode {
            ("█", "░")
        } else {
            ("#", "-")
        };
        let part = u128::from(part.min(whole));
        let scaled = part * cells as u128 * 2;
        let rounded = (scaled + u128::from(whole)) / (u128::from(whole.max(1)) * 2);
        let filled = usize::try_from(rounded).unwrap_or(cells).min(cells);
        let share = whole.max(1) / 10;
        let tone = if whole > 0 && part >= u128::from(whole - share) {
            Tone::Warning
        } else {
            Tone::Good
        };
        format!(
            "[{}{}]",
            self.paint(tone, &full.repeat(filled)),
            self.paint(Tone::Faint, &empty.repeat(cells - filled))
        )
    }
}

fn set_env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn colored(when: ColorWhen, terminal: bool, env: impl Fn(&str) -> Option<String>) -> bool {
    match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => {
            terminal && env("NO_COLOR").is_none() && env("TERM").is_none_or(|term| term != "dumb")
        }
    }
}

/// The locale's character set, by the order of precedence that POSIX gives its variables.
fn utf8(env: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(env)
        .unwrap_or_default();
    let locale = locale.to_ascii_uppercase();
    locale.contains("UTF-8") || locale.contains("UTF8")
}

fn window(stream: &impl AsFd) -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row.max(1))))
}

/// Text from elsewhere, with what could steer a terminal written out: a client names itself, and
/// must not paint the operator's screen.
pub(crate) fn safe(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Control characters, and the marks that reorder what follows them.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_follows_the_flag_then_the_environment() {
        let none = |_: &str| None;
        let no_color = |name: &str| (name == "NO_COLOR").then(|| "1".to_owned());
        let dumb = |name: &str| (name == "TERM").then(|| "dumb".to_owned());
        assert!(colored(ColorWhen::Auto, true, none));
        assert!(!colored(ColorWhen::Auto, false, none));
        assert!(!colored(ColorWhen::Auto, true, no_color));
        assert!(!colored(ColorWhen::Auto, true, dumb));
        assert!(colored(ColorWhen::Always, false, no_color));
        assert!(!colored(ColorWhen::Never, true, none));
    }

    #[test]
    fn the_strongest_locale_variable_decides() {
        let posix = |name: &str| match name {
            "LC_ALL" => Some("C".to_owned()),
            "LANG" => Some("en_US.UTF-8".to_owned()),
            _ => None,
        };
        assert!(!utf8(posix));
        assert!(utf8(|name| (name == "LANG").then(|| "C.utf8".to_owned())));
    }

    #[test]
    fn a_bar_fills_by_share() {
        assert_eq!(Look::PLAIN.bar(0, 10, 4), "[----]");
        assert_eq!(Look::PLAIN.bar(5, 10, 4), "[##--]");
        assert_eq!(Look::PLAIN.bar(20, 10, 4), "[####]");
        assert_eq!(Look::PLAIN.bar(0, 0, 4), "[----]");
        assert_eq!(Look::PLAIN.bar(u64::MAX, u64::MAX, 2), "[##]");
    }

    #[test]
    fn a_hostile_name_cannot_steer_the_terminal() {
        assert_eq!(safe("\x1b[2Jx\n"), "\\u{1b}[2Jx\\u{a}");
        assert_eq!(safe("模型/é"), "模型/é");
        assert_eq!(safe("a\u{202e}b"), "a\\u{202e}b");
    }
}
