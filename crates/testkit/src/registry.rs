//! A real registry, and a network that fails.

use reqwest::{Client, Response};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// A layer of noise: what counts here is that it arrives as it was.
#[derive(Debug, Clone)]
pub struct Layer(Vec<u8>);

impl Layer {
    /// So many bytes, different for each seed.
    pub fn of(size: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut bytes = Vec::with_capacity(size + 8);
        while bytes.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(size);
        Self(bytes)
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Debian's docker-registry in a directory of its own.
pub struct Registry {
    dir: tempfile::TempDir,
    port: u16,
    http: Client,
    password: Option<(&'static str, &'static str)>,
    _child: Child,
}

/// `alex` with the password `sesame`, as htpasswd(1) writes it.
const HTPASSWD: &str = "alex:$2y$05$qOfnxvXup6Q/3Xbxz7bZ0uF6GDuYnGlFpKVEwsC60./I61t1od6sS\n";

/// A program that make has fetched from a Debian package, which is not installed; by its path
/// there. Else the installed one.
pub fn debian_tool(path: &str) -> PathBuf {
    let fetched = tools().join("debian").join(path);
    if fetched.exists() {
        fetched
    } else {
        Path::new("/").join(path)
    }
}

/// A program for guests of another architecture that make has fetched, likewise.
///
/// # Panics
/// When it isn't there.
pub fn foreign_debian_tool(arch: &str, path: &str) -> PathBuf {
    let fetched = tools().join(format!("debian-{arch}")).join(path);
    let name = fetched.display();
    assert!(fetched.exists(), "no {name}: `make system` fetches it");
    fetched
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools")
}

impl Registry {
    /// Starts one, which wants this user's password if there is one.
    pub async fn start(password: Option<(&'static str, &'static str)>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let auth = if password.is_some() {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).unwrap();
            format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                file.display()
            )
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n{auth}",
            dir.path().join("data").display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(debian_tool("usr/bin/docker-registry"))
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run docker-registry: {e}: run `make deps`"));
        let this = Self {
            dir,
            port,
            http: Client::builder().build().unwrap(),
            password,
            _child: child,
        };
        for _ in 0..600 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return this;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("docker-registry doesn't come up");
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The full name of one of its images.
    pub fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v2/{path}", self.port)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Response {
        let request = match self.password {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        request.send().await.unwrap().error_for_status().unwrap()
    }

    async fn blob(&self, image: &str, content: &[u8]) -> serde_json::Value {
        let begun = self
            .send(self.http.post(self.url(&format!("{image}/blobs/uploads/"))))
            .await;
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let digest = format!("sha256:{}", hex(content));
        let put = self.http.put(format!("{location}&digest={digest}"));
        self.send(
            put.header("content-type", "application/octet-stream")
                .body(content.to_vec()),
        )
        .await;
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest,
            "size": content.len(),
        })
    }

    async fn manifest(&self, image: &str, tag: &str, kind: &str, text: &[u8]) {
        let put = self.http.put(self.url(&format!("{image}/manifests/{tag}")));
        self.send(put.header("content-type", kind).body(text.to_vec()))
            .await;
    }

