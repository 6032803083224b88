//! The routes of the first path (`chipbound_wire::api`), each a few lines over [`Server`]. Who may call a route is in its
//! arguments: `LoggedIn`, `Customer` or `Vendor`.

use crate::server::Server;
use crate::storage::{Principal, Repository};
use axum::Router;
use axum::extract::{ConnectInfo, FromRequestParts, State};
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use chipbound_transport::extract::{Bearer, Json, Path, Upload};
use chipbound_transport::{ApiError, Upgrade};
use chipbound_wire::api::{
    self, Account, AccountRole, Acknowledge, Agreement, Catalogue, IDEMPOTENCY_HEADER, LogIn, NewOrder, NewRelease, Order, Published,
    Receipts, Redownload, Session, Settled, TICKET_HEADER, Ticket,
};
use chipbound_wire::limits::MAX_PROGRAM;
use chipbound_wire::{Code, Digest, OrderId, Refusal};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;

type Shared<R> = State<Arc<Server<R>>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// The routes over `server`.
pub fn router<R: Repository>(server: Arc<Server<R>>) -> Router {
    Router::new()
        .route("/v1/sessions", post(log_in::<R>))
        .route("/v1/sessions", delete(log_out::<R>))
        .route("/v1/account", get(account::<R>))
        .route("/v1/programs", get(programs::<R>))
        .route("/v1/releases", post(announce::<R>))
        .route("/v1/releases/{upload}", put(publish::<R>))
        .route("/v1/orders", post(place_order::<R>))
        .route("/v1/orders/{order}", get(order::<R>))
        .route("/v1/orders/{order}/agreement", post(agree::<R>))
        .route("/v1/orders/{order}/tickets", post(ticket::<R>))
        .route("/v1/orders/{order}/acknowledgement", post(acknowledge::<R>))
        .route("/v1/second-path", get(second_path::<R>))
        .route("/v1/receipts", get(receipts::<R>))
        .route("/v1/redownloads", post(redownload::<R>))
        .with_state(server)
}

/// Whoever is logged in.
struct LoggedIn(Principal);
/// A customer who is logged in; any other role is [`Code::Forbidden`].
struct Customer(Principal);
/// A vendor who is logged in; any other role is [`Code::Forbidden`].
struct Vendor(Principal);

impl<R: Repository> FromRequestParts<Arc<Server<R>>> for LoggedIn {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server<R>>) -> Result<Self, ApiError> {
        let Bearer(token) = Bearer::from_request_parts(parts, server).await?;
        Ok(Self(server.authenticate(&token).await?))
    }
}

fn only(role: AccountRole, principal: Principal) -> Result<Principal, ApiError> {
    if principal.role == role {
        return Ok(principal);
    }
    Err(Refusal::new(Code::Forbidden, format!("this is for a {}", role.as_str())).into())
}

impl<R: Repository> FromRequestParts<Arc<Server<R>>> for Customer {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server<R>>) -> Result<Self, ApiError> {
        let LoggedIn(principal) = LoggedIn::from_request_parts(parts, server).await?;
        only(AccountRole::Customer, principal).map(Self)
    }
}

impl<R: Repository> FromRequestParts<Arc<Server<R>>> for Vendor {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server<R>>) -> Result<Self, ApiError> {
        let LoggedIn(principal) = LoggedIn::from_request_parts(parts, server).await?;
        only(AccountRole::Vendor, principal).map(Self)
    }
}

async fn log_in<R: Repository>(
    State(server): Shared<R>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(request): Json<LogIn>,
) -> Answer<Session> {
    Ok(Json(server.log_in(request, peer.ip()).await?))
}

async fn log_out<R: Repository>(State(server): Shared<R>, LoggedIn(_): LoggedIn, token: Bearer) -> Result<StatusCode, ApiError> {
    server.log_out(&token.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn account<R: Repository>(State(server): Shared<R>, LoggedIn(principal): LoggedIn) -> Answer<Account> {
    Ok(Json(server.account(principal).await?))
}

async fn programs<R: Repository>(State(server): Shared<R>, LoggedIn(_): LoggedIn) -> Answer<Catalogue> {
    Ok(Json(server.catalogue().await?))
}

async fn announce<R: Repository>(State(server): Shared<R>, Vendor(vendor): Vendor, Json(request): Json<NewRelease>) -> Answer<api::Upload> {
    Ok(Json(server.announce(&vendor, request).await?))
}

async fn publish<R: Repository>(
    State(server): Shared<R>,
    Vendor(vendor): Vendor,
    Path(upload): Path<String>,
    body: Upload,
) -> Answer<Published> {
    if body.len() > MAX_PROGRAM {
        return Err(Refusal::new(Code::TooLarge, "the program is larger than the limit").into());
    }
    Ok(Json(server.publish(&vendor, &upload, body.len(), body.into_reader()).await?))
}

async fn place_order<R: Repository>(
    State(server): Shared<R>,
    Customer(customer): Customer,
    headers: HeaderMap,
    Json(request): Json<NewOrder>,
) -> Answer<Order> {
    let key = headers.get(IDEMPOTENCY_HEADER).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(Json(server.place_order(&customer, key, &request).await?))
}

async fn order<R: Repository>(State(server): Shared<R>, Customer(customer): Customer, Path(order): Path<OrderId>) -> Answer<Order> {
    Ok(Json(server.order(&customer, order).await?))
}

async fn agree<R: Repository>(
    State(server): Shared<R>,
    Customer(customer): Customer,
    Path(order): Path<OrderId>,
    Json(agreement): Json<Agreement>,
) -> Answer<Order> {
    Ok(Json(server.agree(&customer, order, &agreement).await?))
}

async fn ticket<R: Repository>(State(server): Shared<R>, Customer(customer): Customer, Path(order): Path<OrderId>) -> Answer<Ticket> {
    Ok(Json(server.issue_ticket(&customer, order).await?))
}

async fn acknowledge<R: Repository>(
    State(server): Shared<R>,
    Customer(customer): Customer,
    Path(order): Path<OrderId>,
    Json(request): Json<Acknowledge>,
) -> Answer<Settled> {
    Ok(Json(server.acknowledge(&customer, order, &request).await?))
}

async fn second_path<R: Repository>(
    State(server): Shared<R>,
    Customer(customer): Customer,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let ticket = headers.get(TICKET_HEADER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<Digest>().ok());
    let ticket = ticket.ok_or_else(|| Refusal::new(Code::TicketInvalid, "the request carries no ticket"))?;
    let place = server.places.give(server.places.take()?, customer.account)?;
    let order = server.redeem_ticket(&ticket, Some(customer.account)).await?;
    let (response, stream) = upgrade.accept();
    server.deliver_in_tunnel(order, place, stream);
    Ok(response)
}

async fn receipts<R: Repository>(State(server): Shared<R>, Customer(customer): Customer) -> Answer<Receipts> {
    Ok(Json(server.receipts(&customer).await?))
}

async fn redownload<R: Repository>(
    State(server): Shared<R>,
    Customer(customer): Customer,
    Json(request): Json<Redownload>,
) -> Answer<Order> {
    Ok(Json(server.redownload(&customer, &request).await?))
}
