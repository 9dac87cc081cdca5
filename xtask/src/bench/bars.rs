//! What is judged, and how much is allowed.

use super::report::Bar;
use super::run::Raw;
use super::stats::{Estimate, median, quantile};
use super::{
    connect, exec, fork, forward, idle, image, launch, many, memory, minimal, pool, shares, start,
    suspend, template, transfer, tree,
};

/// The bars of all that was measured, with what each is about.
pub(super) fn of(raw: &Raw) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut add = |section, more: Vec<Bar>| bars.extend(more.into_iter().map(|b| b.of(section)));
    let launches = "Launches";
    add(launches, raw.launch.iter().flat_map(of_launch).collect());
    add(launches, raw.minimal.iter().flat_map(of_minimal).collect());
    add(launches, raw.many.iter().filter_map(of_burst).collect());
    add(launches, raw.pool.iter().flat_map(of_pool).collect());
    let of_templates = raw.template.iter().flat_map(of_template).collect();
    add("Launches from templates", of_templates);
    let forks = raw.fork.iter().flat_map(of_fork).collect();
    add("Forks of running VMs", forks);
    let disk = "Suspend, restore, pause";
    add(disk, raw.suspend.iter().flat_map(of_suspend).collect());
    let exec = "Commands";
    add(exec, raw.exec.iter().map(of_exec).collect());
    add(exec, raw.cli.iter().map(of_cli).collect());
    add(exec, raw.connect.iter().flat_map(of_connect).collect());
    let copies = "Copies and streams";
    add(copies, raw.transfer.iter().flat_map(of_transfer).collect());
    add(copies, raw.tree.iter().flat_map(of_tree).collect());
    let forwards = "Forwarded ports";
    add(forwards, raw.forward.iter().flat_map(of_forward).collect());
    let shares = "Shared folders";
    add(shares, raw.shares.iter().flat_map(of_shares).collect());
    let images = "Images and disks";
    add(images, raw.image.iter().flat_map(of_image).collect());
    let cost = "Memory and CPU time";
    add(cost, raw.idle.iter().flat_map(of_idle).collect());
    add(cost, raw.many.iter().flat_map(of_many).collect());
    add(cost, raw.memory.iter().flat_map(of_memory).collect());
    add("The daemon", raw.start.iter().map(of_start).collect());
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
        Bar::ratio(
            "launch, overhead",
            "what it takes longer than by hand / an overlay by qemu-img and QEMU's start until its \
             monitor answers",
            Estimate::of_ratios(&launch.overhead(), &launch.least),
            3.0,
        ),
        Bar::limit(
            "launch, more",
            "what it takes longer than by hand, ms",
            1e3 * median(&launch.overhead()),
            150.0,
        ),
    ]
}

fn of_minimal(minimal: &minimal::Samples) -> Vec<Bar> {
    vec![
        Bar::ratio(
            "minimal",
            "POST …/nodes?wait=agent, an image without an init / bare kernel until its init runs",
            Estimate::of_ratios(&minimal.product, &minimal.bare),
            1.1,
        ),
        Bar::limit(
            "minimal, more",
            "what it takes longer than the bare kernel, ms",
            1e3 * median(&minimal.overhead()),
            150.0,
        ),
    ]
}

fn of_burst(many: &many::Samples) -> Option<Bar> {
    (!many.burst.is_empty()).then(|| {
        Bar::ratio(
            "burst",
            "POST …/nodes?wait=agent, as many at once as \"many\" says / as many QEMUs by hand",
            Estimate::of_ratios(&many.burst, &many.floor_burst),
            1.1,
        )
    })
}

fn of_pool(pool: &pool::Samples) -> Vec<Bar> {
    let spread = quantile(&pool.pooled, 0.95) / median(&pool.pooled).max(f64::EPSILON);
    vec![
        Bar::ratio(
            "pool",
            "POST …/nodes?wait=agent with warm_pool: 1 / the same, booted",
            Estimate::of_ratios(&pool.pooled, &pool.cold),
            0.02,
        ),
        Bar::limit("pool, spread", "of these, p95 / p50", spread, 2.0),
        Bar::ratio(
            "pool, exec",
            "the first exec after a launch with warm_pool: 1 / the median of later ones",
            Estimate::of_ratios(&pool.first_exec, &pool.later_exec),
            2.0,
        ),
    ]
}

