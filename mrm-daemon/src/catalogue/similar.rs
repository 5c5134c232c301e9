//! Names that come close to a mistyped one.

/// Most names that are compared.
const COMPARED_MAX: usize = 4096;
/// Longer names are not compared: the work grows with the square of the length.
const NAME_BYTES_MAX: usize = 128;
/// Most suggestions.
const SUGGESTED_MAX: usize = 3;

/// The names that are closest to `wanted`, if any is close; the closest first.
pub(super) fn closest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let lower = wanted.to_lowercase();
    let mut near: Vec<(usize, &str)> = known
        .take(COMPARED_MAX)
        .filter_map(|name| Some((distance_of(&lower, &name.to_lowercase())?, name)))
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(SUGGESTED_MAX).map(|(_, name)| name.to_owned()).collect()
}

/// How far apart, if near enough to be a mistake. The last component alone also counts, since a
/// forgotten organisation is the commonest mistake.
fn distance_of(wanted: &str, name: &str) -> Option<usize> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last == wanted || name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('/')) {
        return Some(1);
    }
    if wanted.len().max(name.len()) > NAME_BYTES_MAX {
        return None;
    }
    let near_max = (wanted.len() / 4).max(2);
    if wanted.len().abs_diff(name.len()) > near_max {
        return None;
    }
    let distance = edits(wanted.as_bytes(), name.as_bytes());
    (distance <= near_max).then_some(distance)
}

/// Levenshtein distance, one row at a time.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_find_what_was_meant() {
        let known = ["org/bert-base", "org/bert-large", "whisper"];
        let ask = |name| closest(name, known.into_iter());
        assert_eq!(ask("org/bert-bsae"), ["org/bert-base", "org/bert-large"][..1]);
        assert_eq!(ask("bert-base"), ["org/bert-base"]);
        assert_eq!(ask("Whisper"), ["whisper"]);
        assert_eq!(ask("org"), ["org/bert-base", "org/bert-large"]);
        assert!(ask("llama").is_empty());
    }

    #[test]
    fn distances_are_exact() {
        assert_eq!(edits(b"kitten", b"sitting"), 3);
        assert_eq!(edits(b"", b"abc"), 3);
        assert_eq!(edits(b"abc", b"abc"), 0);
    }

    #[test]
    fn long_names_cost_nothing() {
        let long = "x".repeat(1000);
        assert!(closest(&long, ["y"; 10_000].into_iter()).is_empty());
    }
}
