//! The routes of the first path (`chipbound_wire::api`), each a few lines over [`Server`]. Who may call a route is in its row of the
//! table.

use crate::openapi;
use crate::pages::Page;
use crate::payment::webhook;
use crate::routes::{self, Access, Body, Caller, Entry, Route};
use crate::server::Server;
use crate::storage::Repository;
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use chipbound_transport::extract::{Bearer, Json, Octets, Path, Upload};
use chipbound_transport::{ApiError, Upgrade};
use chipbound_wire::api::{
    self, Account, AccountInfo, AccountRole, Accounts, Acknowledge, Agreement, Catalogue, IDEMPOTENCY_HEADER, LogIn, MadeToken, NewAccount,
    NewOrder, NewRelease, NewToken, Order, Orders, Published, Receipts, Redownload, Scope, Session, Settled, TICKET_HEADER, Ticket, Tokens,
    TransferOrder, Transferring,
};
use chipbound_wire::limits::MAX_PROGRAM;
use chipbound_wire::{Code, Digest, OrderId, Refusal};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use std::net::SocketAddr;
use std::sync::Arc;

type Shared<R> = State<Arc<Server<R>>>;
type Answer<T> = Result<Json<T>, ApiError>;

const ANYBODY: Access = Access::Anybody;
const EVERY_ROLE: &[AccountRole] = &AccountRole::ALL;
/// With a log-in's own token alone.
const PASSWORD: Access = Access::Roles(EVERY_ROLE, None);
const LOGGED_IN: Access = Access::Roles(EVERY_ROLE, Some(Scope::Read));
const TRADERS: Access = Access::Roles(&[AccountRole::Customer, AccountRole::Vendor], Some(Scope::Read));
const CUSTOMER: Access = Access::Roles(&[AccountRole::Customer], Some(Scope::Read));
const BUYER: Access = Access::Roles(&[AccountRole::Customer], Some(Scope::Buy));
const VENDOR: Access = Access::Roles(&[AccountRole::Vendor], Some(Scope::Publish));
const OPERATOR: Access = Access::Roles(&[AccountRole::Operator], Some(Scope::Operate));
const AUDITOR: Access = Access::Roles(&[AccountRole::Auditor], Some(Scope::Audit));
const ONCE: &[(&str, &str)] = &[(IDEMPOTENCY_HEADER, "1 to 128 visible ASCII characters: the same key and body answer the same order")];
const UPGRADED: &[(&str, &str)] = &[("upgrade", api::UPGRADE), (TICKET_HEADER, "the ticket, in hexadecimal")];

const SIGNED: &[(&str, &str)] =
    &[(webhook::SIGNATURE, "t=SECONDS,v1=HEX: HMAC-SHA256 of the endpoint's secret over t, a full stop, the body")];

/// The routes over `server`.
pub fn router<R: Repository>(server: Arc<Server<R>>) -> Router {
    routes::router(table(), &server)
}

