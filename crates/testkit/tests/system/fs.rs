//! The files of a real VM.

use crate::tests;
use crate::tour::{Tour, VM};
use libtest_mimic::Trial;
use slicer_api::{FsKind, MakeDirectory, WatchKind, WatchRequest};
use slicer_testkit::LIMIT;
use std::sync::Arc;

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("fs", tour; directories_and_entries, changes_are_told)
}

async fn directories_and_entries(tour: &Tour) {
    let client = tour.client();
    let make = |path: &str, recursive| MakeDirectory {
        path: path.to_owned(),
        recursive,
        mode: String::new(),
    };
    let deep = make("~/fs/deep/er", true);
    client.make_directory(VM, &deep).await.unwrap();
    client.make_directory(VM, &deep).await.unwrap();
    let again = client.make_directory(VM, &make("~/fs", false)).await;
    assert_eq!(again.unwrap_err().status(), Some(409));
    // The default user's, so that commands can write into it.
    tour.says("echo hello > ~/fs/deep/file; ln -s /nowhere ~/fs/deep/link")
        .await;
    let list = client.read_directory(VM, "~/fs/deep").await.unwrap();
    let brief: Vec<_> = list.iter().map(|e| (&*e.name, e.kind)).collect();
    assert_eq!(
        brief,
        [
            ("er", FsKind::Directory),
            ("file", FsKind::File),
            ("link", FsKind::Symlink)
        ]
    );
    let stat = client.stat(VM, "/home/ubuntu/fs/deep/file").await.unwrap();
    assert_eq!((stat.size, &*stat.mode), (6, "0644"));
    let missing = client.stat(VM, "/no/such").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let full = client.remove_path(VM, "~/fs", false).await.unwrap_err();
    assert_eq!(full.status(), Some(400));
    client.remove_path(VM, "~/fs", true).await.unwrap();
    assert_eq!(tour.says("ls ~ | grep -c fs || true").await, "0");
}

async fn changes_are_told(tour: &Tour) {
    let client = tour.client();
    tour.says("mkdir -p ~/watched").await;
    let request = WatchRequest {
        paths: vec!["~/watched".into()],
        recursive: true,
        events: vec![WatchKind::Create, WatchKind::Remove],
        max_events: Some(3),
        ..WatchRequest::default()
    };
    let mut stream = client.watch_files(VM, &request).await.unwrap();
    tour.says("cd ~/watched && mkdir sub && echo 12345 > sub/file && sleep 1 && rm sub/file")
        .await;
    let mut told = Vec::new();
    let read = async {
        while let Some(event) = stream.next_event().await.unwrap() {
            told.push((event.kind, event.path, event.size));
        }
    };
    tokio::time::timeout(LIMIT, read).await.unwrap();
    let file = "/home/ubuntu/watched/sub/file".to_owned();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0].0, WatchKind::Create);
    assert_eq!(told[0].1, "/home/ubuntu/watched/sub");
    assert_eq!(told[1], (WatchKind::Create, file.clone(), 6));
    assert_eq!(told[2], (WatchKind::Remove, file, 0));
    tour.says("rm -r ~/watched").await;
}
