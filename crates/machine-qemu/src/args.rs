//! From a [`MachineSpec`] to QEMU's command line.

use crate::Accelerator;
use crate::version::Version;
use serde_json::{Value, json};
use slicer_machine::{Arch, Disk, DiskFormat, MachineError, MachineSpec, Network, UserNetwork};
use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::Path;

/// The descriptor QMP is on in the child.
pub(crate) const QMP_FD: i32 = 3;
/// The descriptor the guest channel is on in the child.
pub(crate) const AGENT_FD: i32 = 4;
/// The descriptor of the tap in the child, when it has one.
pub(crate) const TAP_FD: i32 = 5;
/// The device id of the guest channel's port, which QMP's events name.
pub(crate) const AGENT_PORT: &str = "agent";
/// Ports of the guest channel's device: a console's, which always counts, and the agent's.
const PORTS: u32 = 2;
/// An interrupt for each of its queues, two a port and two for itself, and one for changes. With
/// fewer, each interrupt has the guest look through all queues.
const PORT_VECTORS: u32 = 2 * PORTS + 3;
/// By it the guest tells which of its memory is free, which then takes none of the host's. After
/// the other devices, so that these keep their places.
const BALLOON: &str = "virtio-balloon-pci,free-page-reporting=on";
/// Of a machine whose memory may be a template's: what the guest reports free, QEMU would cut out of
/// the file that all clones share. There is no `vmgenid` in it: qboot, our firmware, halts at what it
/// asks for, and the agent tells a guest that it was cloned.
const SHY_BALLOON: &str = "virtio-balloon-pci";
/// The name by which the guest finds the port.
const AGENT_PORT_NAME: &str = "slicer.agent";

/// QEMU's program for a guest architecture.
pub(crate) fn program(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "qemu-system-x86_64",
        Arch::Aarch64 => "qemu-system-aarch64",
    }
}

/// How to get it.
pub(crate) fn program_hint(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => {
            "install QEMU for amd64 guests, on Debian with `apt-get install qemu-system-x86`"
        }
        Arch::Aarch64 => {
            "install QEMU for arm64 guests, on Debian with `apt-get install qemu-system-arm`"
        }
    }
}

/// The parts of the kernel's command line that follow from the devices below.
pub(crate) fn kernel_args(arch: Arch) -> &'static str {
    match arch {
        // Without the second, a kernel whose timer is late at its first ticks, as an emulated one's is on a
        // busy host, panics. Under KVM it leaves the check out by itself.
        Arch::X86_64 => "console=ttyS0 no_timer_check",
        Arch::Aarch64 => "console=ttyAMA0",
    }
}

/// What the kernel of an emulated guest is told besides. What mitigates the faults of processors is made
/// for code that one runs as it is, which an emulated guest's isn't, and takes its time. Where QEMU
/// translates code for each address that it runs at, a program that starts at another one each time is
/// translated each time, which makes a command take more than twice as long.
pub(crate) fn emulated_kernel_args(version: Option<Version>) -> &'static str {
    match version {
        Some(v) if v.translates_by_address() => " mitigations=off norandmaps",
        _ => " mitigations=off",
    }
}

