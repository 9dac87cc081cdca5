//! What users find inside a guest.

use crate::tests;
use crate::tour::{Tour, VM, says};
use libtest_mimic::Trial;
use slicer_client::NodeFilter;
use slicer_testkit::{BOOT, wait_until};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) fn trials(tour: &Arc<Tour>) -> Vec<Trial> {
    tests!("guest", tour;
        files_written_at_once_stay, identity, an_init_that_works, the_default_user, network,
        the_host_is_reached_through_the_gateway, the_root_fills_the_disk, modules, the_clock,
        the_agent_has_its_place,
    )
}

async fn files_written_at_once_stay(tour: &Tour) {
    let created = tour
        .cli("vm launch sbox --wait --cpus 1 --ram-mb 512 --json")
        .await;
    let vm = created.json()["hostname"].as_str().unwrap().to_owned();
    let client = tour.client();
    says(&client, &vm, "touch /tmp/early /var/tmp/early ~/early").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    says(&client, &vm, "ls /tmp/early /var/tmp/early ~/early").await;
    client.delete_node("sbox", &vm).await.unwrap();
}

async fn identity(tour: &Tour) {
    assert_eq!(tour.says("hostname").await, VM);
    assert_eq!(tour.says("cat /etc/hostname").await, VM);
    tour.says(&format!("getent hosts {VM}")).await;
    let client = tour.client();
    wait_until("slicer-1 is ready", BOOT, async || {
        client.health("slicer-1").await.is_ok()
    })
    .await;
    let ids = ["slicer-1", VM].map(|vm| says(&client, vm, "cat /etc/machine-id"));
    let [a, b] = ids;
    let (a, b) = (a.await, b.await);
    assert_eq!(a.len(), 32);
    assert_ne!(a, b);
}

async fn an_init_that_works(tour: &Tour) {
    wait_until("the guest has booted", BOOT, async || {
        let state = tour.sh("systemctl is-system-running").await.stdout;
        assert_ne!(state.trim(), "offline");
        state.trim() == "running" || state.trim() == "degraded"
    })
    .await;
    let failed = tour.says("systemctl --failed --plain --no-legend").await;
    assert_eq!(failed, "");
    let refused = tour.says("sudo dmesg | grep -F unsupported; true").await;
    assert_eq!(refused, "");
    assert_eq!(tour.says("ps -o comm= -p 1").await, "systemd");
    assert_eq!(tour.says("stat -fc %T /sys/fs/cgroup").await, "cgroup2fs");
}

async fn the_default_user(tour: &Tour) {
    assert_eq!(tour.says("sudo -n id -u").await, "0");
    assert_eq!(
        tour.says("stat -c %U:%a ~").await.split(':').next(),
        Some("ubuntu")
    );
    tour.says("sudo -n sh -c 'touch /etc/by-root' && sudo rm /etc/by-root")
        .await;
    assert_ne!(tour.sh("touch /etc/by-user").await.exit_code, 0);
}

async fn network(tour: &Tour) {
    let filter = NodeFilter {
        tag: Some("role=shared".to_owned()),
        tag_prefix: None,
    };
    let nodes = tour.client().nodes(&filter).await.unwrap();
    assert_eq!(nodes.len(), 1);
    let addresses = tour.says("ip -4 -o addr").await;
    assert!(
        addresses.contains(&format!(" {}/24 ", nodes[0].ip)),
        "{addresses}"
    );
    assert!(addresses.contains(" 127.0.0.1/8 "), "{addresses}");
    let routes = tour.says("ip route").await;
    assert!(routes.contains("default via 192.168.64.1"), "{routes}");
    assert!(
        tour.says("cat /etc/resolv.conf")
            .await
            .contains("nameserver")
    );
    // The loopback carries traffic.
    let served = tour
        .says("(echo hi > /tmp/page; cd /tmp; timeout 20 bash -c 'exec 3<>/dev/tcp/127.0.0.1/22 && head -c4 <&3')")
        .await;
    assert!(served.ends_with("SSH-"), "{served}");
}

async fn the_host_is_reached_through_the_gateway(tour: &Tour) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4];
        stream.read_exact(&mut request).await.unwrap();
        let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // The client's end of it, so that nothing is reset under way.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        request
    };
    let script = format!("curl -sS --max-time 30 http://192.168.64.1:{port}/");
    let (request, said) = tokio::join!(serve, tour.says(&script));
    assert_eq!(&request, b"GET ");
    assert_eq!(said, "hello");
}

async fn the_root_fills_the_disk(tour: &Tour) {
    wait_until("the file system has grown", BOOT, async || {
        let size: u64 = tour
            .says("df --output=size -BM / | tail -1 | tr -dc 0-9")
            .await
            .parse()
            .unwrap();
        (14_000..=15_400).contains(&size)
    })
    .await;
    tour.says("sudo fallocate -l 1G /big && sudo rm /big").await;
}

async fn modules(tour: &Tour) {
    for module in ["overlay", "veth"] {
        tour.says(&format!(
            "sudo modprobe {module} && grep -q ^{module} /proc/modules"
        ))
        .await;
    }
    let script = "sudo sh -ec 'cd $(mktemp -d); mkdir l u m; mount -t tmpfs t u; mkdir u/u u/w; \
                  mount -t overlay o -o lowerdir=l,upperdir=u/u,workdir=u/w m; umount m u'";
    tour.says(script).await;
}

async fn the_clock(tour: &Tour) {
    let now = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_secs_f64()
    };
    let before = now();
    let guest: f64 = tour.says("date +%s.%N").await.parse().unwrap();
    let after = now();
    assert!(
        (before - 2.0..=after + 2.0).contains(&guest),
        "{guest} is not in {before}..{after}"
    );
}

async fn the_agent_has_its_place(tour: &Tour) {
    let version = tour.says("/usr/local/bin/slicer-agent version").await;
    assert_eq!(
        version,
        format!("slicer-agent {}", env!("CARGO_PKG_VERSION"))
    );
}
