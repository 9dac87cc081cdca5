//! What answers in a guest when its channel is measured: as little as possible, so that what is
//! measured is the channel.
//!
//! `port NAME` serves the virtio-serial port of that name, `channel NAME` every stream of the guest
//! channel on such a port, `tcp PORT` a listener on loopback. `echo COUNT` says, in nanoseconds each, how long
//! a byte takes from another program in the guest and back, by TCP. Whoever is at the other end sends
//! requests of nine bytes, an operation and a count of bytes (big-endian), one after the other.
#![deny(unsafe_code)]

mod channel;

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

/// Bytes read or written at once: no less than any pipe on the way takes.
const PIECE: usize = 128 << 10;
/// The answer when all was taken.
const DONE: &[u8] = b"!";
/// Where what is to be kept goes.
const FILE: &str = "/var/tmp/slicer-bench";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let served = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["port", name] => serve_port(name),
        ["channel", name] => channel::serve(name),
        ["tcp", port] => serve_tcp(port),
        ["echo", count] => echo(count),
        ["ask", port, count] => ask_port(port, count),
        _ => Err(io::Error::other(
            "usage: port NAME | channel NAME | tcp PORT | echo COUNT",
        )),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "Error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve_port(name: &str) -> io::Result<()> {
    let path = find_port(name)?;
    let port = OpenOptions::new().read(true).write(true).open(path)?;
    serve(&port, &port)
}

/// The device of the port with this name.
fn find_port(name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if found.trim() == name {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no port {name}"),
    ))
}

fn serve_tcp(port: &str) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port.parse().map_err(io::Error::other)?))?;
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_nodelay(true)?;
        // How a connection ends is its client's business.
        let _ = serve(&stream, &stream);
    }
    Ok(())
}

/// Answers a program of its own that asks.
fn echo(count: &str) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port().to_string();
    let mut asks = Command::new(env::current_exe()?)
        .args(["ask", port.as_str(), count])
        .spawn()?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    serve(&stream, &stream)?;
    asks.wait().map(drop)
}

fn ask_port(port: &str, count: &str) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let count = count.parse().map_err(io::Error::other)?;
    let times = ask(TcpStream::connect(("127.0.0.1", port))?, count)?;
    let mut out = io::stdout().lock();
    for time in times {
        writeln!(out, "{}", time.as_nanos())?;
    }
    Ok(())
}

fn ask(mut stream: TcpStream, count: u64) -> io::Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    stream.write_all(b"e")?;
    stream.write_all(&count.to_be_bytes())?;
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let mut byte = [7];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Answers requests until there are no more.
fn serve(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut request = [0; 9];
    while from.read_exact(&mut request).is_ok() {
        let [operation, count @ ..] = request;
        let count = u64::from_be_bytes(count);
        match operation {
            b'i' => {
                take(&mut from, count, &mut buffer, |_| Ok(()))?;
                to.write_all(DONE)?;
            }
            b'w' => {
                let mut file = File::create(FILE)?;
                take(&mut from, count, &mut buffer, |piece| file.write_all(piece))?;
                to.write_all(DONE)?;
            }
            b'o' => give(&mut to, count, &mut buffer, |piece| Ok(piece.len()))?,
            b'r' => {
                let mut file = File::open(FILE)?;
                give(&mut to, count, &mut buffer, |piece| file.read(piece))?;
            }
            b'e' => take(&mut from, count, &mut buffer, |piece| to.write_all(piece))?,
            _ => return Err(io::Error::other("an operation that does not exist")),
        }
    }
    Ok(())
}

fn take(
    from: &mut impl Read,
    mut left: u64,
    buffer: &mut [u8],
    mut put: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        match from.read(&mut buffer[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                put(&buffer[..n])?;
                left -= n as u64;
            }
        }
    }
    Ok(())
}

fn give(
    to: &mut impl Write,
    mut left: u64,
    buffer: &mut [u8],
    mut fill: impl FnMut(&mut [u8]) -> io::Result<usize>,
) -> io::Result<()> {
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        match fill(&mut buffer[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                to.write_all(&buffer[..n])?;
                left -= n as u64;
            }
        }
    }
    Ok(())
}
