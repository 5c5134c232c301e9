//! `[keeper]`: what outlives the daemon's death.

/// `[keeper]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperConfig {
    /// What keeps memory and sockets.
    pub kind: KeeperKind,
    /// How long a keeper process waits for the next daemon.
    pub for_ms: u64,
    /// Whether a keeper process starts the daemon again.
    pub respawn: bool,
    /// How long what was taken over is kept for clients that come back.
    pub grace_ms: u64,
}

/// What keeps memory and sockets when the daemon dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeeperKind {
    /// systemd where it has an fd store for the service, else a process.
    #[default]
    Auto,
    /// A process of the daemon's own.
    Process,
    /// The fd store of systemd.
    Systemd,
    /// Nothing.
    None,
}

impl Default for KeeperConfig {
    fn default() -> Self {
        Self {
            kind: KeeperKind::default(),
            for_ms: crate::keeper::KEEP_FOR_MS_DEFAULT,
            respawn: true,
            grace_ms: 10_000,
        }
    }
}

impl KeeperKind {
    /// As written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Process => "process",
            Self::Systemd => "systemd",
            Self::None => "none",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "process" => Some(Self::Process),
            "systemd" => Some(Self::Systemd),
            "none" => Some(Self::None),
            _ => None,
        }
    }
}
