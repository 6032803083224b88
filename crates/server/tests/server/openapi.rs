//! The OpenAPI description is what the code does: the file is what it prints, every answer is as it says.

use crate::processor::Processor;
use crate::world::{User, World, code, eur, sample};
use chipbound_server::openapi::document;
use chipbound_server::storage::Books;
use chipbound_transport::problem::Problem;
use chipbound_wire::api::*;
use chipbound_wire::suite::KeyMode;
use chipbound_wire::{Code, Digest, Refusal};
use http::Method;
use serde_json::{Value, json};

fn described() -> Value {
    document::<Books>()
}

/// Fails unless `answer` is of the schema at `pointer` into the description.
fn is_as_described(description: &Value, pointer: &str, answer: &Value) {
    let mut schema = json!({ "$ref": format!("#{pointer}") });
    for part in ["components", "paths"] {
        schema[part] = description[part].clone();
    }
    let validator = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<_> = validator.iter_errors(answer).map(|e| e.to_string()).collect();
    assert!(wrong.is_empty(), "{pointer}: {wrong:?} in {answer}");
}

/// Calls a route and compares status and body with what is described for it.
async fn call(user: &User<'_>, route: (Method, &str), path: &str, headers: &[(&str, &str)], body: Vec<u8>, kind: &str) -> Value {
    let (method, template) = route;
    let answer = user.world.client.request(method.clone(), path, Some(&user.token), headers, kind, body, 1 << 20).await.unwrap();
    let description = described();
    let responses = format!("/paths/{}/{}/responses", template.replace('/', "~1"), method.as_str().to_lowercase());
    if description.pointer(&format!("{responses}/204")).is_some() {
        assert!(answer.is_empty(), "{template}");
        return Value::Null;
    }
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let schema = format!("{responses}/200/content/application~1json/schema");
    // Braces of templates are not to be in a fragment.
    is_as_described(&description, &schema.replace('{', "%7B").replace('}', "%7D"), &answer);
    answer
}

#[test]
fn the_description_in_docs_is_the_one_that_the_code_gives() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let kept = std::fs::read_to_string(file).unwrap();
    assert!(kept == format!("{:#}\n", described()), "make it anew: cargo run -p chipbound-server -- openapi > docs/openapi.json");
}

/// Lists that are short by themselves: an account has at most 64 API tokens, and money in those currencies that its operator brought.
const SHORT: [&str; 2] = ["/v1/account", "/v1/tokens"];

