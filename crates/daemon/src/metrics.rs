//! What `GET /metrics` shows, in Prometheus' text form.

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt::Write as _;
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

/// The daemon's counters.
pub(crate) struct Metrics {
    registry: Registry,
    launches: Family<LaunchLabels, Counter>,
    running: Family<RunningLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RequestLabels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let launches = Family::<LaunchLabels, Counter>::default();
        let running = Family::<RunningLabels, Gauge>::default();
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

    /// The text, with the VMs there are now: host group, made through the API, state.
    pub(crate) fn text(&self, vms: impl Iterator<Item = (String, bool, &'static str)>) -> String {
        self.running.clear();
        for (host_group, api, state) in vms {
            let labels = RunningLabels {
                host_group,
                api: ViaApi(api),
                state: state.to_owned(),
            };
            self.running.get_or_create(&labels).inc();
        }
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
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
        let text = m.text([("sbox".to_owned(), true, "running")].into_iter());
        for line in [
            "slicer_vm_launch_total{host_group=\"sbox\",code=\"201\"} 1",
            "slicer_vm_running{host_group=\"sbox\",api=\"true\",state=\"running\"} 1",
            "slicer_api_requests_total{method=\"GET\",code=\"200\"} 1",
            "slicer_api_requests_total{method=\"other\",code=\"405\"} 1",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
        assert!(
            text.contains("slicer_api_request_duration_seconds_bucket{le=\"0.005\""),
            "{text}"
        );
        assert!(!m.text(std::iter::empty()).contains("state=\"running\""));
    }
}
