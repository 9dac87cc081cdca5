//! The host's end of the channel, whose guest is hostile: what it says before its reply, and after.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_channel::{connect, wire};
use slicer_fuzz::{pieces, runtime};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fuzz_target!(|data: (u8, &[u8], &[u8])| {
    let (cut, before, after) = data;
    runtime().block_on(async {
        let (io, mut guest) = tokio::io::duplex(1 << 16);
        let guest = async {
            let mut hello = [0; wire::HELLO_LEN];
            guest.read_exact(&mut hello).await.unwrap();
            let next = &hello[wire::TRIGGER_LEN + 4..];
            let reply = [
                &wire::REPLY.to_bytes()[..],
                &wire::VERSION.to_be_bytes(),
                next,
            ]
            .concat();
            let all = [before, &reply, after].concat();
            let (mut from, mut to) = tokio::io::split(&mut guest);
            let write = async {
                for piece in pieces(&all, cut) {
                    if to.write_all(piece).await.is_err() {
                        break;
                    }
                }
                let _ = to.shutdown().await;
            };
            let read = async {
                let mut sink = [0; 4096];
                while matches!(from.read(&mut sink).await, Ok(n) if n > 0) {}
            };
            tokio::join!(write, read);
        };
        let host = async {
            let Ok((mux, driver)) = connect(io, wire::HELLO).await else {
                return;
            };
            let user = async {
                let Ok(mut stream) = mux.open().await else {
                    return;
                };
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
                let mut answer = [0; 4096];
                while matches!(stream.read(&mut answer).await, Ok(n) if n > 0) {}
            };
            tokio::join!(driver, user);
        };
        let both = async { tokio::join!(host, guest) };
        tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap();
    });
});