/// What every VM of this backend has in common, also a trial boot's.
pub(crate) fn base(arch: Arch, accel: Accelerator, cpus: u32, memory_bytes: u64) -> Vec<OsString> {
    let mut a: Vec<OsString> = Vec::new();
    let mut push = |items: &[&str]| a.extend(items.iter().map(OsString::from));
    push(&[
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // Without children, new privileges or scheduling tricks, a QEMU that a guest took over is
    // confined to what it already holds.
    push(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    match (arch, accel) {
        // qboot loads an uncompressed kernel a third of a second sooner than SeaBIOS.
        (Arch::X86_64, _) => push(&["-machine", "q35", "-bios", "qboot.rom"]),
        (Arch::Aarch64, Accelerator::Kvm) => push(&["-machine", "virt,gic-version=host"]),
        (Arch::Aarch64, Accelerator::Tcg) => push(&["-machine", "virt"]),
    }
    match (arch, accel) {
        (_, Accelerator::Kvm) => push(&["-accel", "kvm", "-cpu", "host"]),
        // Told of "enhanced rep movsb", a guest copies and clears all its memory with it, and it is
        // emulated byte by byte. Without that, "fast short rep movsb", which QEMU 10 has, must not be
        // there either: Linux 6.1 then faults forever.
        (Arch::X86_64, Accelerator::Tcg) => {
            let cpu = "max,erms=off,fsrm=off";
            push(&["-accel", "tcg,thread=multi", "-cpu", cpu]);
        }
        // "max" emulates pointer authentication, which makes a boot four times slower.
        (Arch::Aarch64, Accelerator::Tcg) => {
            push(&["-accel", "tcg,thread=multi", "-cpu", "cortex-a72"]);
        }
    }
    push(&["-smp", &cpus.to_string()]);
    push(&["-m", &format!("{}M", memory_bytes >> 20)]);
    a
}

/// Where a machine's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory<'a> {
    /// Its own.
    Own,
    /// In a new file, which is a template's later.
    File(&'a Path),
    /// A template's, of which it has its own copy of all pages that it writes to.
    Copy(&'a Path),
}

/// The whole command line, without the program.
pub(crate) fn build(
    spec: &MachineSpec,
    accel: Accelerator,
    memory: Memory<'_>,
) -> Result<Vec<OsString>, MachineError> {
    let mut a = base(spec.arch, accel, spec.cpus, spec.memory_bytes);
    let mut push = |items: [&OsStr; 2]| a.extend(items.map(OsStr::to_owned));
    if !spec.shares.is_empty() {
        for [option, value] in for_shares(spec) {
            push([option.as_ref(), value.as_ref()]);
        }
    }
    if spec.clonable {
        push(["-object".as_ref(), backend(spec, memory)?.as_ref()]);
        push(["-machine".as_ref(), "memory-backend=mem".as_ref()]);
    }
    push([
        "-name".as_ref(),
        format!("guest={},debug-threads=on", spec.name).as_ref(),
    ]);
    push(["-kernel".as_ref(), spec.boot.kernel.as_ref()]);
    push(["-initrd".as_ref(), spec.boot.initramfs.as_ref()]);
    push(["-append".as_ref(), spec.boot.cmdline.as_ref()]);
    let mut device = |text: &str| push(["-device".as_ref(), text.as_ref()]);
    device("virtio-rng-pci");
    // Where a guest is emulated, its processor's thread can as well do itself what the guest asks of
    // the device: waking another one for it takes three times as long.
    let by = match accel {
        Accelerator::Kvm => "",
        Accelerator::Tcg => ",ioeventfd=off",
    };
    device(&format!(
        "virtio-serial-pci,max_ports={PORTS},vectors={PORT_VECTORS}{by}"
    ));
    device(&format!(
        "virtserialport,chardev={AGENT_PORT},id={AGENT_PORT},name={AGENT_PORT_NAME}"
    ));
    for (kind, fd) in [("qmp", QMP_FD), (AGENT_PORT, AGENT_FD)] {
        push([
            "-chardev".as_ref(),
            format!("socket,id={kind},fd={fd}").as_ref(),
        ]);
    }
    push(["-mon".as_ref(), "chardev=qmp,mode=control".as_ref()]);
    let mut console = OsString::from("file,id=console,append=on,path=");
    console.push(doubled_commas(&spec.console)?);
    push(["-chardev".as_ref(), &console]);
    push(["-serial".as_ref(), "chardev:console".as_ref()]);
    for disk in &spec.disks {
        push(["-blockdev".as_ref(), blockdev(disk)?.as_ref()]);
        let device = format!("virtio-blk-pci,drive={0},serial={0}", disk.id);
        push(["-device".as_ref(), device.as_ref()]);
    }
    if let Some(net) = &spec.network {
        let (netdev, mac) = match net {
            Network::User(net) => (user_netdev(net), net.mac),
            Network::Tap(net) => (format!("tap,id=net,fd={TAP_FD}"), net.mac),
        };
        push(["-netdev".as_ref(), netdev.as_ref()]);
        // A guest that comes from a saved state is not to announce itself (see `save`). QEMU 7.2 crashes when
        // one that could is told not to, and resets the device later, as it does when it powers off.
        let device = format!("virtio-net-pci,netdev=net,mac={mac},guest_announce=off");
        push(["-device".as_ref(), device.as_ref()]);
    }
    if spec.clonable {
        push(["-device".as_ref(), SHY_BALLOON.as_ref()]);
    } else {
        push(["-device".as_ref(), BALLOON.as_ref()]);
    }
    Ok(a)
}

/// Memory under the name that a template's has.
fn backend(spec: &MachineSpec, memory: Memory<'_>) -> Result<OsString, MachineError> {
    let (kind, file, more) = match memory {
        Memory::Own => ("ram", None, ""),
        Memory::File(path) => ("file", Some(path), ",share=on"),
        Memory::Copy(path) => ("file", Some(path), ",share=off"),
    };
    let size = spec.memory_bytes >> 20;
    let mut text = OsString::from(format!("memory-backend-{kind},id=mem,size={size}M{more}"));
    if let Some(path) = file {
        text.push(",mem-path=");
        text.push(doubled_commas(path)?);
    }
    Ok(text)
}

/// Memory that another process can map, and a port for each share's device: only there can it come
/// and go. Ports, unlike the devices, are part of what is saved.
fn for_shares(spec: &MachineSpec) -> Vec<[String; 2]> {
    let size = spec.memory_bytes >> 20;
    let memory = format!("memory-backend-memfd,id=mem,size={size}M,share=on");
    let mut options = vec![
        ["-object".into(), memory],
        ["-machine".into(), "memory-backend=mem".into()],
    ];
    for index in 0..spec.shares.len() {
        let (port, chassis) = (crate::shares::port(index), index + 1);
        let device = format!("pcie-root-port,id={port},chassis={chassis}");
        options.push(["-device".into(), device]);
    }
    options
}

fn blockdev(disk: &Disk) -> Result<String, MachineError> {
    node(disk, &disk.path, disk.format, disk.id).map(|node| node.to_string())
}

/// The node of an overlay over a disk, before it lies there.
pub(crate) fn overlay(disk: &Disk, path: &Path, name: &str) -> Result<Value, MachineError> {
    let mut node = node(disk, path, DiskFormat::Qcow2, name)?;
    if let Some(node) = node.as_object_mut() {
        // What its file says lies below is the node that is on top now.
        node.insert("backing".to_owned(), Value::Null);
    }
    Ok(node)
}

fn node(disk: &Disk, path: &Path, format: DiskFormat, name: &str) -> Result<Value, MachineError> {
    let filename = utf8(path)?;
    let cache = json!({ "direct": false, "no-flush": !disk.flush && !disk.read_only });
    let file = json!({
        "driver": "file",
        "filename": filename,
        "read-only": disk.read_only,
        "discard": "unmap",
        "cache": cache,
    });
    let driver = match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    Ok(json!({
        "driver": driver,
        "node-name": name,
        "read-only": disk.read_only,
        "discard": "unmap",
        "cache": cache,
        "file": file,
    }))
}

fn user_netdev(net: &UserNetwork) -> String {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(net.prefix))
        .unwrap_or(0);
    let network = Ipv4Addr::from(u32::from(net.gateway) & mask);
    format!(
        "user,id=net,ipv6=off,net={network}/{},host={},dhcpstart={},dns={}",
        net.prefix, net.gateway, net.address, net.dns
    )
}

fn utf8(path: &Path) -> Result<&str, MachineError> {
    path.to_str().ok_or_else(|| MachineError::Unsupported {
        what: "a path that is not UTF-8",
        backend: crate::NAME,
        why: format!("rename {}", path.display()),
    })
}

/// In QEMU's option lists a comma inside a value is written twice.
fn doubled_commas(path: &Path) -> Result<String, MachineError> {
    Ok(utf8(path)?.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use slicer_machine::{Boot, MacAddress, Share, Tap, TapNetwork};

    fn spec() -> MachineSpec {
        MachineSpec {
            name: "sbox-1".into(),
            arch: Arch::X86_64,
            cpus: 2,
            memory_bytes: 1 << 30,
            boot: Boot {
                kernel: "/k/Image".into(),
                initramfs: "/k/initramfs.cpio".into(),
                cmdline: "console=ttyS0 quiet".into(),
            },
            disks: vec![Disk {
                id: "root",
                path: "/w/a,b\".img".into(),
                format: DiskFormat::Qcow2,
                read_only: false,
                flush: true,
            }],
            network: Some(Network::User(UserNetwork {
                mac: MacAddress([2, 0, 0, 0, 0, 9]),
                address: Ipv4Addr::new(192, 168, 64, 3),
                gateway: Ipv4Addr::new(192, 168, 64, 1),
                dns: Ipv4Addr::new(192, 168, 64, 254),
                prefix: 24,
            })),
            shares: Vec::new(),
            rosetta: false,
            clonable: false,
            console: "/w/logs/a,b.txt".into(),
            state_dir: "/w/.slicer/run/sbox-1".into(),
        }
    }

    fn line(spec: &MachineSpec, accel: Accelerator) -> String {
        with(spec, accel, Memory::Own)
    }

    fn with(spec: &MachineSpec, accel: Accelerator, memory: Memory<'_>) -> String {
        let args = build(spec, accel, memory).unwrap();
        args.iter()
            .map(|a| a.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn odd_file_names_cannot_add_options() {
        let line = line(&spec(), Accelerator::Tcg);
        assert!(line.contains("path=/w/logs/a,,b.txt"), "{line}");
        assert!(line.contains(r#""filename":"/w/a,b\".img""#), "{line}");
    }

    #[test]
    fn the_sandbox_is_always_on() {
        for accel in [Accelerator::Tcg, Accelerator::Kvm] {
            assert!(line(&spec(), accel).contains("-sandbox on,obsolete=deny"));
        }
    }

    #[test]
    fn a_flush_is_dropped_only_where_allowed() {
        let mut spec = spec();
        assert!(line(&spec, Accelerator::Tcg).contains(r#""no-flush":false"#));
        spec.disks[0].flush = false;
        assert!(line(&spec, Accelerator::Tcg).contains(r#""no-flush":true"#));
        spec.disks[0].read_only = true;
        assert!(line(&spec, Accelerator::Tcg).contains(r#""no-flush":false"#));
    }

    #[test]
    fn the_guest_gets_its_own_address_behind_nat() {
        let line = line(&spec(), Accelerator::Tcg);
        let want = "user,id=net,ipv6=off,net=192.168.64.0/24,host=192.168.64.1,\
                    dhcpstart=192.168.64.3,dns=192.168.64.254";
        assert!(line.contains(want), "{line}");
        assert!(line.contains("virtio-net-pci,netdev=net,mac=02:00:00:00:00:09"));
    }

    #[test]
    fn a_tap_is_passed_by_its_descriptor() {
        let mut spec = spec();
        let file = std::fs::File::open("/dev/null").unwrap();
        spec.network = Some(Network::Tap(TapNetwork {
            mac: MacAddress([2, 0, 0, 0, 0, 7]),
            tap: Tap::new(file.into()),
        }));
        let line = line(&spec, Accelerator::Tcg);
        assert!(line.contains("-netdev tap,id=net,fd=5 "), "{line}");
        assert!(line.contains("virtio-net-pci,netdev=net,mac=02:00:00:00:00:07"));
        assert!(!line.contains("user,"), "{line}");
    }

    #[test]
    fn only_emulated_guests_do_without_rep_movsb() {
        assert!(line(&spec(), Accelerator::Tcg).contains("-cpu max,erms=off,fsrm=off "));
        assert!(line(&spec(), Accelerator::Kvm).contains("-cpu host "));
    }

    #[test]
    fn only_emulated_guests_ring_the_channel_themselves() {
        assert!(line(&spec(), Accelerator::Tcg).contains("vectors=7,ioeventfd=off "));
        assert!(line(&spec(), Accelerator::Kvm).contains("vectors=7 "));
    }

    #[test]
    fn each_queue_of_the_channel_has_an_interrupt() {
        let line = line(&spec(), Accelerator::Tcg);
        // Two queues for the console's port, the agent's and the device itself, and one for changes.
        assert!(
            line.contains("virtio-serial-pci,max_ports=2,vectors=7,"),
            "{line}"
        );
    }

    #[test]
    fn only_vms_with_shares_have_memory_that_others_can_map() {
        let mut spec = spec();
        let without = line(&spec, Accelerator::Tcg);
        assert!(!without.contains("memfd"), "{without}");
        let share = |tag: &str| Share {
            tag: tag.into(),
            path: "/home/me".into(),
            read_only: false,
        };
        spec.shares = vec![share("home"), share("share1")];
        let with = line(&spec, Accelerator::Tcg);
        for want in [
            "-object memory-backend-memfd,id=mem,size=1024M,share=on ",
            "-machine memory-backend=mem ",
            "-device pcie-root-port,id=share0-port,chassis=1 ",
            "-device pcie-root-port,id=share1-port,chassis=2 ",
        ] {
            assert!(with.contains(want), "{want} in {with}");
        }
    }

    #[test]
    fn guests_tell_what_memory_is_free() {
        for accel in [Accelerator::Tcg, Accelerator::Kvm] {
            assert!(line(&spec(), accel).contains(" virtio-balloon-pci,free-page-reporting=on"));
        }
    }

    #[test]
    fn what_is_cloned_never_cuts_out_of_the_memory_it_shares() {
        let mut spec = spec();
        spec.clonable = true;
        let path = Path::new("/w/t,1/memory");
        for (memory, object) in [
            (Memory::Own, "memory-backend-ram,id=mem,size=1024M "),
            (
                Memory::File(path),
                "memory-backend-file,id=mem,size=1024M,share=on,mem-path=/w/t,,1/memory ",
            ),
            (
                Memory::Copy(path),
                "memory-backend-file,id=mem,size=1024M,share=off,mem-path=/w/t,,1/memory ",
            ),
        ] {
            let line = with(&spec, Accelerator::Tcg, memory);
            assert!(line.contains(&format!("-object {object}")), "{line}");
            assert!(line.contains(" -machine memory-backend=mem "), "{line}");
            assert!(!line.contains("free-page-reporting"), "{line}");
        }
    }

    #[test]
    fn arm_guests_get_a_virt_machine() {
        let spec = MachineSpec {
            arch: Arch::Aarch64,
            ..spec()
        };
        let tcg = line(&spec, Accelerator::Tcg);
        assert!(
            tcg.contains("-machine virt ") && tcg.contains("cortex-a72"),
            "{tcg}"
        );
        assert!(!tcg.contains("qboot"));
    }
}
