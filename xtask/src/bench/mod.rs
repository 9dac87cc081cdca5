//! `cargo xtask bench`: what slicer adds to what the machine allows.
//!
//! Seconds say little about a program that boots kernels on whatever machine it is given, so
//! nearly all that is judged here is a ratio, of the product to a floor made by hand, measured in
//! interleaved pairs so that both see the same machine. `bench/README.md` explains each.

mod bars;
mod bed;
mod chart;
mod connect;
mod exec;
mod floor;
mod fork;
mod forward;
mod host;
mod http;
mod idle;
mod image;
mod launch;
mod many;
mod memory;
mod minimal;
mod page;
mod pipe;
mod plan;
mod pool;
mod process;
#[cfg(test)]
mod published;
mod report;
mod run;
mod shares;
mod start;
mod stats;
mod suspend;
mod template;
mod transfer;
mod tree;

pub(crate) use image::{BaseArgs, base};
pub(crate) use page::{PageArgs, render};
pub(crate) use plan::Args;
pub(crate) use run::run;

use anyhow::Result;
use slicer_api::{CreateNode, Wait};
use slicer_client::Client;
use stats::median;
use std::fmt::Write;
use std::path::Path;

/// The group all VMs here are of, and what they get.
const GROUP: &str = "sbox";
/// One like it, whose VMs are booted, beside one whose are not.
const COLD: &str = "cold";
/// One of VMs of an image without an init.
const MINIMAL: &str = "minimal";
/// One of larger VMs.
const LARGE: &str = "large";
const LARGE_RAM_MB: u32 = 1024;
const VCPUS: u32 = 1;
const RAM_MB: u32 = 512;
const DISK_SIZE: &str = "15G";

/// The daemon's configuration, with these groups, each with keys of its own.
fn configuration(layout: &Path, groups: &[(&str, String)]) -> String {
    let mut all = String::new();
    for (n, (name, keys)) in groups.iter().enumerate() {
        // Writing to a string doesn't fail.
        let _ = write!(
            all,
            "    - name: {name}
      count: 0
      vcpu: {VCPUS}
      ram_mb: {}
      storage_size: {DISK_SIZE}
{keys}      network:
        mode: nat
        gateway: 192.168.{}.1/24
",
            if *name == LARGE { LARGE_RAM_MB } else { RAM_MB },
            64 + n
        );
    }
    format!(
        "config:
  host_groups:
{all}  image: \"oci:{}:latest\"
  hypervisor: qemu
  api:
    socket: \"./slicer.sock\"
",
        layout.display()
    )
}

/// Launches a VM and waits until it is ready.
async fn create(client: &Client) -> Result<String> {
    create_in(GROUP, client).await
}

/// The same, in a group.
async fn create_in(group: &str, client: &Client) -> Result<String> {
    let node = CreateNode::default();
    let created = client
        .create_node(group, &node, Some(Wait::Agent), None)
        .await?;
    Ok(created.hostname)
}