fn of_template(template: &template::Samples) -> Vec<Bar> {
    let Some(p) = &template.product else {
        return Vec::new();
    };
    vec![
        Bar::ratio(
            "warm",
            "POST …/nodes?wait=agent from a template / the same, booted",
            Estimate::of_ratios(&p.warm, &p.cold),
            0.04,
        ),
        Bar::ratio(
            "warm, by hand",
            "POST …/nodes?wait=agent from a template / a clone by hand until its first byte",
            Estimate::of_ratios(&p.warm, &template.by_hand),
            1.5,
        ),
        Bar::limit(
            "warm, spread",
            "launches from a template one after another, p95 / p50",
            p.spread(),
            2.0,
        ),
        Bar::ratio(
            "warm, burst",
            "launches from a template, 20 at once / as many clones by hand",
            Estimate::of_ratios(&p.burst, &template.by_hand_burst),
            1.3,
        ),
        Bar::ratio(
            "warm, exec",
            "the first exec in a fresh clone / the median of later ones in it",
            Estimate::of_ratios(&p.first_exec, &p.later_exec),
            2.0,
        ),
        Bar::limit(
            "memory, warm",
            "PSS of 20 idle clones / of 20 idle VMs that were booted",
            p.idle[0] / p.idle[1],
            0.15,
        ),
        Bar::limit(
            "memory, warm, used",
            "the same after a command in each",
            p.used[0] / p.used[1],
            0.35,
        ),
    ]
}

fn of_fork(fork: &fork::Samples) -> Vec<Bar> {
    let ms = |times: &[f64]| 1e3 * median(times);
    vec![
        Bar::limit(
            "fork, pause",
            "of the parent, of 1 GiB, as slicer-mac says, ms",
            ms(&fork.paused),
            300.0,
        ),
        Bar::limit(
            "fork, silence",
            "the longest request to the parent's agent meanwhile, of those that follow one another, ms",
            ms(&fork.longest),
            300.0,
        ),
    ]
}

fn of_many(many: &many::Samples) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (n, share) in many.daemon_share() {
        bars.push(Bar::limit(
            &format!("memory, {n} VM{}", if n == 1 { "" } else { "s" }),
            "PSS that slicer-mac has more than without a VM, for each, MiB",
            share,
            10.0,
        ));
    }
    if let Some(ratio) = many.memory_ratio() {
        bars.push(Bar::limit(
            "density",
            "PSS of slicer-mac and all idle VMs of \"many\" / of as many QEMUs by hand",
            ratio,
            // 0.95 of the VMs in the same memory.
            1.053,
        ));
    }
    if let Some(cpu) = many.daemon_cpu() {
        bars.push(Bar::limit(
            "CPU, many",
            "of slicer-mac for each of many idle VMs, % of a core",
            cpu,
            0.2,
        ));
    }
    bars
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
            1e3 * median(&suspend.freeze),
            20.0,
        ),
    ]
}

fn of_start(start: &start::Samples) -> Bar {
    Bar::limit(
        "start",
        "slicer-mac up with 50 VMs that are off, until it has listed them, ms",
        1e3 * median(&start.start),
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
    let used = (idle.rss_after_work > 0.0).then(|| {
        Bar::limit(
            "memory, used",
            "the same after many execs, MiB",
            idle.rss_after_work,
            25.0,
        )
    });
    let mut bars = vec![
        Bar::limit(
            "memory",
            "RSS of slicer-mac without a VM, MiB",
            idle.rss_none,
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
    ];
    bars.extend(used);
    bars
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
        Bar::ratio(
            "stdout",
            "slicer vm exec of what prints as much / as many bytes on a raw guest channel",
            Estimate::of_ratios(&transfer.stdout, &transfer.raw_out),
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
            Estimate::of_ratios(&transfer.small_in, &transfer.scp_in),
            0.5,
        ),
        Bar::ratio(
            "cp out, scp",
            "slicer vm cp of a file out of a VM / scp of it",
            Estimate::of_ratios(&transfer.small_out, &transfer.scp_out),
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
            "forward echo, least",
            "a byte to and fro on a raw guest channel, and on between two programs of the guest by TCP / \
             the first alone",
            Estimate::of_ratios(&least_echo(forward), &forward.raw_echo),
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

/// What a byte to and fro takes by whatever forwards it to a program that listens on TCP.
fn least_echo(forward: &forward::Samples) -> Vec<f64> {
    let both = forward.raw_echo.iter().zip(&forward.guest_echo);
    both.map(|(channel, tcp)| channel + tcp).collect()
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
            "exec, raw",
            "REST exec of /bin/true / (a byte to and fro on a raw guest channel + spawn in the guest), \
             medians of blocks",
            Estimate::of_ratios(&connect.alone, &connect.floor()),
            2.0,
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
