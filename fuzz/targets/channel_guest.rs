//! The guest's end of the channel: what precedes a hello, and what follows it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_channel::{serve, wire};
use slicer_fuzz::{pieces, runtime};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fuzz_target!(|data: (u8, &[u8], &[u8])| {
    let (cut, before, after) = data;
    let hello = [
        &wire::HELLO.to_bytes()[..],
        &wire::VERSION.to_be_bytes(),
        &[7; 16],
    ]
    .concat();
    let all = [before, &hello, after].concat();
    runtime().block_on(async {
        let (io, mut host) = tokio::io::duplex(1 << 16);
        let guest = serve(io, |stream| {
            tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        });
        let host = async {
            let (mut from, mut to) = tokio::io::split(&mut host);
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
        let served = async {
            // It ends with its pipe, at the latest.
            assert!(guest.await.is_err());
        };
        let both = async { tokio::join!(served, host) };
        tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap();
    });
});
