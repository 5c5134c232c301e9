//! Who may use the verbs that change something.
//!
//! Reading is open to whoever can connect; the socket's mode decides that. The verbs are for
//! root, the daemon's own user and the members of one configured group.
//!
//! ```
//! use mrm_daemon::status::access::{Access, Peer, Verdict};
//! let access = Access::new(990, Some(27));
//! assert_eq!(access.check(Peer { uid: 0, gid: 0 }), Verdict::Allowed);
//! assert_eq!(access.check(Peer { uid: 1000, gid: 27 }), Verdict::Allowed);
//! assert_eq!(access.check(Peer { uid: 1000, gid: 100 }), Verdict::AskGroups);
//! assert_eq!(Access::new(990, None).check(Peer { uid: 1000, gid: 27 }), Verdict::Denied);
//! ```

use nix::unistd::{Gid, Uid, User, getgrouplist};
use std::ffi::CString;

/// Credentials of a connected process, as the kernel vouches for them (`SO_PEERCRED`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective primary group when it connected.
    pub gid: u32,
}

/// What the credentials alone say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allowed,
    /// It may not.
    Denied,
    /// It may if one of its user's supplementary groups is the configured one.
    AskGroups,
}

/// Looks up the supplementary groups of a peer's user. May block for as long as the name service.
pub type GroupLookup = fn(Peer) -> Result<Vec<u32>, GroupsError>;

/// The groups of a user could not be found out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot look up the groups of uid {uid}: {reason}; see `id {uid}` and nsswitch.conf")]
pub struct GroupsError {
    /// Whose.
    pub uid: u32,
    /// Why.
    pub reason: String,
}

/// The rule.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    daemon_uid: u32,
    group_gid: Option<u32>,
    lookup: GroupLookup,
}

impl Access {
    /// For a daemon of this user, with this group of operators.
    #[must_use]
    pub const fn new(daemon_uid: u32, group_gid: Option<u32>) -> Self {
        Self {
            daemon_uid,
            group_gid,
            lookup: groups_of,
        }
    }

    /// The same, with another way to look up groups.
    #[must_use]
    pub const fn with_lookup(mut self, lookup: GroupLookup) -> Self {
        self.lookup = lookup;
        self
    }

    /// What the credentials alone say. Never blocks.
    #[must_use]
    pub fn check(&self, peer: Peer) -> Verdict {
        match self.group_gid {
            _ if peer.uid == 0 || peer.uid == self.daemon_uid => Verdict::Allowed,
            None => Verdict::Denied,
            Some(gid) if gid == peer.gid => Verdict::Allowed,
            Some(_) => Verdict::AskGroups,
        }
    }

    /// The whole answer. May block, see [`GroupLookup`].
    ///
    /// # Errors
    /// When the answer depends on groups that cannot be looked up.
    pub fn permits(&self, peer: Peer) -> Result<bool, GroupsError> {
        match self.check(peer) {
            Verdict::Allowed => Ok(true),
            Verdict::Denied => Ok(false),
            Verdict::AskGroups => Ok((self.lookup)(peer)?
                .iter()
                .any(|gid| Some(*gid) == self.group_gid)),
        }
    }
}

/// Groups of the peer's user by the system's database. A user whom it does not know has none.
fn groups_of(peer: Peer) -> Result<Vec<u32>, GroupsError> {
    let failed = |reason: String| GroupsError {
        uid: peer.uid,
        reason,
    };
    let user = User::from_uid(Uid::from_raw(peer.uid)).map_err(|e| failed(e.to_string()))?;
    let Some(user) = user else {
        return Ok(Vec::new());
    };
    let name = CString::new(user.name).map_err(|e| failed(e.to_string()))?;
    let groups = getgrouplist(&name, user.gid).map_err(|e| failed(e.to_string()))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: Peer = Peer {
        uid: 1000,
        gid: 100,
    };

    #[test]
    fn root_and_the_daemons_user_may_without_any_lookup() {
        let access = Access::new(990, Some(27)).with_lookup(|_| unreachable!());
        for uid in [0, 990] {
            assert_eq!(access.permits(Peer { uid, gid: 5 }), Ok(true));
        }
    }

    #[test]
    fn without_a_group_nobody_else_may() {
        let access = Access::new(990, None).with_lookup(|_| unreachable!());
        assert_eq!(access.permits(STRANGER), Ok(false));
        // A daemon of root does not make group 0 privileged.
        assert_eq!(
            Access::new(0, None).permits(Peer { uid: 1000, gid: 0 }),
            Ok(false)
        );
    }

    #[test]
    fn members_of_the_group_may_by_primary_or_supplementary_membership() {
        let access = Access::new(990, Some(27));
        let primary = access.with_lookup(|_| unreachable!());
        assert_eq!(primary.permits(Peer { uid: 1000, gid: 27 }), Ok(true));
        assert_eq!(
            access.with_lookup(|_| Ok(vec![4, 27])).permits(STRANGER),
            Ok(true)
        );
        assert_eq!(
            access.with_lookup(|_| Ok(vec![4, 28])).permits(STRANGER),
            Ok(false)
        );
        assert_eq!(
            access.with_lookup(|_| Ok(vec![])).permits(STRANGER),
            Ok(false)
        );
    }

    #[test]
    fn a_failed_lookup_is_an_error_and_not_a_yes() {
        let access = Access::new(990, Some(27)).with_lookup(|peer| {
            Err(GroupsError {
                uid: peer.uid,
                reason: "no server".into(),
            })
        });
        let error = access.permits(STRANGER).unwrap_err();
        assert!(error.to_string().contains("uid 1000: no server"), "{error}");
    }

    #[test]
    fn the_systems_database_knows_root_and_not_an_unused_uid() {
        if let Ok(groups) = groups_of(Peer { uid: 0, gid: 0 })
            && !groups.is_empty()
        {
            assert!(groups.contains(&0), "{groups:?}");
        }
        assert_eq!(
            groups_of(Peer {
                uid: 0xfffe_fffe,
                gid: 5
            }),
            Ok(vec![])
        );
    }
}
