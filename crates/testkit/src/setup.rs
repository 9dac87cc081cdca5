//! What a daemon under test is configured with.

use std::fmt::Write;
use std::net::TcpListener;

/// A host group of a test.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// How many VMs the daemon keeps.
    pub count: u32,
    /// CPUs of a VM.
    pub vcpu: u32,
    /// Memory of a VM, MiB.
    pub ram_mb: u32,
    /// What becomes of its VMs when the host goes to sleep.
    pub sleep_action: &'static str,
}

/// The group `slicer` with its one VM.
pub const SLICER: Group = Group {
    name: "slicer",
    count: 1,
    vcpu: 1,
    ram_mb: 512,
    sleep_action: "none",
};

/// The group `sbox`, of which VMs are launched on demand.
pub const SBOX: Group = Group {
    name: "sbox",
    count: 0,
    vcpu: 1,
    ram_mb: 512,
    sleep_action: "none",
};

/// How a daemon under test is set up. The API is at `./slicer.sock`.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its host groups.
    pub groups: Vec<Group>,
    /// The image's reference; without one, the default image.
    pub image: Option<String>,
    /// More groups, as they are written, each line with its end and indented by four or six.
    pub groups_as_text: String,
    /// More lines of each group, each with its line end and indented by six.
    pub group: String,
    /// Whether launches begin as templates.
    pub warm: bool,
    /// More lines of `api`, each with its line end and indented by four.
    pub api: String,
    /// More lines of `config`, indented by two.
    pub more: String,
    /// Variables of the daemon's environment.
    pub env: Vec<(&'static str, String)>,
    /// Words before the daemon's program, that say how it is started.
    pub wrap: Vec<String>,
}

impl Setup {
    /// The groups `slicer`, with its one VM, and `sbox`, with small VMs.
    pub fn full() -> Self {
        Self::of([SLICER, SBOX])
    }

    /// Only the group `sbox`.
    pub fn sandboxes() -> Self {
        Self::of([SBOX])
    }

    /// These groups.
    pub fn of(groups: impl IntoIterator<Item = Group>) -> Self {
        Self {
            groups: groups.into_iter().collect(),
            image: None,
            groups_as_text: String::new(),
            group: String::new(),
            warm: false,
            api: String::new(),
            more: String::new(),
            env: Vec::new(),
            wrap: Vec::new(),
        }
    }

    /// The configuration's text. `image` is the default image's reference.
    pub fn yaml(&self, image: &str) -> String {
        let mut text = String::from("config:\n  host_groups:\n");
        for Group {
            name,
            count,
            vcpu,
            ram_mb,
            sleep_action,
        } in &self.groups
        {
            let _ = write!(
                text,
                "    - name: {name}\n      count: {count}\n      vcpu: {vcpu}\n      \
                 ram_mb: {ram_mb}\n      storage_size: 15G\n      \
                 sleep_action: {sleep_action}\n      warm: {}\n{}",
                self.warm, self.group
            );
        }
        text.push_str(&self.groups_as_text);
        let image = self.image.as_deref().unwrap_or(image);
        let _ = write!(text, "  image: {image:?}\n{}", self.more);
        let _ = write!(text, "  api:\n    socket: ./slicer.sock\n{}", self.api);
        text
    }
}

/// A port of the loopback address where nobody listens.
pub fn free_port() -> u16 {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    bound.unwrap().port()
}
