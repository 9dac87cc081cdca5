//! What the host uses, for the metrics.

/// The host's figures. One that the platform doesn't give is missing.
#[derive(Debug, Default)]
pub(crate) struct HostStats {
    /// Load averages of 1, 5 and 15 minutes.
    pub(crate) load: Option<[f64; 3]>,
    /// Memory, bytes.
    pub(crate) memory_total: Option<u64>,
    /// Memory programs could still get without swapping, bytes.
    pub(crate) memory_available: Option<u64>,
    /// Bytes sent and received by the network card towards the internet.
    pub(crate) egress: Option<(u64, u64)>,
    /// Open files of the whole system.
    pub(crate) open_files: Option<u64>,
    /// TCP connections that are established.
    pub(crate) open_connections: Option<u64>,
}

/// Whether, with so many bytes less, less than one part in `reserve` of the host's memory would be
/// left. Where that isn't known, it isn't.
pub(crate) fn is_short_by(bytes: u64, reserve: u64) -> bool {
    let Some((total, available)) = memory() else {
        return false;
    };
    available.saturating_sub(bytes) < total / reserve
}

#[cfg(target_os = "linux")]
mod linux {
    use super::HostStats;
    use procfs::net::{TcpState, dev_status, route, tcp, tcp6};
    use procfs::{Current, LoadAverage, Meminfo};

    /// Names the network card whose bytes count as egress.
    const EGRESS_VARIABLE: &str = "SLICER_EGRESS_ADAPTER";

    /// The host's memory, and what of it programs could still get, bytes.
    pub(crate) fn memory() -> Option<(u64, u64)> {
        let memory = Meminfo::current().ok()?;
        Some((memory.mem_total, memory.mem_available?))
    }

    /// Reads all figures from `/proc`.
    pub(crate) fn read() -> HostStats {
        let memory = Meminfo::current().ok();
        HostStats {
            load: LoadAverage::current()
                .ok()
                .map(|l| [l.one, l.five, l.fifteen].map(f64::from)),
            memory_total: memory.as_ref().map(|m| m.mem_total),
            memory_available: memory.as_ref().and_then(|m| m.mem_available),
            egress: egress(),
            open_files: procfs::sys::fs::file_nr().ok().map(|f| f.allocated),
            open_connections: connections(),
        }
    }

    fn egress() -> Option<(u64, u64)> {
        let name = match std::env::var(EGRESS_VARIABLE) {
            Ok(name) if !name.is_empty() => name,
            _ => default_card()?,
        };
        let card = dev_status().ok()?.remove(&name)?;
        Some((card.sent_bytes, card.recv_bytes))
    }

    /// The card of the default route with the lowest metric.
    fn default_card() -> Option<String> {
        let routes = route().ok()?;
        let default = routes
            .into_iter()
            .filter(|r| r.destination.is_unspecified() && r.mask.is_unspecified());
        default.min_by_key(|r| r.metrics).map(|r| r.iface)
    }

    fn connections() -> Option<u64> {
        let (v4, v6) = (tcp().ok()?, tcp6().unwrap_or_default());
        let established = v4
            .into_iter()
            .chain(v6)
            .filter(|c| c.state == TcpState::Established);
        Some(established.count() as u64)
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{memory, read};

#[cfg(target_os = "macos")]
mod macos {
    use super::HostStats;
    use slicer_machine_apple::host;

    /// The host's memory, and what of it programs could still get, bytes.
    pub(crate) fn memory() -> Option<(u64, u64)> {
        let pages = host::pages()?;
        Some((pages.total, pages.available()))
    }

    /// Reads what macOS tells everybody.
    pub(crate) fn read() -> HostStats {
        let (total, available) = memory().unzip();
        HostStats {
            load: host::load(),
            memory_total: total,
            memory_available: available,
            open_files: host::open_files(),
            ..HostStats::default()
        }
    }
}

#[cfg(target_os = "macos")]
pub(crate) use macos::{memory, read};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_this_hosts() {
        let stats = read();
        assert!(stats.load.is_some(), "{stats:?}");
        assert!(stats.memory_total > stats.memory_available, "{stats:?}");
        assert!(stats.open_files > Some(0), "{stats:?}");
        if cfg!(target_os = "linux") {
            assert!(stats.open_connections.is_some(), "{stats:?}");
        }
    }
}