/// Every route there is.
pub(crate) fn table<R: Repository>() -> Vec<Entry<R>> {
    let row = Route::new;
    let (get_, post_) = (Method::GET, Method::POST);
    vec![
        (
            row(post_.clone(), "/v1/sessions", ANYBODY, "Log in").takes(Body::json::<LogIn>()).answers(Body::json::<Session>()),
            post(log_in::<R>),
        ),
        (row(Method::DELETE, "/v1/sessions", PASSWORD, "Log out"), delete(log_out::<R>)),
        (row(get_.clone(), "/v1/account", LOGGED_IN, "The account and its money").answers(Body::json::<Account>()), get(account::<R>)),
        (
            row(get_.clone(), "/v1/programs", TRADERS, "The newest release of each program, by its id").pages(Body::json::<Catalogue>()),
            get(programs::<R>),
        ),
        (
            row(post_.clone(), "/v1/releases", VENDOR, "Announce a release")
                .takes(Body::json::<NewRelease>())
                .answers(Body::json::<api::Upload>()),
            post(announce::<R>),
        ),
        (
            row(Method::PUT, "/v1/releases/{upload}", VENDOR, "Publish an announced release: its plaintext")
                .takes(Body::Octets)
                .answers(Body::json::<Published>()),
            put(publish::<R>),
        ),
        (
            row(post_.clone(), "/v1/orders", BUYER, "Order a release for a processor")
                .headers(ONCE)
                .takes(Body::json::<NewOrder>())
                .answers(Body::json::<Order>()),
            post(place_order::<R>),
        ),
        (row(get_.clone(), "/v1/orders", CUSTOMER, "The orders, newest first").pages(Body::json::<Orders>()), get(orders::<R>)),
        (row(get_.clone(), "/v1/orders/{order}", CUSTOMER, "An order").answers(Body::json::<Order>()), get(order::<R>)),
        (
            row(post_.clone(), "/v1/orders/{order}/agreement", BUYER, "Agree to a confirmation: the price is held")
                .takes(Body::json::<Agreement>())
                .answers(Body::json::<Order>()),
            post(agree::<R>),
        ),
        (
            row(post_.clone(), "/v1/orders/{order}/cancellation", BUYER, "Give an order up before a package was sealed for it")
                .answers(Body::json::<Order>()),
            post(cancel::<R>),
        ),
        (
            row(post_.clone(), "/v1/orders/{order}/tickets", BUYER, "A ticket for one second path").answers(Body::json::<Ticket>()),
            post(ticket::<R>),
        ),
        (
            row(post_.clone(), "/v1/orders/{order}/acknowledgement", BUYER, "Settle a delivery: receipt and release token")
                .takes(Body::json::<Acknowledge>())
                .answers(Body::json::<Settled>()),
            post(acknowledge::<R>),
        ),
        (
            row(get_.clone(), "/v1/second-path", BUYER, "Open the second path in this connection").headers(UPGRADED).status(101),
            get(second_path::<R>),
        ),
        (row(get_.clone(), "/v1/receipts", CUSTOMER, "The receipts, newest first").pages(Body::json::<Receipts>()), get(receipts::<R>)),
        (
            row(post_.clone(), "/v1/redownloads", BUYER, "Have a settled order delivered again")
                .takes(Body::json::<Redownload>())
                .answers(Body::json::<Order>()),
            post(redownload::<R>),
        ),
        (
            row(Method::POST, "/v1/orders/{order}/transfers", BUYER, "Have a settled order be for another processor")
                .takes(Body::json::<TransferOrder>())
                .answers(Body::json::<Transferring>()),
            post(transfer::<R>),
        ),
        (
            row(get_.clone(), "/log/checkpoint", ANYBODY, "The newest signed checkpoint of the receipts' log (C2SP tlog-checkpoint)")
                .answers(Body::Octets),
            get(log_checkpoint::<R>),
        ),
        (
            row(get_.clone(), "/log/tile/{*tile}", ANYBODY, "A tile of the receipts' log, of hashes or of entries (C2SP tlog-tiles)")
                .answers(Body::Octets),
            get(log_tile::<R>),
        ),
        (row(get_.clone(), "/log/key", ANYBODY, "The signed statement on the log's key").answers(Body::Octets), get(log_key::<R>)),
        (
            row(post_.clone(), "/v1/tokens", PASSWORD, "Make an API token")
                .takes(Body::json::<NewToken>())
                .answers(Body::json::<MadeToken>()),
            post(make_token::<R>),
        ),
        (row(get_.clone(), "/v1/tokens", PASSWORD, "The API tokens").answers(Body::json::<Tokens>()), get(tokens::<R>)),
        (row(Method::DELETE, "/v1/tokens/{name}", PASSWORD, "Revoke an API token"), delete(revoke_token::<R>)),
        (row(get_.clone(), "/v1/accounts", OPERATOR, "The accounts, by user id").pages(Body::json::<Accounts>()), get(accounts::<R>)),
        (
            row(post_.clone(), "/v1/accounts", OPERATOR, "Make an account")
                .takes(Body::json::<NewAccount>())
                .answers(Body::json::<AccountInfo>()),
            post(make_account::<R>),
        ),
        (row(Method::DELETE, "/v1/accounts/{user}/sessions", OPERATOR, "End every session and API token of a user"), delete(shut_out::<R>)),
        (
            row(get_.clone(), "/v1/journal", AUDITOR, "The journal of the books as they stand at one moment, lines of JSON")
                .answers(Body::Octets),
            get(journal::<R>),
        ),
        (
            row(Method::POST, "/webhooks/cards", ANYBODY, "An event of the card provider's, signed by it")
                .headers(SIGNED)
                .takes(Body::Octets),
            post(card_event::<R>).layer(DefaultBodyLimit::max(webhook::MAX_EVENT)),
        ),
        (row(get_, "/v1/openapi.json", ANYBODY, "This description").answers(Body::Octets), get(describe::<R>)),
    ]
}

async fn log_checkpoint<R: Repository>(State(server): Shared<R>) -> Result<impl IntoResponse, ApiError> {
    let note = server.log_checkpoint().await?;
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8"), (CACHE_CONTROL, "no-cache")], note))
}

async fn log_tile<R: Repository>(State(server): Shared<R>, Path(tile): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let bytes = server.log_tile(&tile).await?;
    Ok(([(CONTENT_TYPE, "application/octet-stream"), (CACHE_CONTROL, "public, max-age=31536000, immutable")], bytes))
}

async fn log_key<R: Repository>(State(server): Shared<R>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/cose"), (CACHE_CONTROL, "no-cache")], server.log_statement())
}

async fn journal<R: Repository>(State(server): Shared<R>) -> Result<impl IntoResponse, ApiError> {
    let lines = axum::body::Body::from_stream(server.journal()?);
    Ok(([(CONTENT_TYPE, "application/jsonl"), (CACHE_CONTROL, "no-store")], lines))
}

