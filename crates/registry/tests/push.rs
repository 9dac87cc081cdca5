//! Pushes to Debian's docker-registry on loopback, and over connections that break.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use slicer_image::{ImageCache, ImageError, LayoutDir, sha256};
use slicer_registry::{Progress, PushError, Wanted, Watcher, pull, push};
use slicer_testkit::{Proxy, Registry};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn silent() -> Watcher {
    Arc::new(|_| {})
}

fn put(layout: &Path, kind: &str, bytes: &[u8]) -> Value {
    let digest = sha256(bytes);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
}

fn noise(size: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..size).map(next).collect()
}

/// The manifest of an image for `arch` with one layer.
fn image(layout: &Path, arch: &str, layer: &[u8]) -> Value {
    let config = json!({
        "architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": put(layout, "application/vnd.oci.image.config.v1+json", &config),
        "layers": [put(layout, "application/vnd.oci.image.layer.v1.tar", layer)],
    });
    let mut entry = put(layout, MANIFEST, &serde_json::to_vec(&manifest).unwrap());
    entry["platform"] = json!({"os": "linux", "architecture": arch});
    entry
}

/// Names things in a layout's index.
fn name(layout: &Path, tag: &str, entries: &[Value]) {
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

async fn pulled(cache: &ImageCache, reference: &str, arch: &str) -> (String, Vec<String>) {
    let wanted = Wanted {
        reference: reference.to_owned(),
        arch: arch.to_owned(),
        insecure: true,
    };
    let image = pull(cache, &wanted, silent()).await.unwrap();
    let layers = image.layers().iter().map(|l| l.digest().to_string());
    (image.manifest_digest().to_owned(), layers.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pushed_comes_back_and_goes_once() {
    let registry = Registry::start(None).await;
    let dir = tempfile::tempdir().unwrap();
    let shared = noise(3 << 20, 1);
    let entries = [
        image(dir.path(), "amd64", &shared),
        image(dir.path(), "arm64", &shared),
    ];
    // As buildah has it: an index of the layout's own.
    let inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    let inner = put(dir.path(), INDEX, &serde_json::to_vec(&inner).unwrap());
    name(dir.path(), "two", std::slice::from_ref(&inner));
    let layout = LayoutDir::new(dir.path());
    let to = registry.name("a/two:1");
    let pushed = push(&layout, Some("two"), &to, true, silent()).await;
    let pushed = pushed.unwrap();
    assert_eq!(pushed.digest, inner["digest"]);
    assert_eq!(registry.index_digest("a/two:1").await, pushed.digest);
    assert_eq!((pushed.manifests, pushed.sent, pushed.there), (3, 3, 0));

    let cache_dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(cache_dir.path()).unwrap();
    for (arch, entry) in ["amd64", "arm64"].iter().zip(&entries) {
        let (digest, layers) = pulled(&cache, &to, arch).await;
        assert_eq!(digest, entry["digest"]);
        assert_eq!(layers, [sha256(&shared)]);
    }

    // Again, under another name: nothing is sent.
    let again = push(&layout, None, &registry.name("a/two:2"), true, silent()).await;
    let again = again.unwrap();
    assert_eq!((again.sent, again.sent_bytes, again.there), (0, 0, 3));

    // A layout whose own index is that of the platforms, as the cache's is.
    name(dir.path(), "flat", &entries);
    let flat = push(&layout, None, &registry.name("a/flat:1"), true, silent()).await;
    assert_eq!(flat.unwrap().manifests, 3);
    let (digest, _) = pulled(&cache, &registry.name("a/flat:1"), "arm64").await;
    assert_eq!(digest, entries[1]["digest"]);

    // One manifest, by its digest.
    name(dir.path(), "one", &entries[..1]);
    let one = entries[0]["digest"].as_str().unwrap();
    let pinned = format!("{}@{one}", registry.name("a/one"));
    let done = push(&layout, None, &pinned, true, silent()).await.unwrap();
    assert_eq!((done.digest.as_str(), done.manifests), (one, 1));
    assert_eq!(pulled(&cache, &pinned, "amd64").await.0, one);
    let other = format!("{}@{}", registry.name("a/one"), sha256(b"other"));
    let e = push(&layout, None, &other, true, silent()).await;
    assert!(matches!(e, Err(PushError::Unusable { .. })), "{e:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_tried_again() {
    let registry = Registry::start(None).await;
    let dir = tempfile::tempdir().unwrap();
    let layer = noise(6 << 20, 2);
    let entry = image(dir.path(), "amd64", &layer);
    name(dir.path(), "latest", &[entry]);
    let proxy = Proxy::cutting_uploads(registry.port(), 2 << 20, 2).await;
    let retries = Arc::new(AtomicUsize::new(0));
    let told = Arc::clone(&retries);
    let watcher: Watcher = Arc::new(move |p| {
        if let Progress::Retrying { .. } = p {
            told.fetch_add(1, Ordering::Relaxed);
        }
    });
    let layout = LayoutDir::new(dir.path());
    let pushed = push(&layout, None, &proxy.name("a/cut:1"), true, watcher).await;
    assert_eq!(pushed.unwrap().sent, 2);
    assert!(retries.load(Ordering::Relaxed) >= 2);
    let cache_dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(cache_dir.path()).unwrap();
    let (_, layers) = pulled(&cache, &registry.name("a/cut:1"), "amd64").await;
    assert_eq!(layers, [sha256(&layer)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pushed_is_told() {
    let registry = Registry::start(Some(("alex", "sesame"))).await;
    let dir = tempfile::tempdir().unwrap();
    let layer = noise(1000, 3);
    let entry = image(dir.path(), "amd64", &layer);
    name(dir.path(), "latest", &[entry]);
    let layout = LayoutDir::new(dir.path());
    let told = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&told);
    let watcher: Watcher = Arc::new(move |p| notes.lock().unwrap().push(p));
    let to = registry.name("a/one:1");
    let e = push(&layout, None, &to, true, watcher).await.unwrap_err();
    assert!(matches!(e, PushError::Unauthorized { .. }), "{e}");
    assert!(e.to_string().contains("docker login 127.0.0.1:"), "{e}");
    // It is no use to try that again.
    let retried = |p: &Progress| matches!(p, Progress::Retrying { .. });
    assert!(!told.lock().unwrap().iter().any(retried));
    // TLS where there is none.
    let e = push(&layout, None, &to, false, silent()).await.unwrap_err();
    assert!(e.to_string().contains("--insecure"), "{e}");

    let open = Registry::start(None).await;
    let blob = layout.path().join("blobs/sha256");
    let blob = blob.join(sha256(&layer).trim_start_matches("sha256:"));
    fs::write(&blob, noise(1000, 4)).unwrap();
    let to = open.name("a/one:1");
    let e = push(&layout, None, &to, true, silent()).await.unwrap_err();
    let damaged = matches!(&e, PushError::Source(ImageError::Digest { .. }));
    assert!(damaged, "{e}");
    let e = push(&layout, Some("nix"), &to, true, silent()).await;
    assert!(matches!(
        e,
        Err(PushError::Source(ImageError::NoTag { .. }))
    ));
    let nowhere = LayoutDir::new("/nowhere");
    assert!(push(&nowhere, None, &to, true, silent()).await.is_err());
}
