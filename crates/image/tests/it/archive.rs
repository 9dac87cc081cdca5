//! Images in archives, read into the cache and built.

use crate::support::{Layer, debugfs, digest, e2fsck, gzip, layout};
use serde_json::{Value, json};
use slicer_image::{ImageCache, ImageError, ImageRef, Limits, Resolved, build_base};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn layers(text: &str) -> Vec<Layer> {
    let mut lower = Layer::new();
    lower.dir("etc/", 0o755).file("etc/name", text.as_bytes());
    let mut upper = Layer::new();
    upper.file("etc/upper", &vec![7; 300_000]);
    vec![lower, upper]
}

/// Files of these names and contents, in this order, as a tar archive.
fn pack(out: &Path, files: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(File::create(out).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

fn oci_archive(dir: &Path, text: &str) -> PathBuf {
    let at = dir.join("layout");
    let _ = fs::remove_dir_all(&at);
    fs::create_dir(&at).unwrap();
    layout(&at, layers(text));
    let out = dir.join("oci.tar");
    let mut builder = tar::Builder::new(File::create(&out).unwrap());
    builder.append_dir_all(".", &at).unwrap();
    builder.finish().unwrap();
    out
}

/// What `docker save` writes of two images, the second with a compressed layer.
fn docker_archive(dir: &Path, damage: bool) -> PathBuf {
    let plain: Vec<_> = layers("docker").into_iter().map(Layer::finish).collect();
    let ids: Vec<_> = plain.iter().map(|l| digest(l)).collect();
    let config = |ids: &[String]| {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        serde_json::to_vec(&config).unwrap()
    };
    let (first, second) = (config(&ids), config(&ids[..1]));
    let name = |config: &[u8]| format!("{}.json", digest(config).trim_start_matches("sha256:"));
    let manifest = json!([
        {
            "Config": name(&first), "RepoTags": ["a/one:1", "debian:12"],
            "Layers": ["0/layer.tar", "1/layer.tar"],
        },
        { "Config": name(&second), "RepoTags": null, "Layers": ["2/layer.tar"] },
        { "Config": name(&second), "RepoTags": ["two:latest"], "Layers": ["2/layer.tar"] },
    ]);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut upper = plain[1].clone();
    if damage {
        upper[1000] ^= 1;
    }
    let out = dir.join("docker.tar");
    pack(
        &out,
        &[
            ("0/layer.tar", &plain[0]),
            ("1/layer.tar", &upper),
            ("2/layer.tar", &gzip(&plain[0])),
            (&name(&first), &first),
            (&name(&second), &second),
            ("manifest.json", &manifest),
        ],
    );
    out
}

fn import(cache: &ImageCache, reference: &str) -> Result<Resolved, ImageError> {
    cache.import(&ImageRef::parse(reference).unwrap(), "amd64")
}

fn built(dir: &Path, image: &Resolved) -> PathBuf {
    let out = dir.join("base.img");
    build_base(image, &out, 64 << 20, &Limits::default(), &|_| {}).unwrap();
    e2fsck(&out);
    out
}

#[test]
fn an_oci_archive_is_read_once_until_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(&dir.path().join("cache")).unwrap();
    let archive = oci_archive(dir.path(), "first");
    let name = format!("oci-archive:{}", archive.display());
    let first = import(&cache, &name).unwrap();
    let base = built(dir.path(), &first);
    assert_eq!(debugfs(&base, "cat /etc/name"), "first");

    // What the cache has of it is enough, as long as the file looks the same.
    let time = fs::metadata(&archive).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&archive).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[b'x'; 512], 0).unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    let again = import(&cache, &name).unwrap();
    assert_eq!(again.manifest_digest(), first.manifest_digest());

    oci_archive(dir.path(), "second");
    let second = import(&cache, &name).unwrap();
    assert_ne!(second.manifest_digest(), first.manifest_digest());
    let base = built(dir.path(), &second);
    assert_eq!(debugfs(&base, "cat /etc/name"), "second");

    let unknown = import(&cache, &format!("{name}:nothing")).unwrap_err();
    assert!(unknown.to_string().contains("it has: latest"), "{unknown}");
    let other = cache.import(&ImageRef::parse(&name).unwrap(), "arm64");
    assert!(matches!(other, Err(ImageError::NoPlatform { .. })));
    let wrong = import(&cache, &name.replace("oci-", "docker-")).unwrap_err();
    assert!(wrong.to_string().contains("oci-archive:FILE"), "{wrong}");
}

