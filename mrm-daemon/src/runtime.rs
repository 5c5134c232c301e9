//! (being written)

/// Client socket's name.
pub const CLIENT_SOCKET: &str = "mrmd.sock";
/// Status socket's name.
pub const STATUS_SOCKET: &str = "status.sock";
/// Lock file's name.
pub const LOCK_FILE: &str = "mrmd.lock";
