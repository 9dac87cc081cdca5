//! Users, groups and the default environment, read from the files themselves: a static binary has
//! no name service, and the files are what images come with.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where programs are looked for unless `/etc/environment` says otherwise.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Nothing legitimate comes near it, and the guest's users can't have the agent read for ever.
const FILE_LIMIT: u64 = 4 << 20;

/// By convention the first human, and in images made for it the only one.
const FIRST_USER: u32 = 1000;
/// The kernel's overflow user, which nobody is.
const NOBODY: u32 = 65534;

/// A line of `/etc/passwd`, see passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Login name.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Primary group.
    pub(crate) gid: u32,
    /// Home directory.
    pub(crate) home: String,
    /// Login shell.
    pub(crate) shell: String,
}

impl User {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|n| !n.is_empty())?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _comment = fields.next()?;
        let or = |field: Option<&str>, default: &str| match field {
            None | Some("") => default.to_owned(),
            Some(text) => text.to_owned(),
        };
        Some(Self {
            name: name.to_owned(),
            uid,
            gid,
            home: or(fields.next(), "/"),
            shell: or(fields.next(), "/bin/sh"),
        })
    }

    fn can_log_in(&self) -> bool {
        !matches!(
            self.shell.rsplit('/').next(),
            Some("nologin" | "false" | "sync")
        )
    }

    /// Root as every system knows it, for images without `/etc/passwd`.
    fn root() -> Self {
        Self {
            name: "root".to_owned(),
            uid: 0,
            gid: 0,
            home: "/root".to_owned(),
            shell: "/bin/sh".to_owned(),
        }
    }
}

