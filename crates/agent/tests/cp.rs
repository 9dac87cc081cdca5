//! Copies in both directions, through the real binary.
#![expect(clippy::unwrap_used, reason = "a failed helper fails the test")]

#[expect(dead_code, reason = "other tests use the rest of it")]
mod common;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use common::{Host, body_json, until, within};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tar::{EntryType, Header};

/// A target that copies to or from this path as whoever runs the tests.
fn target(path: &Path, query: &str) -> String {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let path: String = form_urlencoded::byte_serialize(path.as_os_str().as_bytes()).collect();
    format!(
        "/cp?uid={}&gid={}&path={path}&{query}",
        uid.as_raw(),
        gid.as_raw()
    )
}

fn v1(mode: &str, name: &str, more: &str) -> String {
    let kind = if mode.ends_with("tar") {
        "directory"
    } else {
        "file"
    };
    format!("copy_semantics=cp-v1&mode={mode}&source_name={name}&source_type={kind}{more}")
}

async fn bytes(answer: Response<Incoming>) -> Bytes {
    within(answer.into_body().collect())
        .await
        .unwrap()
        .to_bytes()
}

async fn put(host: &Host, path: &Path, query: &str, body: impl Into<Bytes>) -> (u16, String) {
    let answer = host.send("POST", &target(path, query), body).await;
    let status = answer.status().as_u16();
    let text = body_json(answer).await;
    (
        status,
        text["error"].as_str().unwrap_or_default().to_owned(),
    )
}

fn entry(kind: EntryType, name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(mode);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Files and their text in an archive, directories with a slash.
fn listed(archive: &[u8]) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(archive);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            (name, text)
        })
        .collect()
}

#[tokio::test]
async fn files_are_written_and_read() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Parents are made, several at once do not disturb each other.
    let (a, b) = (at("new/dir/a"), at("new/dir/b"));
    let (one, two) = tokio::join!(
        put(&host, &a, "mode=binary", "text"),
        put(&host, &b, "permissions=0600", vec![7; 300_000])
    );
    assert_eq!((one.0, two.0), (200, 200), "{one:?} {two:?}");
    assert_eq!(fs::read(at("new/dir/a")).unwrap(), b"text");
    assert_eq!(fs::read(at("new/dir/b")).unwrap(), vec![7; 300_000]);
    assert_eq!(
        (mode(&a), mode(&b), mode(&at("new"))),
        (0o644, 0o600, 0o755)
    );
    // A mode is kept, unless another is given; a link leads to what is replaced.
    fs::set_permissions(&a, PermissionsExt::from_mode(0o750)).unwrap();
    symlink("a", at("new/dir/link")).unwrap();
    let linked = at("new/dir/link");
    assert_eq!(put(&host, &linked, "mode=binary", "more").await.0, 200);
    assert_eq!((fs::read(&a).unwrap(), mode(&a)), (b"more".to_vec(), 0o750));
    assert!(fs::symlink_metadata(&linked).unwrap().is_symlink());

    let answer = host.send("GET", &target(&linked, ""), "").await;
    let headers = answer.headers();
    assert_eq!(headers["content-type"], "application/octet-stream");
    assert_eq!(headers["content-length"], "4");
    assert_eq!(headers["x-slicer-file-mode"], "0750");
    assert!(!headers.contains_key("x-slicer-source-type"));
    assert_eq!(bytes(answer).await, "more");
    let answer = host.send("GET", &target(&b, ""), "").await;
    assert_eq!(bytes(answer).await, vec![7; 300_000]);
    // What the kernel makes up.
    let answer = host.send("GET", "/cp?path=/proc/self/status", "").await;
    assert!(bytes(answer).await.starts_with(b"Name:\tslicer-agent\n"));
    assert_eq!(fs::read_dir(at("new/dir")).unwrap().count(), 3);
}

