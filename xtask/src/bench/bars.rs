//! What is judged, and how much is allowed.

use super::report::Bar;
use super::stats::Estimate;
use super::{
    Raw, connect, exec, forward, idle, image, launch, memory, shares, start, suspend, transfer,
    tree,
};

/// The bars of all that was measured.
pub(super) fn of(raw: &Raw) -> Vec<Bar> {
    let mut bars = Vec::new();
    bars.extend(raw.launch.iter().flat_map(of_launch));
    bars.extend(raw.suspend.iter().flat_map(of_suspend));
    bars.extend(raw.start.iter().map(of_start));
    bars.extend(raw.shares.iter().flat_map(of_shares));
    bars.extend(raw.image.iter().flat_map(of_image));
    bars.extend(raw.exec.iter().map(of_exec));
    bars.extend(raw.cli.iter().map(of_cli));
    bars.extend(raw.idle.iter().flat_map(of_idle));
    bars.extend(raw.transfer.iter().flat_map(of_transfer));
    bars.extend(raw.tree.iter().flat_map(of_tree));
    bars.extend(raw.forward.iter().flat_map(of_forward));
    bars.extend(raw.connect.iter().flat_map(of_connect));
    bars.extend(raw.memory.iter().flat_map(of_memory));
    bars
}

fn of_launch(launch: &launch::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "launch",
            "POST …/nodes?wait=agent / QEMU by hand until ready",
            Estimate::of_ratios(&launch.product, &launch.floor_ready),
            1.10,
        ),
        Bar::ratio(
            "ready",
            "POST …/nodes?wait=agent / bare kernel until its init runs",
            Estimate::of_ratios(&launch.product, &launch.bare),
            2.2,
        ),
    ]
}

fn of_suspend(suspend: &suspend::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "suspend",
            "POST …/suspend / QEMU's stop, migrate to a file, fsync, quit by hand",
            Estimate::of_ratios(&suspend.suspend, &suspend.floor_suspend),
            1.2,
        ),
        Bar::ratio(
            "restore",
            "POST …/restore?wait=agent / QEMU -incoming by hand until the agent answers",
            Estimate::of_ratios(&suspend.restore, &suspend.floor_restore),
            1.2,
        ),
        Bar::limit(
            "pause, resume",
            "POST …/pause or …/resume, ms",
            1e3 * super::median(&suspend.freeze),
            20.0,
        ),
    ]
}

fn of_start(start: &start::Samples) -> Bar {
    Bar::limit(
        "start",
        "slicer-mac up with 50 VMs that are off, until it has listed them, ms",
        1e3 * super::median(&start.start),
        200.0,
    )
}

/// 0.95 of the speed is 1.053 of the time.
fn of_shares(shares: &shares::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "share, write",
            "a file written to a shared folder / the same with a virtiofsd by hand",
            Estimate::of_ratios(&shares.write, &shares.floor_write),
            1.053,
        ),
        Bar::ratio(
            "share, read",
            "a file read from a shared folder / the same with a virtiofsd by hand",
            Estimate::of_ratios(&shares.read, &shares.floor_read),
            1.053,
        ),
        Bar::ratio(
            "share, files",
            "small files made, listed and removed / the same with a virtiofsd by hand",
            Estimate::of_ratios(&shares.files, &shares.floor_files),
            1.053,
        ),
    ]
}

fn of_image(image: &image::Samples) -> Vec<Bar> {
    let mut bars = vec![
        Bar::ratio(
            "base",
            "pull an image and make its base / skopeo copy, umoci unpack, mke2fs -d",
            Estimate::of_ratios(&image.base, &image.tools),
            0.333,
        ),
        Bar::limit(
            "memory, base",
            "most RSS of pulling an image and making its base, MiB",
            image.peak.iter().copied().fold(0.0, f64::max),
            100.0,
        ),
        Bar::ratio(
            "overlay",
            "a disk as an overlay / qemu-img create -b",
            Estimate::of_ratios(&image.clone, &image.qemu_img),
            1.2,
        ),
    ];
    if !image.reflink.is_empty() {
        bars.push(Bar::ratio(
            "reflink",
            "a disk that shares blocks / cp --reflink",
            Estimate::of_ratios(&image.reflink, &image.cp),
            1.2,
        ));
    }
    bars
}

fn of_exec(exec: &exec::Samples) -> Bar {
    Bar::ratio(
        "exec",
        "REST exec of /bin/true / (health round trip + spawn in the guest)",
        Estimate::of_ratios(&exec.exec, &exec.floor()),
        2.0,
    )
}

fn of_cli(cli: &exec::CliSamples) -> Bar {
    Bar::ratio(
        "CLI exec",
        "slicer vm exec / (REST exec + slicer version)",
        Estimate::of_ratios(&cli.cli, &cli.floor()),
        1.3,
    )
}

