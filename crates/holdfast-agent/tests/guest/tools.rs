//! Sign-in runs with scripts for tools.

use std::{fs, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use holdfast_agent_api::tool::{Bundle, Collected, LinkSource, Outcome, ToolState, ToolStatus};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::rig::{PATIENCE, Rig, is_alive};

const LINK: &str = "https://auth.example.com/authorize?client_id=app&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fcallback&state=s0";

/// A request for `script` with generous deadlines; `change` is laid over it.
fn request(run: u32, command: &str, change: Value) -> Value {
    let mut request = json!({
        "run": run, "command": [command], "link": {}, "flow": "loopback",
        "outcome": {}, "credentials": [], "linkDeadlineMs": 20000, "deadlineMs": 20000,
    });
    for (key, value) in change.as_object().expect("an object") {
        request[key] = value.clone();
    }
    request
}

async fn start(rig: &Rig, run: u32, script: &str, change: Value) -> ToolStatus {
    let command = rig.script(&format!("tool-{run}"), script);
    rig.tool(Method::POST, "/v1/tool", &request(run, &command, change)).await
}

async fn until(rig: &Rig, what: &str, done: impl Fn(&ToolStatus) -> bool) -> ToolStatus {
    let begun = Instant::now();
    let mut after = 0;
    loop {
        let path = format!("/v1/tool?after={after}&waitMs=5000");
        let status: ToolStatus = rig.tool(Method::GET, &path, &Value::Null).await;
        if done(&status) {
            return status;
        }
        assert!(status.revision > after || begun.elapsed() < PATIENCE, "{what}: {status:?}");
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}: {status:?}");
        assert!(status.state != ToolState::Ended, "ended: {what}: {status:?}");
        after = status.revision;
    }
}

async fn end(rig: &Rig) -> ToolStatus {
    until(rig, "it ends", |status| status.state == ToolState::Ended).await
}