#[tokio::test]
async fn a_running_program_is_replaced() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("sleep");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut child = loop {
        // Another test may have forked while the file was open for writing.
        match std::process::Command::new(&program).arg("100").spawn() {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
            child => break child.unwrap(),
        }
    };
    assert_eq!(put(&host, &program, "", "#!/bin/sh\n").await.0, 200);
    assert_eq!(fs::read(&program).unwrap(), b"#!/bin/sh\n");
    assert_eq!(mode(&program), 0o755);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn files_go_where_cp_would_put_them() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("there")).unwrap();
    fs::write(at("file"), "old").unwrap();
    let v1 = v1("cp-v1-binary", "src.txt", "");
    for (to, query, status, result) in [
        ("there", &*v1, 200, "there/src.txt"),
        ("there/", &v1, 200, "there/src.txt"),
        ("new", &v1, 200, "new"),
        ("deep/er/new", &v1, 200, "deep/er/new"),
        ("file", &v1, 200, "file"),
        ("missing/", &v1, 400, "destination directory does not exist"),
        ("there", "mode=binary", 400, "directory"),
        ("file/", &v1, 400, "directory"),
        ("file/below", &v1, 400, "directory"),
    ] {
        let body = format!("{to} {status}");
        let to = PathBuf::from(format!("{}/{to}", dir.path().display()));
        let (got, error) = put(&host, &to, query, body.clone()).await;
        assert_eq!(got, status, "{}: {error}", to.display());
        if status == 200 {
            assert_eq!(fs::read_to_string(at(result)).unwrap(), body);
        } else {
            assert!(error.contains(result), "{}: {error}", to.display());
        }
    }
    for name in ["", "..", "a/b", "a%5Cb"] {
        let query = format!("copy_semantics=cp-v1&mode=cp-v1-binary&source_name={name}");
        let (status, error) = put(&host, &at("there"), &query, "x").await;
        assert_eq!(status, 400, "{name}: {error}");
    }
    let (status, error) = put(&host, &at("x"), "mode=cp-v9", "x").await;
    assert_eq!((status, &*error), (400, "invalid mode: cp-v9"));
    let (status, error) = put(&host, Path::new("/dev/null"), "", "x").await;
    assert!(status == 400 && error.contains("regular"), "{error}");
}

#[tokio::test]
async fn trees_go_where_cp_would_put_them() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let tree = archive(&[
        entry(EntryType::Directory, "sub/", 0o700, b""),
        entry(EntryType::Regular, "sub/run", 0o744, b"#!"),
        entry(EntryType::Regular, "top.log", 0o640, b"log"),
        entry(EntryType::Symlink, "link", 0o777, b""),
    ]);
    fs::create_dir(at("there")).unwrap();
    fs::write(at("file"), "").unwrap();
    let v1 = |more: &str| v1("cp-v1-tar", "src", more);
    for (to, query, status, root) in [
        ("legacy/deep", "mode=tar".to_owned(), 200, "legacy/deep"),
        ("there", v1(""), 200, "there/src"),
        ("fresh", v1(""), 200, "fresh"),
        ("there", v1("&copy_contents=true"), 200, "there"),
        ("other", v1("&copy_contents=true"), 200, "other"),
        ("file", v1(""), 400, "not a directory"),
    ] {
        let (got, error) = put(&host, &at(to), &query, tree.clone()).await;
        assert_eq!(got, status, "{to}: {error}");
        if status != 200 {
            assert!(error.contains(root), "{error}");
            continue;
        }
        let root = at(root);
        assert_eq!(fs::read(root.join("sub/run")).unwrap(), b"#!");
        assert_eq!(mode(&root.join("sub/run")), 0o755);
        assert_eq!(mode(&root.join("top.log")), 0o640);
        assert_eq!(mode(&root.join("sub")), 0o700);
        assert!(fs::symlink_metadata(root.join("link")).is_err());
        let made = fs::metadata(root.join("sub")).unwrap().modified().unwrap();
        let age = made.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(age.as_secs(), 1_000_000_000);
    }
    let to = at("some");
    let query = "mode=tar&exclude=*.log&permissions=600";
    assert_eq!(put(&host, &to, query, tree.clone()).await.0, 200);
    assert!(!to.join("top.log").exists());
    assert_eq!(mode(&to.join("sub/run")), 0o600);
    // By the type of what is sent.
    let kind = [("content-type", "application/x-tar")];
    let to = target(&at("typed"), "");
    let answer = host.send_with("POST", &to, &kind, tree.clone()).await;
    assert_eq!(answer.status(), 200);
    assert!(at("typed/top.log").exists());
    let huge = [("x-slicer-unpacked-size", "9000000000000000000")];
    let to = target(&at("huge"), "mode=tar");
    let answer = host.send_with("POST", &to, &huge, tree).await;
    assert_eq!(answer.status(), 507);
}

