//! Log-in (step 1002).

use crate::world::{World, code, password};
use chipbound_wire::Code;
use chipbound_wire::api::{Account, AccountRole, LogIn, Session};

async fn log_in(world: &World, user: &str, password: &str) -> chipbound_wire::Result<Session> {
    let request = LogIn { user: user.to_owned(), password: password.to_owned() };
    world.client.post_json("/v1/sessions", None, &[], &request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_an_unknown_user_are_refused_alike() {
    let world = World::new().await;
    let wrong = log_in(&world, "ann", "battery staple").await.err().unwrap();
    let unknown = log_in(&world, "nobody", "battery staple").await.err().unwrap();
    assert_eq!((wrong.code, &wrong.detail), (Code::WrongCredentials, &unknown.detail));
    assert_eq!(unknown.code, Code::WrongCredentials);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_ten_wrong_passwords_even_the_right_one_waits_a_minute() {
    let world = World::new().await;
    for _ in 0..10 {
        assert_eq!(code(log_in(&world, "ann", "battery staple").await), Code::WrongCredentials);
    }
    assert_eq!(code(log_in(&world, "ann", &password("ann")).await), Code::RateLimited);
    log_in(&world, "bob", &password("bob")).await.expect("bob did nothing wrong");
    world.pass(60);
    log_in(&world, "ann", &password("ann")).await.expect("a minute later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_log_out_and_by_time_and_its_token_is_not_kept() {
    let world = World::new().await;
    let ann = world.log_in("ann").await;
    let account: Account = ann.get("/v1/account").await.unwrap();
    assert_eq!((account.user.as_str(), account.role), ("ann", AccountRole::Customer));
    let second = world.log_in("ann").await;
    world.client.request(http::Method::DELETE, "/v1/sessions", Some(&ann.token), &[], "application/json", vec![], 16).await.unwrap();
    assert_eq!(code(ann.get::<Account>("/v1/account").await), Code::Unauthenticated);
    second.get::<Account>("/v1/account").await.expect("another session goes on");
    for file in std::fs::read_dir(world.folder.path()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(path).unwrap();
            assert!(!bytes.windows(second.token.len()).any(|w| w == second.token.as_bytes()), "the token lies on the disk");
            let secret = password("ann");
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "the password lies on the disk");
        }
    }
    world.pass(12 * 3600 + 1);
    assert_eq!(code(second.get::<Account>("/v1/account").await), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_ins_that_are_not_json_or_too_long_are_refused_before_a_password_is_checked() {
    let world = World::new().await;
    let post = |body: Vec<u8>| world.client.request(http::Method::POST, "/v1/sessions", None, &[], "application/json", body, 4096);
    assert_eq!(code(post(b"{".to_vec()).await), Code::Malformed);
    assert_eq!(code(post(br#"{"user":"a","password":"b","admin":true}"#.to_vec()).await), Code::Malformed);
    assert_eq!(code(post(vec![b' '; 65 * 1024]).await), Code::TooLarge);
    assert_eq!(code(log_in(&world, &"a".repeat(200), "x").await), Code::TooLarge);
    assert_eq!(code(log_in(&world, "ann", &"x".repeat(2000)).await), Code::TooLarge);
}
