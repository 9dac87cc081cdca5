//! Pulls from Debian's docker-registry on loopback, and over connections that break.

#![expect(clippy::unwrap_used, reason = "tests")]

use slicer_image::{Garbage, ImageCache};
use slicer_registry::{Progress, PullError, Wanted, Watcher, pull};
use slicer_testkit::{Layer, Proxy, Registry};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was told of a pull.
#[derive(Default)]
struct Told(Mutex<Vec<Progress>>);

impl Told {
    fn watcher(self: &Arc<Self>) -> Watcher {
        let this = Arc::clone(self);
        Arc::new(move |progress| this.0.lock().unwrap().push(progress))
    }

    fn received(&self) -> u64 {
        let told = self.0.lock().unwrap();
        let bytes = |p: &Progress| match p {
            Progress::Received(n) => *n,
            _ => 0,
        };
        told.iter().map(bytes).sum()
    }

    fn retries(&self) -> usize {
        let told = self.0.lock().unwrap();
        told.iter()
            .filter(|p| matches!(p, Progress::Retrying { .. }))
            .count()
    }
}

fn silent() -> Watcher {
    Arc::new(|_| {})
}

fn wanted(reference: &str) -> Wanted {
    Wanted {
        reference: reference.to_owned(),
        arch: "amd64".to_owned(),
        insecure: true,
    }
}

