//! Sign-ins in which something goes wrong on the way, in real machines.

use std::collections::BTreeMap;

use age::x25519::Identity;
use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_api::{Credentials, SignIn};
use http::Method;
use rustix::process::{Signal, kill_process};
use uuid::Uuid;

use super::bench::{Bench, access_token};
use crate::fixture::{self, BOOT, SOON};

/// A tool that does something else each time it is started.
const TOOL: &str = r#"
run=$(($(cat /tmp/run 2>/dev/null || echo 0) + 1)); echo $run > /tmp/run
link="https://auth.example.com/authorize?run=$run&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fcb&scope=$(printf 'openid+%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)end"
write() { mkdir -p .tool && printf '{"access_token":"%s"}' "$(od -An -tx1 -N24 /dev/urandom | tr -d ' \n')" > .tool/auth.json; }
case $run in
1) echo 'panicked at login.rs' >&2; exit 101 ;;
2) for bad in 'javascript:alert(1)' file:///etc/passwd https://192.168.1.1/ https://169.254.169.254/; do $BROWSER "$bad"; done
   echo hangs; exec sleep 600 ;;
3) head -c 1048576 /dev/zero | tr '\0' x; echo; echo "$link" | fold -w 80; echo; echo waiting; exec sleep 600 ;;
4) echo "$link"; fallocate -l "$(df --output=avail -B1 . | tail -n 1)" full; cat /dev/zero > fuller
   write || { echo 'no room for .tool/auth.json'; exit 1; } ;;
5) echo "$link"; rm -f full fuller; write ;;
esac
"#;

fn provider() -> Result<String> {
    let command = serde_json::to_string(&["sh", "-c", TOOL])?;
    Ok(format!(
        "name = \"trouble\"\ntitle = \"Trouble\"\n[tool]\ncommand = {command}\nflow = \"loopback\"\n\
         [success]\nexit_code = 0\nfiles = [\".tool/auth.json\"]\n\
         [[credential]]\npath = \".tool/auth.json\"\n\
         [deadlines]\nlink = \"20s\"\nsign_in = \"10m\"\n"
    ))
}

/// Every way in which a tool can fail is told apart and can be followed by another try on the same
/// machine, also when its disk was full.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_fails_in_every_way_can_be_started_again() -> Result<()> {
    let bench = Bench::start_with(0, BTreeMap::from([("trouble", provider()?)])).await?;
    let key = Identity::generate();
    let id = bench.create("trouble", &key).await?.id;
    let first = failed(&bench, id, 1).await?;
    says(&first, &["exit code 101", "no link"], "panicked at login.rs")?;
    let boot = fixture::boot_id(&bench.api, id).await?;
    retry(&bench, id).await?;
    let second = failed(&bench, id, 2).await?;
    says(&second, &["no link within 20 s"], "hangs")?;
    retry(&bench, id).await?;
    let third = bench.link(id, 3).await?;
    let link = third.url.as_deref().context("a link")?;
    // Three lines of it, whole.
    ensure!(link.contains("run=3") && link.ends_with("end") && link.len() > 160, "{link}");
    ensure!(third.output.len() <= 4096, "{} bytes are shown", third.output.len());
    retry(&bench, id).await?;
    let fourth = failed(&bench, id, 4).await?;
    says(&fourth, &["exit code 1"], "no room for .tool/auth.json")?;
    retry(&bench, id).await?;
    let done = bench.until(id, "success", SOON, |s| s.run == 5 && s.step == "done").await?;
    ensure!(done.outcome.as_deref() == Some("succeeded"), "{done:?}");
    ensure!(done.url.as_deref().is_none_or(|url| url.contains("run=5")), "{done:?}");
    let token = take(&bench, id, &key).await?;
    let timeline = bench.api.timeline(id).await;
    ensure!(!timeline.contains("signin.restarted"), "another boot than {boot}: {timeline}");
    bench.finish(id, &[token]).await
}

async fn failed(bench: &Bench, id: Uuid, run: u32) -> Result<SignIn> {
    // Not `until`, for which an end is a failure.
    let waited = holdfast_testkit::wait::until("its failure", BOOT, async || {
        let now = bench.sign_in(id).await?;
        Ok((now.run == run && now.outcome.is_some()).then_some(now))
    });
    let now = waited.await?;
    ensure!(now.outcome.as_deref() == Some("failed"), "{now:?}");
    let path = format!("/api/sessions/{id}/oauth-url");
    let answer = bench.api.get(&path).await?;
    ensure!(answer.status == 424, "{answer:?}");
    Ok(now)
}