async fn card_event<R: Repository>(State(server): Shared<R>, headers: HeaderMap, Octets(body): Octets) -> Result<StatusCode, ApiError> {
    let signature = headers.get(webhook::SIGNATURE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    server.hear_event(signature, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn describe<R: Repository>() -> Json<&'static serde_json::Value> {
    Json(openapi::shared::<R>())
}

async fn log_in<R: Repository>(
    State(server): Shared<R>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Json(request): Json<LogIn>,
) -> Answer<Session> {
    Ok(Json(server.log_in(request, peer.ip()).await?))
}

async fn log_out<R: Repository>(State(server): Shared<R>, token: Bearer) -> Result<StatusCode, ApiError> {
    server.log_out(&token.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn account<R: Repository>(State(server): Shared<R>, Caller(principal): Caller) -> Answer<Account> {
    Ok(Json(server.account(principal).await?))
}

async fn programs<R: Repository>(State(server): Shared<R>, Query(page): Query<Page>) -> Answer<Catalogue> {
    Ok(Json(server.catalogue(&page).await?))
}

async fn announce<R: Repository>(State(server): Shared<R>, Caller(vendor): Caller, Json(request): Json<NewRelease>) -> Answer<api::Upload> {
    Ok(Json(server.announce(&vendor, request).await?))
}

async fn publish<R: Repository>(
    State(server): Shared<R>,
    Caller(vendor): Caller,
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
    Caller(customer): Caller,
    headers: HeaderMap,
    Json(request): Json<NewOrder>,
) -> Answer<Order> {
    let key = headers.get(IDEMPOTENCY_HEADER).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(Json(server.place_order(&customer, key, &request).await?))
}

async fn order<R: Repository>(State(server): Shared<R>, Caller(customer): Caller, Path(order): Path<OrderId>) -> Answer<Order> {
    Ok(Json(server.order(&customer, order).await?))
}

async fn orders<R: Repository>(State(server): Shared<R>, Caller(customer): Caller, Query(page): Query<Page>) -> Answer<Orders> {
    Ok(Json(server.orders(&customer, &page).await?))
}

async fn agree<R: Repository>(
    State(server): Shared<R>,
    Caller(customer): Caller,
    Path(order): Path<OrderId>,
    Json(agreement): Json<Agreement>,
) -> Answer<Order> {
    Ok(Json(server.agree(&customer, order, &agreement).await?))
}

async fn cancel<R: Repository>(State(server): Shared<R>, Caller(customer): Caller, Path(order): Path<OrderId>) -> Answer<Order> {
    Ok(Json(server.cancel(&customer, order).await?))
}

async fn ticket<R: Repository>(State(server): Shared<R>, Caller(customer): Caller, Path(order): Path<OrderId>) -> Answer<Ticket> {
    Ok(Json(server.issue_ticket(&customer, order).await?))
}

async fn acknowledge<R: Repository>(
    State(server): Shared<R>,
    Caller(customer): Caller,
    Path(order): Path<OrderId>,
    Json(request): Json<Acknowledge>,
) -> Answer<Settled> {
    Ok(Json(server.acknowledge(&customer, order, &request).await?))
}

async fn second_path<R: Repository>(
    State(server): Shared<R>,
    Caller(customer): Caller,
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

async fn receipts<R: Repository>(State(server): Shared<R>, Caller(customer): Caller, Query(page): Query<Page>) -> Answer<Receipts> {
    Ok(Json(server.receipts(&customer, &page).await?))
}

async fn transfer<R: Repository>(
    State(server): Shared<R>,
    Caller(customer): Caller,
    Path(order): Path<OrderId>,
    Json(request): Json<TransferOrder>,
) -> Answer<Transferring> {
    Ok(Json(server.transfer(&customer, order, &request).await?))
}

async fn redownload<R: Repository>(State(server): Shared<R>, Caller(customer): Caller, Json(request): Json<Redownload>) -> Answer<Order> {
    Ok(Json(server.redownload(&customer, &request).await?))
}

async fn make_token<R: Repository>(State(server): Shared<R>, Caller(caller): Caller, Json(new): Json<NewToken>) -> Answer<MadeToken> {
    Ok(Json(server.make_token(&caller, new).await?))
}

async fn tokens<R: Repository>(State(server): Shared<R>, Caller(caller): Caller) -> Answer<Tokens> {
    Ok(Json(server.tokens(&caller).await?))
}

async fn revoke_token<R: Repository>(
    State(server): Shared<R>,
    Caller(caller): Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    server.revoke_token(&caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn accounts<R: Repository>(State(server): Shared<R>, Query(page): Query<Page>) -> Answer<Accounts> {
    Ok(Json(server.accounts(&page).await?))
}

async fn make_account<R: Repository>(State(server): Shared<R>, Json(new): Json<NewAccount>) -> Answer<AccountInfo> {
    Ok(Json(server.make_account(new).await?))
}

async fn shut_out<R: Repository>(State(server): Shared<R>, Path(user): Path<String>) -> Result<StatusCode, ApiError> {
    server.shut_out(&user).await?;
    Ok(StatusCode::NO_CONTENT)
}
