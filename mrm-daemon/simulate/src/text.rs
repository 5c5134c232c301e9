//! Lines of a file that may be compressed, and what is wrong with one.

use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line that is believed: a day of one function, minute by minute, takes a tenth of it.
const LINE_BYTES_MAX: u64 = 1 << 16;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A file cannot be used, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {what}", .file.display(), .line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct BadInput {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The line, from 1; `None` where it is about the whole.
    pub line: Option<u64>,
    /// What is wrong, and the remedy.
    pub what: String,
}

impl BadInput {
    /// About a file as a whole.
    pub(crate) fn whole(file: &Path, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            what: what.into(),
        }
    }
}

/// The lines of a file.
pub(crate) struct Lines<'a> {
    file: &'a Path,
    from: Box<dyn BufRead + 'a>,
    line: u64,
    text: Vec<u8>,
}

impl<'a> Lines<'a> {
    /// Of bytes that may be compressed by gzip.
    pub(crate) fn new(file: &'a Path, from: impl Read + 'a) -> Result<Self, BadInput> {
        let mut from = BufReader::with_capacity(1 << 16, from);
        let failed = |error: io::Error| BadInput::whole(file, error.to_string());
        let compressed = from.fill_buf().map_err(failed)?.starts_with(&GZIP);
        let from: Box<dyn BufRead + 'a> = match compressed {
            true => Box::new(BufReader::new(MultiGzDecoder::new(from))),
            false => Box::new(from),
        };
        Ok(Self {
            file,
            from,
            line: 0,
            text: Vec::new(),
        })
    }

    /// The first bytes, which are not taken.
    pub(crate) fn peek(&mut self) -> Result<&[u8], BadInput> {
        let failed = |error: io::Error| BadInput::whole(self.file, error.to_string());
        self.from.fill_buf().map_err(failed)
    }

    /// All that is left, as bytes.
    #[cfg(feature = "journal")]
    pub(crate) fn rest(mut self) -> Result<Vec<u8>, BadInput> {
        let mut bytes = Vec::new();
        let read = self.from.read_to_end(&mut bytes);
        read.map_err(|error| BadInput::whole(self.file, error.to_string()))?;
        Ok(bytes)
    }

    /// The next line that is not empty, without its end.
    pub(crate) fn next_line(&mut self) -> Result<Option<&str>, BadInput> {
        loop {
            self.text.clear();
            let mut bounded = (&mut self.from).take(LINE_BYTES_MAX);
            let read = bounded.read_until(b'\n', &mut self.text);
            let read = read.map_err(|error| self.wrong(error.to_string()))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read as u64 == LINE_BYTES_MAX {
                return Err(self.wrong("the line is too long: is this the right file?"));
            }
            if !self.text.trim_ascii().is_empty() {
                break;
            }
        }
        match std::str::from_utf8(self.text.trim_ascii()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.wrong("it is not text: is this the right file?")),
        }
    }

    /// What is wrong with the line that came last.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> BadInput {
        BadInput {
            file: self.file.to_owned(),
            line: Some(self.line.max(1)),
            what: what.into(),
        }
    }
}

/// Seconds as microseconds: not negative, not more than thirty thousand years.
pub(crate) fn seconds_us(name: &str, text: &str) -> Result<u64, String> {
    const SECONDS_MAX: f64 = 1e12;
    let number: f64 = text
        .trim()
        .parse()
        .map_err(|_| format!("`{name}` is `{text}`, which is no number"))?;
    if !number.is_finite() || number > SECONDS_MAX {
        return Err(format!(
            "`{name}` is {text}: it has to be a finite number of seconds"
        ));
    }
    if number < 0.0 {
        return Err(format!("`{name}` is negative: {text}"));
    }
    Ok((number * 1e6).round() as u64)
}

/// A whole number.
pub(crate) fn whole(name: &str, text: &str) -> Result<u64, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("`{name}` is `{text}`, which is no whole number from 0 on"))
}
