//! Names that come close to a mistyped one.

/// Most names that are looked at.
const NAMES_MAX: usize = 20_000;
/// Most names whose distance is computed.
const COMPARED_MAX: usize = 1_024;
/// Longer names are not compared: the work grows with the square of the length.
const NAME_BYTES_MAX: usize = 64;
/// How many letters may be wrong.
const MISTAKES_MAX: usize = 3;
/// Most suggestions.
const SUGGESTED_MAX: usize = 3;

/// The names that are closest to `wanted`, if any is close; the closest first.
pub(super) fn closest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut comparisons_left = COMPARED_MAX;
    let mut near: Vec<(usize, &str)> = known
        .take(NAMES_MAX)
        .filter_map(|name| Some((distance_of(wanted, name, &mut comparisons_left)?, name)))
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter()
        .take(SUGGESTED_MAX)
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// How far apart, if near enough to be a mistake. A forgotten organisation, and the name of a
/// directory of models, count as near.
fn distance_of(wanted: &str, name: &str, comparisons_left: &mut usize) -> Option<usize> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let is_above = |rest: &str| rest.starts_with(['/', '@']);
    if last == wanted || name.strip_prefix(wanted).is_some_and(is_above) {
        return Some(1);
    }
    let too_long = wanted.len().max(name.len()) > NAME_BYTES_MAX;
    if too_long || wanted.len().abs_diff(name.len()) > MISTAKES_MAX || *comparisons_left == 0 {
        return None;
    }
    *comparisons_left -= 1;
    let distance = edits(wanted.as_bytes(), name.as_bytes());
    // Of a short name a few wrong letters leave nothing.
    (distance <= MISTAKES_MAX && distance * 2 < wanted.len().max(2)).then_some(distance)
}

/// Levenshtein distance without regard to case, one row at a time.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
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
        assert_eq!(
            ask("org/bert-bsae"),
            ["org/bert-base", "org/bert-large"][..1]
        );
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
