//! Host groups and networks.

use super::{accepted, group, parse, refused};
use crate::config::{NetworkConfig, NetworkMode};
use std::net::Ipv4Addr;

#[test]
fn wrong_values_of_a_group_are_named_with_place_found_and_expected() {
    for (line, want) in [
        (
            "vcpu: two",
            "slicer-mac.yaml:5:13: host_groups[0].vcpu: expected a whole number, found text \"two\"",
        ),
        (
            "arch: riscv64",
            "slicer-mac.yaml:5:13: host_groups[0].arch: expected amd64 or arm64, found text \"riscv64\"",
        ),
        (
            "vcpu: 0",
            "slicer-mac.yaml:5:13: host_groups[0].vcpu: expected a whole number from 1 to 255, \
             found the number 0",
        ),
        (
            "vcpu: \"2\"",
            "slicer-mac.yaml:5:13: host_groups[0].vcpu: expected a whole number, found text \"2\"",
        ),
        (
            "count: 1.5",
            "slicer-mac.yaml:5:14: host_groups[0].count: expected a whole number, \
             found the number 1.5",
        ),
        (
            "count: -1",
            "slicer-mac.yaml:5:14: host_groups[0].count: expected a whole number from 0 to 10000, \
             found the number -1",
        ),
        (
            "persistent: [true]",
            "slicer-mac.yaml:5:19: host_groups[0].persistent: expected true or false, found a list",
        ),
        (
            "ram_gb: true",
            "slicer-mac.yaml:5:15: host_groups[0].ram_gb: expected a whole number, found true",
        ),
        (
            "ram_mb: 64",
            "slicer-mac.yaml:5:15: host_groups[0].ram_mb: expected a whole number from 128 to \
             16777216, found the number 64",
        ),
        (
            "storage_size: 15",
            "slicer-mac.yaml:5:21: host_groups[0].storage_size: expected a size with a unit, such \
             as 15G, from 64M to 16T, found the number 15",
        ),
        (
            "network: nat",
            "slicer-mac.yaml:5:16: host_groups[0].network: expected a table of `key: value` lines, \
             found text \"nat\"",
        ),
        (
            "dns_servers: [8.8.8.8, '::1']",
            "slicer-mac.yaml:5:30: host_groups[0].dns_servers[1]: expected an IPv4 address, found \
             text \"::1\"",
        ),
        (
            "ssh_keys: [hello]",
            "slicer-mac.yaml:5:18: host_groups[0].ssh_keys[0]: not a public key: expected \
             `ssh-ed25519 AAAA…`",
        ),
        (
            "github_user: a/b",
            "slicer-mac.yaml:5:20: host_groups[0].github_user: invalid GitHub user \"a/b\": use up \
             to 39 letters, digits, - and _",
        ),
        (
            "network: {gateway: 192.168.64.1}",
            "slicer-mac.yaml:5:26: host_groups[0].network.gateway: expected an IPv4 address with \
             its prefix: 192.168.64.1/24, found text \"192.168.64.1\"",
        ),
        (
            "network: {gateway: 192.168.64.0/24}",
            "slicer-mac.yaml:5:26: host_groups[0].network.gateway: 192.168.64.0 is an end of its \
             network, not an address in it",
        ),
        (
            "network: {gateway: 10.0.0.1/30}",
            "slicer-mac.yaml:5:26: host_groups[0].network.gateway: prefix /30 is not within /8 to \
             /29",
        ),
        (
            "network: {addresses: [192.168.65.2]}",
            "slicer-mac.yaml:5:29: host_groups[0].network.addresses[0]: 192.168.65.2 is not an \
             address in the network of the gateway, 192.168.64.1/24",
        ),
        (
            "network: {addresses: [192.168.64.1]}",
            "slicer-mac.yaml:5:29: host_groups[0].network.addresses[0]: 192.168.64.1 is the gateway",
        ),
        (
            "network: {addresses: [192.168.64.2/16]}",
            "slicer-mac.yaml:5:29: host_groups[0].network.addresses[0]: its prefix /16 is not the \
             gateway's, /24",
        ),
        (
            "network: {addresses: [192.168.64.2, 192.168.64.2/24]}",
            "slicer-mac.yaml:5:43: host_groups[0].network.addresses[1]: 192.168.64.2 is in the \
             list already",
        ),
        (
            "count: 300",
            "slicer-mac.yaml:4:7: host_groups[0].network: room for 253 VMs, but count is 300",
        ),
        (
            "sleep_action: panic",
            "slicer-mac.yaml:5:21: host_groups[0].sleep_action: expected one of none, prevent, \
             shutdown, suspend, found text \"panic\"",
        ),
        (
            "network: {drop: [everything]}",
            "slicer-mac.yaml:5:24: host_groups[0].network.drop[0]: expected a network \
             (10.0.0.0/8), an address, or an address and port (10.0.0.1:443), found text \
             \"everything\"",
        ),
    ] {
        assert_eq!(refused(&group(&[line])), [want], "{line}");
    }
    assert_eq!(
        refused(&group(&["ram_gb: 4", "ram_mb: 4096"])),
        ["slicer-mac.yaml:6:15: host_groups[0].ram_mb: ram_gb is given too: keep one of the two"]
    );
    assert_eq!(
        refused(&group(&[
            "dns_servers: [1.1.1.1]",
            "network: {dns_servers: [1.1.1.1]}"
        ])),
        [
            "slicer-mac.yaml:6:30: host_groups[0].network.dns_servers: host_groups[0].dns_servers is \
          given too: keep one of the two"
        ]
    );
    let private = "ssh_keys: ['-----BEGIN OPENSSH PRIVATE KEY-----']";
    assert!(refused(&group(&[private]))[0].contains("this is a private key"));
}

