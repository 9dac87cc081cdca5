//! User namespaces (user_namespaces(7)): what is root in one has no rights on the host but those of
//! the users that are mapped into it.

use crate::virtiofsd::GUEST_ID;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The users and groups of a guest that are nobody's on the host: the last of the range that
/// systemd has for containers.
const STRANGERS: u32 = 0x6fff_0000;
/// How many there are.
const IDS: u32 = 0x1_0000;

/// Which ids of the host the ids of a namespace are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// Root is the owner, and there is nobody else.
    OwnerIsRoot,
    /// [`GUEST_ID`] is the owner; all others are strangers. It takes root to make it.
    OwnerIsGuest,
}

impl Mapping {
    /// The text of `/proc/PID/uid_map` or `gid_map`.
    fn text(self, owner: u32) -> String {
        match self {
            Self::OwnerIsRoot => format!("0 {owner} 1\n"),
            Self::OwnerIsGuest => {
                let next = GUEST_ID + 1;
                format!(
                    "0 {STRANGERS} {GUEST_ID}\n{GUEST_ID} {owner} 1\n{next} {} {}\n",
                    STRANGERS + next,
                    IDS - next
                )
            }
        }
    }
}

/// Makes a user namespace. It is there for as long as the descriptor is, or a process in it.
#[expect(
    unsafe_code,
    reason = "only a process of one thread can leave its user namespace"
)]
pub(crate) fn make(mapping: Mapping, (uid, gid): (u32, u32), root: bool) -> io::Result<OwnedFd> {
    // It waits for an input that never comes.
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // SAFETY: the closure makes one system call between fork and exec, in a process of one thread.
    let leave = || unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) };
    // SAFETY: as above; nothing is allocated on the success path.
    unsafe { command.pre_exec(move || leave().map_err(io::Error::from)) };
    let mut child = command.spawn()?;
    let proc = format!("/proc/{}", child.id());
    let make = || {
        if !root {
            // Or else dropping a group might gain rights (CVE-2014-8989).
            fs::write(format!("{proc}/setgroups"), "deny")?;
        }
        fs::write(format!("{proc}/uid_map"), mapping.text(uid))?;
        fs::write(format!("{proc}/gid_map"), mapping.text(gid))?;
        Ok(OwnedFd::from(File::open(format!("{proc}/ns/user"))?))
    };
    let made = make();
    // Ends it, too.
    drop(child.stdin.take());
    let _ = child.kill();
    let _ = child.wait();
    made
}

/// Has the calling process, which must have one thread, become root of a user namespace.
pub(crate) fn enter(namespace: &OwnedFd) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{
        move_into_link_name_space, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    };
    use std::os::fd::AsFd;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    // Not allowed to who isn't root outside, whose groups are its own anyway.
    let _ = set_thread_groups(&[]);
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_one_id_inside_and_the_others_are_strangers() {
        assert_eq!(Mapping::OwnerIsRoot.text(501), "0 501 1\n");
        assert_eq!(
            Mapping::OwnerIsGuest.text(501),
            "0 1878982656 1000\n1000 501 1\n1001 1878983657 64535\n"
        );
    }

    #[test]
    fn a_namespace_outlives_its_first_process() {
        let ids = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        // Some hosts let nobody but root make one.
        if ids.0 == 0 {
            make(Mapping::OwnerIsGuest, (12, 34), true).unwrap();
            make(Mapping::OwnerIsRoot, ids, true).unwrap();
        }
    }
}