/// A line of `/etc/group`, see group(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Group {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next().unwrap_or_default();
        Some(Self {
            name,
            gid,
            members: members
                .split(',')
                .map(str::trim)
                .filter(|m| !m.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// What the files said when they were last read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Database {
    users: Vec<User>,
    groups: Vec<Group>,
    /// `/etc/environment`, in order.
    pub(crate) environment: Vec<(String, String)>,
}

impl Database {
    fn parse(passwd: &str, group: &str, environment: &str) -> Self {
        let mut users: Vec<User> = passwd.lines().filter_map(User::parse).collect();
        if !users.iter().any(|u| u.uid == 0) {
            users.push(User::root());
        }
        Self {
            users,
            groups: group.lines().filter_map(Group::parse).collect(),
            environment: environment.lines().filter_map(environment_line).collect(),
        }
    }

    /// The user with this id.
    pub(crate) fn by_uid(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|u| u.uid == uid)
    }

    /// Who an image's `USER` is, and with which groups: a name or an id, which need not be known
    /// to the image, perhaps with a group's behind a colon, which is the only one then.
    pub(crate) fn named(&self, text: &str) -> Result<(User, Vec<u32>), String> {
        let (name, group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let name = if name.is_empty() { "0" } else { name };
        let by_name = self.users.iter().find(|u| u.name == name);
        let user = match (by_name, name.parse::<u32>()) {
            (Some(user), _) => user.clone(),
            (None, Ok(uid)) => self.by_uid(uid).cloned().unwrap_or_else(|| User {
                name: uid.to_string(),
                uid,
                gid: 0,
                home: "/".to_owned(),
                shell: "/bin/sh".to_owned(),
            }),
            (None, Err(_)) => return Err(format!("user: unknown user {name}")),
        };
        let Some(group) = group else {
            let groups = self.groups_of(&user, user.gid);
            return Ok((user, groups));
        };
        let known = self.groups.iter().find(|g| g.name == group);
        let gid = match (known, group.parse::<u32>()) {
            (Some(group), _) => group.gid,
            (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(format!("group: unknown group {group}")),
        };
        Ok((user, vec![gid]))
    }

    /// Who a command runs as when nobody is named: user 1000, else the human with the lowest id
    /// who can log in, else root.
    pub(crate) fn default_user(&self) -> Option<&User> {
        self.by_uid(FIRST_USER)
            .or_else(|| {
                self.users
                    .iter()
                    .filter(|u| u.uid > FIRST_USER && u.uid < NOBODY && u.can_log_in())
                    .min_by_key(|u| u.uid)
            })
            .or_else(|| self.by_uid(0))
    }

    /// All groups of a user whose primary group is `gid`, that one first.
    pub(crate) fn groups_of(&self, user: &User, gid: u32) -> Vec<u32> {
        let mut gids = vec![gid];
        for group in &self.groups {
            if group.members.contains(&user.name) && !gids.contains(&group.gid) {
                gids.push(group.gid);
            }
        }
        gids
    }
}

/// A line of `/etc/environment` as pam_env(8) reads it: `KEY=VALUE`, perhaps after `export`, the
/// value perhaps in quotes.
fn environment_line(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once('=')?;
    let key = key.trim();
    let name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if key.is_empty() || !key.bytes().all(name) || value.contains('\0') {
        return None;
    }
    let value = value.trim();
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
    Some((key.to_owned(), unquoted.unwrap_or(value).to_owned()))
}

/// By what a changed file is told from the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanos: i64,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let m = fs::metadata(path).ok()?;
        Some(Self {
            inode: m.ino(),
            size: m.size(),
            seconds: m.mtime(),
            nanos: m.mtime_nsec(),
        })
    }
}

/// Those of the three files; `None` for one that is missing.
type Stamps = [Option<Stamp>; 3];

/// The database, read anew only when one of its files has changed: an exec asks every time.
#[derive(Debug)]
pub(crate) struct Users {
    files: [PathBuf; 3],
    read: Mutex<Option<(Stamps, Arc<Database>)>>,
}

impl Users {
    /// The database whose files are below `etc`.
    pub(crate) fn new(etc: &Path) -> Self {
        Self {
            files: ["passwd", "group", "environment"].map(|name| etc.join(name)),
            read: Mutex::new(None),
        }
    }

    /// The database as of now. Files that are missing or can't be read count as empty.
    pub(crate) fn get(&self) -> Arc<Database> {
        let stamps = [0, 1, 2].map(|i| Stamp::of(&self.files[i]));
        // Whoever panicked while holding it left a whole value: it is only ever replaced.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, database)) = &*read
            && *then == stamps
        {
            return Arc::clone(database);
        }
        let [passwd, group, environment] =
            [0, 1, 2].map(|i| read_bounded(&self.files[i]).unwrap_or_default());
        let database = Arc::new(Database::parse(&passwd, &group, &environment));
        *read = Some((stamps, Arc::clone(&database)));
        database
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_user_is_a_name_or_a_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/srv:/bin/false\n";
        let group = "www:x:34:\nlogs:x:40:www\n7:x:70:\n";
        let users = Database::parse(passwd, group, "");
        let who = |text: &str| users.named(text).map(|(u, groups)| (u.uid, u.home, groups));
        let at = |uid, home: &str, groups: &[u32]| Ok((uid, home.to_owned(), groups.to_vec()));
        assert_eq!(who(""), at(0, "/root", &[0]));
        assert_eq!(who("www"), at(33, "/srv", &[34, 40]));
        assert_eq!(who("33"), at(33, "/srv", &[34, 40]));
        assert_eq!(who("www:logs"), at(33, "/srv", &[40]));
        assert_eq!(who("www:7"), at(33, "/srv", &[70]));
        assert_eq!(who("65532:65532"), at(65532, "/", &[65532]));
        assert_eq!(who(":40"), at(0, "/root", &[40]));
        assert!(who("nobody-here").unwrap_err().contains("unknown user"));
        assert!(who("www:none").unwrap_err().contains("unknown group"));
    }

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash
daemon:x:1:1::/:/usr/sbin/nologin
# a comment
broken:x:y:1::/:/bin/sh
late:x:1500:1500::/home/late:/bin/sh
locked:x:1100:1100::/home/locked:/usr/sbin/nologin
nobody:x:65534:65534::/:/bin/sh
bare:x:1200:100::
";

    fn database(passwd: &str) -> Database {
        Database::parse(
            passwd,
            "root:x:0:\ndocker:x:998:ubuntu, late\nlate:x:1500:\nbad\n",
            "",
        )
    }

    #[test]
    fn the_default_user_is_the_first_human() {
        let d = database(PASSWD);
        assert_eq!(d.default_user().unwrap().name, "bare");
        let with_ubuntu = format!("{PASSWD}ubuntu:x:1000:1000::/home/ubuntu:/usr/sbin/nologin\n");
        assert_eq!(database(&with_ubuntu).default_user().unwrap().uid, 1000);
        assert_eq!(
            database("root:x:0:0::/root:/bin/bash").default_user(),
            Some(&User {
                shell: "/bin/bash".into(),
                ..User::root()
            })
        );
    }

    #[test]
    fn an_image_without_users_has_root() {
        assert_eq!(
            Database::parse("", "", "").default_user(),
            Some(&User::root())
        );
    }

    #[test]
    fn empty_fields_have_their_meaning() {
        let d = database(PASSWD);
        let bare = d.by_uid(1200).unwrap();
        assert_eq!((bare.home.as_str(), bare.shell.as_str()), ("/", "/bin/sh"));
        assert!(d.by_uid(77).is_none());
    }

    #[test]
    fn groups_are_primary_first_then_those_that_list_the_user() {
        let d = database(PASSWD);
        let late = d.by_uid(1500).unwrap();
        assert_eq!(d.groups_of(late, 1500), [1500, 998]);
        assert_eq!(d.groups_of(late, 998), [998]);
    }

    #[test]
    fn etc_environment_is_read_as_pam_does() {
        let text =
            "PATH=\"/usr/bin:/bin\"\n# x\nexport LANG=C.UTF-8\n A = 'b c' \nno\n1-2=x\n=y\nE=\n";
        let d = Database::parse("", "", text);
        let pairs: Vec<(&str, &str)> = d
            .environment
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("PATH", "/usr/bin:/bin"),
                ("LANG", "C.UTF-8"),
                ("A", "b c"),
                ("E", "")
            ]
        );
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let users = Users::new(dir.path());
        assert!(users.get().by_uid(1000).is_none());
        let line = "me:x:1000:1000::/home/me:/bin/sh\n";
        fs::write(dir.path().join("passwd"), line).unwrap();
        let first = users.get();
        assert_eq!(first.by_uid(1000).unwrap().name, "me");
        assert!(Arc::ptr_eq(&first, &users.get()));
        fs::write(dir.path().join("passwd"), format!("{line}#\n")).unwrap();
        assert!(!Arc::ptr_eq(&first, &users.get()));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(a in "\\PC{0,80}", b in "\\PC{0,80}", c in "\\PC{0,80}") {
            let d = Database::parse(&a, &b, &c);
            proptest::prop_assert!(d.default_user().is_some());
        }
    }
}
