//! Claim, health, exec, figures.

use std::{fs, time::Duration};

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::rig::{PATIENCE, Rig, SECRET, claim, decoded, is_alive};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_claim_wins_and_is_kept() {
    let rig = Rig::new().await;
    let (status, health) = rig.call(Method::GET, "/v1/health", &Value::Null).await;
    assert_eq!((status, &health["claimed"]), (StatusCode::OK, &json!(false)));
    let (status, _) =
        rig.call(Method::POST, "/v1/exec", &json!({"command": ["true"], "timeoutMs": 1})).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "exec before the claim");
    let (status, _) = rig.call(Method::GET, "/v1/metrics", &Value::Null).await;
    assert_eq!(status, StatusCode::OK, "figures need no secret before the claim");

    let other = "f".repeat(32);
    let (mine, theirs) = (claim(SECRET), claim(&other));
    let (first, second) = tokio::join!(
        rig.call(Method::POST, "/v1/claim", &mine),
        rig.call(Method::POST, "/v1/claim", &theirs)
    );
    let mut codes = [first.0, second.0];
    codes.sort_unstable();
    assert_eq!(codes, [StatusCode::OK, StatusCode::CONFLICT], "{} {}", first.1, second.1);
    let winner = if first.0 == StatusCode::OK { SECRET } else { &other };
    let (status, _) = rig.call(Method::POST, "/v1/claim", &claim(winner)).await;
    assert_eq!(status, StatusCode::OK, "the same claim again");
    let (_, health) = rig.call(Method::GET, "/v1/health", &Value::Null).await;
    assert_eq!((&health["claimed"], &health["vmId"]), (&json!(true), &json!("vm_1")));

    let wrong = "0".repeat(32);
    for secret in [wrong.as_str(), "", "0"] {
        let (status, _) = rig.call_as(secret, Method::GET, "/v1/metrics", &Value::Null).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "secret `{secret}`");
    }
    let (status, _) = rig.call(Method::POST, "/v1/settle", &Value::Null).await;
    assert_eq!(status, StatusCode::CONFLICT, "settling a claimed guest");

    let read = |path: &str| fs::read_to_string(rig.guest.root.join(path)).expect(path);
    assert_eq!(read("etc/hostname"), "hf-test\n");
    assert_eq!(read("etc/resolv.conf"), "nameserver 9.9.9.9\n");
    assert_eq!(read("etc/timezone"), "UTC\n");
    assert_eq!(read("etc/machine-id").trim().len(), 32);

    // An agent that is started again knows the claim.
    let again = holdfast_agent::serve::Agent::start(rig.guest.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving =
        tokio::spawn(
            async move { axum::serve(listener, holdfast_agent::serve::router(again)).await },
        );
    let stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let body = serde_json::to_vec(&claim(&"e".repeat(32))).expect("JSON");
    let (status, _) =
        holdfast_agent::wire::call(stream, Method::POST, "/v1/claim", body).await.expect("answer");
    assert_eq!(status, StatusCode::CONFLICT);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_carried_out_claims_nothing() {
    let rig = Rig::new().await;
    for (field, value) in [
        ("secret", json!("short")),
        ("entropy", json!("ab")),
        ("entropy", json!("zz".repeat(64))),
        ("hostname", json!("no spaces")),
        ("locale", json!("en US;rm")),
        ("screen", json!({"width": 1, "height": 1})),
        ("startUrl", json!("https://a.example/\n")),
    ] {
        let mut request = serde_json::to_value(claim(SECRET)).expect("JSON");
        request[field] = value;
        let (status, answer) = rig.call(Method::POST, "/v1/claim", &request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{field}: {answer}");
    }
    let (_, health) = rig.call(Method::GET, "/v1/health", &Value::Null).await;
    assert_eq!(health["claimed"], json!(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_page_is_opened_and_a_newer_one_takes_its_place() {
    let rig = Rig::new().await;
    let mut request = claim(SECRET);
    request.start_url = Some("https://a.example/?x=1&y=%2F".to_owned());
    rig.call(Method::POST, "/v1/claim", &request).await;
    rig.until("the page is open", || rig.opened() == ["https://a.example/?x=1&y=%2F"]).await;
    let assign = json!({
        "sessionId": "s_1", "time": jiff::Timestamp::now(), "locale": "en-US", "timezone": "UTC",
        "screen": {"width": 1024, "height": 768}, "startUrl": "https://b.example/",
    });
    for _ in 0..2 {
        let (status, answer) = rig.call(Method::POST, "/v1/assign", &assign).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    rig.until("the page is open", || rig.opened().len() > 1).await;
    assert_eq!(rig.opened()[1..], ["https://b.example/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_returns_what_the_command_left() {
    let rig = Rig::claimed().await;
    let request = json!({
        "command": ["/bin/sh", "-c", "cat; echo $GREETING $PWD >&2; exit 7"],
        "env": [["GREETING", "hello"]], "cwd": "/", "stdin": "aGk=", "timeoutMs": 20000,
    });
    let (status, answer) = rig.call(Method::POST, "/v1/exec", &request).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["exitCode"], 7);
    assert_eq!(
        (decoded(&answer["stdout"]), decoded(&answer["stderr"])),
        ("hi".into(), "hello /\n".into())
    );
    assert_eq!((&answer["truncated"], &answer["timedOut"]), (&json!(false), &json!(false)));

    let big = json!({"command": ["head", "-c", "5000000", "/dev/zero"], "timeoutMs": 20000});
    let (_, answer) = rig.call(Method::POST, "/v1/exec", &big).await;
    assert_eq!((&answer["exitCode"], &answer["truncated"]), (&json!(0), &json!(true)));
    assert_eq!(decoded(&answer["stdout"]).len(), 1 << 20);

    let (status, answer) = rig
        .call(Method::POST, "/v1/exec", &json!({"command": ["no-such-tool"], "timeoutMs": 1000}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"].as_str().expect("a sentence").contains("no-such-tool"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_kills_the_whole_group_and_health_answers_meanwhile() {
    let rig = Rig::claimed().await;
    let text = "trap '' TERM HUP; sleep 300 & echo $! > \"$HOME/pid\"; echo begun; wait";
    let request = json!({"command": ["/bin/sh", "-c", text], "timeoutMs": 1500});
    let run = rig.call(Method::POST, "/v1/exec", &request);
    let ask = async {
        let start = Instant::now();
        let (status, _) = rig.call(Method::GET, "/v1/health", &Value::Null).await;
        (status, start.elapsed())
    };
    let ((_, answer), (status, took)) = tokio::join!(run, ask);
    assert_eq!(status, StatusCode::OK);
    assert!(took < Duration::from_secs(1), "health took {took:?} while a command ran");
    assert_eq!((&answer["timedOut"], &answer["exitCode"]), (&json!(true), &json!(137)));
    assert_eq!(decoded(&answer["stdout"]), "begun\n");
    let pid = fs::read_to_string(rig.guest.home.join("pid")).expect("it was started");
    rig.until("the child is gone", || !is_alive(&pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_left_behind_does_not_hold_up_the_answer() {
    let rig = Rig::claimed().await;
    let text = "setsid sleep 30 & echo $! > \"$HOME/pid\"; echo done";
    let request = json!({"command": ["/bin/sh", "-c", text], "timeoutMs": 25000});
    let start = Instant::now();
    let (_, answer) = rig.call(Method::POST, "/v1/exec", &request).await;
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    assert_eq!((&answer["exitCode"], decoded(&answer["stdout"])), (&json!(0), "done\n".into()));
    let pid = fs::read_to_string(rig.guest.home.join("pid")).expect("it was started");
    assert!(is_alive(&pid), "what left the group on purpose lives on");
    holdfast_agent::census::signal(
        pid.trim().parse().expect("a pid"),
        rustix::process::Signal::KILL,
    );
}
