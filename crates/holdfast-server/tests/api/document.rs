//! The OpenAPI document and who may call what, both checked in.

use std::fmt::Write as _;

use holdfast_server::Config;
use uuid::Uuid;

use crate::{
    http::{UPGRADE, raw, request},
    server::TestServer,
};

/// `docs/openapi.json` is what the handlers say. `UPDATE_OPENAPI=1` writes it.
#[test]
fn the_checked_in_document_is_the_generated_one() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
    let generated = holdfast_server::openapi::json();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(file, &generated).unwrap();
    }
    let checked_in = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        checked_in == generated,
        "docs/openapi.json is not what the handlers say; write it with UPDATE_OPENAPI=1"
    );
}

/// The file in docs/configuration.md holds every key with its default.
#[test]
fn the_documented_configuration_is_the_default() {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/configuration.md"
    ))
    .unwrap();
    let block = text.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let documented = Config::from_toml(block).unwrap();
    // Directories depend on who asks.
    let default = Config {
        state_dir: "/var/lib/holdfast".into(),
        cache_dir: "/root/.cache/holdfast".into(),
        ..Config::default()
    };
    assert_eq!(documented, default);
    let keys = |text: &str| {
        let keys =
            text.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.to_owned());
        keys.collect::<Vec<_>>()
    };
    assert_eq!(keys(block), keys(&default.to_toml().unwrap()), "every key, in the same order");
}

/// Calls every route as nobody, as an owner and as an administrator. The answers are checked in:
/// a route that lets somebody else in changes them.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_knows_who_may_call_it() {
    let server = TestServer::start().await;
    let body = holdfast_api::CreateToken { owner: "owner".into(), ..Default::default() };
    let owner = server.client.create_token(&body).await.unwrap().secret;
    let document: serde_json::Value =
        serde_json::from_str(&holdfast_server::openapi::json()).unwrap();
    let mut routes = vec![
        ("GET".to_owned(), "/openapi.json".to_owned()),
        ("GET".to_owned(), "/api/nothing".to_owned()),
        ("GET".to_owned(), "/api/auth/session/{id}/vm".to_owned()),
        ("POST".to_owned(), "/api/auth/session/{id}/heartbeat".to_owned()),
        ("GET".to_owned(), "/api/vm/auth/session/{id}/oauth-url".to_owned()),
    ];
    for (path, methods) in document["paths"].as_object().unwrap() {
        let methods = methods.as_object().unwrap().keys();
        routes.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
    }
    routes.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
    let mut table = format!("{:7} {:40} anonymous  owner  administrator\n", "", "");
    for (method, route) in routes {
        let path = route.replace("{id}", &Uuid::nil().to_string());
        let mut statuses = Vec::new();
        for token in ["", &owner, &server.token] {
            let bearer = format!("Bearer {token}");
            let mut headers = vec![("Content-Type", "application/json")];
            if !token.is_empty() {
                headers.push(("Authorization", bearer.as_str()));
            }
            if route.ends_with("/desktop") || route.ends_with("/terminal") {
                headers.extend(UPGRADE);
            }
            let body = if method == "POST" { "{}" } else { "" };
            let answer = raw(server.address, &request(&method, &path, &headers, body)).await;
            statuses.push(answer.expect("an answer").status);
            if route == "/api/drain" {
                server.client.undrain().await.unwrap();
            }
        }
        writeln!(
            table,
            "{method:7} {route:40} {:<10} {:<6} {}",
            statuses[0], statuses[1], statuses[2]
        )
        .unwrap();
    }
    server.stop().await;
    insta::assert_snapshot!(table);
}