#[test]
fn a_github_user_of_the_group_goes_before_that_of_all() {
    let user = |lines: &[&str], all: &str| {
        let (config, warnings) = accepted(&(group(lines) + all));
        assert_eq!(warnings, [""; 0]);
        config.host_groups[0].github_user.clone()
    };
    assert_eq!(user(&["vcpu: 1"], ""), "");
    assert_eq!(user(&["vcpu: 1"], "  github_user: all\n"), "all");
    assert_eq!(user(&["github_user: own"], "  github_user: all\n"), "own");
}

#[test]
fn groups_need_usable_names_of_their_own() {
    let named = |name: &str| format!("config: {{image: i, host_groups: [{{name: {name}}}]}}");
    let longest = "x".repeat(57);
    for good in ["a", "a-b", "0", "true", longest.as_str()] {
        accepted(&named(good));
    }
    let long = "x".repeat(58);
    for bad in [
        "A",
        "a_b",
        "-a",
        "a-",
        "a.b",
        "ü",
        "''",
        "a b",
        long.as_str(),
    ] {
        let all = refused(&named(bad));
        assert!(
            all[0].contains("host_groups[0].name: expected a name"),
            "{all:?}"
        );
    }
    assert_eq!(
        refused("config:\n  image: i\n  host_groups:\n    - name: a\n    - name: a\n"),
        ["slicer-mac.yaml:5:13: host_groups[1].name: \"a\" is the group on line 4 already"]
    );
    assert_eq!(
        refused("config: {image: i, host_groups: [{count: 1}]}"),
        ["slicer-mac.yaml:1:34: host_groups[0].name: a group needs a name, found nothing"]
    );
}

#[test]
fn a_range_is_part_of_the_network() {
    let pool = |line: &str| {
        let (config, warnings) = accepted(&group(&[line]));
        assert_eq!(warnings, [""; 0]);
        let network = config.host_groups[0].network.clone();
        let pool: Vec<String> = network.pool().map(|a| a.to_string()).collect();
        assert_eq!(network.room(), pool.len(), "{line}");
        (format!("{}/{}", network.gateway, network.prefix), pool)
    };
    let (_, some) = pool("network: {range: 192.168.64.1-192.168.64.3}");
    assert_eq!(some, ["192.168.64.2", "192.168.64.3"]);
    let (_, part) = pool("network: {gateway: 10.0.0.1/24, range: 10.0.0.252/30}");
    assert_eq!(part, ["10.0.0.252", "10.0.0.253", "10.0.0.254"]);
    // Alone, it is the network.
    let (gateway, all) = pool("network: {mode: isolated, range: 10.5.0.0/29}");
    assert_eq!(gateway, "10.5.0.1/29");
    assert_eq!(
        all,
        ["10.5.0.2", "10.5.0.3", "10.5.0.4", "10.5.0.5", "10.5.0.6"]
    );
    for (line, want) in [
        ("{range: a-b}", "expected a range of addresses"),
        ("{range: 192.168.64.9-192.168.64.2}", "is no range"),
        ("{range: 192.168.65.2-192.168.65.9}", "is no range"),
        ("{gateway: 10.0.0.1/24, range: 10.0.0.0/16}", "is no range"),
        ("{range: 10.0.0.0/30}", "prefix /30"),
        (
            "{range: 192.168.64.2-192.168.64.9, addresses: [192.168.64.2]}",
            "keep one of the two",
        ),
    ] {
        let errors = refused(&group(&[&format!("network: {line}")]));
        assert!(errors[0].contains(want), "{line}: {errors:?}");
    }
}

