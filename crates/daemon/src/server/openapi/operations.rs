//! The operations of the API.

use Body::{Json, Lines, List, Nothing, Raw};
use Kind::{Count, Flag, Id, Number, Text, Time, Word};
use utoipa::openapi::path::HttpMethod;

pub(super) const JSON: &str = "application/json";
pub(super) const TEXT: &str = "text/plain";
pub(super) const BYTES: &str = "application/octet-stream";
pub(super) const TAR: &str = "application/x-tar";

/// What a body is.
#[derive(Clone, Copy)]
pub(super) enum Body {
    /// Nothing, or what nobody reads.
    Nothing,
    /// An object of this type.
    Json(&'static str),
    /// An array of this type.
    List(&'static str),
    /// An object of this type in each line.
    Lines(&'static str),
    /// Text or bytes of one of these types.
    Raw(&'static [&'static str]),
}

/// What a parameter of the query is.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    /// A user or a group.
    Id,
    Number,
    /// A number from this on.
    Count(u32),
    Flag,
    /// A duration in Go's grammar.
    Time,
    /// One of these.
    Word(&'static [&'static str]),
    List,
}

/// One operation.
pub(super) struct Op {
    pub(super) method: HttpMethod,
    pub(super) path: &'static str,
    /// Its name in generated clients.
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) query: &'static [(&'static str, Kind)],
    /// Parameters of the query that must be there.
    pub(super) required: &'static [&'static str],
    pub(super) body: Body,
    pub(super) status: u16,
    pub(super) answer: Body,
    /// The statuses of errors, besides 401.
    pub(super) errors: &'static [u16],
}

const OP: Op = Op {
    method: HttpMethod::Get,
    path: "",
    id: "",
    summary: "",
    query: &[],
    required: &[],
    body: Nothing,
    status: 200,
    answer: Nothing,
    errors: &[],
};

const FILTER: &[(&str, Kind)] = &[("tag", Text), ("tag_prefix", Text)];
/// Of what is asked of a guest: wrong, no such VM, paused or stopped, not ready.
const GUEST: &[u16] = &[400, 404, 409, 500, 503];
/// Of what is asked of a guest's files: besides, not allowed, and no room.
const FILES: &[u16] = &[400, 403, 404, 409, 500, 503];
const NEW_FILES: &[u16] = &[400, 403, 404, 409, 500, 503, 507];
const EXEC: &[(&str, Kind)] = &[
    ("cmd", Text),
    ("args", Kind::List),
    ("env", Kind::List),
    ("uid", Id),
    ("gid", Id),
    ("cwd", Text),
    ("shell", Text),
    ("stdin", Flag),
    ("stdout", Flag),
    ("stderr", Flag),
    ("stdio", Word(&["text", "base64"])),
    ("buffered", Flag),
    ("background", Flag),
    ("ring_bytes", Number),
];

