//! `GET /openapi.json`: the API in the form of OpenAPI 3.1, its schemas generated from the types.

use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use slicer_api as api;
use std::sync::OnceLock;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, Paths, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, KnownFormat, OpenApi, OpenApiBuilder, Ref, RefOr,
    Required, ResponseBuilder, Schema, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
const BYTES: &str = "application/octet-stream";
const TAR: &str = "application/x-tar";

/// What a body is.
#[derive(Clone, Copy)]
enum Body {
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
enum Kind {
    Text,
    Number,
    Flag,
    List,
}

use Body::{Json, Lines, List, Nothing, Raw};
use Kind::{Flag, Number, Text};

/// One operation.
struct Op {
    method: HttpMethod,
    path: &'static str,
    /// Its name in generated clients.
    id: &'static str,
    summary: &'static str,
    query: &'static [(&'static str, Kind)],
    /// Parameters of the query that must be there.
    required: &'static [&'static str],
    body: Body,
    status: u16,
    answer: Body,
    /// The statuses of errors, besides 401.
    errors: &'static [u16],
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
const EXEC: &[(&str, Kind)] = &[
    ("cmd", Text),
    ("args", Kind::List),
    ("env", Kind::List),
    ("uid", Number),
    ("gid", Number),
    ("cwd", Text),
    ("shell", Text),
    ("stdin", Flag),
    ("stdout", Flag),
    ("stderr", Flag),
    ("stdio", Text),
    ("buffered", Flag),
    ("background", Flag),
    ("ring_bytes", Number),
];

const OPS: &[Op] = &[
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
        query: &[("wait", Text), ("timeout", Text)],
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
        query: &[("lines", Number)],
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
        query: &[("action", Text)],
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
        query: &[("follow", Flag), ("from_id", Number)],
        answer: Lines("LogFrame"),
        errors: &[400, 404, 409, 410, 500, 503],
        ..OP
    },
    Op {
        path: "/vm/{vm}/exec/{id}/wait-exit",
        id: "waitExec",
        summary: "Wait for a command to end",
        query: &[("timeout", Text)],
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
            ("mode", Text),
            ("uid", Number),
            ("exclude", Kind::List),
            ("copy_semantics", Text),
        ],
        required: &["path"],
        answer: Raw(&[BYTES, TAR]),
        errors: GUEST,
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/cp",
        id: "copyIn",
        summary: "Copy a file or a tree into a VM",
        query: &[
            ("path", Text),
            ("mode", Text),
            ("uid", Number),
            ("gid", Number),
            ("permissions", Text),
            ("exclude", Kind::List),
            ("copy_semantics", Text),
            ("source_name", Text),
            ("source_type", Text),
            ("copy_contents", Flag),
        ],
        required: &["path"],
        body: Raw(&[BYTES, TAR]),
        errors: &[400, 404, 409, 500, 503, 507],
        ..OP
    },
    Op {
        path: "/vm/{vm}/fs/readdir",
        id: "readDirectory",
        summary: "What is in a directory",
        query: &[("path", Text)],
        required: &["path"],
        answer: List("FsEntry"),
        errors: GUEST,
        ..OP
    },
    Op {
        path: "/vm/{vm}/fs/stat",
        id: "stat",
        summary: "What a file is",
        query: &[("path", Text)],
        required: &["path"],
        answer: Json("FsEntry"),
        errors: GUEST,
        ..OP
    },
    Op {
        method: HttpMethod::Post,
        path: "/vm/{vm}/fs/mkdir",
        id: "makeDirectory",
        summary: "Make a directory",
        body: Json("MakeDirectory"),
        errors: GUEST,
        ..OP
    },
    Op {
        method: HttpMethod::Delete,
        path: "/vm/{vm}/fs/remove",
        id: "remove",
        summary: "Remove a file or a directory",
        query: &[("path", Text), ("recursive", Flag)],
        required: &["path"],
        errors: GUEST,
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
            ("debounce", Text),
            ("timeout", Text),
            ("max_events", Number),
            ("uid", Number),
        ],
        required: &["paths"],
        answer: Raw(&["text/event-stream"]),
        errors: GUEST,
        ..OP
    },
    Op {
        path: "/vm/{vm}/shell",
        id: "shell",
        summary: "An interactive shell, over a WebSocket",
        query: &[
            ("uid", Number),
            ("gid", Number),
            ("shell", Text),
            ("cwd", Text),
        ],
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

/// The schemas by their names: those of the types given and of all they are made of.
macro_rules! schemas {
    ($($type:ident),* $(,)?) => {{
        let mut all: Vec<(String, RefOr<Schema>)> = Vec::new();
        $(
            all.push((<api::$type as ToSchema>::name().into_owned(), api::$type::schema()));
            <api::$type as ToSchema>::schemas(&mut all);
        )*
        all
    }};
}

fn text() -> Schema {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .build()
        .into()
}

fn parameter(kind: Kind) -> Schema {
    let of = |kind| ObjectBuilder::new().schema_type(SchemaType::Type(kind));
    match kind {
        Text => text(),
        Number => of(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .build()
            .into(),
        Flag => of(Type::Boolean).build().into(),
        Kind::List => ArrayBuilder::new()
            .items(ObjectBuilder::new().schema_type(SchemaType::Type(Type::String)))
            .build()
            .into(),
    }
}

fn contents(body: Body) -> Vec<(&'static str, Content)> {
    let of = |schema: RefOr<Schema>| Content::new(Some(schema));
    match body {
        Nothing => Vec::new(),
        Json(name) => vec![(JSON, of(Ref::from_schema_name(name).into()))],
        List(name) => {
            let items = ArrayBuilder::new().items(Ref::from_schema_name(name));
            vec![(JSON, of(Schema::from(items.build()).into()))]
        }
        Lines(name) => vec![(
            "application/x-ndjson",
            of(Ref::from_schema_name(name).into()),
        )],
        Raw(kinds) => kinds.iter().map(|k| (*k, of(text().into()))).collect(),
    }
}

fn response(status: u16, answer: Body) -> ResponseBuilder {
    let status = hyper::StatusCode::from_u16(status).ok();
    let reason = status.and_then(|s| s.canonical_reason());
    let builder = ResponseBuilder::new().description(reason.unwrap_or_default());
    contents(answer)
        .into_iter()
        .fold(builder, |b, (kind, content)| b.content(kind, content))
}

fn operation(op: &Op) -> OperationBuilder {
    let mut builder = OperationBuilder::new()
        .operation_id(Some(op.id))
        .summary(Some(op.summary));
    let in_path = op
        .path
        .split('/')
        .filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
    for name in in_path {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .schema(Some(text()));
        builder = builder.parameter(parameter);
    }
    for (name, kind) in op.query {
        let required = if op.required.contains(name) {
            Required::True
        } else {
            Required::False
        };
        let parameter = ParameterBuilder::new()
            .name(*name)
            .parameter_in(ParameterIn::Query)
            .required(required)
            .schema(Some(parameter(*kind)));
        builder = builder.parameter(parameter);
    }
    if op.id == "forward" {
        let parameter = ParameterBuilder::new()
            .name("X-Inlets-Upstream")
            .parameter_in(ParameterIn::Header)
            .required(Required::True)
            .description(Some("HOST:PORT or unix:/PATH"))
            .schema(Some(text()));
        builder = builder.parameter(parameter);
    }
    let body = contents(op.body);
    if !body.is_empty() {
        let body = body
            .into_iter()
            .fold(RequestBodyBuilder::new(), |b, (kind, c)| b.content(kind, c));
        builder = builder.request_body(Some(body.build()));
    }
    let mut answer = response(op.status, op.answer);
    if op.id == "exec" {
        let buffered = Ref::from_schema_name("ExecBuffered");
        answer = answer.content(JSON, Content::new(Some(buffered)));
        let background = response(201, Json("BackgroundExec"));
        builder = builder.response("201", background);
    }
    builder = builder.response(op.status.to_string(), answer);
    if op.id == "healthz" {
        return builder.security(SecurityRequirement::default());
    }
    for status in op.errors.iter().chain(&[401]) {
        let error = response(*status, Json("ErrorBody"));
        builder = builder.response(status.to_string(), error);
    }
    builder
}

fn paths() -> Paths {
    let mut paths = PathsBuilder::new().build();
    for op in OPS {
        paths.add_path_operation(op.path, vec![op.method.clone()], operation(op));
    }
    paths
}

/// The whole description.
fn document() -> OpenApi {
    let schemas = schemas!(
        BackgroundExec,
        CreateNode,
        CreateSecret,
        CreatedNode,
        DeletedNode,
        ErrorBody,
        ExecBuffered,
        ExecFrame,
        ExecInfo,
        FsEntry,
        Health,
        HostGroup,
        Info,
        KillRequest,
        Killed,
        LogFrame,
        Logs,
        MakeDirectory,
        Node,
        NodeDetail,
        NodeStats,
        Reaped,
        Secret,
        ShutdownRequest,
        Tags,
        TagsChange,
        UpdateSecret,
        WaitExit,
        WatchEvent,
    );
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas)
        .security_scheme("token", bearer);
    let info = InfoBuilder::new()
        .title("slicer")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Linux VMs for developers. On a unix socket no token is needed.",
        ));
    OpenApiBuilder::new()
        .info(info)
        .paths(paths())
        .components(Some(components.build()))
        .security(Some([SecurityRequirement::new(
            "token",
            std::iter::empty::<String>(),
        )]))
        .build()
}

