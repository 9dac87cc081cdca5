//! What `GET /metrics` shows, in Prometheus' text form.

use crate::host::HostStats;
use crate::pool::Held;
use prometheus_client::encoding::text::{encode, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LaunchLabels {
    host_group: String,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: String,
    code: u16,
}

/// Whether a VM was made through the API, as the label says it.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct ViaApi(bool);

impl EncodeLabelValue for ViaApi {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> std::fmt::Result {
        encoder.write_str(if self.0 { "true" } else { "false" })
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RunningLabels {
    host_group: String,
    api: ViaApi,
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GroupLabels {
    host_group: String,
}

/// One VM, as the metrics count it.
pub(crate) struct CountedVm {
    /// Its host group.
    pub(crate) host_group: String,
    /// Whether it was made through the API.
    pub(crate) api: bool,
    /// What it is doing: `running`, `paused`, `stopped` or `suspended`.
    pub(crate) state: &'static str,
}

/// The daemon's counters.
pub(crate) struct Metrics {
    registry: Registry,
    launches: Family<LaunchLabels, Counter>,
    running: Family<RunningLabels, Gauge>,
    gpus: Family<GroupLabels, Gauge>,
    spares: Family<GroupLabels, Gauge>,
    spare_memory: Family<GroupLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RequestLabels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let launches = Family::<LaunchLabels, Counter>::default();
        let running = Family::<RunningLabels, Gauge>::default();
        let gpus = Family::<GroupLabels, Gauge>::default();
        let spares = Family::<GroupLabels, Gauge>::default();
        let spare_memory = Family::<GroupLabels, Gauge>::default();
        let requests = Family::<RequestLabels, Counter>::default();
        let durations = Family::<RequestLabels, Histogram>::new_with_constructor(|| {
            Histogram::new([
                0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0,
            ])
        });
        registry.register(
            "slicer_vm_launch",
            "VMs launched through the API",
            launches.clone(),
        );
        registry.register("slicer_vm_running", "VMs by state", running.clone());
        registry.register("slicer_vm_gpu_count", "GPUs of all VMs", gpus.clone());
        registry.register(
            "slicer_warm_pool_vms",
            "VMs booted ahead that a launch can take",
            spares.clone(),
        );
        registry.register(
            "slicer_warm_pool_memory_bytes",
            "Host memory they take",
            spare_memory.clone(),
        );
        registry.register("slicer_api_requests", "Requests answered", requests.clone());
        registry.register(
            "slicer_api_request_duration_seconds",
            "Time until a request's answer began",
            durations.clone(),
        );
        Self {
            registry,
            launches,
            running,
            gpus,
            spares,
            spare_memory,
            requests,
            durations,
        }
    }
}

impl Metrics {
    /// Counts a launch by the status it was answered with.
    pub(crate) fn launched(&self, host_group: &str, code: u16) {
        let labels = LaunchLabels {
            host_group: host_group.to_owned(),
            code,
        };
        self.launches.get_or_create(&labels).inc();
    }

    /// Counts a request. Methods nobody uses share a name, so that clients can't add series.
    pub(crate) fn answered(&self, method: &hyper::Method, code: u16, took: Duration) {
        let method = match method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE") => known,
            _ => "other",
        };
        let labels = RequestLabels {
            method: method.to_owned(),
            code,
        };
        self.requests.get_or_create(&labels).inc();
        self.durations
            .get_or_create(&labels)
            .observe(took.as_secs_f64());
    }

    /// Takes note of what the pools of spare VMs hold.
    pub(crate) fn pooled<'h>(&self, pools: impl Iterator<Item = (&'h str, Held)>) {
        for (host_group, held) in pools {
            let labels = GroupLabels {
                host_group: host_group.to_owned(),
            };
            let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            let vms = u64::try_from(held.vms).unwrap_or(u64::MAX);
            self.spares.get_or_create(&labels).set(gauge(vms));
            self.spare_memory
                .get_or_create(&labels)
                .set(gauge(held.memory));
        }
    }

    /// The text, with the host groups and VMs there are, and what the host uses now.
    pub(crate) fn text(
        &self,
        host_groups: impl Iterator<Item = String>,
        vms: impl Iterator<Item = CountedVm>,
        host: &HostStats,
    ) -> String {
        for host_group in host_groups {
            // No backend gives VMs a GPU.
            self.gpus.get_or_create(&GroupLabels { host_group }).set(0);
        }
        self.running.clear();
        for vm in vms {
            let labels = RunningLabels {
                host_group: vm.host_group,
                api: ViaApi(vm.api),
                state: vm.state.to_owned(),
            };
            self.running.get_or_create(&labels).inc();
        }
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode_registry(&mut text, &self.registry);
        let _ = encode(&mut text, &host_registry(host));
        text
    }
}

