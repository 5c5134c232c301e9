//! The list is in order.

use super::*;

#[test]
fn rows_stand_at_their_key_and_names_are_mechanical() {
    for (at, row) in SETTINGS.iter().enumerate() {
        assert_eq!(row.key as usize, at, "{}", row.path);
        let words = row.path.replace('.', "_");
        assert_eq!(row.flag, words.replace('_', "-"));
        assert_eq!(row.env, format!("MRM_{}", words.to_uppercase()));
    }
}
