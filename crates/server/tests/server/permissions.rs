//! Who may call which route (attack A23): every route by nobody, by each role, and on another account's things.

use crate::processor::Processor;
use crate::world::{World, sample};
use chipbound_wire::Code;
use chipbound_wire::suite::KeyMode;
use http::Method;

/// A route, and what it answers to nobody, a vendor, its owner's rival, as codes; `None` where the caller may.
struct Row {
    method: Method,
    path: String,
    body: &'static str,
    vendor: Option<Code>,
    rival: Option<Code>,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_nobody_the_wrong_role_and_the_wrong_account() {
    let world = World::new().await;
    world.publish("tool", &sample(100)).await;
    let processor = Processor::new(&world.pki);
    let (ann, bob, vito) = (world.log_in("ann").await, world.log_in("bob").await, world.log_in("vito").await);
    let order = ann.buy("tool", processor.id(), KeyMode::Direct).await.order;
    let new_order = r#"{"program":"tool","processor":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let digest = r#"{"confirmation":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let transfer = r#"{"to":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let row = |method: Method, path: &str, body, vendor, rival| Row { method, path: path.to_owned(), body, vendor, rival };
    let (get, post, put, delete) = (|| Method::GET, || Method::POST, || Method::PUT, || Method::DELETE);
    let (forbidden, unknown) = (Some(Code::Forbidden), Some(Code::UnknownOrder));
    let rows = [
        row(get(), "/v1/account", "", None, None),
        row(get(), "/v1/programs", "", None, None),
        row(post(), "/v1/releases", r#"{"manifest":"","price":{"minor":1,"currency":"EUR"}}"#, Some(Code::Malformed), forbidden),
        row(put(), "/v1/releases/none", "x", Some(Code::NotFound), forbidden),
        row(post(), "/v1/orders", new_order, forbidden, Some(Code::Malformed)), // Without a key.
        row(get(), &format!("/v1/orders/{order}"), "", forbidden, unknown),
        row(post(), &format!("/v1/orders/{order}/agreement"), digest, forbidden, unknown),
        row(post(), &format!("/v1/orders/{order}/tickets"), "", forbidden, unknown),
        row(post(), &format!("/v1/orders/{order}/acknowledgement"), r#"{"acknowledgement":""}"#, forbidden, unknown),
        row(post(), &format!("/v1/orders/{order}/transfers"), transfer, forbidden, unknown),
        row(get(), "/v1/receipts", "", forbidden, None),
        row(post(), "/v1/redownloads", r#"{"receipt":""}"#, forbidden, Some(Code::Malformed)),
        row(delete(), "/v1/sessions", "", None, None),
    ];
    for row in rows {
        let call = |token: Option<String>| {
            let (world, method, path, body) = (&world, row.method.clone(), row.path.clone(), row.body.as_bytes().to_vec());
            async move {
                let answer = world.client.request(method, &path, token.as_deref(), &[], "application/json", body, 65536).await;
                answer.err().map(|refusal| refusal.code)
            }
        };
        let name = format!("{} {}", row.method, row.path);
        assert_eq!(call(None).await, Some(Code::Unauthenticated), "{name} by nobody");
        assert_eq!(call(Some("invented".to_owned())).await, Some(Code::Unauthenticated), "{name} with an invented token");
        assert_eq!(call(Some(vito.token.clone())).await, row.vendor, "{name} by a vendor");
        assert_eq!(call(Some(bob.token.clone())).await, row.rival, "{name} by another customer");
    }
    let ticket = ann.ticket(order).await.unwrap().ticket.to_string();
    let ticket = [(chipbound_wire::api::TICKET_HEADER, ticket.as_str())];
    let (bob, vito) = (world.log_in("bob").await, world.log_in("vito").await);
    for (token, refused) in
        [(None, Code::Unauthenticated), (Some(vito.token.as_str()), Code::Forbidden), (Some(bob.token.as_str()), Code::TicketInvalid)]
    {
        assert_eq!(world.client.upgrade("/v1/second-path", token, &ticket).await.err().unwrap().code, refused);
    }
    assert_eq!(world.client.upgrade("/v1/second-path", Some(&ann.token), &[]).await.err().unwrap().code, Code::TicketInvalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_methods_and_names_are_refused_with_their_codes() {
    let world = World::new().await;
    let ann = world.log_in("ann").await;
    for (method, path, refused) in [
        (Method::GET, "/v1/nothing", Code::NotFound),
        (Method::PATCH, "/v1/orders", Code::MethodNotAllowed),
        (Method::GET, "/v1/orders/not-an-order", Code::NotFound),
        (Method::GET, "/v1/orders/00000000000000000000000000000000", Code::UnknownOrder),
        (Method::GET, "/v1/second-path", Code::UnexpectedMessage),
    ] {
        let answer = world.client.request(method, path, Some(&ann.token), &[], "application/json", vec![], 4096).await;
        assert_eq!(answer.unwrap_err().code, refused, "{path}");
    }
}
