//! Chromium over its DevTools: is it there, has a page loaded, open a link in front.
//!
//! It must never be asked for more than that: pages and their content are the person's.

use std::{fs, io, net::Ipv4Addr, path::PathBuf, time::Duration};

use futures::{SinkExt, StreamExt};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    guest::{Guest, remove_if_there, write_atomically},
    supervise, wire, x11,
};

/// Longest wait for one answer of Chromium.
const ANSWER: Duration = Duration::from_secs(10);

/// What a new tab shows, by the image's policy.
pub const START_PAGE: &str = "file:///usr/share/holdfast/start.html";

/// A tab that shows nothing.
pub const EMPTY_PAGE: &str = "about:blank";

/// A tab or another target.
#[derive(Debug, Clone, Deserialize)]
struct Target {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    url: String,
}

async fn request(guest: &Guest, method: Method, path: &str) -> io::Result<bytes::Bytes> {
    request_within(guest, method, path, ANSWER).await
}

async fn request_within(
    guest: &Guest,
    method: Method,
    path: &str,
    deadline: Duration,
) -> io::Result<bytes::Bytes> {
    let exchange = async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, guest.devtools)).await?;
        let (status, body) = wire::call(stream, method, path, Vec::new()).await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(io::Error::other(format!("Chromium answered {status}")))
        }
    };
    timeout(deadline, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn pages(guest: &Guest) -> io::Result<Vec<Target>> {
    pages_within(guest, ANSWER).await
}

async fn pages_within(guest: &Guest, deadline: Duration) -> io::Result<Vec<Target>> {
    let body = request_within(guest, Method::GET, "/json/list", deadline).await?;
    let targets: Vec<Target> = serde_json::from_slice(&body).map_err(io::Error::other)?;
    Ok(targets.into_iter().filter(|target| target.kind == "page").collect())
}

/// Links of the tabs that are open, without empty ones.
///
/// # Errors
/// Chromium does not answer.
pub async fn tabs(guest: &Guest) -> io::Result<Vec<String>> {
    let urls = pages(guest).await?.into_iter().map(|page| page.url);
    Ok(urls.filter(|url| !is_empty(url) && !url.starts_with("devtools:")).collect())
}

fn tabs_file(guest: &Guest) -> PathBuf {
    guest.run.join("tabs.json")
}

/// Tabs that the next browser shall have; while they are kept, it restores its last session.
pub fn keep_tabs(guest: &Guest, tabs: &[String]) -> io::Result<()> {
    write_atomically(&tabs_file(guest), &serde_json::to_vec(tabs)?, 0o600)
}

/// What [`keep_tabs`] kept.
pub fn kept_tabs(guest: &Guest) -> io::Result<Option<Vec<String>>> {
    match fs::read(tabs_file(guest)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Forgets what [`keep_tabs`] kept.
pub fn drop_tabs(guest: &Guest) -> io::Result<()> {
    fs::remove_file(tabs_file(guest))
}

/// The page that the next browser shows first, where one was asked for. On its command line it is
/// there at once, however slow the guest; through DevTools it waits for Chromium to answer.
pub fn first_page(guest: &Guest) -> Option<String> {
    fs::read_to_string(first_page_file(guest)).ok().filter(|url| !url.is_empty())
}

/// Sets that page; `None` leaves the start page.
pub fn set_first_page(guest: &Guest, url: Option<&str>) -> io::Result<()> {
    match url {
        Some(url) => write_atomically(&first_page_file(guest), url.as_bytes(), 0o600),
        None => remove_if_there(&first_page_file(guest)),
    }
}

fn first_page_file(guest: &Guest) -> PathBuf {
    guest.run.join("first-page")
}

/// Whether a page has finished loading.
pub async fn is_ready(guest: &Guest) -> bool {
    let Ok(pages) = pages(guest).await else { return false };
    for page in pages {
        if matches!(timeout(ANSWER, is_complete(guest, &page.id)).await, Ok(Ok(true))) {
            return true;
        }
    }
    false
}

async fn is_complete(guest: &Guest, id: &str) -> io::Result<bool> {
    Ok(evaluate(guest, id, "document.readyState").await? == "complete")
}

/// Value of an expression in a tab.
async fn evaluate(guest: &Guest, id: &str, expression: &str) -> io::Result<Value> {
    let path = format!("/devtools/page/{id}");
    let mut result =
        command(guest, &path, "Runtime.evaluate", json!({ "expression": expression })).await?;
    Ok(result["result"]["value"].take())
}

/// One command of DevTools over a connection of its own; `path` names a tab or the browser.
async fn command(guest: &Guest, path: &str, method: &str, params: Value) -> io::Result<Value> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, guest.devtools)).await?;
    let url = format!("ws://127.0.0.1:{}{path}", guest.devtools);
    let (mut socket, _) =
        tokio_tungstenite::client_async(url, stream).await.map_err(io::Error::other)?;
    let question = json!({ "id": 1, "method": method, "params": params });
    socket.send(Message::text(question.to_string())).await.map_err(io::Error::other)?;
    while let Some(message) = socket.next().await {
        let text = message.map_err(io::Error::other)?.into_text().map_err(io::Error::other)?;
        let mut answer: Value = serde_json::from_str(&text).map_err(io::Error::other)?;
        if answer["id"] == 1 {
            if let Some(why) = answer["error"]["message"].as_str() {
                return Err(io::Error::other(format!("Chromium refused {method}: {why}")));
            }
            return Ok(answer["result"].take());
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Path of the browser's own DevTools. It ends with an id that the browser drew when it started.
///
/// # Errors
/// Chromium does not answer.
pub async fn address(guest: &Guest) -> io::Result<String> {
    let version = request(guest, Method::GET, "/json/version").await?;
    let version: Value = serde_json::from_slice(&version).map_err(io::Error::other)?;
    let whole = version["webSocketDebuggerUrl"].as_str().unwrap_or_default();
    let path = whole.find("/devtools/").map(|at| whole[at..].to_owned());
    path.ok_or_else(|| io::Error::other("Chromium names no address of its own"))
}

/// Loads `url` in a window of its own that shares nothing with the person's and leaves no trace, and
/// closes it once it has loaded.
///
/// # Errors
/// Chromium does not answer, or it did not load within `deadline`.
pub async fn rehearse(guest: &Guest, url: &str, deadline: Duration) -> io::Result<()> {
    let path = address(guest).await?;
    let context = command(guest, &path, "Target.createBrowserContext", json!({})).await?;
    let context = &context["browserContextId"];
    let load = async {
        let params = json!({ "url": url, "browserContextId": context });
        let target = command(guest, &path, "Target.createTarget", params).await?;
        let id = target["targetId"].as_str().unwrap_or_default();
        while !is_complete(guest, id).await? {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        io::Result::Ok(())
    };
    let loaded =
        timeout(deadline, load).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let params = json!({ "browserContextId": context });
    command(guest, &path, "Target.disposeBrowserContext", params).await?;
    loaded
}

/// Shows `url` in a tab of its own and closes all others, whose renderers `end_old` has ended: what showed
/// them in a snapshot draws nothing more. Each answer may take `deadline`: beside other guests that come up
/// it takes seconds, and asking twice would open the page twice.
///
/// # Errors
/// Chromium does not answer, or refused.
pub async fn begin_anew(
    guest: &Guest,
    url: &str,
    deadline: Duration,
    end_old: impl FnOnce(),
) -> io::Result<()> {
    let old = pages_within(guest, deadline).await?;
    let path = format!("/json/new?{}", escaped(url));
    request_within(guest, Method::PUT, &path, deadline).await?;
    end_old();
    for page in old {
        let path = format!("/json/close/{}", page.id);
        if let Err(error) = request_within(guest, Method::GET, &path, deadline).await {
            tracing::warn!("a tab of the snapshot was not closed: {error}");
        }
    }
    Ok(())
}

/// Has the profile's lock name this guest. Chromium takes a lock that names another host for one that
/// another computer holds (`chrome/browser/process_singleton_posix.cc`), and opens nothing when it is
/// started again.
///
/// # Errors
/// The lock cannot be replaced.
pub fn own_profile(guest: &Guest) -> io::Result<()> {
    let lock = guest.profile().join("SingletonLock");
    let holder = match fs::read_link(&lock) {
        Ok(holder) => holder,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let holder = holder.to_string_lossy();
    let Some((_, pid)) = holder.rsplit_once('-') else { return Ok(()) };
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let renamed = lock.with_file_name("SingletonLock.new");
    std::os::unix::fs::symlink(format!("{host}-{pid}"), &renamed)?;
    if let Some(user) = guest.user {
        std::os::unix::fs::lchown(&renamed, Some(user.uid), Some(user.gid))?;
    }
    fs::rename(renamed, lock)
}

/// What became of a link that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A page is there, or an error in its place.
    Arrived,
    /// Chromium waits for it.
    Underway,
    /// Nothing waits for it: its tab is empty again, or there is none.
    Lost,
}

/// Whether a page that was opened has come. Chromium gives one up without a word when a process that
/// worked on it ends.
///
/// # Errors
/// Chromium does not answer.
pub async fn arrival(guest: &Guest) -> io::Result<Arrival> {
    let mut arrival = Arrival::Lost;
    for page in pages(guest).await?.iter().filter(|page| !is_empty(&page.url)) {
        // The list shows where a tab is going, the tab itself where it is.
        match timeout(ANSWER, evaluate(guest, &page.id, "location.href")).await {
            Ok(Ok(here)) if here != EMPTY_PAGE => return Ok(Arrival::Arrived),
            _ => arrival = Arrival::Underway,
        }
    }
    Ok(arrival)
}

/// Opens `url` in a tab in front; a tab that was still empty makes room for it. A tab that shows it
/// already is brought to the front, so that a repetition opens no second one.
///
/// # Errors
/// Chromium does not answer, or refused.
pub async fn open(guest: &Guest, url: &str) -> io::Result<()> {
    if is_held_or_wakes(guest) {
        // Its tabs are about to be closed.
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let before = pages(guest).await?;
    let empty = before.iter().find(|page| is_empty(&page.url));
    let id = if let Some(shown) = before.iter().find(|page| page.url == url) {
        shown.id.clone()
    } else if let Some(empty) = empty {
        // Its process is there already, and serves the page when it has shown nothing yet.
        navigate(guest, &empty.id, url).await?;
        empty.id.clone()
    } else {
        let body = request(guest, Method::PUT, &format!("/json/new?{}", escaped(url))).await?;
        let opened: Target = serde_json::from_slice(&body).map_err(io::Error::other)?;
        opened.id
    };
    // From here on the link is open: whoever asked again would get it twice, once it leads elsewhere.
    if let Err(error) = request(guest, Method::GET, &format!("/json/activate/{id}")).await {
        tracing::debug!("a tab could not be brought to the front: {error}");
    }
    for page in before.iter().filter(|page| page.id != id && is_empty(&page.url)) {
        let _ = request(guest, Method::GET, &format!("/json/close/{}", page.id)).await;
    }
    let display = guest.display.clone();
    let raised = tokio::task::spawn_blocking(move || {
        x11::Display::open(&display).and_then(|display| display.raise_browser())
    });
    if let Ok(Err(error)) = raised.await {
        tracing::debug!("the browser stays where it is: {error}");
    }
    Ok(())
}

async fn navigate(guest: &Guest, id: &str, url: &str) -> io::Result<()> {
    let path = format!("/devtools/page/{id}");
    let sent = command(guest, &path, "Page.navigate", json!({ "url": url }));
    // It answers when the page's server has; Chromium goes on without being waited for.
    timeout(ANSWER, sent).await.map_or(Ok(()), |answer| answer.map(drop))
}

/// Has the supervisor start Chromium now, where it waited for others. Only in a guest that was claimed: what
/// ran before is gone then.
pub async fn start(guest: &Guest) {
    if let Err(refusal) = supervise::tell(guest, "/services/chromium/start").await {
        tracing::warn!("the browser waits for the supervisor: {}", refusal.1);
    }
}

/// A browser of the warm image that does not go on yet.
pub fn held_file(guest: &Guest) -> PathBuf {
    guest.run.join("held-browser.json")
}

/// The same while it begins to go on: its first page was chosen.
pub fn waking_file(guest: &Guest) -> PathBuf {
    guest.run.join("waking-browser.json")
}

/// Whether a browser is held and has not begun to go on.
pub fn is_held(guest: &Guest) -> bool {
    held_file(guest).exists()
}

fn is_held_or_wakes(guest: &Guest) -> bool {
    is_held(guest) || waking_file(guest).exists()
}

/// Shows `url`: in the tab that a browser which was held begins with, or in one of a browser that runs.
///
/// # Errors
/// It does not answer within `deadline`.
pub async fn show(guest: &Guest, url: &str, deadline: Duration) -> io::Result<()> {
    let mut begins_with_it = is_held(guest);
    if begins_with_it {
        set_first_page(guest, Some(url))?;
        // When it has begun meanwhile, it may not have seen it.
        begins_with_it = is_held(guest);
    }
    start(guest).await;
    if !begins_with_it {
        return open_within(guest, url, deadline).await;
    }
    let begun = async {
        while is_held_or_wakes(guest) || pages(guest).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(deadline, begun).await.map_err(io::Error::other)?;
    // One that is started again later shows the start page.
    set_first_page(guest, None)
}

/// Opens `url` as soon as Chromium answers, for at most `deadline`.
pub async fn open_within(guest: &Guest, url: &str, deadline: Duration) -> io::Result<()> {
    let start = tokio::time::Instant::now();
    loop {
        match open(guest, url).await {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn is_empty(url: &str) -> bool {
    matches!(url, "" | EMPTY_PAGE | "chrome://newtab/" | "chrome://new-tab-page/" | START_PAGE)
}

/// `url` as a query: Chromium takes everything after the question mark and decodes it once.
fn escaped(url: &str) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(url.len() + 16);
    for byte in url.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            text.push(byte.into());
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_survives_being_a_query() {
        let url = "https://a.example/?x=1&y=%2F#f";
        assert_eq!(escaped(url), "https://a.example/%3Fx%3D1%26y%3D%252F%23f");
    }
}
