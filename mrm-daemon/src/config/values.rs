//! From the text of one setting to its typed value.

use super::problem::{Place, Problem, Wrong};
use super::setting::{Key, Kind, Setting};
use super::{Group, Size, SocketMode};
use mrm_core::policy::{Choice, Rule};
use std::path::{Path, PathBuf};

/// A value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) form: Form,
    pub(super) place: Place,
}

/// In which form a value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A flag's or a variable's text, which may mean anything.
    Bare,
    /// A string of the file.
    Quoted,
    /// A list of strings of the file, with commas between them.
    List,
    /// An integer of the file; its text is digits without a prefix.
    Integer { radix: u32 },
}

/// Collects the typed values and what is wrong with the rest.
pub(super) struct Reader<'a> {
    pub(super) given: &'a dyn Fn(Key) -> Option<Given>,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// The setting's value, or `default` when it is not set or wrong.
    pub(super) fn read<T>(
        &mut self,
        key: Key,
        default: T,
        parse: impl FnOnce(&Given) -> Result<T, Wrong>,
    ) -> T {
        let Some(given) = (self.given)(key) else {
            return default;
        };
        match parse(&given) {
            Ok(value) => value,
            Err(wrong) => {
                let row = key.setting();
                self.problems
                    .push(wrong.at(given.place, row.path, Some(given.text)));
                default
            }
        }
    }

    pub(super) fn number(&mut self, key: Key, default: u64) -> u64 {
        self.read(key, default, |given| integer(key.setting(), given))
    }

    pub(super) fn bytes(&mut self, key: Key, default: u64) -> u64 {
        self.read(key, default, |given| bytes(key.setting(), given))
    }

    pub(super) fn count(&mut self, key: Key, default: usize) -> usize {
        let number = self.number(key, default as u64);
        usize::try_from(number).unwrap_or(usize::MAX)
    }
}

fn integer(row: &Setting, given: &Given) -> Result<u64, Wrong> {
    let (min, max) = match row.kind {
        Kind::Integer { min, max } => (min, max),
        Kind::Path
        | Kind::Mode
        | Kind::Group
        | Kind::Size
        | Kind::DeviceSize
        | Kind::Bytes { .. }
        | Kind::Uuids
        | Kind::Uids
        | Kind::Choice(_)
        | Kind::Policy => (0, u64::MAX),
    };
    let remedy = format!("give a whole number from {min} to {max}");
    let radix = match given.form {
        Form::Bare => 10,
        Form::Integer { radix } => radix,
        Form::Quoted => return Err(Wrong::new("is a string", remedy + ", without quotes")),
        Form::List => return Err(Wrong::new("is a list", remedy)),
    };
    match u64::from_str_radix(&given.text, radix) {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(_) => Err(Wrong::new("out of range", remedy)),
        Err(_) => Err(Wrong::new("not a whole number in range", remedy)),
    }
}

/// A plain number of bytes, within the bounds of its setting.
pub(super) fn bytes(row: &Setting, given: &Given) -> Result<u64, Wrong> {
    let (min, max) = match row.kind {
        Kind::Bytes { min, max } => (min, max),
        Kind::Path
        | Kind::Mode
        | Kind::Group
        | Kind::Size
        | Kind::DeviceSize
        | Kind::Integer { .. }
        | Kind::Uuids
        | Kind::Uids
        | Kind::Choice(_)
        | Kind::Policy => (0, u64::MAX),
    };
    let remedy = || format!("give from {} to {}", Size::Bytes(min), Size::Bytes(max));
    match size(given)? {
        Size::Bytes(bytes) if (min..=max).contains(&bytes) => Ok(bytes),
        Size::Bytes(_) => Err(Wrong::new("out of range", remedy())),
        Size::Percent(_) => Err(Wrong::new("is a share, of nothing", remedy())),
    }
}

/// Bytes or a share.
pub(super) fn size(given: &Given) -> Result<Size, Wrong> {
    let wrong = |reason: String| {
        Wrong::new(
            reason,
            "write for example \"8GiB\", \"50%\" or a plain number of bytes",
        )
    };
    match given.form {
        Form::Bare | Form::Quoted => given.text.parse().map_err(|e| wrong(format!("{e}"))),
        Form::Integer { radix } => match u64::from_str_radix(&given.text, radix) {
            Ok(bytes) => Ok(Size::Bytes(bytes)),
            Err(_) => Err(wrong("not a number of bytes".to_owned())),
        },
        Form::List => Err(wrong("is a list".to_owned())),
    }
}

/// `socket_mode`.
pub(super) fn mode(given: &Given) -> Result<SocketMode, Wrong> {
    let remedy = "write it in octal with quotes, for example \"0660\"";
    let digits = match given.form {
        Form::Bare | Form::Quoted => given.text.strip_prefix("0o").unwrap_or(&given.text),
        Form::Integer { radix: 8 } => &given.text,
        Form::Integer { .. } => return Err(Wrong::new("is a decimal number", remedy)),
        Form::List => return Err(Wrong::new("is a list", remedy)),
    };
    let plain = digits.chars().all(|c| c.is_digit(8));
    let bits = u32::from_str_radix(digits, 8).ok().filter(|_| plain);
    bits.and_then(SocketMode::new)
        .ok_or_else(|| Wrong::new("not the permission bits of a socket", remedy))
}

/// `socket_group` and `status_group`.
pub(super) fn group(given: &Given, gid_of: fn(&str) -> Option<u32>) -> Result<Group, Wrong> {
    let name = text(given, "give a group's name or number in quotes")?;
    match gid_of(name).or_else(|| name.parse().ok()) {
        Some(gid) => Ok(Group {
            name: name.to_owned(),
            gid,
        }),
        None => Err(Wrong::new(
            "there is no such group on this host",
            format!("create it with `groupadd --system {name}`, or name another"),
        )),
    }
}

/// An absolute path.
pub(super) fn path(given: &Given) -> Result<PathBuf, Wrong> {
    absolute(text(given, "give an absolute path in quotes")?)
}

/// One of the words that `parse` knows.
pub(super) fn word<T>(
    given: &Given,
    words: &[&str],
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Wrong> {
    let remedy = format!("give one of {}", words.join(", "));
    let found = parse(text(given, &remedy)?);
    found.ok_or_else(|| Wrong::new("not a known word", remedy))
}

/// `host_policy` and `device.policy`.
pub(super) fn policy(given: &Given) -> Result<Choice, Wrong> {
    let remedy = format!(
        "give one of {}, and its settings as in \"random,seed=7\"",
        Rule::names().join(", ")
    );
    let choice = text(given, &remedy)?.parse();
    choice.map_err(|_| Wrong::new("not a known policy", remedy))
}

/// `text` as a path that does not depend on the working directory.
pub(super) fn absolute(text: &str) -> Result<PathBuf, Wrong> {
    let path = Path::new(text);
    if text.contains('\0') {
        return Err(Wrong::new(
            "contains a NUL character",
            "give a path without it",
        ));
    }
    if !path.is_absolute() {
        return Err(Wrong::new("not an absolute path", "start it with `/`"));
    }
    Ok(path.to_owned())
}

fn text<'a>(given: &'a Given, remedy: &str) -> Result<&'a str, Wrong> {
    match given.form {
        Form::Bare | Form::Quoted => Ok(&given.text),
        Form::Integer { .. } => Err(Wrong::new("is a number", remedy)),
        Form::List => Err(Wrong::new("is a list", remedy)),
    }
}
