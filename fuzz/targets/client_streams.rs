//! What a guest sends a client: frames of an exec, of a log, events of a watch, and answers that
//! aren't even HTTP.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slicer_api::{ExecRequest, LogsRequest, WatchRequest};
use slicer_client::{Client, output_bytes};
use slicer_fuzz::pieces;

async fn ask(client: &Client, what: u8) {
    match what % 5 {
        0 => {
            let Ok(mut stream) = client.exec("vm", &ExecRequest::default(), None).await else {
                return;
            };
            while let Some(Ok(frame)) = stream.next_frame().await {
                if let Some(text) = frame.stdout.or(frame.stderr) {
                    let _ = output_bytes(text, frame.encoding);
                }
            }
        }
        1 => {
            let logs = client.background_logs("vm", "ex_1", LogsRequest::default());
            let Ok(mut stream) = logs.await else { return };
            while let Some(Ok(_)) = stream.next_frame().await {}
        }
        2 => {
            let watch = client.watch_files("vm", &WatchRequest::default()).await;
            let Ok(mut stream) = watch else { return };
            while let Ok(Some(_)) = stream.next_event().await {}
        }
        3 => drop(client.exec_buffered("vm", &ExecRequest::default()).await),
        _ => drop(client.health("vm").await),
    }
}

fuzz_target!(|data: (u8, bool, u8, &[u8])| {
    let (what, http, cut, bytes) = data;
    let head: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    let head = if http { head } else { b"" };
    let answer: Vec<&[u8]> = [head].into_iter().chain(pieces(bytes, cut)).collect();
    slicer_fuzz::with_answer(&answer, async |client| ask(client, what).await);
});
