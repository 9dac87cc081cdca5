//! The program that serves a host folder to a guest: which one there is, and how it is called.
//!
//! There are two: the one in Rust of the virtio-fs project, and the older one in C that came with
//! QEMU until 8.0. They take other options, and only newer ones in Rust can say which user of the
//! guest is which of the host by themselves.

use slicer_machine::Share;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the program to use, where it isn't one of [`PLACES`] or on `PATH`.
const VARIABLE: &str = "SLICER_VIRTIOFSD";
/// Where distributions put it: nobody is to call it by hand.
const PLACES: [&str; 3] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
];
/// The descriptor of the listening socket in the child.
pub(crate) const SOCKET_FD: i32 = 3;
/// The user and the group that owns a share in the guest.
pub(crate) const GUEST_ID: u32 = 1000;
/// All ids but the one that means none.
const ALL_IDS: u32 = u32::MAX;

/// Which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In Rust; translates ids, and refuses to write if asked to.
    Translating,
    /// In Rust, from before it did.
    Plain,
    /// In C.
    C,
}

/// A virtiofsd that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Virtiofsd {
    pub(crate) program: PathBuf,
    pub(crate) kind: Kind,
}

/// How it shuts itself off from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// With namespaces of its own, in which the folder is the root.
    Namespace,
    /// With the folder as its root.
    Chroot,
    /// Not at all, besides its filter of system calls. It has no rights then but the user's.
    None,
}

impl Sandbox {
    fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Chroot => "chroot",
            Self::None => "none",
        }
    }
}

impl Virtiofsd {
    /// Looks for it.
    ///
    /// # Errors
    /// Why there is none to be used, and what to install.
    pub(crate) fn find(root: bool) -> Result<Self, String> {
        let found = match std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
            Some(named) => Self::at(Path::new(&named))
                .ok_or_else(|| format!("{VARIABLE} names no virtiofsd: {}", named.display())),
            None => {
                let on_path = crate::find_program("virtiofsd");
                let places = on_path.into_iter().chain(PLACES.map(PathBuf::from));
                places
                    .into_iter()
                    .find_map(|path| Self::at(&path))
                    .ok_or_else(|| {
                        "there is no virtiofsd: install it, on Debian and Ubuntu with \
                     `apt-get install virtiofsd`, on Debian 12 as root with \
                     `apt-get install qemu-system-common`"
                            .to_owned()
                    })
            }
        }?;
        if found.kind != Kind::Translating && !root {
            return Err(format!(
                "{} is too old to run without root: install virtiofsd 1.11 or later, or run the \
                 daemon as root",
                found.program.display()
            ));
        }
        Ok(found)
    }

    /// The one at this path, by what it says of its options.
    fn at(program: &Path) -> Option<Self> {
        let mut help = Command::new(program);
        help.arg("--help").stdin(Stdio::null());
        let output = help.output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        Some(Self {
            program: program.to_owned(),
            kind: Kind::of(&String::from_utf8_lossy(&text))?,
        })
    }

    /// Whether a share that may not be written to must be mounted so before it is started.
    pub(crate) fn writes_always(&self) -> bool {
        self.kind != Kind::Translating
    }

    /// Its options. It is root of a user namespace, unless it isn't sandboxed.
    pub(crate) fn args(&self, share: &Share, sandbox: Sandbox, ids: (u32, u32)) -> Vec<OsString> {
        let joined = |option: &str, path: &Path| {
            let mut text = OsString::from(option);
            text.push(path);
            text
        };
        let mut args: Vec<OsString> = vec![format!("--fd={SOCKET_FD}").into()];
        if self.kind == Kind::C {
            for option in ["log_level=err", &format!("sandbox={}", sandbox.word())] {
                args.extend(["-o".into(), option.into()]);
            }
            args.extend(["-o".into(), joined("source=", &share.path)]);
            // Extended attributes of the guest's own are not mixed with the host's.
            return args;
        }
        args.push(joined("--shared-dir=", &share.path));
        args.push(format!("--sandbox={}", sandbox.word()).into());
        args.push("--log-level=error".into());
        if self.kind == Kind::Translating {
            let inside = match sandbox {
                Sandbox::None => ids,
                Sandbox::Namespace | Sandbox::Chroot => (0, 0),
            };
            for (option, id) in [("uid", inside.0), ("gid", inside.1)] {
                args.push(format!("--translate-{option}=squash-guest:0:{id}:{ALL_IDS}").into());
                args.push(format!("--translate-{option}=host:{id}:{GUEST_ID}:1").into());
            }
            if share.read_only {
                args.push("--readonly".into());
            }
        }
        args
    }
}

impl Kind {
    fn of(help: &str) -> Option<Self> {
        if help.contains("--translate-uid") && help.contains("--readonly") {
            Some(Self::Translating)
        } else if help.contains("--shared-dir") {
            Some(Self::Plain)
        } else if help.contains("source=PATH") {
            Some(Self::C)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(read_only: bool) -> Share {
        Share {
            tag: "home".into(),
            path: "/home/me".into(),
            read_only,
        }
    }

    fn line(kind: Kind, share: &Share, sandbox: Sandbox) -> String {
        let virtiofsd = Virtiofsd {
            program: "virtiofsd".into(),
            kind,
        };
        let args = virtiofsd.args(share, sandbox, (501, 20));
        let words: Vec<_> = args.iter().map(|a| a.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn it_is_known_by_its_help() {
        let new = "  --shared-dir <DIR>\n  --readonly\n  --translate-uid <T>\n";
        assert_eq!(Kind::of(new), Some(Kind::Translating));
        assert_eq!(Kind::of("  --shared-dir <DIR>\n"), Some(Kind::Plain));
        assert_eq!(Kind::of("    -o source=PATH  shared"), Some(Kind::C));
        assert_eq!(Kind::of("usage: cat [FILE]"), None);
    }

    #[test]
    fn each_kind_is_told_in_its_own_words() {
        let c = line(Kind::C, &share(true), Sandbox::Namespace);
        let want = "--fd=3 -o log_level=err -o sandbox=namespace -o source=/home/me";
        assert_eq!(c, want);
        let plain = line(Kind::Plain, &share(true), Sandbox::Chroot);
        let want = "--fd=3 --shared-dir=/home/me --sandbox=chroot --log-level=error";
        assert_eq!(plain, want);
    }

    #[test]
    fn all_of_the_guest_is_the_hosts_user_who_is_user_1000() {
        let inside = line(Kind::Translating, &share(true), Sandbox::Namespace);
        for want in [
            "--translate-uid=squash-guest:0:0:4294967295",
            "--translate-uid=host:0:1000:1",
            "--translate-gid=host:0:1000:1",
            "--readonly",
        ] {
            assert!(inside.contains(want), "{inside}");
        }
        let outside = line(Kind::Translating, &share(false), Sandbox::None);
        for want in [
            "--translate-uid=squash-guest:0:501:4294967295",
            "--translate-uid=host:501:1000:1",
            "--translate-gid=host:20:1000:1",
        ] {
            assert!(outside.contains(want), "{outside}");
        }
        assert!(!outside.contains("readonly"), "{outside}");
    }
}