fn failure(status: &ToolStatus) -> &str {
    match &status.outcome {
        Some(Outcome::Failed { why }) => why,
        other => panic!("not failed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_for_the_browser_is_caught_opened_and_the_credentials_handed_over() {
    let rig = Rig::new().await;
    let script = format!(
        "$BROWSER '{LINK}' || exit 9\nuntil [ -e go ]; do sleep 0.05; done\n\
         mkdir -p .tool; echo '{{\"token\":\"hush\"}}' > .tool/auth.json; echo signed in"
    );
    let rules = json!({
        "outcome": {"exitCode": 0, "files": [".tool/auth.json"], "output": "signed in"},
        "credentials": [{"path": ".tool/auth.json", "mode": 0o600}],
    });
    let begun = Instant::now();
    let first = start(&rig, 1, &script, rules.clone()).await;
    assert_eq!((first.run, first.state), (1, ToolState::Starting));
    let status = until(&rig, "it is opened", |s| s.link.as_ref().is_some_and(|l| l.opened)).await;
    let link = status.link.expect("a link");
    assert_eq!((link.url.as_str(), link.source), (LINK, LinkSource::Browser));
    assert_eq!(status.state, ToolState::Waiting);
    assert_eq!(rig.opened(), [LINK]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());

    // The same request again is answered, not run.
    let again = start(&rig, 1, &script, rules).await;
    assert_eq!((again.run, again.started_at), (1, first.started_at));
    let key = age::x25519::Identity::generate();
    let collect = json!({"run": 1, "recipients": [key.to_public().to_string()]});
    let (code, _) = rig.tool_call(Method::POST, "/v1/tool/collect", &collect).await;
    assert_eq!(code, StatusCode::CONFLICT, "nothing is handed over before success");
    let _: ToolStatus = rig.tool(Method::POST, "/v1/tool/open", &json!({"run": 1})).await;
    rig.until("it is opened again", || rig.opened() == [LINK, LINK]).await;

    fs::write(rig.guest.home.join("go"), "").expect("written");
    let status = end(&rig).await;
    assert_eq!((status.outcome, status.exit_code), (Some(Outcome::Succeeded), Some(0)));
    let collected: Collected = rig.tool(Method::POST, "/v1/tool/collect", &collect).await;
    let bytes = STANDARD.decode(collected.ciphertext).expect("base64");
    let clear = age::decrypt(&key, &bytes).expect("it is for this key");
    let bundle: Bundle = serde_json::from_slice(&clear).expect("a bundle");
    assert_eq!((bundle.files[0].path.as_str(), bundle.files[0].mode), (".tool/auth.json", 0o600));
    assert_eq!(
        STANDARD.decode(&bundle.files[0].content).expect("base64"),
        b"{\"token\":\"hush\"}\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_links_are_caught_coloured_cut_wrapped_and_as_hyperlinks() {
    let rig = Rig::new().await;
    let (head, tail) = LINK.split_at(40);
    // In two pieces, the second later than the first.
    let cut = format!(
        "printf 'Visit \\e[4;34m%s' '{head}'; sleep 0.1; printf '%s\\e[0m to go on\\n' '{tail}'; sleep 60"
    );
    start(&rig, 1, &cut, json!({})).await;
    let status = until(&rig, "a link", |s| s.link.is_some()).await;
    let link = status.link.expect("a link");
    assert_eq!((link.url.as_str(), link.source), (LINK, LinkSource::Output));

    let long = format!("{LINK}&{}", "scope=a%20b&".repeat(40));
    let wrapped = format!("echo '{long}end' | fold -w 80; echo; echo Waiting; sleep 60");
    start(&rig, 2, &wrapped, json!({})).await;
    let status = until(&rig, "a link", |s| s.link.is_some()).await;
    assert_eq!(status.link.expect("a link").url, format!("{long}end"));

    let hyper = format!("printf '\\e]8;;%s\\e\\\\click here\\e]8;;\\e\\\\\\n' '{LINK}'; sleep 60");
    start(&rig, 3, &hyper, json!({})).await;
    let status = until(&rig, "a link", |s| s.link.is_some()).await;
    let link = status.link.expect("a link");
    assert_eq!((link.url.as_str(), link.source), (LINK, LinkSource::Hyperlink));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_links_the_preferred_one_counts() {
    let rig = Rig::new().await;
    let manual =
        "https://auth.example.com/authorize?redirect_uri=https%3A%2F%2Fauth.example.com%2Fcode";
    let script = format!(
        "echo 'docs: https://auth.example.com/docs'; echo '{manual}'; sleep 0.3; $BROWSER '{LINK}'; sleep 60"
    );
    let link = json!({"prefer": ["localhost", "authorize"], "settleMs": 10000});
    start(&rig, 1, &script, json!({"link": link})).await;
    let status = until(&rig, "a link", |s| s.link.is_some()).await;
    assert_eq!(status.link.expect("a link").url, LINK);
    rig.until("it is open", || !rig.opened().is_empty()).await;
    assert_eq!(rig.opened(), [LINK], "the other was held back");

    // The other way round, and without patience: the worse one is replaced.
    let link = json!({"prefer": ["code$", "authorize"]});
    start(&rig, 2, &script.replace("sleep 0.3; ", ""), json!({"link": link})).await;
    let status =
        until(&rig, "the better", |s| s.link.as_ref().is_some_and(|l| l.url == manual)).await;
    assert_eq!(status.state, ToolState::Waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_another_run_or_program_is_never_this_runs() {
    let rig = Rig::new().await;
    start(&rig, 1, "echo $HOLDFAST_RUN_TOKEN > token; sleep 60", json!({})).await;
    let token = rig.guest.home.join("token");
    rig.until("a token", || fs::read_to_string(&token).is_ok_and(|t| t.len() > 30)).await;
    let old = fs::read_to_string(&token).expect("a token");
    start(&rig, 2, "sleep 60", json!({})).await;
    let shim = rig.guest.shims().join("xdg-open");
    for (url, token) in
        [("https://old.example.com/", old.trim()), ("https://none.example.com/", "")]
    {
        let mut command = tokio::process::Command::new(&shim);
        command
            .arg(url)
            .env("HOLDFAST_OPEN", rig.guest.open_socket())
            .env_remove("HOLDFAST_RUN_TOKEN");
        if !token.is_empty() {
            command.env("HOLDFAST_RUN_TOKEN", token);
        }
        assert!(command.status().await.expect("it runs").success());
    }
    rig.until("both are open", || rig.opened().len() == 2).await;
    let status: ToolStatus = rig.tool(Method::GET, "/v1/tool", &Value::Null).await;
    assert_eq!((status.run, status.link), (2, None));
}

/// As root, which the agent is in a guest and these tests mostly are.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_goes_first_until_its_link_is_there() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root may let a process go first");
        return;
    }
    let rig = Rig::new().await;
    let script = format!(
        "until [ \"$(nice)\" != 0 ]; do sleep 0.05; done; nice > first; (sleep 60 & echo $! > child)\n\
         $BROWSER '{LINK}'; until [ \"$(nice)\" = 0 ]; do sleep 0.05; done; echo done > then; sleep 60"
    );
    start(&rig, 1, &script, json!({})).await;
    let read = |file: &str| fs::read_to_string(rig.guest.home.join(file)).unwrap_or_default();
    rig.until("it runs as all again", || read("then") == "done\n").await;
    assert_eq!(read("first"), "-10\n");
    let stat = fs::read_to_string(format!("/proc/{}/stat", read("child").trim())).expect("it runs");
    assert_eq!(stat.rsplit(')').next().expect("fields").split_whitespace().nth(16), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_links_are_refused_and_not_opened() {
    let rig = Rig::new().await;
    let script = "for url in 'javascript:alert(1)' 'file:///etc/passwd' 'https://good.example@127.0.0.1/' \
         'https://169.254.169.254/' \"https://a.example.com/\"$'\\n'; do $BROWSER \"$url\" && exit 9; done\n\
         echo http://localhost:1455; echo ready; sleep 60";
    start(&rig, 1, script, json!({})).await;
    let status = until(&rig, "six refusals", |s| s.refused_links.len() == 6).await;
    assert_eq!((status.link, status.state), (None, ToolState::Starting));
    assert!(
        status.refused_links.iter().any(|line| line.contains("user name")),
        "{:?}",
        status.refused_links
    );
    assert!(status.refused_links.iter().all(|line| !line.chars().any(char::is_control)));
    assert_eq!(rig.opened(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_before_is_no_success() {
    let rig = Rig::new().await;
    fs::write(rig.guest.home.join("auth.json"), "{\"old\":true}").expect("written");
    let rules = json!({
        "outcome": {"exitCode": 0, "files": ["auth.json"]},
        "credentials": [{"path": "auth.json", "mode": 0o600}],
    });
    start(&rig, 1, &format!("$BROWSER '{LINK}'; exit 0"), rules.clone()).await;
    assert!(failure(&end(&rig).await).contains("auth.json"));
    start(&rig, 2, ": > auth.json", rules.clone()).await;
    assert!(failure(&end(&rig).await).contains("auth.json"), "an empty file is none");
    start(&rig, 3, "echo new > auth.json; exit 4", rules.clone()).await;
    assert!(failure(&end(&rig).await).contains("exit code 4"));
    // Without any rule, only new credentials and a good end count.
    let bare = json!({"credentials": [{"path": "auth.json", "mode": 0o600}]});
    start(&rig, 4, "exit 0", bare.clone()).await;
    assert!(failure(&end(&rig).await).contains("auth.json"));
    start(&rig, 5, "echo newer > auth.json", bare).await;
    assert_eq!(end(&rig).await.outcome, Some(Outcome::Succeeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ends_that_are_no_success() {
    let rig = Rig::new().await;
    start(&rig, 1, "exit 3", json!({})).await;
    let status = end(&rig).await;
    assert!(failure(&status).contains("no link"), "{status:?}");
    assert_eq!(status.exit_code, Some(3));
    start(&rig, 2, "sleep 60", json!({"linkDeadlineMs": 300})).await;
    assert!(failure(&end(&rig).await).contains("no link within 0.3 s"));
    start(&rig, 3, &format!("echo '{LINK}'; sleep 60"), json!({"deadlineMs": 900})).await;
    assert_eq!(end(&rig).await.outcome, Some(Outcome::Expired));
    let said = json!({"outcome": {"refused": "access_denied", "expired": "code has expired"}});
    start(&rig, 4, "echo error: access_denied; sleep 60", said.clone()).await;
    assert_eq!(end(&rig).await.outcome, Some(Outcome::Refused));
    start(&rig, 5, "echo The code has expired; exit 1", said).await;
    assert_eq!(end(&rig).await.outcome, Some(Outcome::Expired));
    let missing = request(6, "no-such-tool", json!({}));
    let _: ToolStatus = rig.tool(Method::POST, "/v1/tool", &missing).await;
    assert!(failure(&end(&rig).await).contains("`no-such-tool` is not installed"));
    let (code, _) = rig.tool_call(Method::POST, "/v1/tool", &request(5, "x", json!({}))).await;
    assert_eq!(code, StatusCode::CONFLICT, "an older run");
    for (change, why) in [
        (json!({"link": {"prefer": ["("]}}), "pattern"),
        (json!({"outcome": {"files": ["/etc/passwd"]}}), "relative"),
        (json!({"credentials": [{"path": "../x", "mode": 384}]}), "relative"),
        (json!({"command": []}), "empty"),
    ] {
        let (code, answer) =
            rig.tool_call(Method::POST, "/v1/tool", &request(7, "x", change)).await;
        assert_eq!(code, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer["error"].as_str().expect("a sentence").contains(why), "{answer}");
    }
    // A disk without room: what the tool says of it is shown.
    let full = "mkdir .tool; echo token > /dev/full || { echo no room for auth.json; exit 1; }";
    let rules = json!({"outcome": {"exitCode": 0, "files": [".tool/auth.json"]}});
    start(&rig, 8, full, rules).await;
    let status = end(&rig).await;
    assert!(failure(&status).contains("exit code 1"), "{status:?}");
    assert!(status.output.contains("no room for auth.json"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_prompts_and_codes_are_answered() {
    let rig = Rig::new().await;
    let script = format!(
        "printf '\\e[6n'; IFS= read -rsd R -t 10 at || exit 8\n\
         printf '\\e]11;?\\a'; IFS= read -rsd $'\\a' -t 10 colour || exit 7\n\
         printf 'Log in with a browser? [Y/n] '; read -r yes; [ \"$yes\" = y ] || exit 6\n\
         echo '{LINK}'; while :; do printf 'Paste code here: '; read -r code\n\
         [ \"$code\" = right ] && break; echo Invalid code; done\n\
         echo sk-test-0123456789 is your token"
    );
    let rules = json!({
        "flow": "paste_code",
        "prompts": [{"pattern": "\\[Y/n\\]", "send": "y\r"}],
        "outcome": {"exitCode": 0, "output": "your token"},
        "credentials": [{"path": "token", "mode": 384, "output": "(sk-test-\\w+)"}],
    });
    start(&rig, 1, &script, rules).await;
    until(&rig, "it wants a code", |s| s.wants_input).await;
    let (code, _) =
        rig.tool_call(Method::POST, "/v1/tool/input", &json!({"run": 2, "text": "x"})).await;
    assert_eq!(code, StatusCode::CONFLICT, "another run");
    let (code, _) =
        rig.tool_call(Method::POST, "/v1/tool/input", &json!({"run": 1, "text": "a\u{3}"})).await;
    assert_eq!(code, StatusCode::BAD_REQUEST, "control characters");
    let _: ToolStatus =
        rig.tool(Method::POST, "/v1/tool/input", &json!({"run": 1, "text": "wrong"})).await;
    until(&rig, "it asks again", |s| s.wants_input && s.output.contains("Invalid code")).await;
    let _: ToolStatus =
        rig.tool(Method::POST, "/v1/tool/input", &json!({"run": 1, "text": "right"})).await;
    let status = end(&rig).await;
    assert_eq!(status.outcome, Some(Outcome::Succeeded), "{status:?}");
    assert_eq!(status.output, "", "nothing is shown of a tool that succeeded");
    let key = age::x25519::Identity::generate();
    let collect = json!({"run": 1, "recipients": [key.to_public().to_string()]});
    let collected: Collected = rig.tool(Method::POST, "/v1/tool/collect", &collect).await;
    let clear = age::decrypt(&key, &STANDARD.decode(collected.ciphertext).expect("base64"));
    let bundle: Bundle = serde_json::from_slice(&clear.expect("for this key")).expect("a bundle");
    assert_eq!(STANDARD.decode(&bundle.files[0].content).expect("base64"), b"sk-test-0123456789");
    let (code, _) =
        rig.tool_call(Method::POST, "/v1/tool/input", &json!({"run": 1, "text": "x"})).await;
    assert_eq!(code, StatusCode::CONFLICT, "it has ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_what_is_shown() {
    let rig = Rig::new().await;
    // It prints one token before it writes it, and others after; the terminal echoes the code.
    let script = format!(
        "echo '{LINK}'; printf 'Paste code here: '; read -r code; echo got $code\n\
         echo early sk-early-0123456789abcdef; mkdir .tool; echo sk-test-0123456789 is printed\n\
         echo '{{\"token\":\"letters-only-token\",\"early\":\"sk-early-0123456789abcdef\"}}' > .tool/auth.json\n\
         cat .tool/auth.json; echo; echo token=letters-only-token.; echo waits\n\
         until [ -e go ]; do sleep 0.05; done; exit 3"
    );
    let rules = json!({
        "flow": "paste_code",
        "outcome": {"exitCode": 0},
        "credentials": [
            {"path": ".tool/auth.json", "mode": 384},
            {"path": "token", "mode": 384, "output": "(sk-test-\\w+)"},
        ],
    });
    start(&rig, 1, &script, rules).await;
    until(&rig, "it wants a code", |s| s.wants_input).await;
    let typed = json!({"run": 1, "text": "c0de#st4te"});
    let _: ToolStatus = rig.tool(Method::POST, "/v1/tool/input", &typed).await;
    let clean = |status: &ToolStatus| {
        for secret in ["sk-early", "sk-test", "letters-only", "c0de", "st4te"] {
            assert!(!status.output.contains(secret), "{secret}: {}", status.output);
        }
    };
    // Whatever is shown on the way is clean, too.
    let waits = until(&rig, "it waits", |s| {
        clean(s);
        s.output.contains("waits")
    })
    .await;
    assert!(waits.output.contains(LINK) && waits.output.contains("got [removed]"), "{waits:?}");
    assert!(waits.output.contains("[removed] is printed"), "{waits:?}");
    fs::write(rig.guest.home.join("go"), "").expect("written");
    let status = end(&rig).await;
    assert!(failure(&status).contains("exit code 3") && status.output.contains("waits"));
    clean(&status);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_code_is_shown_and_a_tool_that_runs_on_has_succeeded() {
    let rig = Rig::new().await;
    let script = "echo 'First copy your one-time code: AB12-CD34'; echo Open https://github.com/login/device\n\
         until [ -e go ]; do sleep 0.05; done; echo token > hosts.yml; exec sleep 300";
    let rules = json!({
        "flow": "device_code", "userCode": "code: ([A-Z0-9]{4}-[A-Z0-9]{4})",
        "outcome": {"files": ["hosts.yml"]}, "credentials": [{"path": "hosts.yml", "mode": 384}],
    });
    start(&rig, 1, script, rules).await;
    let status = until(&rig, "a code", |s| s.user_code.is_some() && s.link.is_some()).await;
    assert_eq!(status.user_code.as_deref(), Some("AB12-CD34"));
    assert_eq!(status.link.expect("a link").url, "https://github.com/login/device");
    fs::write(rig.guest.home.join("go"), "").expect("written");
    assert_eq!(end(&rig).await.outcome, Some(Outcome::Succeeded));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_run_is_left_when_it_ends() {
    let rig = Rig::new().await;
    let script = format!(
        "trap '' HUP TERM INT; (setsid bash -c \"trap '' HUP TERM; sleep 300\" & echo $! > daemon; disown)\n\
         echo $$ > main; echo '{LINK}'; while :; do sleep 1; done"
    );
    start(&rig, 1, &script, json!({})).await;
    until(&rig, "a link", |s| s.link.is_some()).await;
    let pids =
        ["main", "daemon"].map(|file| fs::read_to_string(rig.guest.home.join(file)).expect(file));
    assert!(pids.iter().all(|pid| is_alive(pid)));
    start(&rig, 2, "sleep 60", json!({})).await;
    assert!(pids.iter().all(|pid| !is_alive(pid)), "something of the first run still runs");
    start(&rig, 3, "echo $$ > main; sleep 300 & exit 0", json!({})).await;
    end(&rig).await;
    let mark = rig.guest.mark("tool-*");
    assert_eq!(holdfast_agent::census::find(&mark, None), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_of_output_hide_no_link_and_fill_no_memory() {
    let rig = Rig::new().await;
    let script = format!(
        "head -c 20000000 /dev/zero | tr '\\0' 'x' | fold -w 300; echo; echo '{LINK}'; sleep 60"
    );
    start(&rig, 1, &script, json!({})).await;
    let status = until(&rig, "a link", |s| s.link.is_some()).await;
    assert_eq!(status.link.expect("a link").url, LINK);
    assert!(status.output.len() <= 4096);
}
