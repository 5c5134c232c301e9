//! What is wrong with a configuration, where, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// Which layer a value comes from, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The command line.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File,
    /// Nobody set it.
    Default,
}

/// Where exactly a value was given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The configuration file; lines and columns (in characters) count from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// The file as a whole.
    WholeFile(PathBuf),
    /// An environment variable's name.
    Environment(&'static str),
    /// A flag's name, without the dashes.
    Flag(&'static str),
    /// Nobody set it.
    Default,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it was given.
    pub place: Place,
    /// The key, as in the file; empty when the file as a whole is meant.
    pub key: String,
    /// The refused value, if one was read.
    pub value: Option<String>,
    /// Which rule it breaks.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration has {}{}", count(.problems), list(.problems))]
pub struct ConfigError {
    /// In the order of their places; never empty.
    pub problems: Vec<Problem>,
}

/// A refused value's reason and remedy, before its place is known.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) reason: String,
    pub(super) remedy: String,
}

impl Wrong {
    pub(super) fn new(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn at(self, place: Place, key: &str, value: Option<String>) -> Problem {
        let Self { reason, remedy } = self;
        Problem {
            place,
            key: key.to_owned(),
            value,
            reason,
            remedy,
        }
    }
}

impl Place {
    /// The layer it belongs to.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self {
            Self::Flag(_) => Origin::Flag,
            Self::Environment(_) => Origin::Environment,
            Self::File { .. } | Self::WholeFile(_) => Origin::File,
            Self::Default => Origin::Default,
        }
    }
}

impl Origin {
    /// As `mrmd --check` prints it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => {
                write!(f, "{}:{line}:{column}", path.display())
            }
            Self::WholeFile(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys, and what is told about values, come from the file: none of it may move the cursor
        // of the terminal on which the report is read.
        write!(f, "{}: ", plain(&self.place.to_string()))?;
        match (&self.value, self.key.as_str()) {
            (_, "") => {}
            (Some(value), key) => write!(f, "{} = {}: ", plain(key), shown(value))?,
            (None, key) => write!(f, "{}: ", plain(key))?,
        }
        write!(f, "{}; {}", plain(&self.reason), plain(&self.remedy))
    }
}

/// `text` in one line of bounded length, with what a terminal would obey or hide written out.
fn plain(text: &str) -> String {
    const CHARS_MAX: usize = 8 << 10;
    let mut plain = String::with_capacity(text.len());
    for c in text.chars().take(CHARS_MAX) {
        match c {
            '"' | '\'' | '\\' => plain.push(c),
            _ => plain.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(CHARS_MAX).is_some() {
        plain.push('…');
    }
    plain
}

/// `wrong` when it is close enough to one of `known` to be a slip of the fingers.
pub(super) fn closest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let longest = wrong.chars().count();
    known
        .map(|name| (distance(wrong, name), name))
        // A key without its unit (`host_budget`) is the commonest slip.
        .map(|(far, name)| {
            let lacks_unit = name
                .strip_prefix(wrong)
                .is_some_and(|rest| rest.starts_with('_'));
            if lacks_unit { (0, name) } else { (far, name) }
        })
        .filter(|(far, name)| *far <= 1 + longest.min(name.len()) / 4)
        .min()
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace) that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A value as it is quoted in a message: one line, of bounded length.
fn shown(value: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let mut text: String = value.chars().take(SHOWN_CHARS_MAX).collect();
    if text.len() < value.len() {
        text.push('…');
    }
    format!("{text:?}")
}

fn count(problems: &[Problem]) -> String {
    match problems.len() {
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    }
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_found_and_far_ones_are_not() {
        let known = ["host_budget_bytes", "drain_ms", "load", "limits"];
        let of = |wrong| closest(wrong, known.into_iter());
        assert_eq!(of("host_budget"), Some("host_budget_bytes"));
        assert_eq!(of("drian_ms"), Some("drain_ms"));
        assert_eq!(of("limit"), Some("limits"));
        assert_eq!(of("colour"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn nothing_in_a_report_moves_a_cursor() {
        let evil = "\x1b]0;owned\x07\n\u{9b}2J\u{202e}";
        let wrong = Wrong::new(format!("not {evil}"), format!("leave `{evil}` out"));
        let place = Place::WholeFile(PathBuf::from(format!("/etc/{evil}")));
        let problem = wrong.at(place, &format!("limits.{evil}"), Some(evil.to_owned()));
        let said = problem.to_string();
        assert!(
            said.contains("owned") && said.contains("\\u{1b}"),
            "{said:?}"
        );
        assert!(!said.chars().any(char::is_control), "{said:?}");
        assert!(!said.contains('\u{202e}'), "{said:?}");
        let quoted = Wrong::new("is a path", r#"write "C:\x" or 'y'"#);
        let said = quoted.at(Place::Default, "é", None).to_string();
        assert_eq!(said, r#"default: é: is a path; write "C:\x" or 'y'"#);
    }

    #[test]
    fn a_value_is_quoted_in_one_bounded_line() {
        assert_eq!(shown("a\nb"), r#""a\nb""#);
        assert!(shown(&"x".repeat(10_000)).len() < 100);
    }
}
