//! Who may call which route (attack A23): every route by nobody, by each role with its log-in and with each of its scopes, and on
//! another account's things.

use crate::processor::Processor;
use crate::world::{User, World, code, sample};
use chipbound_server::openapi::document;
use chipbound_server::storage::Books;
use chipbound_wire::Code;
use chipbound_wire::api::{AccountInfo, AccountRole, Accounts, MadeToken, NewAccount, NewToken, Scope, Tokens};
use chipbound_wire::suite::KeyMode;
use http::Method;
use std::collections::BTreeSet;

use AccountRole::{Auditor, Customer, Operator, Vendor};

/// A route, the scope that it needs, and what each role that may call it hears who does not own what it names; `None` where all is
/// well.
struct Row {
    method: Method,
    template: &'static str,
    path: String,
    body: &'static str,
    scope: Option<Scope>,
    may: Vec<(AccountRole, Option<Code>)>,
}

fn row(method: Method, template: &'static str, body: &'static str, scope: Option<Scope>, may: Vec<(AccountRole, Option<Code>)>) -> Row {
    Row { method, template, path: template.to_owned(), body, scope, may }
}

fn rows(order: &str) -> Vec<Row> {
    use Method as M;
    let everybody = |heard: Option<Code>| AccountRole::ALL.map(|role| (role, heard)).to_vec();
    let customers = |heard: Option<Code>| vec![(Customer, heard)];
    let (read, buy, publish, operate) = (Some(Scope::Read), Some(Scope::Buy), Some(Scope::Publish), Some(Scope::Operate));
    let (unknown, malformed, absent) = (Some(Code::UnknownOrder), Some(Code::Malformed), Some(Code::NotFound));
    let new_order = r#"{"program":"tool","processor":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let digest = r#"{"confirmation":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let transfer = r#"{"to":"0707070707070707070707070707070707070707070707070707070707070707"}"#;
    let release = r#"{"manifest":"","price":{"minor":1,"currency":"EUR"}}"#;
    let mut rows = vec![
        row(M::GET, "/v1/account", "", read, everybody(None)),
        row(M::GET, "/v1/programs", "", read, vec![(Customer, None), (Vendor, None)]),
        row(M::POST, "/v1/releases", release, publish, vec![(Vendor, malformed)]),
        row(M::PUT, "/v1/releases/{upload}", "x", publish, vec![(Vendor, absent)]),
        row(M::POST, "/v1/orders", new_order, buy, customers(malformed)), // Without a key.
        row(M::GET, "/v1/orders", "", read, customers(None)),
        row(M::GET, "/v1/orders/{order}", "", read, customers(unknown)),
        row(M::POST, "/v1/orders/{order}/agreement", digest, buy, customers(unknown)),
        row(M::POST, "/v1/orders/{order}/cancellation", "", buy, customers(unknown)),
        row(M::POST, "/v1/orders/{order}/tickets", "", buy, customers(unknown)),
        row(M::POST, "/v1/orders/{order}/acknowledgement", r#"{"acknowledgement":""}"#, buy, customers(unknown)),
        row(M::GET, "/v1/second-path", "", buy, customers(Some(Code::UnexpectedMessage))), // Without an upgrade.
        row(M::POST, "/v1/orders/{order}/transfers", transfer, buy, customers(unknown)),
        row(M::GET, "/v1/receipts", "", read, customers(None)),
        row(M::POST, "/v1/redownloads", r#"{"receipt":""}"#, buy, customers(malformed)),
        row(M::POST, "/v1/tokens", r#"{"name":"","scopes":[],"days":1}"#, None, everybody(malformed)),
        row(M::GET, "/v1/tokens", "", None, everybody(None)),
        row(M::DELETE, "/v1/tokens/{name}", "", None, everybody(absent)),
        row(M::GET, "/v1/accounts", "", operate, vec![(Operator, None)]),
        row(M::POST, "/v1/accounts", r#"{"user":"","role":"vendor","password":"long enough"}"#, operate, vec![(Operator, malformed)]),
        row(M::DELETE, "/v1/accounts/{user}/sessions", "", operate, vec![(Operator, absent)]),
        row(M::GET, "/v1/journal", "", Some(Scope::Audit), vec![(Auditor, None)]),
        row(M::DELETE, "/v1/sessions", "", None, everybody(None)), // The last, since it ends the session.
    ];
    for row in &mut rows {
        row.path = row.template.replace("{order}", order).replace(['{', '}'], "");
    }
    rows
}

async fn heard(world: &World, row: &Row, token: Option<&str>) -> Option<Code> {
    let body = row.body.as_bytes().to_vec();
    let answer = world.client.request(row.method.clone(), &row.path, token, &[], "application/json", body, 65536).await;
    answer.err().map(|refusal| refusal.code)
}

async fn token(user: &User<'_>, name: &str, scope: Scope, days: u32) -> String {
    let made: MadeToken = user.post("/v1/tokens", &NewToken { name: name.to_owned(), scopes: vec![scope], days }).await.unwrap();
    made.token
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_nobody_the_wrong_role_the_wrong_scope_and_the_wrong_account() {
    let world = World::new().await;
    world.publish("tool", &sample(100)).await;
    let processor = Processor::new(&world.pki);
    let order = world.log_in("ann").await.buy("tool", processor.id(), KeyMode::Direct).await.order;
    let rows = rows(&order.to_string());
    let described: BTreeSet<_> = document::<Books>()["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(p, o)| {
            o.as_object()
                .unwrap()
                .iter()
                .filter(|(_, o)| o.get("security").is_some())
                .map(|(m, _)| (m.to_uppercase(), p.clone()))
                .collect::<Vec<_>>()
        })
        .collect();
    let listed = rows.iter().map(|r| (r.method.to_string(), r.template.to_owned())).collect();
    assert_eq!(described, listed, "every route that asks for a log-in has its row here");

    let mut callers = Vec::new();
    for (user, role) in [("bob", Customer), ("vito", Vendor), ("olga", Operator), ("otto", Auditor)] {
        let user = world.log_in(user).await;
        for scope in role.scopes() {
            callers.push((role, Some(*scope), token(&user, scope.as_str(), *scope, 1).await));
        }
        callers.push((role, None, user.token)); // The log-in, last, since it ends.
    }
    for row in &rows {
        let name = format!("{} {}", row.method, row.template);
        for stranger in [None, Some("invented"), Some("cbt-invented")] {
            assert_eq!(heard(&world, row, stranger).await, Some(Code::Unauthenticated), "{name} by nobody");
        }
        for (role, scope, token) in &callers {
            let outcome = row.may.iter().find(|(r, _)| r == role).map(|(_, outcome)| *outcome);
            let enough = scope.is_none() || *scope == row.scope;
            let expected = outcome.filter(|_| enough).unwrap_or(Some(Code::Forbidden));
            assert_eq!(heard(&world, row, Some(token)).await, expected, "{name} by a {role:?} with {scope:?}");
        }
    }
    let ann = world.log_in("ann").await;
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
async fn an_api_token_counts_until_it_ends_or_is_revoked_and_gives_no_more_than_its_account_has() {
    let world = World::new().await;
    let ann = world.log_in("ann").await;
    let short = token(&ann, "short", Scope::Read, 1).await;
    let long = token(&ann, "long", Scope::Read, 2).await;
    let by = |token: &str| User { world: &world, token: token.to_owned() };
    assert!(short.starts_with("cbt-"));
    by(&short).get::<serde_json::Value>("/v1/account").await.unwrap();
    let listed: Tokens = ann.get("/v1/tokens").await.unwrap();
    assert_eq!(listed.tokens.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["long", "short"]);
    assert!(!serde_json::to_string(&listed).unwrap().contains(&short["cbt-".len()..]), "shown once alone");

    world.pass(86_401);
    assert_eq!(code(by(&short).get::<serde_json::Value>("/v1/account").await), Code::Unauthenticated);
    by(&long).get::<serde_json::Value>("/v1/account").await.unwrap();
    let ann = world.log_in("ann").await;
    let revoke = |name: &'static str| world.client.request(Method::DELETE, name, Some(&ann.token), &[], "application/json", vec![], 1024);
    revoke("/v1/tokens/long").await.unwrap();
    assert_eq!(code(by(&long).get::<serde_json::Value>("/v1/account").await), Code::Unauthenticated);

    let new = |name: &str, scopes: &[Scope], days| NewToken { name: name.to_owned(), scopes: scopes.to_vec(), days };
    let ann = &ann;
    let asked = |new: NewToken| async move { ann.post::<MadeToken>("/v1/tokens", &new).await.err().map(|r| r.code) };
    assert_eq!(asked(new("more", &[Scope::Read, Scope::Operate], 1)).await, Some(Code::Forbidden));
    assert_eq!(asked(new("short", &[Scope::Read], 1)).await, Some(Code::Conflict), "the name is there, ended or not");
    for bad in [
        new("", &[Scope::Read], 1),
        new("a/b", &[Scope::Read], 1),
        new("a", &[], 1),
        new("a", &[Scope::Read], 0),
        new("a", &[Scope::Read], 367),
    ] {
        assert_eq!(asked(bad).await, Some(Code::Malformed));
    }
    for n in 0..63 {
        assert_eq!(asked(new(&n.to_string(), &[Scope::Buy], 1)).await, None);
    }
    assert_eq!(asked(new("one-too-many", &[Scope::Buy], 1)).await, Some(Code::RateLimited));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_makes_lists_and_shuts_out_accounts() {
    let world = World::new().await;
    let olga = world.log_in("olga").await;
    let new = |user: &str| NewAccount { user: user.to_owned(), role: Vendor, password: format!("correct horse {user}") };
    let made: AccountInfo = olga.post("/v1/accounts", &new("zoe")).await.unwrap();
    assert_eq!((made.user.as_str(), made.role), ("zoe", Vendor));
    assert_eq!(code(olga.post::<AccountInfo>("/v1/accounts", &new("zoe")).await), Code::Conflict);
    let mut users = Vec::new();
    let mut path = "/v1/accounts?limit=2".to_owned();
    loop {
        let page: Accounts = olga.get(&path).await.unwrap();
        assert!(page.accounts.len() <= 2);
        users.extend(page.accounts.into_iter().map(|a| a.user));
        let Some(next) = page.next else { break };
        path = format!("/v1/accounts?limit=2&cursor={next}");
    }
    assert_eq!(users, ["ann", "bob", "olga", "otto", "vera", "vito", "zoe"]);

    let zoe = world.log_in("zoe").await;
    let robot = token(&zoe, "robot", Scope::Publish, 1).await;
    let shut = |user: &str| {
        let path = format!("/v1/accounts/{user}/sessions");
        let (client, token) = (world.client.clone(), olga.token.clone());
        async move { client.request(Method::DELETE, &path, Some(&token), &[], "application/json", vec![], 1024).await }
    };
    shut("zoe").await.unwrap();
    for token in [&zoe.token, &robot] {
        let answer = world.client.get_json::<serde_json::Value>("/v1/account", Some(token)).await;
        assert_eq!(code(answer), Code::Unauthenticated);
    }
    world.log_in("zoe").await; // The password still counts.
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_everything_once_whatever_is_added_meanwhile_and_refuse_strange_cursors() {
    let world = World::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        world.publish(name, &sample(10)).await;
    }
    let ann = world.log_in("ann").await;
    let names = |page: &serde_json::Value| -> Vec<String> {
        let of = |p: &serde_json::Value| p["program"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
        page["programs"].as_array().unwrap().iter().map(of).collect()
    };
    let first: serde_json::Value = ann.get("/v1/programs?limit=2").await.unwrap();
    assert_eq!(names(&first), ["a", "b"]);
    world.publish("aa", &sample(10)).await; // Before the cursor: shown to nobody twice.
    let cursor = first["next"].as_str().unwrap();
    let rest: serde_json::Value = ann.get(&format!("/v1/programs?cursor={cursor}")).await.unwrap();
    assert_eq!(names(&rest), ["c", "d", "e"]);
    assert!(rest.get("next").is_none());

    let processor = Processor::new(&world.pki);
    let mut placed = Vec::new();
    for name in ["a", "b", "c"] {
        placed.push(ann.buy(name, processor.id(), KeyMode::Direct).await.order.to_string());
        world.pass(1);
    }
    placed.reverse();
    let mut seen = Vec::new();
    let mut path = "/v1/orders?limit=1".to_owned();
    loop {
        let page: serde_json::Value = ann.get(&path).await.unwrap();
        seen.extend(page["orders"].as_array().unwrap().iter().map(|o| o["order"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/orders?limit=1&cursor={next}");
    }
    assert_eq!(seen, placed, "newest first");
    for query in ["limit=0", "limit=257", "limit=x", "cursor=x", &format!("cursor={cursor}")] {
        assert_eq!(code(ann.get::<serde_json::Value>(&format!("/v1/orders?{query}")).await), Code::Malformed, "{query}");
    }
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
