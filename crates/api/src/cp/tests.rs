use super::*;
use proptest::prelude::*;

fn read(query: &str) -> Result<CopyIn, ApiError> {
    CopyIn::from_query(query, None)
}

#[test]
fn what_real_clients_send() {
    // TypeScript's writeFile, Go's WriteFile, Go's CpToVM of a directory.
    let copy = read("path=%2Ftmp%2Fa+b&mode=binary&uid=0&permissions=0600").unwrap();
    assert_eq!(copy.path, b"/tmp/a b");
    assert_eq!(
        (copy.mode, copy.uid, copy.gid, copy.permissions),
        (CopyMode::Binary, 0, AUTO_ID, Some(0o600))
    );
    assert_eq!(read("path=~/x").unwrap().mode, CopyMode::Binary);
    let copy = read(
        "copy_contents=true&copy_semantics=cp-v1&exclude=.git&exclude=*.o&mode=cp-v1-tar&path=%2Fw\
         &source_name=src&source_type=directory&uid=4294967295",
    )
    .unwrap();
    assert_eq!(copy.exclude.patterns().collect::<Vec<_>>(), [".git", "*.o"]);
    assert_eq!((copy.mode, copy.uid), (CopyMode::V1Tar, AUTO_ID));
    assert!(copy.copy_contents);
    let tree = CopyIn::from_query("path=/w", Some("Application/X-Tar; x=y")).unwrap();
    assert_eq!(tree.mode, CopyMode::Tar);
    let out = |q, accept| CopyOut::from_query(q, accept).unwrap().mode;
    assert_eq!(out("path=/w", None), CopyMode::Binary);
    assert_eq!(
        out("path=/w", Some("text/plain, application/x-tar")),
        CopyMode::Tar
    );
    let query = "path=/w&mode=cp-v1-recursive&copy_semantics=cp-v1";
    assert_eq!(out(query, None), CopyMode::V1Recursive);
}

#[test]
fn nonsense_is_refused() {
    let v1 = "path=/x&copy_semantics=cp-v1&mode=cp-v1";
    for (query, says) in [
        ("", "path"),
        ("path=", "path"),
        ("path=a%00b", "NUL"),
        ("path=/x&mode=zip", "invalid mode: zip"),
        (
            &format!("{v1}-recursive&source_name=x"),
            "invalid mode: cp-v1-recursive",
        ),
        ("path=/x&mode=cp-v1-tar&source_name=x", "copy_semantics"),
        ("path=/x&mode=tar&copy_semantics=cp-v1", "copy_semantics"),
        (
            "path=/x&mode=cp-v1-tar&copy_semantics=cp-v2&source_name=x",
            "copy_semantics",
        ),
        ("path=/x&uid=root", "uid"),
        ("path=/x&gid=-1", "gid"),
        ("path=/x&permissions=rwx", "permissions"),
        ("path=/x&permissions=888", "permissions"),
        ("path=/x&permissions=77777", "permissions"),
        ("path=/x&permissions=%2B644", "permissions"),
        ("path=/x&mode=tar&exclude=%5B", "exclude"),
        (&format!("{v1}-binary"), "source_name"),
        (&format!("{v1}-binary&source_name=."), "source_name"),
        (&format!("{v1}-binary&source_name=.."), "source_name"),
        (&format!("{v1}-binary&source_name=a/b"), "source_name"),
        (&format!("{v1}-binary&source_name=a%5Cb"), "source_name"),
        (&format!("{v1}-tar"), "source_name"),
        (
            &format!("{v1}-tar&source_name=a&source_type=file"),
            "source_type",
        ),
        (
            &format!("{v1}-binary&source_name=a&copy_contents=true"),
            "copy_contents",
        ),
        (&format!("path={}", "a".repeat(4096)), "4095"),
    ] {
        let e = read(query).unwrap_err();
        assert_eq!(e.status, 400, "{query}");
        assert!(e.message.contains(says), "{query}: {}", e.message);
    }
    assert!(read(&format!("{v1}-tar&copy_contents=true")).is_ok());
    assert!(read(&format!("path={}", "a".repeat(4095))).is_ok());
}

#[test]
fn the_placement_table() {
    use CopyMode::{Binary, Tar, V1Binary, V1Tar};
    use Found::{Directory, Missing, Other};
    use Placement::{At, Inside};
    use PlacementError::{IsDirectory, NoDirectory, NotDirectory};
    for (mode, contents, found, slash, placed) in [
        (Binary, false, Missing, false, Ok(At)),
        (Binary, false, Other, false, Ok(At)),
        (Binary, false, Directory, false, Err(IsDirectory)),
        (Binary, false, Missing, true, Err(NoDirectory)),
        (Tar, false, Missing, false, Ok(At)),
        (Tar, false, Missing, true, Ok(At)),
        (Tar, false, Directory, false, Ok(At)),
        (Tar, false, Other, false, Err(NotDirectory)),
        (V1Binary, false, Missing, false, Ok(At)),
        (V1Binary, false, Missing, true, Err(NoDirectory)),
        (V1Binary, false, Other, false, Ok(At)),
        (V1Binary, false, Other, true, Err(NotDirectory)),
        (V1Binary, false, Directory, false, Ok(Inside)),
        (V1Binary, false, Directory, true, Ok(Inside)),
        (V1Tar, false, Missing, false, Ok(At)),
        (V1Tar, false, Missing, true, Ok(At)),
        (V1Tar, false, Directory, false, Ok(Inside)),
        (V1Tar, false, Other, false, Err(NotDirectory)),
        (V1Tar, true, Missing, false, Ok(At)),
        (V1Tar, true, Directory, false, Ok(At)),
        (V1Tar, true, Other, false, Err(NotDirectory)),
    ] {
        assert_eq!(
            place(mode, contents, found, slash),
            placed,
            "{mode:?} {contents} {found:?} {slash}"
        );
    }
}

prop_compose! {
    fn any_copy()(
        mode in prop::sample::select(&[CopyMode::Binary, CopyMode::Tar, CopyMode::V1Binary, CopyMode::V1Tar][..]),
        path in prop::collection::vec(1u8.., 1..40),
        name in "[^/\\\\\0]{1,8}",
        (uid, gid) in any::<(u32, u32)>(),
        permissions in prop::option::of(0u32..=0o7777),
        exclude in prop::collection::vec("[a-z*? é/.]{0,6}", 0..3),
        contents in any::<bool>(),
    ) -> CopyIn {
        CopyIn {
            uid,
            gid,
            permissions,
            exclude: Excludes::new(exclude.iter().map(String::as_str)).unwrap(),
            source_name: if mode.is_v1() { format!("{name}x").into() } else { Vec::new() },
            copy_contents: mode == CopyMode::V1Tar && contents,
            ..CopyIn::new(mode, path)
        }
    }
}

proptest! {
    #[test]
    fn queries_survive_the_wire(copy in any_copy()) {
        prop_assert_eq!(read(&copy.to_query()), Ok(copy));
    }

    #[test]
    fn queries_of_downloads_survive_the_wire(copy in any_copy()) {
        let out = CopyOut { uid: copy.uid, exclude: copy.exclude, ..CopyOut::new(copy.mode, copy.path) };
        prop_assert_eq!(CopyOut::from_query(&out.to_query(), None), Ok(out));
    }

    #[test]
    fn any_query_is_answered(query in ".{0,80}") {
        let _ = read(&query);
        let _ = CopyOut::from_query(&query, Some(&query));
    }
}