#[tokio::test]
async fn trees_come_back_as_they_went() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/x.txt"), "x").unwrap();
    fs::write(root.join("file.txt"), "text").unwrap();
    fs::write(root.join("a/skip.log"), "no").unwrap();
    symlink("/etc/passwd", root.join("link")).unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff");
    fs::write(root.join(name), "bytes").unwrap();
    let answer = host
        .send("GET", &target(&root, "mode=tar&exclude=*.log"), "")
        .await;
    assert_eq!(answer.headers()["content-type"], "application/x-tar");
    let tar = bytes(answer).await;
    assert_eq!(&tar[257..262], b"ustar");
    let files = listed(&tar);
    let text = |name: &str| files.get(name).map(String::as_str);
    assert_eq!(text("a/b/x.txt"), Some("x"));
    assert_eq!(text("file.txt"), Some("text"));
    assert_eq!((text("a/"), text("a/b/")), (Some(""), Some("")));
    assert_eq!(text("\u{fffd}"), Some("bytes"));
    assert_eq!(files.len(), 5, "{files:?}");
    let back = dir.path().join("back");
    assert_eq!(put(&host, &back, "mode=tar", tar).await.0, 200);
    assert_eq!(fs::read(back.join(name)).unwrap(), b"bytes");
}

#[tokio::test]
async fn sources_say_what_they_are() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("söurce");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("f"), "x").unwrap();
    let get = async |path: &Path, mode: &str| {
        let query = format!("copy_semantics=cp-v1&mode={mode}");
        host.send("GET", &target(path, &query), "").await
    };
    let name = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for (path, mode, kind, called) in [
        (root.clone(), "cp-v1-recursive", "directory", Some("söurce")),
        (root.join("f"), "cp-v1-recursive", "file", Some("f")),
        (root.join("f"), "cp-v1-binary", "file", Some("f")),
        (root.clone(), "cp-v1-tar", "directory", Some("söurce")),
        (root.join("."), "cp-v1-tar", "directory", None),
    ] {
        let answer = get(&path, mode).await;
        assert_eq!(answer.status(), 200);
        let headers = answer.headers();
        assert_eq!(headers["x-slicer-source-type"], kind);
        let got = headers.get("x-slicer-source-name-base64");
        let got = got.map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(got, called.map(name), "{}", path.display());
    }
    for (path, mode, status, part) in [
        (
            &root,
            "mode=binary",
            400,
            "must specify a file not a directory",
        ),
        (&root.join("f"), "mode=tar", 400, "not a directory"),
        (&root.join("none"), "", 404, "none"),
        (&PathBuf::from("/dev/zero"), "", 400, "regular"),
    ] {
        let answer = host.send("GET", &target(path, mode), "").await;
        assert_eq!(answer.status(), status, "{}", path.display());
        let error = body_json(answer).await["error"].to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn what_is_hostile_or_cut_off_leaves_nothing() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    symlink(dir.path(), root.join("out")).unwrap();
    for name in ["../escaped", "/escaped", "a/../../escaped", "out/escaped"] {
        let tar = archive(&[entry(EntryType::Regular, name, 0o644, b"x")]);
        let (status, error) = put(&host, &root, "mode=tar", tar).await;
        assert_eq!(status, 400, "{name}: {error}");
    }
    let whole = archive(&[entry(EntryType::Regular, "ok", 0o644, b"whole")]);
    let (status, error) = put(&host, &root, "mode=tar", whole[..514].to_vec()).await;
    assert!(status == 400 && error.contains("cut off"), "{error}");
    let file = dir.path().join("file");
    host.leave_in_the_middle(&target(&file, ""), 1000, &[1; 500])
        .await;
    host.leave_in_the_middle(&target(&root, "mode=tar"), whole.len(), &whole[..514])
        .await;
    until("the rest is gone", || {
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).unwrap();
            entries.map(|e| e.unwrap().file_name()).collect::<Vec<_>>()
        };
        names(dir.path()) == ["root"] && names(&root) == ["out"]
    })
    .await;
    for (query, part) in [
        ("", "path"),
        ("path=/tmp/a%00b", "NUL"),
        ("path=/tmp/x&permissions=999", "permissions"),
        ("path=/tmp/x&uid=me", "uid"),
    ] {
        let answer = host.send("POST", &format!("/cp?{query}"), "x").await;
        assert_eq!(answer.status(), 400, "{query}");
        let error = body_json(answer).await["error"].to_string();
        assert!(error.contains(part), "{error}");
    }
    let long = dir.path().join("n".repeat(300));
    assert_eq!(put(&host, &long, "", "x").await.0, 400);
    let nameless = Host::start_nameless().await;
    assert_eq!(put(&nameless, &file, "", "x").await.0, 503);
    assert_eq!(host.send("DELETE", "/cp", "").await.status(), 405);
}

