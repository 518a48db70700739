//! The links of the tools that ship in the image: caught as the tool made them, whole, new each time.

use std::{collections::HashMap, time::Duration};

use age::x25519::Identity;
use anyhow::{Context as _, Result, bail, ensure};
use holdfast_api::{CreateSession, SignIn};
use holdfast_testkit::{api::Api, wait};
use uuid::Uuid;

use crate::fixture;

/// Longer than the longest link deadline of what is tried here, and a boot.
const LINK: Duration = Duration::from_mins(6);

/// Waits for the link of a run; `printed`: and until the tool has printed it too.
async fn link(api: &Api, id: Uuid, run: u32, printed: bool) -> Result<SignIn> {
    let waited = wait::until("the tool's link", LINK, async || {
        let path = format!("/api/sessions/{id}/sign-in");
        let now: SignIn = api.get(&path).await?.json(200)?;
        let shown = now.url.as_ref().is_some_and(|url| !printed || now.output.contains(url));
        if now.run == run && shown {
            return Ok(Some(now));
        }
        if now.step == "done" {
            bail!("it ended: {now:?}");
        }
        Ok(None)
    });
    match waited.await {
        Ok(found) => Ok(found),
        Err(error) => Err(error.context(api.timeline(id).await)),
    }
}

/// The query of a link, decoded as far as these tools encode.
fn query(url: &str) -> HashMap<String, String> {
    let pairs = url.split_once('?').map_or("", |(_, query)| query).split('&');
    let decoded = |text: &str| text.replace("%3A", ":").replace("%2F", "/").replace('+', " ");
    pairs
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect()
}

/// Starts a tool twice and looks at its links.
async fn try_tool(provider: &str, origin: &str, printed: bool) -> Result<()> {
    let server = fixture::server().await?;
    let api = server.api()?;
    let request = CreateSession {
        provider: Some(provider.to_owned()),
        recipient: Some(Identity::generate().to_public().to_string()),
        memory_mib: Some(2048),
        ..fixture::named(provider)
    };
    let session = api.create(&request).await?;
    let first = link(&api, session.id, 1, printed).await?;
    let retried = api.post(&format!("/api/sessions/{}/sign-in/retry", session.id), &()).await?;
    ensure!(retried.status == 200, "{retried:?}");
    let second = link(&api, session.id, 2, printed).await?;
    let mut secrets = Vec::new();
    for sign_in in [&first, &second] {
        let url = sign_in.url.as_deref().context("a link")?;
        ensure!(url.starts_with(origin), "{url}");
        let query = query(url);
        let value = |name: &str| query.get(name).with_context(|| format!("no {name}: {url}"));
        ensure!(value("response_type")? == "code" && value("code_challenge_method")? == "S256");
        // SHA-256 in base64url.
        ensure!(value("code_challenge")?.len() == 43, "{url}");
        let redirect = value("redirect_uri")?;
        let is_loopback = ["http://localhost:", "http://127.0.0.1:"]
            .iter()
            .any(|start| redirect.starts_with(start));
        ensure!(is_loopback, "{redirect}");
        ensure!(value("state")?.len() >= 32, "{url}");
        secrets.extend([value("state")?.clone(), value("code_challenge")?.clone()]);
    }
    let distinct: std::collections::HashSet<_> = secrets.iter().collect();
    ensure!(distinct.len() == secrets.len(), "repeated: {secrets:?}");
    server.finish().await
}

/// `codex login` opens its link and prints the same.
#[tokio::test(flavor = "multi_thread")]
async fn of_codex() -> Result<()> {
    try_tool("codex", "https://auth.openai.com/oauth/authorize?", true).await
}

/// `claude auth login` opens one link and prints another.
#[tokio::test(flavor = "multi_thread")]
async fn of_claude() -> Result<()> {
    try_tool("claude", "https://claude.", false).await
}