#[test]
fn what_docker_saves_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(&dir.path().join("cache")).unwrap();
    let archive = docker_archive(dir.path(), false);
    let name = format!("docker-archive:{}", archive.display());
    let one = import(&cache, &format!("{name}:a/one:1")).unwrap();
    let base = built(dir.path(), &one);
    assert_eq!(debugfs(&base, "cat /etc/name"), "docker");
    assert_eq!(debugfs(&base, "cat /etc/upper").len(), 300_000);
    assert_eq!(
        one.config()
            .config()
            .as_ref()
            .unwrap()
            .env()
            .as_ref()
            .unwrap(),
        &["A=b"]
    );
    let same = import(&cache, &format!("{name}:docker.io/library/debian:12")).unwrap();
    assert_eq!(same.manifest_digest(), one.manifest_digest());
    let two = import(&cache, &format!("{name}:two")).unwrap();
    let base = built(dir.path(), &two);
    assert_eq!(debugfs(&base, "cat /etc/name"), "docker");
    for unclear in [name.clone(), format!("{name}:three")] {
        let e = import(&cache, &unclear).unwrap_err();
        assert!(
            e.to_string().contains("a/one:1, debian:12, two:latest"),
            "{e}"
        );
    }
    let wrong = import(&cache, &name.replace("docker-", "oci-")).unwrap_err();
    assert!(wrong.to_string().contains("docker-archive:FILE"), "{wrong}");
}

#[test]
fn broken_archives_are_refused_and_leave_the_cache_usable() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("cache");
    let cache = ImageCache::open(&at).unwrap();
    let fails = |reference: String, why: &str| {
        let e = import(&cache, &reference).unwrap_err().to_string();
        assert!(e.contains(why) && !e.contains('\n'), "{e}");
        assert_eq!(fs::read_dir(at.join("partial")).unwrap().count(), 0);
    };
    let docker = docker_archive(dir.path(), true);
    fails(
        format!("docker-archive:{}:a/one:1", docker.display()),
        "1/layer.tar is damaged",
    );
    let oci = oci_archive(dir.path(), "x");
    let whole = fs::read(&oci).unwrap();
    let name = format!("oci-archive:{}", oci.display());
    fs::write(&oci, gzip(&whole)).unwrap();
    fails(name.clone(), "gzip -d");
    fs::write(&oci, b"nothing of the kind").unwrap();
    fails(name.clone(), "is not a usable image archive");
    // Cut in the middle of the last layer, or of whatever is last.
    let mut cut = whole.len() - 1024;
    while whole[cut - 1] == 0 {
        cut -= 1;
    }
    fs::write(&oci, &whole[..cut - 1]).unwrap();
    fails(name.clone(), "cut short");
    fs::write(&oci, b"").unwrap();
    fails(name.clone(), "index.json is missing");
    fs::remove_file(&oci).unwrap();
    fails(name.clone(), "cannot open");
    fs::create_dir(&oci).unwrap();
    fails(name, "it is not a file");
    let endless = json!([{ "Config": "../../etc/passwd", "Layers": ["/dev/zero"] }]);
    pack(
        &docker,
        &[("manifest.json", Value::to_string(&endless).as_bytes())],
    );
    fails(
        format!("docker-archive:{}", docker.display()),
        "../../etc/passwd is missing",
    );

    docker_archive(dir.path(), false);
    import(
        &cache,
        &format!("docker-archive:{}:a/one:1", docker.display()),
    )
    .unwrap();
}