/// Runs `slicer-agent upload` as clients have it run.
fn upload(action: &str, manifest: &Path) -> (bool, String) {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_slicer-agent"))
        .args(["upload", action, "--manifest"])
        .arg(manifest)
        .args(["--uid", &uid.as_raw().to_string()])
        .args(["--gid", &gid.as_raw().to_string()])
        .output()
        .unwrap();
    (
        done.status.success(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    )
}

#[tokio::test]
async fn pieces_are_put_together() {
    let host = Host::start().await;
    let dir = tempfile::tempdir().unwrap();
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_slicer-agent"))
        .args(["upload", "check"])
        .output()
        .unwrap();
    assert_eq!(check.stdout, b"chunked-copy-v2\n");
    let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let chunks: Vec<&[u8]> = content.chunks(300_000).collect();
    let session = dir
        .path()
        .join(format!(".slicer-upload-{}", "ab".repeat(16)));
    let manifest = session.join("manifest.json");
    let destination = dir.path().join("whole");
    let described = |wrong: bool| {
        let all: Vec<_> = chunks
            .iter()
            .enumerate()
            .map(|(index, chunk)| {
                let sum = Sha256::digest(if wrong { b"other" } else { *chunk });
                let sum: Vec<String> = sum.iter().map(|b| format!("{b:02x}")).collect();
                serde_json::json!({
                    "index": index, "size": chunk.len(), "sha256": sum.concat()
                })
            })
            .collect();
        serde_json::json!({
            "version": 2, "mode": "binary", "destination": destination, "uid": 4_294_967_295u32,
            "gid": 4_294_967_295u32, "permissions": "0640", "size": content.len(),
            "copy_semantics": "cp-v1", "source_name": "x", "source_type": "file",
            "chunks": all,
        })
        .to_string()
    };
    for wrong in [true, false] {
        for (index, chunk) in chunks.iter().enumerate() {
            let path = session.join(format!("chunks/{index:06}.chunk"));
            let sent = put(&host, &path, "mode=binary&permissions=0600", chunk.to_vec()).await;
            assert_eq!(sent.0, 200, "{sent:?}");
        }
        assert_eq!(mode(&session), 0o700);
        put(&host, &manifest, "permissions=0600", described(wrong)).await;
        let (good, error) = upload("finalise", &manifest);
        assert_eq!(good, !wrong, "{error}");
        assert_eq!(destination.exists(), !wrong);
        assert_eq!(error.contains("SHA-256"), wrong, "{error}");
        // Nothing is left to abort after a success, and that is well, too.
        assert_eq!(upload("abort", &manifest), (true, String::new()));
        assert!(!session.exists());
    }
    assert!(fs::read(&destination).unwrap() == content);
    assert_eq!(mode(&destination), 0o640);
    for bad in ["/etc/passwd", "/manifest.json", "relative/manifest.json"] {
        assert!(!upload("abort", Path::new(bad)).0, "{bad}");
    }
}