pub(super) const OPS: &[Op] = &[
    Op {
        path: "/info",
        id: "info",
        summary: "The daemon's version and platform",
        answer: Json("Info"),
        ..OP
    },
    Op {
        path: "/healthz",
        id: "healthz",
        summary: "Whether the daemon answers; needs no token",
        answer: Raw(&[TEXT, JSON]),
        ..OP
    },
    Op {
        path: "/metrics",
        id: "metrics",
        summary: "Counters and gauges for Prometheus",
        answer: Raw(&["application/openmetrics-text"]),
        ..OP
    },
    Op {
        path: "/openapi.json",
        id: "openapi",
        summary: "This description",
        answer: Raw(&[JSON]),
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/daemon/shutdown",
        id: "shutDownDaemon",
        summary: "End the daemon, as SIGTERM does: answered before the VMs are off",
        status: 202,
        ..OP
    },
    Op {
        path: "/hostgroup",
        id: "listHostGroups",
        summary: "The host groups",
        answer: List("HostGroup"),
        ..OP
    },
    Op {
        path: "/hostgroup/{group}/nodes",
        id: "listHostGroupNodes",
        summary: "The VMs of a host group",
        query: FILTER,
        answer: List("Node"),
        errors: &[400, 404],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/hostgroup/{group}/nodes",
        id: "createNode",
        summary: "Launch a VM",
        query: &[
            ("wait", Word(&["agent", "userdata", "none"])),
            ("timeout", Time),
        ],
        body: Json("CreateNode"),
        status: 201,
        answer: Json("CreatedNode"),
        errors: &[400, 403, 404, 408, 409, 500, 501, 502, 503, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/hostgroup/{group}/nodes/{vm}",
        id: "deleteNode",
        summary: "Delete a VM and its disk at once",
        answer: Json("DeletedNode"),
        errors: &[403, 404, 409, 500],
        ..OP
    },
    Op {
        path: "/nodes",
        id: "listNodes",
        summary: "All VMs",
        query: FILTER,
        answer: List("Node"),
        errors: &[400],
        ..OP
    },
    Op {
        path: "/devices",
        id: "listDevices",
        summary: "All VMs, by an older name",
        query: FILTER,
        answer: List("Node"),
        errors: &[400],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/commit",
        id: "commit",
        summary: "Commit the disk of a stopped, persistent VM",
        body: Json("CommitRequest"),
        answer: Json("Committed"),
        errors: &[400, 404, 409, 500, 507],
        ..OP
    },
    Op {
        path: "/images",
        id: "listImages",
        summary: "The images in the cache, who uses them and what they take on the disk",
        answer: Json("Images"),
        errors: &[500],
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/images",
        id: "deleteImage",
        summary: "Remove an image, by its name, its digest or the beginning of that",
        query: &[("reference", Text), ("force", Flag)],
        required: &["reference"],
        answer: Json("RemovedImages"),
        errors: &[400, 404, 409, 500],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/images/pull",
        id: "pullImage",
        summary: "Fetch what an image's name leads to now; a failure is the last line",
        body: Json("PullImage"),
        answer: Lines("PullFrame"),
        errors: &[400],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/images/import",
        id: "importImage",
        summary: "Take an image from an OCI archive or what `docker save` writes",
        query: &[("reference", Text)],
        body: Raw(&[BYTES, TAR]),
        answer: Json("ImportedImage"),
        errors: &[400, 408, 500, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/images/wipe",
        id: "wipeImages",
        summary: "Remove all images that nobody uses",
        answer: Json("RemovedImages"),
        errors: &[409, 500],
        ..OP
    },
    Op {
        path: "/disks",
        id: "listDisks",
        summary: "The disks of VMs and commits, and the bases they were made of",
        answer: Json("Disks"),
        errors: &[500],
        ..OP
    },
    Op {
        path: "/disks/{vm}/export",
        id: "exportDisk",
        summary: "The whole disk of a VM that is off or paused",
        query: &[("format", Word(&["qcow2", "raw"]))],
        answer: Raw(&[BYTES]),
        errors: &[400, 404, 409, 500],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/disks/{vm}/sparsify",
        id: "sparsifyDisk",
        summary: "Give back to the host what a running VM's disk doesn't use",
        answer: Json("SparsifiedDisk"),
        errors: &[404, 409, 500, 502, 503, 504],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/disks/{vm}/reset",
        id: "resetDisk",
        summary: "Remove the disk of a VM that is off: its next start makes a fresh one",
        answer: Raw(&[TEXT]),
        errors: &[404, 409, 500],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/fork",
        id: "forkLive",
        summary: "Launch VMs that go on from where one that runs is now",
        query: &[("wait", Word(&["agent", "none"])), ("timeout", Time)],
        body: Json("LiveForkRequest"),
        answer: Json("LiveForked"),
        errors: &[400, 404, 408, 409, 500, 501, 503, 507],
        ..OP
    },
    Op {
        path: "/templates",
        id: "listTemplates",
        summary: "The templates that launches begin as",
        answer: List("Template"),
        errors: &[500],
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/templates/{id}",
        id: "removeTemplate",
        summary: "Remove a template; VMs that began as it go on",
        answer: Json("RemovedTemplate"),
        errors: &[404, 500],
        ..OP
    },
    Op {
        path: "/vm/commits",
        id: "listCommits",
        summary: "All commits",
        query: &[
            ("tag", Kind::List),
            ("cache_key", Text),
            ("source", Text),
            ("mode", Text),
        ],
        answer: List("Commit"),
        errors: &[400],
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/vm/commits/{id}",
        id: "deleteCommit",
        summary: "Remove a commit that nobody needs any more",
        answer: Json("DeletedCommit"),
        errors: &[404, 409, 500],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/commits/{id}/fork",
        id: "fork",
        summary: "Launch a VM whose disk begins as a commit's",
        query: &[("wait", Word(&["agent", "none"])), ("timeout", Time)],
        body: Json("ForkRequest"),
        answer: Json("Forked"),
        errors: &[400, 404, 408, 409, 500, 501, 502, 503, 507],
        ..OP
    },
    Op {
        path: "/nodes/stats",
        id: "nodesStats",
        summary: "What VMs use",
        answer: List("NodeStats"),
        ..OP
    },
    Op {
        path: "/node/{vm}/stats",
        id: "nodeStats",
        summary: "What a VM uses, as a list of one",
        answer: List("NodeStats"),
        errors: &[404],
        ..OP
    },
    Op {
        path: "/secrets",
        id: "listSecrets",
        summary: "All secrets, without their values",
        answer: List("Secret"),
        errors: &[500],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/secrets",
        id: "createSecret",
        summary: "Make a secret",
        body: Json("CreateSecret"),
        status: 201,
        answer: Json("Secret"),
        errors: &[400, 409, 500, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Patch,
        path: "/secrets/{name}",
        id: "updateSecret",
        summary: "Change a secret's value, permissions or owner",
        body: Json("UpdateSecret"),
        answer: Json("Secret"),
        errors: &[400, 404, 500, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/secrets/{name}",
        id: "deleteSecret",
        summary: "Remove a secret, in guests too",
        errors: &[400, 404, 500],
        ..OP
    },
    Op {
        path: "/vm/{vm}",
        id: "describeNode",
        summary: "All about a VM",
        answer: Json("NodeDetail"),
        errors: &[404],
        ..OP
    },
    Op {
        path: "/vm/{vm}/health",
        id: "health",
        summary: "What the VM's agent says of itself",
        answer: Json("Health"),
        errors: &[404, 409, 503],
        ..OP
    },
    Op {
        path: "/vm/{vm}/logs",
        id: "logs",
        summary: "The serial console's last lines",
        query: &[("lines", Count(0))],
        answer: Json("Logs"),
        errors: &[400, 404, 500],
        ..OP
    },
    Op {
        path: "/vm/{vm}/tags",
        id: "tags",
        summary: "A VM's tags",
        answer: Json("Tags"),
        errors: &[404],
        ..OP
    },
    Op {
        method: HttpMethod::Patch,
        path: "/vm/{vm}/tags",
        id: "changeTags",
        summary: "Add, remove or replace tags",
        body: Json("TagsChange"),
        answer: Json("Tags"),
        errors: &[400, 404, 409, 500],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/shutdown",
        id: "shutdown",
        summary: "Ask a VM to power off or reboot",
        query: &[("action", Word(&["shutdown", "reboot"]))],
        body: Json("ShutdownRequest"),
        answer: Raw(&[TEXT]),
        errors: GUEST,
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/pause",
        id: "pause",
        summary: "Freeze a VM",
        answer: Raw(&[TEXT]),
        errors: &[404, 409, 500, 503],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/resume",
        id: "resume",
        summary: "Let a paused VM run on",
        answer: Raw(&[TEXT]),
        errors: &[404, 409, 500, 503],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/suspend",
        id: "suspend",
        summary: "Write a VM to disk and end it; done when this answers",
        answer: Raw(&[TEXT]),
        errors: &[404, 409, 500, 501, 503, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/restore",
        id: "restore",
        summary: "Have a suspended VM run on; one that can't is booted from its disk, and the \
                  answer says why",
        query: &[
            ("wait", Word(&["agent", "userdata", "none"])),
            ("timeout", Time),
        ],
        answer: Raw(&[TEXT]),
        errors: &[400, 404, 408, 409, 500, 503, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/relaunch",
        id: "relaunch",
        summary: "Start a stopped VM again",
        answer: Json("CreatedNode"),
        errors: &[404, 409, 500, 503, 507],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/exec",
        id: "exec",
        summary: "Run a command: its output as frames, at once with buffered, later with background",
        query: EXEC,
        required: &["cmd"],
        body: Raw(&[BYTES]),
        answer: Lines("ExecFrame"),
        errors: GUEST,
        ..OP
    },
    Op {
        path: "/vm/{vm}/exec",
        id: "listExecs",
        summary: "The commands in the background",
        answer: List("ExecInfo"),
        errors: GUEST,
        ..OP
    },
    Op {
        path: "/vm/{vm}/exec/{id}",
        id: "execInfo",
        summary: "A command in the background",
        answer: Json("ExecInfo"),
        errors: &[400, 404, 409, 410, 500, 503],
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/vm/{vm}/exec/{id}",
        id: "reapExec",
        summary: "Forget a command that has ended",
        answer: Json("Reaped"),
        errors: &[400, 404, 409, 410, 500, 503],
        ..OP
    },
    Op {
        path: "/vm/{vm}/exec/{id}/logs",
        id: "execLogs",
        summary: "A command's output, as far as it is kept",
        query: &[("follow", Flag), ("from_id", Count(0))],
        answer: Lines("LogFrame"),
        errors: &[400, 404, 409, 410, 500, 503],
        ..OP
    },
    Op {
        path: "/vm/{vm}/exec/{id}/wait-exit",
        id: "waitExec",
        summary: "Wait for a command to end",
        query: &[("timeout", Count(0))],
        answer: Json("WaitExit"),
        errors: &[400, 404, 409, 410, 500, 503],
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/exec/{id}/kill",
        id: "killExec",
        summary: "Send a command's process group a signal",
        body: Json("KillRequest"),
        answer: Json("Killed"),
        errors: &[400, 404, 409, 410, 500, 503],
        ..OP
    },
    Op {
        path: "/vm/{vm}/cp",
        id: "copyOut",
        summary: "Copy a file or a tree out of a VM",
        query: &[
            ("path", Text),
            (
                "mode",
                Word(&[
                    "binary",
                    "tar",
                    "cp-v1-binary",
                    "cp-v1-tar",
                    "cp-v1-recursive",
                ]),
            ),
            ("uid", Id),
            ("exclude", Kind::List),
            ("copy_semantics", Word(&["cp-v1"])),
        ],
        required: &["path"],
        answer: Raw(&[BYTES, TAR]),
        errors: FILES,
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/cp",
        id: "copyIn",
        summary: "Copy a file or a tree into a VM",
        query: &[
            ("path", Text),
            (
                "mode",
                Word(&["binary", "tar", "cp-v1-binary", "cp-v1-tar"]),
            ),
            ("uid", Id),
            ("gid", Id),
            ("permissions", Text),
            ("exclude", Kind::List),
            ("copy_semantics", Word(&["cp-v1"])),
            ("source_name", Text),
            ("source_type", Word(&["file", "directory"])),
            ("copy_contents", Flag),
        ],
        required: &["path"],
        body: Raw(&[BYTES, TAR]),
        errors: NEW_FILES,
        ..OP
    },
    Op {
        path: "/vm/{vm}/fs/readdir",
        id: "readDirectory",
        summary: "What is in a directory",
        query: &[("path", Text)],
        required: &["path"],
        answer: List("FsEntry"),
        errors: FILES,
        ..OP
    },
    Op {
        path: "/vm/{vm}/fs/stat",
        id: "stat",
        summary: "What a file is",
        query: &[("path", Text)],
        required: &["path"],
        answer: Json("FsEntry"),
        errors: FILES,
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/fs/mkdir",
        id: "makeDirectory",
        summary: "Make a directory",
        body: Json("MakeDirectory"),
        errors: NEW_FILES,
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/vm/{vm}/fs/remove",
        id: "remove",
        summary: "Remove a file or a directory",
        query: &[("path", Text), ("recursive", Flag)],
        required: &["path"],
        errors: FILES,
        ..OP
    },
    Op {
        path: "/vm/{vm}/fs/watch",
        id: "watch",
        summary: "Changes of files as they happen, as server-sent events whose data is a WatchEvent",
        query: &[
            ("paths", Kind::List),
            ("patterns", Kind::List),
            ("events", Kind::List),
            ("recursive", Flag),
            ("one_shot", Flag),
            ("debounce", Time),
            ("timeout", Time),
            ("max_events", Count(1)),
            ("uid", Id),
        ],
        required: &["paths"],
        answer: Raw(&["text/event-stream"]),
        errors: FILES,
        ..OP
    },
    Op {
        path: "/vm/{vm}/shell",
        id: "shell",
        summary: "An interactive shell, over a WebSocket",
        query: &[("uid", Id), ("gid", Id), ("shell", Text), ("cwd", Text)],
        status: 101,
        errors: GUEST,
        ..OP
    },
    Op {
        path: "/vm/{vm}/forward",
        id: "forward",
        summary: "A connection to what the header X-Inlets-Upstream names, over a WebSocket",
        status: 101,
        errors: &[400, 404, 409, 500, 502, 503],
        ..OP
    },
];