#[test]
fn every_list_comes_in_pages_or_is_short_by_name() {
    let description = described();
    let (mut paged, mut short) = (Vec::new(), Vec::new());
    for (path, route) in description["paths"].as_object().unwrap() {
        let get = &route["get"];
        let Some(schema) = get["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].as_str() else { continue };
        let schema = description.pointer(schema.trim_start_matches('#')).unwrap();
        if !schema["properties"].as_object().unwrap().values().any(|property| property["type"] == "array") {
            continue;
        }
        let has_cursor = get["parameters"].as_array().is_some_and(|all| all.iter().any(|p| p["name"] == "cursor"));
        assert_eq!(has_cursor, schema["properties"].get("next").is_some(), "{path}: a page says what the next one is");
        if has_cursor { paged.push(path.as_str()) } else { short.push(path.as_str()) }
    }
    assert_eq!((paged, short), (vec!["/v1/accounts", "/v1/orders", "/v1/programs", "/v1/receipts"], SHORT.to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_a_purchase_is_as_described() {
    let world = World::new().await;
    let json = |value: Value| value.to_string().into_bytes();
    const JSON: &str = "application/json";
    let plain = sample(5000);
    let vera = world.log_in("vera").await;
    let manifest = world.vendor.sign(&world.manifest("tool", "1.0", 1, &plain));
    let new = serde_json::to_vec(&NewRelease { manifest: Base64(manifest), price: eur(250) }).unwrap();
    let upload = call(&vera, (Method::POST, "/v1/releases"), "/v1/releases", &[], new, JSON).await;
    let path = format!("/v1/releases/{}", upload["upload"].as_str().unwrap());
    call(&vera, (Method::PUT, "/v1/releases/{upload}"), &path, &[], plain, "application/octet-stream").await;

    let ann = world.log_in("ann").await;
    let processor = Processor::new(&world.pki);
    call(&ann, (Method::GET, "/v1/account"), "/v1/account", &[], vec![], JSON).await;
    call(&ann, (Method::GET, "/v1/programs"), "/v1/programs", &[], vec![], JSON).await;
    let new =
        NewOrder { program: "tool".to_owned(), version: None, processor: processor.id(), key_mode: Some(KeyMode::Direct), again: false };
    let new = serde_json::to_vec(&new).unwrap();
    let placed = call(&ann, (Method::POST, "/v1/orders"), "/v1/orders", &[(IDEMPOTENCY_HEADER, "once")], new, JSON).await;
    let order: Order = serde_json::from_value(placed).unwrap();
    let at = format!("/v1/orders/{}", order.order);
    call(&ann, (Method::GET, "/v1/orders/{order}"), &at, &[], vec![], JSON).await;
    let agreement = json(json!({ "confirmation": Digest::of(&order.confirmation.0) }));
    call(&ann, (Method::POST, "/v1/orders/{order}/agreement"), &format!("{at}/agreement"), &[], agreement, JSON).await;
    call(&ann, (Method::POST, "/v1/orders/{order}/tickets"), &format!("{at}/tickets"), &[], vec![], JSON).await;
    let delivered = ann.receive(&order, &processor).await.unwrap();
    let acknowledge = serde_json::to_vec(&Acknowledge { acknowledgement: Base64(delivered.acknowledgement) }).unwrap();
    let route = (Method::POST, "/v1/orders/{order}/acknowledgement");
    let settled = call(&ann, route, &format!("{at}/acknowledgement"), &[], acknowledge, JSON).await;
    call(&ann, (Method::GET, "/v1/receipts"), "/v1/receipts", &[], vec![], JSON).await;
    let again = json(json!({ "receipt": settled["receipt"] }));
    call(&ann, (Method::POST, "/v1/redownloads"), "/v1/redownloads", &[], again, JSON).await;
    call(&ann, (Method::DELETE, "/v1/sessions"), "/v1/sessions", &[], vec![], JSON).await;
}

#[test]
fn a_problem_of_every_code_is_as_described_and_one_of_no_code_is_not() {
    let description = described();
    for code in Code::ALL {
        let problem = serde_json::to_value(Problem::of(&Refusal::new(*code, "why"))).unwrap();
        is_as_described(&description, "/components/schemas/Problem", &problem);
    }
    let schema = json!({ "$ref": "#/components/schemas/Problem", "components": description["components"] });
    let invented = json!({ "type": "", "title": "", "status": 400, "detail": "", "code": "invented", "advice": "" });
    assert!(!jsonschema::is_valid(&schema, &invented));
}

#[tokio::test(flavor = "multi_thread")]
async fn anybody_may_read_the_description_that_a_server_gives_and_nothing_else() {
    let world = World::new().await;
    let given: Value = world.client.get_json("/v1/openapi.json", None).await.unwrap();
    assert_eq!(given, described());
    for (path, methods) in described()["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let open = operation.get("security").is_none();
            let of_others = path.starts_with("/log/") || path == "/webhooks/cards";
            let for_anybody = of_others || matches!(&**path, "/v1/openapi.json" | "/v1/sessions");
            assert_eq!(open, for_anybody && method != Method::DELETE, "{method} {path}");
            let asked = path.replace(['{', '}'], "");
            let answer = world.client.request(method, &asked, None, &[], "application/json", vec![], 1 << 20).await;
            assert_eq!(answer.is_err_and(|e| e.code == Code::Unauthenticated), !open, "{path}");
        }
    }
    assert_eq!(code(world.client.get_json::<Value>("/v1/openapi", None).await), Code::NotFound);
}
