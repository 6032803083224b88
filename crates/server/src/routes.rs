//! What a route is: who may call it, what it takes and what it answers. The router and the OpenAPI description are made of the
//! same table, and a route that is not in it cannot be reached.

use crate::server::Server;
use crate::storage::{Principal, Repository};
use axum::Router;
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::MethodRouter;
use chipbound_transport::ApiError;
use chipbound_transport::extract::Bearer;
use chipbound_wire::api::{AccountRole, Scope};
use chipbound_wire::{Code, Refusal};
use http::Method;
use http::request::Parts;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use std::net::SocketAddr;
use std::sync::Arc;

/// Who may call a route.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// Whoever connects.
    Anybody,
    /// Whoever is logged in with one of these roles, and whoever has an API token of such an account with that scope; without a
    /// scope no API token is enough. Others are refused with [`Code::Forbidden`], strangers with [`Code::Unauthenticated`].
    Roles(&'static [AccountRole], Option<Scope>),
}

/// A body, in or out.
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// There is none.
    Nothing,
    /// JSON of the type whose schema this makes.
    Json(fn(&mut SchemaGenerator) -> Schema),
    /// Bytes as they are.
    Octets,
}

impl Body {
    /// JSON of `T`.
    pub(crate) fn json<T: JsonSchema>() -> Self {
        Self::Json(SchemaGenerator::subschema_for::<T>)
    }
}

/// A row of the table.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// As axum and OpenAPI write it: `/v1/orders/{order}`.
    pub(crate) path: &'static str,
    /// What it does, in one line.
    pub(crate) about: &'static str,
    pub(crate) access: Access,
    /// Headers that the route looks at, and what for.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// Whether it answers a page, chosen by `cursor` and `limit`.
    pub(crate) paged: bool,
    pub(crate) takes: Body,
    /// The status when all is well.
    pub(crate) status: u16,
    pub(crate) answers: Body,
}

impl Route {
    /// A route that takes nothing and answers with no body.
    pub(crate) fn new(method: Method, path: &'static str, access: Access, about: &'static str) -> Self {
        Self { method, path, about, access, headers: &[], paged: false, takes: Body::Nothing, status: 204, answers: Body::Nothing }
    }

    /// Takes that body.
    pub(crate) fn takes(self, takes: Body) -> Self {
        Self { takes, ..self }
    }

    /// Answers 200 with that body.
    pub(crate) fn answers(self, answers: Body) -> Self {
        Self { status: 200, answers, ..self }
    }

    /// Answers with that status when all is well.
    pub(crate) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// Answers 200 with a page of that form.
    pub(crate) fn pages(self, answers: Body) -> Self {
        Self { paged: true, ..self.answers(answers) }
    }

    /// Looks at these headers.
    pub(crate) fn headers(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }
}

/// A route and what serves it.
pub(crate) type Entry<R> = (Route, MethodRouter<Arc<Server<R>>>);

/// The router over `table`: nobody reaches a handler whom its row does not let in.
pub(crate) fn router<R: Repository>(table: Vec<Entry<R>>, server: &Arc<Server<R>>) -> Router {
    let mut router = Router::new();
    for (route, handler) in table {
        let guard = from_fn_with_state((server.clone(), route.access), admit::<R>);
        router = router.route(route.path, handler.route_layer(guard));
    }
    router.with_state(server.clone())
}

fn no_peer(rejection: impl std::error::Error + Send + Sync + 'static) -> Refusal {
    Refusal::new(Code::Internal, "a request came from nowhere").because(rejection)
}

/// Lets a request through whose sender may make it, and tells the handler who that is.
async fn admit<R: Repository>(
    State((server, access)): State<(Arc<Server<R>>, Access)>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Access::Roles(roles, scope) = access else { return Ok(next.run(request).await) };
    let (mut parts, body) = request.into_parts();
    let Bearer(token) = Bearer::from_request_parts(&mut parts, &server).await?;
    let ConnectInfo(peer) = ConnectInfo::<SocketAddr>::from_request_parts(&mut parts, &server).await.map_err(no_peer)?;
    let principal = server.authenticate(&token, peer.ip()).await?;
    if !roles.contains(&principal.role) {
        let names: Vec<_> = roles.iter().map(|r| r.as_str()).collect();
        return Err(Refusal::new(Code::Forbidden, format!("this is for a {}", names.join(" or "))).into());
    }
    if let Some(granted) = &principal.scopes
        && !scope.is_some_and(|needed| granted.contains(&needed))
    {
        let needed = scope.map_or("a log-in with the password".to_owned(), |s| format!("the scope {}", s.as_str()));
        return Err(Refusal::new(Code::Forbidden, format!("this API token is not enough: this needs {needed}")).into());
    }
    parts.extensions.insert(principal);
    Ok(next.run(Request::from_parts(parts, body)).await)
}

/// Who calls, as the route's row let him in.
pub(crate) struct Caller(pub(crate) Principal);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let principal = parts.extensions.get::<Principal>().cloned();
        principal.map(Self).ok_or_else(|| Refusal::new(Code::Internal, "a route for anybody asks who calls").into())
    }
}
