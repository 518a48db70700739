//! The links of the tools that ship in the image: caught as the tool made them, whole, new each time.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use age::x25519::Identity;
use anyhow::{Context as _, Result, bail, ensure};
use holdfast_api::{CreateSession, SignIn};
use holdfast_testkit::{api::Api, wait};
use uuid::Uuid;

use crate::fixture;

/// Longer than the longest link deadline of what is tried here, and a boot.
const LINK: Duration = Duration::from_mins(6);

/// Waits for the link of a run, and until the tool has printed one too.
async fn links(api: &Api, id: Uuid, run: u32, origin: &str) -> Result<(String, String)> {
    let waited = wait::until("the tool's links", LINK, async || {
        let path = format!("/api/sessions/{id}/sign-in");
        let now: SignIn = api.get(&path).await?.json(200)?;
        if now.step == "done" {
            bail!("it ended: {now:?}");
        }
        let printed = now.output.split_whitespace().find(|word| word.starts_with(origin));
        let printed = printed.filter(|_| now.run == run).map(str::to_owned);
        Ok(now.url.zip(printed))
    });
    api.explained(id, waited.await).await
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

/// Starts a tool twice in a session and once in another, and looks at its links. `same`: the link that it
/// opens is the one that it prints.
async fn try_tool(provider: &str, origin: &str, same: bool) -> Result<()> {
    let server = fixture::server().await?;
    let api = server.api()?;
    let request = CreateSession {
        provider: Some(provider.to_owned()),
        recipient: Some(Identity::generate().to_public().to_string()),
        memory_mib: Some(2048),
        ..fixture::named(provider)
    };
    let first = api.create(&request).await?;
    let mut found = vec![links(&api, first.id, 1, origin).await?];
    let retried = api.post(&format!("/api/sessions/{}/sign-in/retry", first.id), &()).await?;
    ensure!(retried.status == 200, "{retried:?}");
    found.push(links(&api, first.id, 2, origin).await?);
    // The first one goes on beside it.
    let other = api.create(&request).await?;
    found.push(links(&api, other.id, 1, origin).await?);

    let mut secrets = Vec::new();
    for (url, printed) in &found {
        ensure!(url.starts_with(origin), "{url}");
        let of_url = query(url);
        let value = |name: &str| of_url.get(name).with_context(|| format!("no {name}: {url}"));
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

        // What it prints belongs to the same run, even if a tool that paints over its own output leaves
        // a link in pieces.
        ensure!(
            printed.contains(value("code_challenge")?),
            "{url} is opened, {printed} is printed"
        );
        ensure!((url == printed) == same, "{url} is opened, {printed} is printed");
    }
    let distinct: BTreeSet<_> = secrets.iter().collect();
    ensure!(distinct.len() == secrets.len(), "repeated: {secrets:?}");
    server.finish().await
}

/// `codex login` opens its link and prints the same.
#[tokio::test(flavor = "multi_thread")]
async fn of_codex() -> Result<()> {
    try_tool("codex", "https://auth.openai.com/oauth/authorize?", true).await
}

/// `claude auth login` opens one link and prints another, which leads to a code for pasting.
#[tokio::test(flavor = "multi_thread")]
async fn of_claude() -> Result<()> {
    try_tool("claude", "https://claude.", false).await
}