fn leftovers(cache: &Path) -> usize {
    std::fs::read_dir(cache.join("partial")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_once_and_are_shared() {
    let registry = Registry::start(None).await;
    let base = Layer::of(1 << 20, 1);
    registry
        .push("a/one:1", &["amd64"], &[base.clone(), Layer::of(1000, 2)])
        .await;
    // An index of several architectures, with the same first layer.
    registry
        .push("a/two:1", &["arm64", "amd64"], &[base, Layer::of(2000, 3)])
        .await;
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let one = registry.name("a/one:1");
    let told = Arc::new(Told::default());
    let image = pull(&cache, &wanted(&one), told.watcher()).await.unwrap();
    assert_eq!(image.layers().len(), 2);
    assert!(told.received() > 1 << 20);

    // Nothing is fetched again, and what images share is there once.
    let told = Arc::new(Told::default());
    pull(&cache, &wanted(&one), told.watcher()).await.unwrap();
    assert_eq!(told.received(), 0);
    let two = registry.name("a/two:1");
    let image = pull(&cache, &wanted(&two), told.watcher()).await.unwrap();
    assert!(told.received() < 10_000, "{}", told.received());
    let by_digest = format!(
        "{}@{}",
        registry.name("a/two"),
        registry.index_digest("a/two:1").await
    );
    let pinned = pull(&cache, &wanted(&by_digest), silent()).await.unwrap();
    assert_eq!(pinned.manifest_digest(), image.manifest_digest());

    // A tag that moves is found moved by the next pull, and not before.
    registry
        .push("a/one:1", &["amd64"], &[Layer::of(3000, 4)])
        .await;
    assert_eq!(
        cache.find(&one, "amd64").unwrap().unwrap().layers().len(),
        2
    );
    pull(&cache, &wanted(&one), silent()).await.unwrap();
    assert_eq!(
        cache.find(&one, "amd64").unwrap().unwrap().layers().len(),
        1
    );
    assert_eq!(leftovers(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told() {
    let registry = Registry::start(None).await;
    registry
        .push("a/arm:1", &["arm64"], &[Layer::of(1000, 1)])
        .await;
    registry
        .push("a/multi:1", &["arm64", "riscv64"], &[Layer::of(1000, 1)])
        .await;
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let fails = async |name: &str| {
        let e = pull(&cache, &wanted(&registry.name(name)), silent()).await;
        e.unwrap_err()
    };
    for (name, has) in [("a/arm:1", "linux/arm64"), ("a/multi:1", "linux/riscv64")] {
        let e = fails(name).await;
        let right =
            matches!(&e, PullError::NoPlatform { available, .. } if available.contains(has));
        assert!(right, "{e}");
    }
    for name in ["a/arm:2", "nobody/nothing:1"] {
        let e = fails(name).await;
        assert!(matches!(e, PullError::NotFound { .. }), "{e}");
    }
    let nobody = wanted("127.0.0.1:1/a/b:1");
    let e = pull(&cache, &nobody, silent()).await.unwrap_err();
    assert!(matches!(e, PullError::Network { .. }), "{e}");
    // One that speaks no TLS.
    let mut secure = wanted(&registry.name("a/arm:1"));
    secure.insecure = false;
    let e = pull(&cache, &secure, silent()).await.unwrap_err();
    assert!(e.to_string().contains("insecure_registry: true"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_are_resumed() {
    let registry = Registry::start(None).await;
    let size = 8 << 20;
    registry
        .push("a/big:1", &["amd64"], &[Layer::of(size, 1)])
        .await;
    // Each connection carries this much, then breaks.
    let proxy = Proxy::start(registry.port(), Some(3 << 20)).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let told = Arc::new(Told::default());
    let name = proxy.name("a/big:1");
    pull(&cache, &wanted(&name), told.watcher()).await.unwrap();
    assert!(told.retries() >= 2, "{}", told.retries());
    // Not from the beginning each time.
    let most = u64::try_from(size + (1 << 20)).unwrap();
    assert!(told.received() < most, "{}", told.received());
    assert_eq!(leftovers(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_called_off_is_gone_on_with() {
    let registry = Registry::start(None).await;
    let size = 32 << 20;
    registry
        .push("a/big:1", &["amd64"], &[Layer::of(size, 1)])
        .await;
    let proxy = Proxy::start(registry.port(), None).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let name = proxy.name("a/big:1");
    let (enough, mut stop) = tokio::sync::mpsc::unbounded_channel();
    let sum = Mutex::new(0);
    let watcher: Watcher = Arc::new(move |p| {
        if let Progress::Received(n) = p {
            let mut sum = sum.lock().unwrap();
            *sum += n;
            if *sum > 12 << 20 {
                let _ = enough.send(());
            }
        }
    });
    {
        let wanted = wanted(&name);
        tokio::select! {
            done = pull(&cache, &wanted, watcher) => panic!("{done:?}"),
            _ = stop.recv() => {}
        }
    }
    assert!(cache.find(&name, "amd64").unwrap().is_none());
    let told = Arc::new(Told::default());
    pull(&cache, &wanted(&name), told.watcher()).await.unwrap();
    // What was there counts as received at once.
    assert!(
        proxy.carried() < (size as u64) * 3 / 2,
        "{}",
        proxy.carried()
    );
    assert_eq!(leftovers(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_refused() {
    let registry = Registry::start(None).await;
    let layer = Layer::of(100_000, 1);
    registry
        .push("a/bad:1", &["amd64"], std::slice::from_ref(&layer))
        .await;
    registry.damage(&layer);
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let name = registry.name("a/bad:1");
    let e = pull(&cache, &wanted(&name), silent()).await.unwrap_err();
    assert!(e.to_string().contains("is damaged"), "{e}");
    assert_eq!(leftovers(dir.path()), 0);
    // The cache is as good as before.
    registry
        .push("a/good:1", &["amd64"], &[Layer::of(1000, 2)])
        .await;
    let good = registry.name("a/good:1");
    pull(&cache, &wanted(&good), silent()).await.unwrap();
    assert!(cache.find(&name, "amd64").unwrap().is_none());
}

/// A small file system of its own, unmounted in the end.
struct Small(tempfile::TempDir);

impl Small {
    /// None where this process may not mount.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        let mounted = mount.arg(dir.path()).status();
        mounted.unwrap().success().then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_a_cache_that_can_be_used() {
    let Some(small) = Small::mount("4m") else {
        eprintln!("not root: not tested");
        return;
    };
    let registry = Registry::start(None).await;
    registry
        .push("a/small:1", &["amd64"], &[Layer::of(1 << 20, 1)])
        .await;
    let layers = [Layer::of(1 << 20, 1), Layer::of(8 << 20, 2)];
    registry.push("a/big:1", &["amd64"], &layers).await;
    let cache = ImageCache::open(small.0.path()).unwrap();
    let big = registry.name("a/big:1");
    let e = pull(&cache, &wanted(&big), silent()).await.unwrap_err();
    assert!(e.to_string().contains("No space left"), "{e}");
    assert!(cache.find(&big, "amd64").unwrap().is_none());
    // What is left over is nobody's, and goes when it is asked to.
    assert!(cache.unnamed_bytes().unwrap() > 1 << 20);
    // What was under way when the pull failed may still be ending.
    let collected = async {
        loop {
            match cache.collect(&Garbage::All).unwrap() {
                Some(freed) => break freed,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let freed = tokio::time::timeout(Duration::from_mins(1), collected).await;
    let freed = freed.unwrap();
    assert!(freed > 1 << 20, "{freed}");
    assert_eq!(leftovers(small.0.path()), 0);
    let name = registry.name("a/small:1");
    pull(&cache, &wanted(&name), silent()).await.unwrap();
    assert!(cache.find(&name, "amd64").unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_image_share_the_work() {
    let registry = Registry::start(None).await;
    let size = 4 << 20;
    registry
        .push(
            "a/big:1",
            &["amd64"],
            &[Layer::of(size, 1), Layer::of(size, 2)],
        )
        .await;
    let proxy = Proxy::start(registry.port(), None).await;
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let name = proxy.name("a/big:1");
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (cache, wanted) = (cache.clone(), wanted(&name));
        pulls.spawn(async move { pull(&cache, &wanted, silent()).await.map(drop) });
    }
    while let Some(done) = pulls.join_next().await {
        done.unwrap().unwrap();
    }
    assert!(cache.find(&name, "amd64").unwrap().is_some());
    assert!(proxy.carried() < (size as u64) * 3, "{}", proxy.carried());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_where_a_password_is_wanted() {
    let registry = Registry::start(Some(("alex", "sesame"))).await;
    registry
        .push("a/one:1", &["amd64"], &[Layer::of(1000, 1)])
        .await;
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let name = registry.name("a/one:1");
    let e = pull(&cache, &wanted(&name), silent()).await.unwrap_err();
    assert!(matches!(e, PullError::Unauthorized { .. }), "{e}");
    assert!(e.to_string().contains("docker login 127.0.0.1:"), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_manifests_are_not_taken() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    // A registry that answers whatever it is asked with JSON that has no end.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&sent);
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            if request[..read].starts_with(b"GET /v2/ ") {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
                continue;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{").await;
            let piece = vec![b' '; 1 << 20];
            while stream.write_all(&piece).await.is_ok() {
                *counted.lock().unwrap() += piece.len();
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let cache = ImageCache::open(dir.path()).unwrap();
    let endless = wanted(&format!("127.0.0.1:{port}/a/b:1"));
    let e = pull(&cache, &endless, silent()).await.unwrap_err();
    assert!(e.to_string().contains("more than 4194304 bytes"), "{e}");
    server.abort();
    assert!(*sent.lock().unwrap() < 32 << 20);
    assert_eq!(leftovers(dir.path()), 0);
}
