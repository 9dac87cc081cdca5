//! The configuration that `slicer-mac new` prints.

use super::Hypervisor;

/// What a group gets by default.
struct Shape {
    vcpu: u32,
    ram_gb: u32,
}

/// A commented configuration with the two groups `slicer` and `sbox`, ready to use: parsing it
/// gives no warning. `image` is the reference of the image all VMs boot; the groups are larger for
/// Apple's hypervisor, whose hosts are, than for QEMU.
pub fn template(image: &str, hypervisor: Hypervisor) -> String {
    let (slicer, sbox) = match hypervisor {
        Hypervisor::Apple => (shape(4, 8), shape(2, 4)),
        Hypervisor::Qemu => (shape(2, 2), shape(2, 1)),
    };
    TEMPLATE
        .replace("@SLICER_VCPU@", &slicer.vcpu.to_string())
        .replace("@SLICER_RAM@", &slicer.ram_gb.to_string())
        .replace("@SBOX_VCPU@", &sbox.vcpu.to_string())
        .replace("@SBOX_RAM@", &sbox.ram_gb.to_string())
        .replace("@HYPERVISOR@", hypervisor.name())
        // Last, so that nothing in it is taken for a placeholder.
        .replace("@IMAGE@", &quoted(image))
}

const fn shape(vcpu: u32, ram_gb: u32) -> Shape {
    Shape { vcpu, ram_gb }
}

/// A YAML double-quoted scalar (YAML 1.2.2, 7.3.1).
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(format!("\\U{:08X}", u32::from(c)).chars()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

const TEMPLATE: &str = r#"# What slicer-mac runs. Restart the daemon after a change.
config:
  host_groups:
    # One VM that is always there: slicer-1.
    - name: slicer
      count: 1
      # CPUs and memory are what a VM gets, and the most it may ask for.
      vcpu: @SLICER_VCPU@
      ram_gb: @SLICER_RAM@
      # The disk takes only the room that is used.
      storage_size: 15G
      network:
        mode: nat
        gateway: 192.168.64.1/24
      # What it sees of this machine at ~/home, and ~/host: your home directory. "" is nothing,
      # "~/code/" less.
      share_home: "~/"
      # When this machine goes to sleep: none, suspend, shutdown, or prevent, which keeps it awake
      # while the VM runs.
      sleep_action: prevent
      # What of it is reachable on this machine: Docker, and the API of K3s. Nothing answers until
      # they are installed. Their ports and sockets are those of `slicer vm forward -L`.
      forwards:
        - ~/.slicer/docker.sock:/var/run/docker.sock
        - 6443:127.0.0.1:6443

    # Sandboxes, launched on demand: slicer vm launch sbox
    - name: sbox
      count: 0
      vcpu: @SBOX_VCPU@
      ram_gb: @SBOX_RAM@
      storage_size: 15G
      # Whether they begin as a template: one that was booted once, whose memory they share.
      # warm: true
      # How many are booted ahead, each taking the memory of one: a launch has only to wake it.
      # warm_pool: 1
      share_home: ""
      # Sandboxes end when the lid closes.
      sleep_action: shutdown
      network:
        mode: nat
        gateway: 192.168.64.1/24
        # dns_servers: ["8.8.8.8", "1.1.1.1"]

  # The root file system all VMs start from.
  image: @IMAGE@
  hypervisor: @HYPERVISOR@

  # Public keys that may log in by SSH.
  # ssh_keys:
  #   - ssh-ed25519 AAAA… you@example.com

  # Ask guests to power off when the daemon stops, rather than switching them off.
  graceful_shutdown: true

  api:
    socket: "./slicer.sock"
"#;