#[test]
fn networks_have_modes() {
    let (config, warnings) = accepted(&group(&[
        "network: {mode: isolated, allow: ['10.0.0.1:443', 10.1.2.3/8], drop: [0.0.0.0/0]}",
    ]));
    assert_eq!(warnings, [""; 0]);
    let network = &config.host_groups[0].network;
    assert_eq!(network.mode, NetworkMode::Isolated);
    let allow: Vec<String> = network.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["10.0.0.1:443", "10.0.0.0/8"]);
    let (config, warnings) = accepted(&group(&[
        "network: {mode: bridge, bridge: br-x, tap_prefix: t}",
    ]));
    assert_eq!(warnings, [""; 0]);
    let network = &config.host_groups[0].network;
    assert_eq!(network.bridge.as_deref(), Some("br-x"));
    assert_eq!(network.tap_prefix.as_deref(), Some("t"));

    // What has no effect is told.
    for (line, want) in [
        ("{allow: [10.0.0.1]}", "VMs may connect to any destination"),
        (
            "{mode: bridge, drop: [10.0.0.1]}",
            "mode is bridge, not isolated",
        ),
        ("{bridge: b}", "mode is nat, not bridge"),
        (
            "{mode: isolated, tap_prefix: t}",
            "mode is isolated, not bridge",
        ),
    ] {
        let (_, warnings) = accepted(&group(&[&format!("network: {line}")]));
        assert!(warnings[0].contains(want), "{line}: {warnings:?}");
    }
    for (line, want) in [
        (
            "{mode: wifi}",
            "expected one of nat, bridge, isolated, macvtap",
        ),
        ("{mode: bridge, bridge: 'a/b'}", "a network device's name"),
        (
            "{mode: bridge, tap_prefix: elevenchars}",
            "at most 10 letters",
        ),
    ] {
        let errors = refused(&group(&[&format!("network: {line}")]));
        assert!(errors[0].contains(want), "{line}: {errors:?}");
    }
}

#[test]
fn bridges_do_not_overlap() {
    let two = |one: &str, other: &str| {
        let more = format!("    - name: other\n      network: {{mode: bridge, {other}}}\n");
        let text = group(&[&format!("network: {{mode: bridge, {one}}}")]);
        parse(&(text + &more)).err().map(|e| e.to_string())
    };
    let same = "gateway: 10.0.0.1/24, bridge: b";
    assert_eq!(two(same, same), None);
    assert_eq!(two(same, "gateway: 10.0.1.1/24, bridge: c"), None);
    for other in ["gateway: 10.0.0.1/24", "gateway: 10.0.9.1/16, bridge: b"] {
        let e = two(same, other).unwrap();
        assert!(e.contains("overlaps with that of group"), "{e}");
    }
}

#[test]
fn an_open_pool_is_the_network_without_its_ends_and_gateway() {
    let network = NetworkConfig {
        gateway: Ipv4Addr::new(10, 0, 0, 3),
        prefix: 29,
        ..NetworkConfig::default()
    };
    let pool: Vec<String> = network.pool().map(|a| a.to_string()).collect();
    assert_eq!(
        pool,
        ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    );
    assert_eq!(network.room(), pool.len());
    let first = NetworkConfig::default().pool().next();
    assert_eq!(first, Some(Ipv4Addr::new(192, 168, 64, 2)));
}

#[test]
fn forwards_are_those_of_the_command() {
    let (config, warnings) = accepted(&group(&[
        "forwards:",
        "  - ~/.slicer/docker.sock:/var/run/docker.sock",
        "  - 6443:127.0.0.1:6443",
        "  - ./x.sock:/run/x.sock",
    ]));
    assert_eq!(warnings, [""; 0]);
    let forwards: Vec<String> = config.host_groups[0]
        .forwards
        .iter()
        .map(|f| format!("{}:{}", f.listen, f.target))
        .collect();
    let home = super::host(crate::config::HostOs::Linux).home.unwrap();
    let docker = home.join(".slicer/docker.sock");
    assert_eq!(
        forwards,
        [
            format!("{}:unix:/var/run/docker.sock", docker.display()),
            "127.0.0.1:6443:127.0.0.1:6443".to_owned(),
            "./x.sock:unix:/run/x.sock".to_owned(),
        ]
    );
    for (line, part) in [
        ("forwards: 6443", "a list"),
        ("forwards: [\"70000:a:1\"]", "70000"),
        ("forwards: [\"nonsense\"]", "nonsense"),
        ("forwards: [\"1:a:1\", \"1:b:2\"]", "already"),
    ] {
        let errors = refused(&group(&[line]));
        assert!(errors[0].contains(part), "{line}: {errors:?}");
    }
}