fn of_idle(idle: &idle::Samples) -> Vec<Bar> {
    vec![
        Bar::limit(
            "memory",
            "RSS of slicer-mac without a VM, MiB",
            idle.rss_none,
            25.0,
        ),
        Bar::limit(
            "memory, used",
            "the same after all execs here, MiB",
            idle.rss_after_work,
            25.0,
        ),
        Bar::limit(
            "memory, VM",
            "RSS of slicer-mac per further VM, MiB",
            idle.rss_per_vm(),
            10.0,
        ),
        Bar::limit(
            "CPU",
            "of slicer-mac with one idle VM, % of a core",
            idle.cpu_percent(),
            0.2,
        ),
    ]
}

/// Eight tenths of the speed is ten eighths of the time. The raw guest channel is a port as QEMU makes
/// it: what the product does for the speed of its own is part of the product.
fn of_transfer(transfer: &transfer::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "cp in",
            "slicer vm cp of a file into a VM / as many bytes on a raw guest channel",
            Estimate::of_ratios(&transfer.cp_in, &transfer.raw_in),
            1.25,
        ),
        Bar::ratio(
            "cp out",
            "slicer vm cp of a file out of a VM / as many bytes on a raw guest channel",
            Estimate::of_ratios(&transfer.cp_out, &transfer.raw_out),
            1.25,
        ),
        Bar::note(
            "cp in, own",
            "slicer vm cp of a file into a VM / as many bytes on our own channel",
            Estimate::of_ratios(&transfer.cp_in, &transfer.channel_in),
        ),
        Bar::note(
            "cp out, own",
            "slicer vm cp of a file out of a VM / as many bytes on our own channel",
            Estimate::of_ratios(&transfer.cp_out, &transfer.channel_out),
        ),
        Bar::note(
            "cp in, file",
            "slicer vm cp of a file into a VM / as many bytes over a bare port to a file",
            Estimate::of_ratios(&transfer.cp_in, &transfer.port_file_in),
        ),
        Bar::ratio(
            "cp in, scp",
            "slicer vm cp of a file into a VM / scp of it",
            Estimate::of_ratios(&transfer.cp_in, &transfer.scp_in),
            0.5,
        ),
        Bar::ratio(
            "cp out, scp",
            "slicer vm cp of a file out of a VM / scp of it",
            Estimate::of_ratios(&transfer.cp_out, &transfer.scp_out),
            0.5,
        ),
    ]
}

fn of_tree(tree: &tree::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "tree in",
            "slicer vm cp of a tree into a VM / tar | ssh tar",
            Estimate::of_ratios(&tree.cp_in, &tree.tar_in),
            1.0,
        ),
        Bar::ratio(
            "tree out",
            "slicer vm cp of a tree out of a VM / ssh tar | tar",
            Estimate::of_ratios(&tree.cp_out, &tree.tar_out),
            1.0,
        ),
    ]
}

/// Seven tenths of the speed is ten sevenths of the time.
fn of_forward(forward: &forward::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "forward in",
            "bytes into a VM by slicer vm forward / on a raw guest channel",
            Estimate::of_ratios(&forward.forward_in, &forward.raw_in),
            1.43,
        ),
        Bar::ratio(
            "forward out",
            "bytes out of a VM by slicer vm forward / on a raw guest channel",
            Estimate::of_ratios(&forward.forward_out, &forward.raw_out),
            1.43,
        ),
        Bar::ratio(
            "forward echo",
            "a byte to and fro by slicer vm forward / on a raw guest channel",
            Estimate::of_ratios(&forward.forward_echo, &forward.raw_echo),
            3.0,
        ),
        Bar::note(
            "forward in, own",
            "bytes into a VM by slicer vm forward / on our own channel",
            Estimate::of_ratios(&forward.forward_in, &forward.channel_in),
        ),
        Bar::note(
            "forward out, own",
            "bytes out of a VM by slicer vm forward / on our own channel",
            Estimate::of_ratios(&forward.forward_out, &forward.channel_out),
        ),
        Bar::note(
            "forward echo, own",
            "a byte to and fro by slicer vm forward / on our own channel",
            Estimate::of_ratios(&forward.forward_echo, &forward.channel_echo),
        ),
    ]
}

fn of_connect(connect: &connect::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "exec, ssh",
            "slicer vm exec / a new ssh connection",
            Estimate::of_ratios(&connect.exec, &connect.ssh),
            0.333,
        ),
        Bar::ratio(
            "exec, stuck",
            "REST exec beside a reader that is stuck / without it, medians of blocks",
            Estimate::of_ratios(&connect.beside, &connect.alone),
            1.2,
        ),
    ]
}

fn of_memory(memory: &memory::Samples) -> Vec<Bar> {
    let (daemon, agent) = memory.most();
    vec![
        Bar::limit(
            "memory, busy",
            "most RSS of slicer-mac in large copies and output, MiB",
            daemon,
            64.0,
        ),
        Bar::limit(
            "memory, agent",
            "most RSS of the guest's agent in the same, MiB",
            agent,
            64.0,
        ),
    ]
}
