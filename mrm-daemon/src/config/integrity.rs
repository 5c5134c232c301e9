//! `[integrity]`: whether what is in memory is what it should be.

/// `[integrity]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegrityConfig {
    /// Whether what was taken over from the last daemon is compared with its digests, in the
    /// background, while it is lent already.
    pub check_adopted: bool,
    /// Whether files of the catalogue are compared with lists of SHA-256 beside them.
    pub manifest: ManifestPolicy,
}

/// What lists of digests beside the files mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestPolicy {
    /// Nothing.
    #[default]
    Off,
    /// A file that is listed is compared beside its first use; one that differs is taken away, and
    /// not loaded again.
    IfPresent,
    /// Only files that are listed are loaded, and lent once they were compared.
    Required,
}

impl Default for IntegrityConfig {
    fn default() -> Self {
        Self {
            check_adopted: true,
            manifest: ManifestPolicy::Off,
        }
    }
}

impl ManifestPolicy {
    /// As written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::IfPresent => "if-present",
            Self::Required => "required",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "off" => Some(Self::Off),
            "if-present" => Some(Self::IfPresent),
            "required" => Some(Self::Required),
            _ => None,
        }
    }
}
