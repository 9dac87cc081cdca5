//! `GET /openapi.json`: the API in the form of OpenAPI 3.1, its schemas generated from the types.

mod operations;

use axum::response::{IntoResponse, Response};
use hyper::header::CONTENT_TYPE;
use operations::{BYTES, Body, JSON, Kind, OPS, Op, TAR};
use serde_json::Value;
use slicer_api as api;
use std::sync::OnceLock;
use utoipa::openapi::path::{OperationBuilder, ParameterBuilder, ParameterIn, Paths, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, KnownFormat, OpenApi, OpenApiBuilder, Ref, RefOr,
    Required, ResponseBuilder, Schema, SecurityRequirement,
};
use utoipa::{PartialSchema, ToSchema};

/// Go's durations, without sign, as far as a regular expression knows them.
const DURATION: &str = r"^(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";

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
    let integer = |format| of(Type::Integer).format(Some(SchemaFormat::KnownFormat(format)));
    match kind {
        Kind::Text => text(),
        Kind::Id => integer(KnownFormat::UInt32)
            .minimum(Some(0))
            .maximum(Some(u32::MAX))
            .build()
            .into(),
        Kind::Number => integer(KnownFormat::Int64).build().into(),
        Kind::Count(least) => integer(KnownFormat::UInt64)
            .minimum(Some(least))
            .build()
            .into(),
        Kind::Flag => of(Type::Boolean).build().into(),
        Kind::Time => of(Type::String).pattern(Some(DURATION)).build().into(),
        Kind::Word(words) => of(Type::String)
            .enum_values(Some(words.iter().copied()))
            .build()
            .into(),
        Kind::List => ArrayBuilder::new().items(of(Type::String)).build().into(),
    }
}

fn contents(body: Body) -> Vec<(&'static str, Content)> {
    let of = |schema: RefOr<Schema>| Content::new(Some(schema));
    match body {
        Body::Nothing => Vec::new(),
        Body::Json(name) => vec![(JSON, of(Ref::from_schema_name(name).into()))],
        Body::List(name) => {
            let items = ArrayBuilder::new().items(Ref::from_schema_name(name));
            vec![(JSON, of(Schema::from(items.build()).into()))]
        }
        Body::Lines(name) => vec![(
            "application/x-ndjson",
            of(Ref::from_schema_name(name).into()),
        )],
        Body::Raw(kinds) => kinds
            .iter()
            .map(|kind| match *kind {
                BYTES | TAR => (*kind, Content::new(None::<RefOr<Schema>>)),
                kind => (kind, of(text().into())),
            })
            .collect(),
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
        let background = response(201, Body::Json("BackgroundExec"));
        builder = builder.response("201", background);
    }
    builder = builder.response(op.status.to_string(), answer);
    if op.id == "healthz" {
        return builder.security(SecurityRequirement::default());
    }
    for status in op.errors.iter().chain(&[401]) {
        let error = response(*status, Body::Json("ErrorBody"));
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
        Commit,
        CommitRequest,
        Committed,
        CreateNode,
        CreateSecret,
        CreatedNode,
        DeletedCommit,
        Disks,
        DeletedNode,
        ErrorBody,
        ExecBuffered,
        ExecFrame,
        ExecInfo,
        ForkRequest,
        Forked,
        FsEntry,
        EntrypointState,
        Health,
        HostGroup,
        Images,
        ImportedImage,
        Info,
        KillRequest,
        Killed,
        LiveForkRequest,
        LiveForked,
        LogFrame,
        Logs,
        MakeDirectory,
        Node,
        NodeDetail,
        NodeStats,
        PullFrame,
        PullImage,
        Reaped,
        RemovedImages,
        RemovedTemplate,
        Secret,
        ShutdownRequest,
        SparsifiedDisk,
        Tags,
        TagsChange,
        Template,
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

/// The description as it is served. It says of the query's optional parameters that an empty one
/// is like none, for which utoipa has no word.
fn served() -> Value {
    // A document of strings always encodes.
    let mut document = serde_json::to_value(document()).unwrap_or_default();
    for path in objects(document.get_mut("paths")) {
        for operation in objects(Some(path)) {
            let parameters = operation.get_mut("parameters");
            let parameters = parameters.and_then(Value::as_array_mut);
            for parameter in parameters.into_iter().flatten() {
                if parameter["in"] == "query" && parameter["required"] == false {
                    parameter["allowEmptyValue"] = true.into();
                }
            }
        }
    }
    document
}

/// The values of an object.
fn objects(object: Option<&mut Value>) -> impl Iterator<Item = &mut Value> {
    let map = object.and_then(Value::as_object_mut);
    map.into_iter().flat_map(serde_json::Map::values_mut)
}

pub(super) async fn openapi() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| served().to_string());
    ([(CONTENT_TYPE, JSON)], text.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The methods and paths in the router's source: axum doesn't tell what it was made of.
    fn routed() -> BTreeSet<(String, String)> {
        let source: String = include_str!("../mod.rs").split_whitespace().collect();
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
        let described = served();
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
        let document = served();
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
