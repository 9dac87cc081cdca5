//! The configuration as a whole; its larger parts are tested beside this.

mod api;
mod docs;
mod groups;
mod shares;

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const GIB: u64 = 1 << 30;

fn host(os: HostOs) -> Host {
    Host {
        os,
        home: Some(PathBuf::from("/home/me")),
    }
}

fn parse(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    Config::parse(text, "slicer-mac.yaml", &host(HostOs::Linux))
}

fn accepted(text: &str) -> (Config, Vec<String>) {
    let (config, warnings) = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    (config, warnings.iter().map(ToString::to_string).collect())
}

fn refused(text: &str) -> Vec<String> {
    match parse(text) {
        Err(ConfigError::Invalid(all)) => all.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}\n{text}"),
    }
}

/// A group with `lines` beneath its name, which are on line 5 and following, column 7.
fn group(lines: &[&str]) -> String {
    let lines = lines.join("\n      ");
    format!("config:\n  image: oci:i\n  host_groups:\n    - name: sbox\n      {lines}\n")
}

/// A whole configuration with `lines` under `config`, which are on line 5 and following, column 3.
fn top(lines: &[&str]) -> String {
    let lines = lines.join("\n  ");
    format!("config:\n  image: oci:i\n  host_groups:\n    - name: sbox\n  {lines}\n")
}

#[test]
fn the_smallest_configuration_gets_the_defaults() {
    let (config, warnings) = accepted("config: {image: oci:i, host_groups: [{name: sbox}]}");
    assert_eq!(warnings, [""; 0]);
    assert_eq!(
        config,
        Config {
            host_groups: vec![HostGroupConfig {
                arch: None,
                name: "sbox".into(),
                count: 1,
                vcpu: 2,
                ram_bytes: 4 * GIB,
                storage_size: 15 * GIB,
                persistent: false,
                image: "oci:i".into(),
                userdata: Userdata::None,
                entrypoint: false,
                network: NetworkConfig {
                    gateway: Ipv4Addr::new(192, 168, 64, 1),
                    prefix: 24,
                    ..NetworkConfig::default()
                },
                dns_servers: vec![Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(1, 1, 1, 1)],
                forwards: vec![],
                ssh_keys: vec![],
                github_user: String::new(),
                shares: vec![],
                warm: None,
                warm_pool: 0,
                rosetta: false,
                sleep_action: SleepAction::None,
            }],
            hypervisor: Hypervisor::Qemu,
            kernel_image: None,
            insecure_registry: false,
            api: ApiConfig {
                listeners: vec![Listener {
                    address: ListenAddress::Unix("./slicer.sock".into()),
                    auth: false,
                }],
                token: None,
            },
            graceful_shutdown: true,
        }
    );
}