fn says(now: &SignIn, why: &[&str], output: &str) -> Result<()> {
    let reason = now.why.as_deref().context("a reason")?;
    ensure!(why.iter().all(|part| reason.contains(part)), "{reason}");
    ensure!(now.output.contains(output), "{now:?}");
    ensure!(now.url.is_none() || now.run > 2, "{now:?}");
    Ok(())
}

async fn retry(bench: &Bench, id: Uuid) -> Result<()> {
    let answer = bench.api.post(&format!("/api/sessions/{id}/sign-in/retry"), &()).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

async fn take(bench: &Bench, id: Uuid, key: &Identity) -> Result<String> {
    let gone = bench.api.gone(id, SOON).await?;
    ensure!(gone.reason.as_deref() == Some("completed"), "{gone:?}");
    let path = format!("/api/sessions/{id}/credentials");
    let sealed = bench.api.send(Method::POST, &path, &[], Vec::new()).await?;
    ensure!(sealed.status == 200, "{sealed:?}");
    let credentials: Credentials = serde_json::from_slice(&age::decrypt(key, &sealed.body)?)?;
    access_token(&STANDARD.decode(&credentials.files[0].content)?)
}

/// The person closes the browser, the server is killed, and then the machine: the sign-in goes on,
/// with a link of its own after the machine's death.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_outlives_its_browser_its_server_and_its_machine() -> Result<()> {
    let mut bench = Bench::start().await?;
    let key = Identity::generate();
    let id = bench.create("loopback", &key).await?.id;
    let first = bench.link(id, 1).await?;
    let (mut desktop, closed) = fixture::desktop(&bench.api, id).await?;
    bench.sees_login(&mut desktop).await?;

    let closes = ["pkill", "--oldest", "chromium"];
    let ran = bench.api.exec(id, &closes).await?;
    ensure!(ran.code == 0, "{ran:?}");
    bench.loses_login(&mut desktop).await?;
    let opened = bench.api.post(&format!("/api/sessions/{id}/sign-in/open"), &()).await?;
    ensure!(opened.status == 204, "{opened:?}");
    bench.sees_login(&mut desktop).await?;

    bench.server.kill()?;
    closed.await?;
    bench.server.spawn()?;
    bench.server.ready().await?;
    let same = bench.sign_in(id).await?;
    ensure!((same.run, &same.url) == (1, &first.url), "{same:?}");

    kill_process(fixture::vmm(&mut bench.server)?, Signal::KILL)?;
    let second = bench.link(id, 2).await?;
    ensure!(second.url != first.url, "the link of a machine that died is served: {second:?}");
    let (mut desktop, _closed) = fixture::desktop(&bench.api, id).await?;
    bench.consent(&mut desktop).await?;
    let done = bench.until(id, "success", super::PAGE, |s| s.step == "done").await?;
    ensure!((done.run, done.outcome.as_deref()) == (2, Some("succeeded")), "{done:?}");
    let token = take(&bench, id, &key).await?;
    bench.finish(id, &[token]).await
}

/// A tool that fails when it is started first, and then asks for a code and hands it over.
const STUMBLES: &str = r#"
if ! [ -e /tmp/started ]; then touch /tmp/started; echo 'panicked at login.rs' >&2; exit 101; fi
random() { od -An -tx1 -N16 /dev/urandom | tr -d ' \n'; }
echo "Open https://auth.example.com/authorize?run=2&state=$(random)"
printf 'Paste the code: '; read -r code
mkdir -p .tool && printf '{"access_token":"%s","code":"%s"}' "$(random)" "$code" > .tool/auth.json
"#;

/// Two people, each in a page of their own: the same tool fails for both, says why, is tried again and
/// ends well, and neither is shown anything of the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_people_try_again_at_once_in_the_dashboard() -> Result<()> {
    let command = serde_json::to_string(&["sh", "-c", STUMBLES])?;
    let tool = format!(
        "name = \"stumbles\"\ntitle = \"Tool that stumbles\"\n\
         description = \"Fails at first.\"\n\
         [tool]\ncommand = {command}\nflow = \"paste_code\"\n\
         [success]\nexit_code = 0\nfiles = [\".tool/auth.json\"]\n\
         [[credential]]\npath = \".tool/auth.json\"\n"
    );
    let bench = Bench::start_with(0, BTreeMap::from([("stumbles", tool)])).await?;
    let files = tempfile::tempdir()?;
    super::in_a_browser(&bench, "trouble", files.path()).await?;
    let mut secrets = Vec::new();
    for name in ["ada", "grace"] {
        let auth = std::fs::read(files.path().join(name).with_extension("json"))?;
        secrets.push(access_token(&auth)?);
    }
    let list: holdfast_api::SessionList = bench.api.get("/api/sessions").await?.json(200)?;
    let session = list.sessions.first().context("the sessions are remembered")?;
    bench.finish(session.id, &secrets).await
}
