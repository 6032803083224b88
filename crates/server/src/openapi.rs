//! The description of the first path in OpenAPI 3.1, made of the table of routes and the types that travel.

use crate::api;
use crate::pages::MOST;
use crate::routes::{Access, Body, Route};
use crate::storage::Repository;
use chipbound_transport::problem::PROBLEM_JSON;
use chipbound_wire::Code;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

/// The description; `docs/openapi.json` is its text.
#[must_use]
pub fn document<R: Repository>() -> Value {
    describe(api::table::<R>().into_iter().map(|(route, _)| route))
}

/// The description, made once.
pub(crate) fn shared<R: Repository>() -> &'static Value {
    static MADE: OnceLock<Value> = OnceLock::new();
    MADE.get_or_init(document::<R>)
}

fn describe(routes: impl Iterator<Item = Route>) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let method = route.method.as_str().to_lowercase();
        let operation = operation(&route, &mut schemas);
        // axum marks what takes the rest of a path.
        let path = paths.entry(route.path.replace("{*", "{")).or_insert_with(|| json!({}));
        path[method] = operation;
    }
    let mut components = schemas.take_definitions(true);
    components.insert("Code".to_owned(), codes());
    components.insert("Problem".to_owned(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "chipbound, the first path",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Who may call a route is its x-roles; what scope an API token needs for it is its x-scope, without one it \
                needs a log-in with the password. Documents travel as base64 of the bytes that were signed (docs/chipbound.cddl). Refusals are problem details \
                (RFC 9457) with a stable code.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "responses": { "Problem": {
                "description": "Refused: nothing was changed.",
                "content": { PROBLEM_JSON: { "schema": { "$ref": "#/components/schemas/Problem" } } },
            } },
        },
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let mut answer = json!({ "description": if route.status == 101 { "The second path begins." } else { "Done." } });
    if let Some(content) = content(route.answers, schemas) {
        answer["content"] = content;
    }
    let mut operation = json!({
        "summary": route.about,
        "operationId": name(route),
        "responses": { route.status.to_string(): answer, "default": { "$ref": "#/components/responses/Problem" } },
    });
    if let Some(content) = content(route.takes, schemas) {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Access::Roles(roles, scope) = route.access {
        operation["security"] = json!([{ "bearer": [] }]);
        operation["x-roles"] = roles.iter().map(|r| r.as_str()).collect();
        operation["x-scope"] = scope.map_or(Value::Null, |s| s.as_str().into());
    }
    operation
}

fn content(body: Body, schemas: &mut SchemaGenerator) -> Option<Value> {
    match body {
        Body::Nothing => None,
        Body::Json(schema) => Some(json!({ "application/json": { "schema": schema(schemas) } })),
        Body::Octets => Some(json!({ "application/octet-stream": {} })),
    }
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path =
        route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).map(|name| name.trim_start_matches('*'));
    let in_path = in_path.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_headers = route.headers.iter().map(
        |(name, about)| json!({ "name": name, "in": "header", "required": true, "description": about, "schema": { "type": "string" } }),
    );
    let in_query = [
        json!({ "name": "cursor", "in": "query", "description": "the `next` of the page before", "schema": { "type": "string" } }),
        json!({ "name": "limit", "in": "query", "description": "how many at most",
            "schema": { "type": "integer", "minimum": 1, "maximum": MOST, "default": MOST } }),
    ];
    in_path.chain(in_headers).chain(in_query.into_iter().filter(|_| route.paged)).collect()
}

/// `get_v1_orders_order`: unique, and as stable as the path.
fn name(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(route.method.as_str().to_lowercase().as_str()).chain(words).collect::<Vec<_>>().join("_")
}

/// A refusal (`chipbound_transport::Problem`).
fn problem() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail", "code", "advice"],
        "properties": {
            "type": text("urn:chipbound:problem: and the code"),
            "title": text("The code in words."),
            "status": { "type": "integer", "description": "The HTTP status." },
            "detail": text("What exactly, for people."),
            "code": { "$ref": "#/components/schemas/Code" },
            "advice": text("What to do next, for people."),
        },
    })
}

/// Every code that a problem can carry, with its status and what to do.
fn codes() -> Value {
    let each =
        Code::ALL.iter().map(|code| json!({ "const": code.as_str(), "description": format!("{}: {}", code.status(), code.advice()) }));
    json!({ "description": "Stable codes: the status and what to do next.", "oneOf": each.collect::<Vec<_>>() })
}
