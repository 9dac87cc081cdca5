use super::*;
use slicer_testkit::{Layer, Proxy, Registry};

const SIZE: u64 = 32 << 20;

async fn soon(what: &str, is: impl Fn() -> bool) {
    for _ in 0..1200 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within 30 s: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_for_as_long_as_somebody_waits() {
    let registry = Registry::start(None).await;
    let layers = [Layer::of(32 << 20, 1)];
    let arch = Arch::host().unwrap();
    registry.push("a/big:1", &[arch.go_name()], &layers).await;
    // Each connection breaks off early, and the next one takes its time.
    let slow = Proxy::start(registry.port(), Some(SIZE / 8)).await;
    let proxy = Proxy::start(registry.port(), None).await;
    let dir = tempfile::tempdir().unwrap();
    let work = Arc::new(WorkDir::open(dir.path()).unwrap());
    let name = proxy.name("a/big:1");
    let text = format!(
        "config:\n  image: {name}\n  insecure_registry: true\n  host_groups:\n    - name: a\n"
    );
    let host = crate::config::Host::current();
    let (config, _) = Config::parse(&text, "test", &host).unwrap();
    let bases = Arc::new(Bases::new(work));
    let store = ImageStore::open(&config, bases, arch, TaskTracker::new()).unwrap();

    // Both have left before it is done.
    let slowly = slow.name("a/big:1");
    let (first, second) = (
        store.pull(&slowly, arch, None),
        store.pull(&slowly, arch, None),
    );
    soon("a part has come", || first.borrow().received > SIZE / 16).await;
    drop(first);
    soon("more has come", || second.borrow().received > SIZE / 8).await;
    assert!(store.pulls.has(&slowly));
    let refused = store.remove(&slowly, true).await.unwrap_err();
    assert_eq!(refused.status, 404, "{refused}");
    drop(second);
    soon("it is called off", || !store.pulls.has(&slowly)).await;
    assert_eq!(store.changes(), 0);

    // Who comes later goes on, and two share the work.
    let (mut first, mut second) = (store.pull(&name, arch, None), store.pull(&name, arch, None));
    let pulled = outcome(&mut first).await.unwrap();
    assert_eq!(outcome(&mut second).await.unwrap(), pulled);
    assert!(pulled.changed && store.changes() == 1);
    assert!(proxy.carried() < SIZE, "{}", proxy.carried());
    let again = outcome(&mut store.pull(&name, arch, None)).await.unwrap();
    assert!(!again.changed && store.changes() == 1);

    let refused = store.remove(&name, false).await.unwrap_err();
    assert!(refused.message.contains("host group a"), "{refused}");
    // Somebody who reads is waited for; a pull of another is not.
    let reading = store.reading().await;
    let removing = tokio::spawn({
        let (store, name) = (store.clone(), name.clone());
        async move { store.remove(&name, true).await }
    });
    tokio::time::sleep(LOOK_PAUSE * 3).await;
    assert!(!removing.is_finished() && store.list().unwrap().images.len() == 1);
    drop(reading);
    let gone = removing.await.unwrap().unwrap();
    assert!(gone.freed_bytes >= SIZE, "{gone:?}");
    assert!(store.list().unwrap().images.is_empty());
    assert_eq!(store.changes(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_group_gets_the_image_of_its_architecture() {
    let registry = Registry::start(None).await;
    let layers = [Layer::of(1 << 10, 1)];
    let both = ["amd64", "arm64"];
    registry.push("a/both:1", &both, &layers).await;
    registry.push("a/arm:1", &["arm64"], &layers).await;
    let dir = tempfile::tempdir().unwrap();
    let work = Arc::new(WorkDir::open(dir.path()).unwrap());
    let name = |name: &str| format!("127.0.0.1:{}/{name}", registry.port());
    let (both, arm) = (name("a/both:1"), name("a/arm:1"));
    let text = format!(
        "config:\n  insecure_registry: true\n  host_groups:\n\
         \x20   - {{name: a, arch: amd64, image: '{both}'}}\n\
         \x20   - {{name: b, arch: arm64, image: '{both}'}}\n\
         \x20   - {{name: c, arch: arm64, image: '{arm}'}}\n"
    );
    let host = crate::config::Host::current();
    let (config, _) = Config::parse(&text, "test", &host).unwrap();
    let bases = Arc::new(Bases::new(work));
    let store = ImageStore::open(&config, bases, Arch::X86_64, TaskTracker::new()).unwrap();

    // What one asks for who doesn't say for which.
    assert_eq!(store.arch_of(&both), Arch::X86_64);
    assert_eq!(store.arch_of(&arm), Arch::Aarch64);
    assert_eq!(store.arch_of("example.com/other:1"), Arch::X86_64);
    // Pulled at once, neither takes the other's place.
    let (mut amd64, mut arm64) = (
        store.pull(&both, Arch::X86_64, None),
        store.pull(&both, Arch::Aarch64, None),
    );
    let amd64 = outcome(&mut amd64).await.unwrap();
    let arm64 = outcome(&mut arm64).await.unwrap();
    assert_eq!((amd64.arch, arm64.arch), ("amd64", "arm64"));
    assert_ne!(amd64.digest, arm64.digest);
    let listed = store.list().unwrap().images;
    let listed: Vec<_> = listed.iter().map(|i| (&*i.arch, &*i.digest)).collect();
    assert_eq!(
        listed,
        [("amd64", &*amd64.digest), ("arm64", &*arm64.digest)]
    );
    // Where there is none, that is said.
    let none = outcome(&mut store.pull(&arm, Arch::X86_64, None)).await;
    let text = none.unwrap_err().to_string();
    assert!(
        text.contains("linux/amd64") && text.contains("linux/arm64"),
        "{text}"
    );
}