    /// Puts an image of these layers there; one of several architectures has an index.
    pub async fn push(&self, name: &str, archs: &[&str], layers: &[Layer]) {
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let (image, tag) = name.split_once(':').unwrap();
        let mut entries = Vec::new();
        for arch in archs {
            let config = json!({
                "architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
            });
            let config = serde_json::to_vec(&config).unwrap();
            let mut described = self.blob(image, &config).await;
            described["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
            let mut blobs = Vec::new();
            for layer in layers {
                blobs.push(self.blob(image, &layer.0).await);
            }
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": blobs,
            });
            let text = serde_json::to_vec(&manifest).unwrap();
            let digest = format!("sha256:{}", hex(&text));
            let reference = if archs.len() == 1 { tag } else { &digest };
            self.manifest(image, reference, MANIFEST, &text).await;
            entries.push(json!({
                "mediaType": MANIFEST, "digest": digest, "size": text.len(),
                "platform": {"os": "linux", "architecture": arch},
            }));
        }
        if archs.len() > 1 {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
            let text = serde_json::to_vec(&index).unwrap();
            self.manifest(image, tag, INDEX, &text).await;
        }
    }

    /// Puts the one image of an OCI layout there.
    pub async fn push_layout(&self, name: &str, layout: &Path) {
        let (image, tag) = name.split_once(':').unwrap();
        let read = |digest: &serde_json::Value| {
            let digest = digest.as_str().unwrap().replace(':', "/");
            std::fs::read(layout.join("blobs").join(digest)).unwrap()
        };
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let entry = &index["manifests"][0];
        let text = read(&entry["digest"]);
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        self.blob(image, &read(&manifest["config"]["digest"])).await;
        for layer in manifest["layers"].as_array().unwrap() {
            self.blob(image, &read(&layer["digest"])).await;
        }
        let kind = entry["mediaType"].as_str().unwrap();
        self.manifest(image, tag, kind, &text).await;
    }

    /// The digest of what a name leads to.
    pub async fn index_digest(&self, name: &str) -> String {
        let (image, tag) = name.split_once(':').unwrap();
        let head = self
            .http
            .head(self.url(&format!("{image}/manifests/{tag}")));
        let accept = "application/vnd.oci.image.index.v1+json";
        let head = self.send(head.header("accept", accept)).await;
        head.headers()["docker-content-digest"]
            .to_str()
            .unwrap()
            .to_owned()
    }

    /// Changes a byte of what the registry has.
    pub fn damage(&self, layer: &Layer) {
        let digest = hex(&layer.0);
        let path = self.dir.path().join(format!(
            "data/docker/registry/v2/blobs/sha256/{}/{digest}/data",
            &digest[..2]
        ));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
}

fn free_port() -> u16 {
    let listener = StdListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A way to a registry that counts what it carries, and breaks.
pub struct Proxy {
    port: u16,
    carried: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// A way to the port of a registry whose connections each carry so many bytes from there, or
    /// all.
    pub async fn start(to: u16, limit: Option<u64>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let carried = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&carried);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(carry(client, to, limit, Arc::clone(&count)));
            }
        });
        Self {
            port,
            carried,
            task,
        }
    }

    /// A way to the port of a registry on which connections that have carried `most` bytes there
    /// are cut, so many times.
    pub async fn cutting_uploads(to: u16, most: u64, times: u64) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let carried = Arc::new(AtomicU64::new(0));
        let left = Arc::new(AtomicU64::new(times));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let left = Arc::clone(&left);
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else {
                        return;
                    };
                    let (mut from_client, mut to_client) = client.split();
                    let (mut from_server, mut to_server) = server.split();
                    let down = tokio::io::copy(&mut from_server, &mut to_client);
                    let up = async {
                        let mut first = (&mut from_client).take(most);
                        let _ = tokio::io::copy(&mut first, &mut to_server).await;
                        let one = |n: u64| n.checked_sub(1);
                        let cut = first.limit() == 0
                            && left
                                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one)
                                .is_ok();
                        if !cut {
                            let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                            std::future::pending::<()>().await;
                        }
                    };
                    tokio::select! {
                        _ = down => {}
                        () = up => {}
                    }
                });
            }
        });
        Self {
            port,
            carried,
            task,
        }
    }

    /// The full name of an image by this way.
    pub fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// Bytes that came from the registry so far.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

async fn carry(client: TcpStream, to: u16, limit: Option<u64>, carried: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let upwards = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut left = limit.unwrap_or(u64::MAX);
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let Ok(n @ 1..) = from_server.read(&mut buffer).await else {
            break;
        };
        let n = n.min(usize::try_from(left).unwrap_or(usize::MAX));
        carried.fetch_add(n as u64, Ordering::Relaxed);
        left -= n as u64;
        if to_client.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    upwards.abort();
}
