//! Query parameters, read strictly: a misspelt one must not be ignored.

use super::fault::{Fault, HttpCode};
use super::place::PlaceError;
use super::route::shown;
use std::str::FromStr;

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Params(Vec<(&'static str, String)>);

/// Why text cannot be percent-decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("a `%` must be followed by two hexadecimal digits")]
    Escape,
    #[error("it is not UTF-8")]
    NotUtf8,
}

impl Params {
    /// Splits `query`; each name must be one of `allowed` and stand there once.
    pub(super) fn parse(query: &str, allowed: &[&'static str]) -> Result<Self, Fault> {
        let mut params: Vec<(&'static str, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(&name) = allowed.iter().find(|known| **known == name) else {
                return Err(bad(format!(
                    "unknown parameter `{}`; {}",
                    shown(name),
                    list(allowed)
                )));
            };
            if params.iter().any(|(seen, _)| *seen == name) {
                return Err(bad(format!(
                    "parameter `{name}` is given twice; give it once"
                )));
            }
            let value = decode(value, true).map_err(|why| bad(format!("`{name}`: {why}")))?;
            params.push((name, value));
        }
        Ok(Self(params))
    }

    /// The text of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(seen, _)| *seen == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A parameter as a number: decimal digits only.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Fault> {
        let Some((_, text)) = self.0.iter().find(|(seen, _)| *seen == name) else {
            return Ok(None);
        };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits => Ok(Some(number)),
            _ => Err(bad(format!(
                "`{name}` must be a number from 0 to {}",
                u64::MAX
            ))),
        }
    }

    /// A parameter that names a place; `words` are the ways to name one.
    pub(super) fn place<T: FromStr<Err = PlaceError>>(
        &self,
        name: &str,
        words: &str,
    ) -> Result<Option<T>, Fault> {
        let Some((_, text)) = self.0.iter().find(|(seen, _)| *seen == name) else {
            return Ok(None);
        };
        let wrong = |why| {
            bad(format!(
                "`{name}` is `{}`, {why}; give {words}",
                shown(text)
            ))
        };
        text.parse().map(Some).map_err(wrong)
    }
}

/// Undoes percent-encoding; in a query, `+` stands for a space.
pub(super) fn decode(raw: &str, plus_is_space: bool) -> Result<String, DecodeError> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let high = bytes.next().and_then(hex).ok_or(DecodeError::Escape)?;
                let low = bytes.next().and_then(hex).ok_or(DecodeError::Escape)?;
                high << 4 | low
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| DecodeError::NotUtf8)
}

const fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn list(allowed: &[&str]) -> String {
    match allowed {
        [] => "this path takes none".to_owned(),
        names => format!("this path takes: {}", names.join(", ")),
    }
}

fn bad(message: String) -> Fault {
    Fault::http(HttpCode::BadParameter, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(query: &str, allowed: &[&'static str]) -> String {
        Params::parse(query, allowed)
            .unwrap_err()
            .view
            .error
            .message
    }

    #[test]
    fn values_are_decoded() {
        let mut params =
            Params::parse("prefix=a%2Fb+c&&after=%c3%A9", &["prefix", "after"]).unwrap();
        assert_eq!(params.take("prefix").as_deref(), Some("a/b c"));
        assert_eq!(params.take("after").as_deref(), Some("é"));
        assert_eq!(params.take("after"), None);
    }

    #[test]
    fn unknown_repeated_and_broken_parameters_are_named() {
        let unknown = refusal("limt=3", &["limit", "after"]);
        assert_eq!(
            unknown,
            "unknown parameter `limt`; this path takes: limit, after"
        );
        assert!(refusal("x", &[]).ends_with("this path takes none"));
        assert!(refusal("limit=1&limit=2", &["limit"]).contains("`limit` is given twice"));
        assert!(refusal("after=%f", &["after"]).contains("two hexadecimal digits"));
        assert!(refusal("after=%ff", &["after"]).contains("UTF-8"));
    }

    #[test]
    fn numbers_are_plain_digits() {
        let number = |query| {
            Params::parse(query, &["n"])
                .unwrap()
                .number("n")
                .map_err(drop)
        };
        assert_eq!(number("n=18446744073709551615"), Ok(Some(u64::MAX)));
        assert_eq!(number(""), Ok(None));
        for bad in [
            "n",
            "n=",
            "n=-1",
            "n=%2B1",
            "n=1.0",
            "n=0x1",
            "n=18446744073709551616",
        ] {
            assert_eq!(number(bad), Err(()), "{bad}");
        }
    }
}
