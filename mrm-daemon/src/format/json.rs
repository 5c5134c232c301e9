//! Checks on JSON that the parser does not make.

/// Whether `text` nests arrays and objects deeper than `depth_max`. Looks at each byte once; text
/// that is not JSON gets some answer, and the parser refuses it later.
pub(super) fn deeper_than(text: &[u8], depth_max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in text {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// At most the first 160 characters of `text`, for messages.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        assert!(!deeper_than(br#"{"a":[1]}"#, 2));
        assert!(deeper_than(br#"{"a":[1]}"#, 1));
        assert!(!deeper_than(br#"{"[[[\"[[[":"{{{"}"#, 1));
        assert!(!deeper_than(b"[][][][]", 1));
        assert!(deeper_than(&[b'['; 1_000_000], 8));
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(shorten("abc"), "abc");
        assert_eq!(shorten(&"é".repeat(200)).chars().count(), 163);
    }
}
