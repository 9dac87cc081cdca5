//! Forwarded connections through the daemon, to agents on this host.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use slicer_api::{CreateNode, Endpoint, Wait};
use slicer_client::Client;
use slicer_daemon::Daemon;
use slicer_daemon::config::{Config, Host};
use slicer_testkit::{FakeHypervisor, LIMIT, SBOX, Setup, image_layout, kernel_layout};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// A daemon with one VM, whose port 1 of the host is a socket.
struct Place {
    dir: tempfile::TempDir,
    daemon: Daemon,
    target: UnixListener,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = |name: &str, write: fn(&Path) -> String| {
            let layout = dir.path().join(name);
            fs::create_dir(&layout).unwrap();
            write(&layout)
        };
        let target = dir.path().join("target.sock");
        let mut setup = Setup::of([SBOX]);
        setup.group = format!(
            "      forwards: [\"{}:{}\"]\n",
            dir.path().join("local.sock").display(),
            target.display()
        );
        let kernel = layout("kernel-image", kernel_layout);
        setup.more = format!("  kernel_image: {kernel:?}\n");
        let yaml = setup.yaml(&layout("image", image_layout));
        let (config, _) = Config::parse(&yaml, "test.yaml", &Host::current()).unwrap();
        let hypervisor = FakeHypervisor::new();
        let daemon = Daemon::start(&config, dir.path(), |_| Ok(hypervisor));
        let daemon = daemon.await.unwrap();
        let client = Client::new(Endpoint::Unix(dir.path().join("slicer.sock")), None, "test");
        let made = client.unwrap();
        let request = CreateNode::default();
        let made = made.create_node("sbox", &request, Some(Wait::Agent), Some(LIMIT));
        assert_eq!(made.await.unwrap().hostname, "sbox-1");
        Self {
            target: UnixListener::bind(target).unwrap(),
            dir,
            daemon,
        }
    }

    /// A connection to the target by the API, as a client of ours makes it.
    async fn by_the_api(&self) -> UnixStream {
        let mut stream = self.connect("slicer.sock").await;
        let request = format!(
            "GET /vm/sbox-1/forward HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: \
             tcp\r\nX-Inlets-Upstream: unix:{}\r\n\r\n",
            self.dir.path().join("target.sock").display()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap().into());
        }
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // It is between agent and daemon.
        assert!(!head.contains("x-slicer"), "{head}");
        stream
    }

    async fn connect(&self, socket: &str) -> UnixStream {
        let path: PathBuf = self.dir.path().join(socket);
        UnixStream::connect(path).await.unwrap()
    }
}

#[tokio::test]
async fn a_client_that_vanishes_half_closed_frees_the_guest() {
    let place = Place::new().await;
    for through in ["the API", "the configuration"] {
        let mut client = match through {
            "the API" => place.by_the_api().await,
            _ => place.connect("local.sock").await,
        };
        let (mut target, _) = place.target.accept().await.unwrap();
        client.write_all(b"watch").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        target.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "watch", "{through}");
        // It still listens.
        target.write_all(b"news").await.unwrap();
        let mut news = [0; 4];
        client.read_exact(&mut news).await.unwrap();
        drop(client);
        let gone = tokio::time::timeout(LIMIT, async {
            loop {
                // It says nothing, which would tell the daemon, but is told itself.
                match target.write(&[]).await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(e) => break e,
                }
            }
        });
        let e = gone.await.unwrap_or_else(|_| panic!("through {through}"));
        assert_eq!(e.kind(), ErrorKind::BrokenPipe, "{through}");
    }
    place.daemon.stop(false, std::future::pending()).await;
}

#[tokio::test]
async fn a_client_that_breaks_off_half_closed_frees_the_guest() {
    let place = Place::new().await;
    let mut client = place.by_the_api().await;
    let (mut target, _) = place.target.accept().await.unwrap();
    client.shutdown().await.unwrap();
    // It is full of what nobody reads when the client goes.
    let much = vec![7; 64 << 20];
    let sending = tokio::spawn(async move { target.write_all(&much).await });
    client.read_exact(&mut [0; 1000]).await.unwrap();
    drop(client);
    let sent = tokio::time::timeout(LIMIT, sending).await.unwrap();
    assert_eq!(sent.unwrap().unwrap_err().kind(), ErrorKind::BrokenPipe);
    place.daemon.stop(false, std::future::pending()).await;
}