pub(super) async fn openapi() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    // A document of strings always encodes.
    let text = TEXT.get_or_init(|| document().to_json().unwrap_or_default());
    ([(CONTENT_TYPE, JSON)], text.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn described() -> Value {
        serde_json::from_str(&document().to_json().unwrap()).unwrap()
    }

    /// The methods and paths in the router's source: axum doesn't tell what it was made of.
    fn routed() -> BTreeSet<(String, String)> {
        let source: String = include_str!("mod.rs").split_whitespace().collect();
        let mut all = BTreeSet::new();
        for route in source.split(".route(\"").skip(1) {
            let (path, handlers) = route.split_once("\",").unwrap();
            let handlers = handlers.split(".fallback(").next().unwrap();
            for method in ["get", "post", "put", "patch", "delete"] {
                let begins = handlers.starts_with(&format!("{method}("));
                if begins || handlers.contains(&format!(").{method}(")) {
                    all.insert((method.to_owned(), path.to_owned()));
                }
            }
        }
        all
    }

    #[test]
    fn what_is_described_is_what_is_served() {
        let described = described();
        let paths = described["paths"].as_object().unwrap().iter();
        let described: BTreeSet<(String, String)> = paths
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(|m| (m.clone(), path.clone()))
            })
            .collect();
        let routed = routed();
        assert!(routed.len() > 40, "{routed:?}");
        assert_eq!(described, routed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = described();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        let names: BTreeSet<&str> = text
            .split("#/components/schemas/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert!(names.contains("NodeStatus"), "{names:?}");
        for name in names {
            assert!(schemas.contains_key(name), "{name} is missing");
        }
        let ids: Vec<&str> = OPS.iter().map(|op| op.id).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
}
