//! What is made, in a network namespace of the test's own, and that nothing of it is left.

use super::*;
use std::os::fd::AsRawFd as _;
use std::process::Command;

/// Runs a test in a new network namespace. Who may not make one is told so, and tests nothing.
fn alone(test: impl FnOnce(&Networks, &Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let needed = [CapabilitySet::NET_ADMIN, CapabilitySet::SYS_ADMIN];
    if let Err(e) = permitted("isolated", &needed, "root") {
        eprintln!("SKIPPED: {e}");
        return;
    }
    namespace::within_new(|| {
        let networks = Networks::open(dir.path(), dir.path().join("note")).unwrap();
        test(&networks, dir.path());
        Ok(())
    })
    .unwrap();
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(work)
}

fn bridge(gateway: &str, name: Option<&str>) -> Bridge {
    Bridge {
        gateway: gateway.parse().unwrap(),
        name: name.map(str::to_owned),
        tap_prefix: Some("t".to_owned()),
        apart: false,
    }
}

fn isolated(address: &str) -> Isolated {
    Isolated {
        gateway: "10.9.0.1/24".parse().unwrap(),
        address: address.parse().unwrap(),
        policy: crate::Policy::default(),
    }
}

/// What a program prints here.
fn says(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn rules() -> String {
    says("nft", &["list", "ruleset"])
}

fn devices() -> Vec<String> {
    let all = Links::open().unwrap().all().unwrap();
    let names = all.into_iter().map(|d| d.name);
    names.filter(|n| n != "lo").collect()
}

/// The kernel takes namespaces down behind our back.
fn soon(what: &str, check: impl Fn() -> bool) {
    for _ in 0..500 {
        if check() {
            return;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{what} did not come: {:?}", devices());
}

#[test]
fn a_bridge_is_there_as_long_as_somebody_is_on_it() {
    alone(|networks, dir| {
        let mut one = wait(networks.bridge(bridge("10.1.0.1/24", Some("br-x")))).unwrap();
        let two = wait(networks.bridge(bridge("10.1.0.1/24", Some("br-x")))).unwrap();
        let other = wait(networks.bridge(bridge("10.2.0.1/24", None))).unwrap();
        let mut names = devices();
        names.sort();
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(names.contains(&"br-x".to_owned()) && names.contains(&"t0".to_owned()));
        assert!(dir.join("note").exists());
        assert!(rules().contains("ip saddr 10.1.0.0/24 oifname != \"br-x\" masquerade"));
        assert_eq!(fs::read_to_string(FORWARDING).unwrap().trim(), "1");

        // The tap goes with its descriptor, the bridge with the last link.
        let tap = one.take_tap().unwrap();
        assert!(tap.as_raw_fd() > 2 && one.take_tap().is_none());
        drop(tap);
        soon("a tap's end", || devices().len() == 4);
        drop(one);
        drop(two);
        soon("a bridge's end", || !devices().contains(&"br-x".to_owned()));
        soon("its rules' end", || !rules().contains("10.1.0.0"));
        assert!(rules().contains("10.2.0.0"));
        drop(other);
        soon("the end", || devices().is_empty() && rules().is_empty());
        soon("the note's end", || !dir.join("note").exists());
    });
}

#[test]
fn one_that_is_apart_joins_when_it_is_told() {
    alone(|networks, _| {
        let asked = Bridge {
            apart: true,
            ..bridge("10.1.0.1/24", Some("br-x"))
        };
        let mut link = wait(networks.bridge(asked.clone())).unwrap();
        let on_it = || says("ip", &["-o", "link", "show", "master", "br-x", "up"]);
        assert!(devices().contains(&"t0".to_owned()));
        assert_eq!(on_it(), "");
        let apart = link.take_apart().unwrap();
        assert!(link.take_apart().is_none());
        wait(apart.join()).unwrap();
        assert!(on_it().contains(" t0: "), "{}", on_it());

        // One whose VM is gone has nothing to join.
        let mut gone = wait(networks.bridge(asked)).unwrap();
        let apart = gone.take_apart().unwrap();
        drop(gone.take_tap());
        soon("a tap's end", || !devices().contains(&"t1".to_owned()));
        wait(apart.join()).unwrap_err();
        let mut at_once = wait(networks.bridge(bridge("10.1.0.1/24", Some("br-x")))).unwrap();
        assert!(at_once.take_apart().is_none());
    });
}

#[test]
fn a_namespace_ends_with_its_tap() {
    alone(|networks, dir| {
        let mut link = wait(networks.isolated(isolated("10.9.0.2"))).unwrap();
        let tap = link.take_tap().unwrap();
        // All that is seen of it from here.
        let names = devices();
        assert_eq!(names.len(), 1, "{names:?}");
        assert!(names[0].starts_with("sv"));
        assert!(says("ip", &["route"]).contains("10.9.0.2 via 169.254.0.2"));
        let other = wait(networks.isolated(isolated("10.9.0.3"))).unwrap();
        assert_eq!(devices().len(), 2);
        drop(tap);
        soon("its end", || devices().len() == 1);
        assert!(rules().contains("10.9.0.0/24"));
        drop((link, other));
        soon("the end", || devices().is_empty() && rules().is_empty());
        soon("the note's end", || !dir.join("note").exists());
    });
}

#[test]
fn what_a_dead_owner_left_is_found() {
    alone(|networks, dir| {
        // Not released before all is over: as if the process had been killed.
        let _link = wait(networks.bridge(bridge("10.1.0.1/24", Some("br-x")))).unwrap();
        let stranger = Networks::open(Path::new("/other"), dir.join("other")).unwrap();
        fs::write(dir.join("other"), "").unwrap();
        wait(stranger.sweep()).unwrap();
        assert!(devices().contains(&"br-x".to_owned()));
        let next = Networks::open(dir, dir.join("note")).unwrap();
        wait(next.sweep()).unwrap();
        assert!(!devices().contains(&"br-x".to_owned()), "{:?}", devices());
        assert_eq!(rules(), "");
        assert!(!dir.join("note").exists());
    });
}

#[test]
fn what_others_have_is_left_alone() {
    alone(|networks, _| {
        says("ip", &["link", "add", "theirs", "type", "bridge"]);
        says("ip", &["address", "add", "10.1.0.77/16", "dev", "theirs"]);
        let e = wait(networks.bridge(bridge("10.3.0.1/24", Some("theirs")))).unwrap_err();
        assert!(matches!(e, NetworkError::NotOurs(_)), "{e}");
        let e = wait(networks.bridge(bridge("10.1.0.1/24", None))).unwrap_err();
        assert!(
            e.to_string()
                .contains("theirs has the address 10.1.0.77/16"),
            "{e}"
        );
        let e = wait(networks.isolated(Isolated {
            gateway: "10.1.0.1/24".parse().unwrap(),
            ..isolated("10.1.0.2")
        }));
        assert!(matches!(e.unwrap_err(), NetworkError::Overlap { .. }));
        assert_eq!(devices(), ["theirs"]);
    });
}
