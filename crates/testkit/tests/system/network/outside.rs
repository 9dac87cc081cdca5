//! A host and the world outside of it, as network namespaces that are taken down in the end.
//!
//! The world has no route to the networks of VMs: what reaches it comes in the host's name.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The host's address in the world, and those of the world.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
/// Another one of the host.
pub(crate) const HOST_TOO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// What the world's resolver knows.
pub(crate) const NAME: &str = "known.test";
/// Where everybody who connects is told from which address.
pub(crate) const PORTS: [u16; 2] = [80, 81];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The two.
#[derive(Debug)]
pub(crate) struct Outside {
    pub(crate) host: String,
    pub(crate) world: String,
}

/// Runs a command that must succeed; returns its output.
pub(crate) fn run(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

impl Outside {
    pub(crate) fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", std::process::id());
        let this = Self {
            host: format!("slicer-h{id}"),
            world: format!("slicer-w{id}"),
        };
        let (host, world) = (&this.host, &this.world);
        for line in [
            format!("ip netns add {host}"),
            format!("ip netns add {world}"),
            format!("ip -n {host} link set lo up"),
            format!("ip -n {world} link set lo up"),
            format!("ip -n {host} link add wan0 type veth peer name wan1 netns {world}"),
            format!("ip -n {host} address add {HOST}/24 dev wan0"),
            format!("ip -n {host} address add {HOST_TOO}/32 dev wan0"),
            format!("ip -n {world} address add {WORLD}/24 dev wan1"),
            format!("ip -n {world} address add {OTHER}/24 dev wan1"),
            format!("ip -n {host} link set wan0 up"),
            format!("ip -n {world} link set wan1 up"),
            format!("ip -n {host} route add default via {WORLD}"),
        ] {
            run(&line);
        }
        within(world, || {
            let dns = UdpSocket::bind((WORLD, 53)).unwrap();
            thread::spawn(move || resolve(&dns));
            PORTS.into_iter().for_each(tell_who);
        });
        within(host, || tell_who(PORTS[0]));
        this
    }

    /// The words that start a program on the host.
    pub(crate) fn on_host(&self) -> Vec<String> {
        ["nsenter", &format!("--net=/run/netns/{}", self.host), "--"]
            .map(str::to_owned)
            .to_vec()
    }

    /// The names of the host's devices that the test did not make.
    pub(crate) fn devices(&self) -> Vec<String> {
        let text = run(&format!("ip -n {} -br link", self.host));
        let names = text.lines().filter_map(|l| l.split([' ', '@']).next());
        let names = names.filter(|n| !["lo", "wan0"].contains(n));
        names.map(str::to_owned).collect()
    }

    /// The host's rules.
    pub(crate) fn rules(&self) -> String {
        run(&format!("ip netns exec {} nft list ruleset", self.host))
    }

    /// What a server says at once to who connects from the host or the world, if anybody answers.
    pub(crate) fn greeting(from: &str, to: SocketAddr) -> Option<String> {
        within(from, || {
            let patience = Duration::from_secs(5);
            let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
            stream.set_read_timeout(Some(patience)).unwrap();
            let mut bytes = [0; 64];
            let read = stream.read(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for name in [&self.host, &self.world] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Runs `work` in a network namespace. Sockets that it makes stay there.
fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    let run = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap()
}

/// Tells everybody who connects from which address that was. Ends with the tests.
fn tell_who(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if let Ok(peer) = stream.peer_addr() {
                let _ = writeln!(stream, "{}", peer.ip());
            }
        }
    });
}

/// Answers questions of DNS (RFC 1035): one name has an address, no other is there.
fn resolve(socket: &UdpSocket) {
    let mut known = Vec::new();
    for label in NAME.split('.') {
        known.push(u8::try_from(label.len()).unwrap());
        known.extend(label.as_bytes());
    }
    known.push(0);
    let mut packet = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut packet) {
        let query = &packet[..length];
        let Some(question) = query.get(12..) else {
            continue;
        };
        let Some(end) = question.iter().position(|b| *b == 0).map(|zero| zero + 5) else {
            continue;
        };
        let Some(question) = question.get(..end) else {
            continue;
        };
        let is_known = question[..end - 4].eq_ignore_ascii_case(&known);
        let is_address = question[end - 4..end - 2] == [0, 1];
        let answers = u8::from(is_known && is_address);
        let code = if is_known { 0x80 } else { 0x83 };
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
        answer.extend(question);
        if answers == 1 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(WORLD.octets());
        }
        let _ = socket.send_to(&answer, from);
    }
}