#[test]
fn everything_that_is_served_is_read() {
    let text = r#"
config:
  image: oci:all
  kernel_image: oci:k
  hypervisor: qemu
  graceful_shutdown: no
  ssh_keys:
    - ssh-ed25519 AAAAC3 a@b
    - |
      # two in one
      ssh-rsa AAAAB3 c@d
      restrict ecdsa-sha2-nistp256 AAAAE2 e@f
  host_groups:
    - &first
      name: one
      count: 3
      vcpu: 4
      ram_mb: 1536
      storage_size: 512M
      persistent: true
      image: oci:own
      ssh_keys: [ssh-ed25519 AAAAOWN]
      dns_servers: [9.9.9.9]
      network:
        mode: nat
        gateway: 10.1.2.1/29
        addresses: [10.1.2.3, 10.1.2.5/29, 10.1.2.2]
    - name: "2"
      ram_bytes: 268435456
      network: {dns_servers: [127.0.0.1]}
  api:
    socket: ~/s/slicer.sock
    bind_address: "0.0.0.0:"
    port: 9090
    auth: {enabled: true, token: s3cret}
"#;
    let (config, warnings) = accepted(text);
    assert_eq!(warnings, [""; 0]);
    let [one, two] = config.host_groups.as_slice() else {
        panic!("{config:?}");
    };
    assert_eq!((one.count, one.vcpu, one.persistent), (3, 4, true));
    assert_eq!(one.ram_bytes, 1536 << 20);
    assert_eq!(one.storage_size, 512 << 20);
    assert_eq!(one.image, "oci:own");
    assert_eq!(one.dns_servers, [Ipv4Addr::new(9, 9, 9, 9)]);
    assert_eq!(one.ssh_keys.len(), 4);
    assert_eq!(one.ssh_keys[3], "ssh-ed25519 AAAAOWN");
    let pool: Vec<String> = one.network.pool().map(|a| a.to_string()).collect();
    assert_eq!(pool, ["10.1.2.3", "10.1.2.5", "10.1.2.2"]);
    assert_eq!(two.name, "2");
    assert_eq!(two.ram_bytes, 256 << 20);
    assert_eq!(two.image, "oci:all");
    assert_eq!(two.dns_servers, [Ipv4Addr::LOCALHOST]);
    assert_eq!(two.ssh_keys.len(), 3);
    assert_eq!(config.group("2"), Some(two));
    assert_eq!(config.kernel_image.as_deref(), Some("oci:k"));
    assert!(!config.graceful_shutdown);
    assert_eq!(
        config.api.listeners,
        [
            Listener {
                address: ListenAddress::Unix("/home/me/s/slicer.sock".into()),
                auth: true,
            },
            Listener {
                address: ListenAddress::Tcp("0.0.0.0:9090".parse().unwrap()),
                auth: true,
            },
        ]
    );
    assert_eq!(config.api.token.as_ref().unwrap().expose(), "s3cret");
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn what_is_required_is_asked_for() {
    for (text, want) in [
        (
            "x: 1",
            "slicer-mac.yaml:1:1: config: expected everything in a table of this name, found \
             nothing",
        ),
        (
            "- config",
            "slicer-mac.yaml:1:1: the file: expected a table of `key: value` lines, found a list",
        ),
        (
            "config: {image: i}",
            "slicer-mac.yaml:1:9: host_groups: expected a list of groups, found nothing",
        ),
        (
            "config: {image: i, host_groups: []}",
            "slicer-mac.yaml:1:33: host_groups: expected at least one group, found an empty list",
        ),
        (
            "config: {image: '', host_groups: [{name: a}]}",
            "slicer-mac.yaml:1:35: host_groups[0].image: no image: give `image` here or for all \
             groups under `config`",
        ),
    ] {
        assert_eq!(refused(text), [want], "{text}");
    }
}

#[test]
fn all_errors_are_told_at_once_in_the_order_of_the_text() {
    let all = refused(
        "config:\n  graceful_shutdown: maybe\n  host_groups:\n    - name: A\n      vcpu: x\n      \
         vcpu: 3\n",
    );
    let places: Vec<&str> = all.iter().map(|l| &l[..l.find(' ').unwrap()]).collect();
    assert_eq!(
        places,
        [
            "slicer-mac.yaml:2:22:",
            "slicer-mac.yaml:4:7:",
            "slicer-mac.yaml:4:13:",
            "slicer-mac.yaml:5:13:",
            "slicer-mac.yaml:6:7:",
        ],
        "{all:#?}"
    );
}

#[test]
fn unknown_keys_are_warned_of_with_what_they_resemble() {
    let text = group(&["vcpus: 2", "colour: red", "network: {gatway: 1}"])
        + "  hipervisor: qemu\n  api: {sockt: x}\nother: 1\n";
    let (config, warnings) = accepted(&text);
    assert_eq!(config.host_groups[0].vcpu, 2);
    assert_eq!(
        warnings,
        [
            "slicer-mac.yaml:5:7: host_groups[0].vcpus: unknown key: did you mean vcpu?",
            "slicer-mac.yaml:6:7: host_groups[0].colour: unknown key and has no effect",
            "slicer-mac.yaml:7:17: host_groups[0].network.gatway: unknown key: did you mean \
             gateway?",
            "slicer-mac.yaml:8:3: hipervisor: unknown key: did you mean hypervisor?",
            "slicer-mac.yaml:9:9: api.sockt: unknown key: did you mean socket?",
            "slicer-mac.yaml:10:1: other: unknown key and has no effect",
        ]
    );
}

#[test]
fn keys_that_are_not_served_are_noticed_when_they_ask_for_something() {
    let asking = group(&[
        "storage: zfs",
        "ca: {generate: true, files: [a.pem]}",
        "gpu_count: 1",
        "network: {mode: macvtap, parent: p}",
    ]) + "  kernel_file: k\n  network_name: n\n  \
          pci: {a-1: [0]}\n  ssh: {port: 2222, bind_address: 0.0.0.0}\n";
    let (_, warnings) = parse(&asking).unwrap();
    assert_eq!(warnings.len(), 10, "{warnings:#?}");
    for warning in &warnings {
        assert_eq!(warning.kind, WarningKind::NotServed, "{warning}");
    }
    assert_eq!(
        warnings[0].to_string(),
        "slicer-mac.yaml:5:16: host_groups[0].storage: not served yet: disks are image files"
    );

    let silent = group(&[
        "storage: image",
        "ca: {generate: false, files: []}",
        "userdata:",
        "userdata_file: ''",
        "gpu_count: 0",
        "network: {mode: nat, range: '', allow: [], drop: []}",
    ]) + "  kernel_file: ''\n  pci: {}\n  \
          ssh: {port: 0, bind_address: 127.0.0.1}\n";
    assert_eq!(accepted(&silent).1, [""; 0]);
}

#[test]
fn sleep_actions_are_words() {
    for (line, action) in [
        ("count: 1", SleepAction::None),
        ("sleep_action:", SleepAction::None),
        ("sleep_action: ''", SleepAction::None),
        ("sleep_action: none", SleepAction::None),
        ("sleep_action: prevent", SleepAction::Prevent),
        ("sleep_action: shutdown", SleepAction::Shutdown),
        ("sleep_action: suspend", SleepAction::Suspend),
    ] {
        let (config, warnings) = accepted(&group(&[line]));
        assert_eq!(config.host_groups[0].sleep_action, action, "{line}");
        assert_eq!(warnings, [""; 0]);
    }
}

#[test]
fn userdata_is_text_or_a_file() {
    for (lines, userdata) in [
        (
            &["userdata: apt update"][..],
            Userdata::Script("apt update".into()),
        ),
        (
            &["userdata: |\n        #!/bin/sh\n        id"],
            Userdata::Script("#!/bin/sh\nid".into()),
        ),
        (
            &["userdata_file: setup.sh"],
            Userdata::File("setup.sh".into()),
        ),
        (&["userdata:", "userdata_file: ''"], Userdata::None),
    ] {
        let (config, warnings) = accepted(&group(lines));
        assert_eq!(config.host_groups[0].userdata, userdata);
        assert_eq!(warnings, [""; 0]);
    }
    let both = group(&["userdata: id", "userdata_file: f"]);
    assert!(
        parse(&both)
            .unwrap_err()
            .to_string()
            .contains("userdata_file")
    );
}

#[test]
fn the_hypervisor_is_the_hosts() {
    for (os, name, hypervisor, notices) in [
        (HostOs::Linux, "qemu", Hypervisor::Qemu, 0),
        (HostOs::Linux, "apple", Hypervisor::Qemu, 1),
        (HostOs::Linux, "firecracker", Hypervisor::Qemu, 1),
        (HostOs::MacOs, "apple", Hypervisor::Apple, 0),
        (HostOs::MacOs, "qemu", Hypervisor::Apple, 1),
    ] {
        let text = top(&[&format!("hypervisor: {name}")]);
        let (config, warnings) = Config::parse(&text, "f", &host(os)).unwrap();
        assert_eq!(config.hypervisor, hypervisor, "{name}");
        assert_eq!(warnings.len(), notices, "{warnings:?}");
    }
    assert!(refused(&top(&["hypervisor: xen"]))[0].contains("expected one of apple, qemu"));
}

#[test]
fn paths_need_a_home_only_when_they_name_it() {
    let homeless = Host {
        os: HostOs::Linux,
        home: None,
    };
    let parse = |api| Config::parse(&top(&[api]), "f", &homeless);
    assert!(parse("api: {socket: ./s}").is_ok());
    let error = parse("api: {socket: ~/s}").unwrap_err().to_string();
    assert!(error.contains("set HOME or give a full path"), "{error}");
}

#[test]
fn a_file_is_read_and_a_missing_one_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slicer-mac.yaml");
    let missing = Config::load(&path).unwrap_err().to_string();
    assert!(
        missing.contains("slicer-mac new > slicer-mac.yaml"),
        "{missing}"
    );
    std::fs::write(&path, top(&["# nothing more"])).unwrap();
    let (config, _) = Config::load(&path).unwrap();
    assert_eq!(config.host_groups[0].name, "sbox");
    std::fs::write(&path, [b'a', 0xff]).unwrap();
    assert!(matches!(Config::load(&path), Err(ConfigError::Read { .. })));
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(matches!(
        Config::load(&path),
        Err(ConfigError::TooLarge { .. })
    ));
}

