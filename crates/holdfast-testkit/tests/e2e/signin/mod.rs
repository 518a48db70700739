//! Whole sign-ins: a real tool in a real VM, a certified OpenID provider on the host, a person who
//! types in the live desktop, and credentials that come out sealed, once.

mod bench;
mod trouble;

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::{process, wait};
use http::Method;

use self::bench::{Bench, PAGE, access_token};
use crate::fixture::{self, BOOT};

/// Runs tests of `web/e2e/sign-in` against this server; what they download goes to `files`.
async fn in_a_browser(bench: &Bench, tests: &str, files: &Path) -> Result<()> {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
    ensure!(web.join("node_modules").is_dir(), "run `npm ci` in web/, or use `cargo xtask test`");
    let mut node = Command::new("node");
    node.args(["--test", "--test-reporter=spec", &format!("e2e/sign-in/{tests}.test.js")])
        .current_dir(&web)
        .env("HOLDFAST_URL", format!("http://{}", bench.server.address()))
        .env("HOLDFAST_TOKEN", bench.server.token()?)
        .env("HOLDFAST_E2E_FILES", files)
        .stdin(Stdio::null());
    let ended = output(node).await?;
    let text = String::from_utf8_lossy(&ended.stdout);
    println!("{text}");
    let seen = bench.provider.log();
    ensure!(ended.status.success(), "{text}\nthe provider was asked:\n  {seen}");
    Ok(())
}

async fn output(mut command: Command) -> Result<Output> {
    let ended = tokio::task::spawn_blocking(move || command.output()).await?;
    ended.context("it could not be started")
}

/// `holdfast login`: from the command to files that the tool finds, through a loopback callback.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_command() -> Result<()> {
    let bench = Bench::start().await?;
    let home = tempfile::tempdir()?;
    let mut command = Command::new(process::binary()?);
    command
        .args(["--json", "login", "loopback"])
        .env("HOLDFAST_URL", format!("http://{}", bench.server.address()))
        .env("HOLDFAST_TOKEN", bench.server.token()?)
        .env("HOME", home.path())
        .stdin(Stdio::null());
    let login = tokio::spawn(output(command));
    let sessions = wait::until("its session", BOOT, async || {
        let list: holdfast_api::SessionList = bench.api.get("/api/sessions").await?.json(200)?;
        Ok((!list.sessions.is_empty()).then_some(list.sessions))
    });
    let session = sessions.await?.remove(0);
    let link = bench.link(session.id, 1).await?;
    let (mut desktop, _closed) = fixture::desktop(&bench.api, session.id).await?;
    bench.consent(&mut desktop).await?;
    let ended = tokio::time::timeout(PAGE, login).await.context("the command goes on")???;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{said}");
    for shown in [session.url.as_str(), link.url.as_deref().context("a link")?] {
        ensure!(said.contains(shown), "{shown} is not shown: {said}");
    }

    let mode = |path: &str| -> Result<u32> {
        Ok(home.path().join(path).metadata()?.permissions().mode() & 0o7777)
    };
    ensure!((mode(".tool")?, mode(".tool/auth.json")?) == (0o700, 0o600));
    let told: serde_json::Value = serde_json::from_slice(&ended.stdout)?;
    ensure!(told["files"].as_array().is_some_and(|files| files.len() == 1), "{told}");
    let token = access_token(&std::fs::read(home.path().join(".tool/auth.json"))?)?;
    ensure!(!said.contains(&token) && !told.to_string().contains(&token), "the token was printed");
    let path = format!("/api/sessions/{}/credentials", session.id);
    let again = bench.api.send(Method::POST, &path, &[], Vec::new()).await?;
    ensure!(again.status == 410, "a second time was answered {}", again.status);
    bench.finish(session.id, &[token]).await
}

/// All three flows as a person does them, in a browser: `web/e2e/sign-in`.
#[tokio::test(flavor = "multi_thread")]
async fn through_the_dashboard() -> Result<()> {
    // An hour before everybody else: what it says about times is not believed.
    let bench = Bench::start_with(3600, std::collections::BTreeMap::new()).await?;
    let files = tempfile::tempdir()?;
    in_a_browser(&bench, "flows", files.path()).await?;
    let mut secrets = Vec::new();
    for name in ["loopback", "device", "paste"] {
        let auth = std::fs::read(files.path().join(name).with_extension("json"))?;
        secrets.push(access_token(&auth)?);
    }
    let list: holdfast_api::SessionList = bench.api.get("/api/sessions").await?.json(200)?;
    let session = list.sessions.first().context("the sessions are remembered")?;
    bench.finish(session.id, &secrets).await
}
