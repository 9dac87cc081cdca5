//! The guest agents this daemon carries.

include!(concat!(env!("OUT_DIR"), "/agents.rs"));

/// The agent for guests of this architecture (`amd64`, `arm64`).
pub(crate) fn for_arch(arch: &str) -> Option<&'static [u8]> {
    BUILT_IN
        .iter()
        .find(|(a, _)| *a == arch)
        .map(|(_, bytes)| *bytes)
}