/// The host's figures, each read anew whenever somebody looks.
fn host_registry(host: &HostStats) -> Registry {
    let mut registry = Registry::with_prefix("slicer_system");
    let mut float = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
    };
    let load = |n: usize| host.load.map(|l| l[n]);
    float("load_avg_1", "Load average of a minute", load(0));
    float("load_avg_5", "Load average of 5 minutes", load(1));
    float("load_avg_15", "Load average of 15 minutes", load(2));
    let mut count = |name: &str, help: &str, value: Option<u64>| {
        if let Some(value) = value {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        }
    };
    count("memory_total_bytes", "Memory", host.memory_total);
    count(
        "memory_available_bytes",
        "Memory programs could still get",
        host.memory_available,
    );
    let (sent, received) = (host.egress.map(|e| e.0), host.egress.map(|e| e.1));
    count("egress_tx", "Bytes sent towards the internet", sent);
    count("egress_rx", "Bytes received from the internet", received);
    count("open_files", "Open files", host.open_files);
    count(
        "open_connections",
        "TCP connections that are established",
        host.open_connections,
    );
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_names_and_labels_are_there() {
        let m = Metrics::default();
        m.launched("sbox", 201);
        m.answered(&hyper::Method::GET, 200, Duration::from_millis(3));
        m.answered(&hyper::Method::TRACE, 405, Duration::from_millis(3));
        let vm = CountedVm {
            host_group: "sbox".to_owned(),
            api: true,
            state: "running",
        };
        let host = HostStats {
            load: Some([0.5, 1.0, 2.0]),
            memory_total: Some(1 << 30),
            memory_available: Some(1 << 29),
            egress: Some((7, 8)),
            open_files: Some(9),
            open_connections: Some(10),
        };
        let groups = || std::iter::once("sbox".to_owned());
        let text = m.text(groups(), std::iter::once(vm), &host);
        for line in [
            "slicer_vm_launch_total{host_group=\"sbox\",code=\"201\"} 1",
            "slicer_vm_running{host_group=\"sbox\",api=\"true\",state=\"running\"} 1",
            "slicer_vm_gpu_count{host_group=\"sbox\"} 0",
            "slicer_system_load_avg_1 0.5",
            "slicer_system_load_avg_5 1.0",
            "slicer_system_load_avg_15 2.0",
            "slicer_system_memory_total_bytes 1073741824",
            "slicer_system_memory_available_bytes 536870912",
            "slicer_system_egress_tx 7",
            "slicer_system_egress_rx 8",
            "slicer_system_open_files 9",
            "slicer_system_open_connections 10",
            "slicer_api_requests_total{method=\"GET\",code=\"200\"} 1",
            "slicer_api_requests_total{method=\"other\",code=\"405\"} 1",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
        assert!(
            text.contains("slicer_api_request_duration_seconds_bucket{le=\"0.005\""),
            "{text}"
        );
        assert_eq!(text.matches("# EOF").count(), 1, "{text}");
        let none = m.text(groups(), std::iter::empty(), &HostStats::default());
        assert!(!none.contains("state=\"running\""), "{none}");
        assert!(!none.contains("slicer_system"), "{none}");
    }
}