#[test]
fn the_template_is_accepted_without_a_word() {
    for os in [HostOs::Linux, HostOs::MacOs] {
        let text = template("oci:/opt/guest:latest", os.hypervisor());
        let (config, warnings) = Config::parse(&text, "f", &host(os)).unwrap();
        assert_eq!(warnings, []);
        let shape = |name: &str| {
            let g = config.group(name).unwrap();
            (g.count, g.vcpu, g.ram_bytes / GIB, g.storage_size / GIB)
        };
        let (slicer, sbox) = match os {
            HostOs::Linux => ((1, 2, 2, 15), (0, 2, 1, 15)),
            HostOs::MacOs => ((1, 4, 8, 15), (0, 2, 4, 15)),
        };
        assert_eq!((shape("slicer"), shape("sbox")), (slicer, sbox));
        assert_eq!(config.hypervisor, os.hypervisor());
        assert!(text.contains("socket: \"./slicer.sock\""));
    }
}

/// Text that gets further than random bytes do.
fn yaml_like() -> impl Strategy<Value = String> {
    let words = [
        "config",
        "host_groups",
        "name",
        "image",
        "network",
        "gateway",
        "addresses",
        "api",
        "socket",
        "auth",
        "ssh_keys",
        "vcpu",
        "ram_gb",
        "sbox",
        "1",
        "-1",
        "0x1f",
        "1e9",
        "true",
        "~",
        "~/",
        "10.0.0.1/24",
        "&a",
        "*a",
        "!t",
        "!!str",
        "<<",
        "|",
        ">",
        "'",
        "\"",
        "\\",
        "%",
        "---",
        "...",
        "#",
        "\u{feff}",
        "\u{85}",
        "\t",
        "\r\n",
        "\n",
        "\n  ",
        "\n    ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "? ",
        " ",
        "@",
        "`",
        "ü",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..60)
        .prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_yaml_panics_and_no_refusal_is_silent(text in yaml_like(), body in any::<bool>()) {
        let text = if body { format!("config:\n  host_groups:\n    - {text}") } else { text };
        if let Err(ConfigError::Invalid(all)) = parse(&text) {
            prop_assert!(!all.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn a_template_keeps_its_image(image in "[ -~¡-ÿ]{1,40}") {
        let image = image.trim();
        prop_assume!(!image.is_empty());
        let text = template(image, Hypervisor::Qemu);
        let (config, warnings) = parse(&text).unwrap();
        prop_assert_eq!(&config.host_groups[0].image, image);
        prop_assert!(warnings.is_empty());
    }
}
