//! The claim: what makes a guest that VM and no other. First wins; kept until the guest is switched off.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use axum::http::StatusCode;
use holdfast_agent_api::{AssignRequest, ClaimAnswer, ClaimRequest, ScreenSize};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{Agent, held::Held, system};
use crate::{
    browser::{self, Arrival, EMPTY_PAGE, START_PAGE},
    guest::{Guest, Settings, write_atomically},
    installation, shell,
    supervise::uptime_ms,
    wire::Refusal,
    x11,
};

/// How long the first page may wait for the browser.
const START_PAGE_DEADLINE: Duration = Duration::from_mins(10);
/// Time between attempts to ask a browser that does not answer yet.
const FIRST_PAGE_ASK: Duration = Duration::from_millis(400);
/// Time between looks at whether it came. Each takes processor time from the page that is on its way.
const FIRST_PAGE_LOOK: Duration = Duration::from_secs(2);
/// Looks in a row that have to find nothing before the page is asked for again: between the answer of a
/// page's server and the page a translated guest takes seconds.
const FIRST_PAGE_LOST: u32 = 5;
/// How long a size may wait for the display.
const DISPLAY_DEADLINE: Duration = Duration::from_mins(1);

/// How long the browser may wait for others.
const LONGEST_WAIT_OF_BROWSER: Duration = Duration::from_secs(30);

/// How long processes of a browser that was killed may still write.
const WIPE_DEADLINE: Duration = Duration::from_secs(10);

/// An accepted claim.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) request: ClaimRequest,
    /// Every step was taken. An agent that died on the way takes them all when the claim is repeated.
    pub(super) complete: bool,
}

/// The one claim of a guest.
pub(super) struct Claims {
    current: Mutex<Option<Claim>>,
    /// The process before this one died in the middle of a claim.
    interrupted: bool,
    /// Held while a claim or an assignment is carried out.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Claims {
    pub(super) fn load(guest: &Guest) -> Self {
        let kept: Option<Claim> =
            fs::read(file(guest)).ok().and_then(|b| serde_json::from_slice(&b).ok());
        let interrupted = kept.as_ref().is_some_and(|claim| !claim.complete);
        Self { current: Mutex::new(kept), interrupted, turn: tokio::sync::Mutex::default() }
    }

    pub(super) fn current(&self) -> Option<Claim> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kept on disk before it counts: a claim that was answered is never forgotten.
    pub(super) fn keep(&self, guest: &Guest, claim: Claim) -> Result<(), Refusal> {
        let bytes = serde_json::to_vec(&claim).map_err(Refusal::failed)?;
        write_atomically(&file(guest), &bytes, 0o600).map_err(Refusal::failed)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim);
        Ok(())
    }
}

fn file(guest: &Guest) -> std::path::PathBuf {
    guest.run.join("claim.json")
}

impl Agent {
    pub(super) async fn claim(
        self: Arc<Self>,
        request: ClaimRequest,
    ) -> Result<ClaimAnswer, Refusal> {
        let entropy = check(&request)?;
        let _turn = self.claim.turn.lock().await;
        if let Some(claim) = self.claim.current() {
            if !bool::from(claim.request.secret.as_bytes().ct_eq(request.secret.as_bytes())) {
                return Err(Refusal::conflict("this guest was claimed with another secret"));
            }
            if claim.complete {
                return Ok(self.answer());
            }
        }
        // What follows is kept first; a second claimant is refused from here on.
        self.claim.keep(&self.guest, Claim { request: request.clone(), complete: false })?;
        let language_or_zone_changed = self.take_identity(&request, &entropy, true)?;
        // In the pool an empty tab waits: its process serves whatever page comes with the session.
        let waits = request.cloned && request.session_id.is_none();
        let first = if waits { Some(EMPTY_PAGE) } else { request.start_url.as_deref() };
        browser::set_first_page(&self.guest, first).map_err(failed_at("the first page"))?;
        let shell_waited = shell::open_gate(&self.guest).map_err(failed_at("the shell"))?;
        if request.cloned && !shell_waited {
            // The shell on the desktop has its $RANDOM from before.
            self.order("terminal", "restart").await?;
        }
        let held = if request.cloned { Held::load(&self.guest) } else { None };
        // Its menus are in the language, its pages in the time zone that it was started with.
        let held = held.filter(|_| !request.fresh_browser && !language_or_zone_changed);
        if request.cloned && held.is_none() {
            self.discard_browser().await?;
        } else if language_or_zone_changed {
            self.order("chromium", "restart").await?;
        }
        let browser_after = Duration::from_millis(request.browser_after_ms.into());
        let browser_after = browser_after.min(LONGEST_WAIT_OF_BROWSER);
        let (url, begun) = (request.start_url.clone(), request.cloned);
        self.claim.keep(&self.guest, Claim { request, complete: true })?;
        match held {
            Some(held) => self.wake_browser(held, browser_after),
            None => self.start_browser(browser_after),
        }
        if waits {
            self.rehearse();
        } else {
            self.open_first(url, begun);
        }
        Ok(self.answer())
    }

    /// Starts the browser that waited for the claim. The answer to the claim does not wait for it: under
    /// translation its start takes every processor for seconds.
    pub(super) fn start_browser(self: &Arc<Self>, after: Duration) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            while let Err(refusal) = agent.order("chromium", "start").await {
                if refusal.0 == StatusCode::NOT_FOUND {
                    return;
                }
                tracing::warn!("the browser waits for the supervisor: {}", refusal.1);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    pub(super) fn answer(&self) -> ClaimAnswer {
        ClaimAnswer {
            boot_id: system::boot_id(),
            time: Timestamp::now(),
            uptime_ms: uptime_ms(),
            desktop_ready: self.board().shows_desktop(),
        }
    }

    /// Entropy, clock, ids, names and wishes. `unnamed`: the guest has no machine id of its own yet.
    /// Says whether the browser has to be started for them: its language or time zone is another one now.
    pub(super) fn take_identity(
        &self,
        request: &ClaimRequest,
        entropy: &[u8],
        unnamed: bool,
    ) -> Result<bool, Refusal> {
        if self.guest.is_whole() {
            // Before anything else: whatever makes randomness from here on makes its own.
            system::reseed(entropy).map_err(failed_at("entropy"))?;
            system::set_clock(request.time).map_err(failed_at("the clock"))?;
            if request.cloned {
                system::renew_boot_id(&self.guest).map_err(failed_at("the boot id"))?;
            }
        }
        system::set_hostname(&self.guest, &request.hostname).map_err(failed_at("the host name"))?;
        if unnamed || request.cloned {
            system::renew_machine_id(&self.guest).map_err(failed_at("the machine id"))?;
        }
        if request.cloned {
            system::remove_host_keys(&self.guest).map_err(failed_at("host keys"))?;
        }
        if !request.dns.is_empty() {
            system::set_dns(&self.guest, &request.dns).map_err(failed_at("name servers"))?;
        }
        self.set_settings(&request.locale, &request.timezone, request.screen)
    }

    pub(super) async fn assign(&self, request: AssignRequest) -> Result<ClaimAnswer, Refusal> {
        check_wishes(&request.locale, request.screen, request.start_url.as_deref())?;
        let _turn = self.claim.turn.lock().await;
        let Some(mut claim) = self.claim.current() else {
            return Err(Refusal::conflict("this guest was not claimed yet"));
        };
        if self.guest.is_whole() {
            system::set_clock(request.time).map_err(Refusal::failed)?;
        }
        if self.set_settings(&request.locale, &request.timezone, request.screen)? {
            self.order("chromium", "restart").await?;
        }
        let repeated = claim.request.session_id.as_deref() == Some(&request.session_id)
            && claim.request.start_url == request.start_url;
        if !repeated {
            let url = request.start_url.clone().unwrap_or_else(|| START_PAGE.to_owned());
            browser::set_first_page(&self.guest, Some(&url))
                .map_err(failed_at("the first page"))?;
            self.open_first(Some(url), false);
        }
        claim.request.session_id = Some(request.session_id);
        claim.request.start_url = request.start_url;
        self.claim.keep(&self.guest, claim)?;
        Ok(self.answer())
    }

    /// Keeps the wishes for the services; says whether language or time zone is another one now. Chromium's
    /// zygote keeps the zone that it was started in for all renderers.
    fn set_settings(
        &self,
        locale: &str,
        timezone: &str,
        screen: ScreenSize,
    ) -> Result<bool, Refusal> {
        let before = self.guest.settings();
        let zone = system::timezone(&self.guest);
        let zone_changed = !system::same_zone(&zone, timezone);
        if zone != timezone {
            system::set_timezone(&self.guest, timezone)
                .map_err(|error| Refusal::bad(error.to_string()))?;
        }
        let settings = Settings { locale: locale.to_owned(), screen };
        self.guest.write_settings(&settings).map_err(Refusal::failed)?;
        let display = self.guest.display.clone();
        let start = std::time::Instant::now();
        if self.guest.is_whole() && (before.screen != screen || self.claim.interrupted) {
            tokio::task::spawn_blocking(move || {
                while let Err(error) = x11::Display::open(&display).and_then(|d| d.resize(screen)) {
                    if start.elapsed() > DISPLAY_DEADLINE {
                        tracing::error!("the desktop's size cannot be set: {error}");
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        Ok(zone_changed || before.locale != settings.locale)
    }

    /// Sees to it that the first page comes: a browser that was just started has it on its command
    /// line (`begun`), any other is asked for it; both may lose it.
    fn open_first(&self, url: Option<String>, begun: bool) {
        let turn = self.start_page.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(url) = url else { return };
        let guest = self.guest.clone();
        let newest = Arc::clone(&self.start_page);
        tokio::spawn(async move {
            let start = tokio::time::Instant::now();
            let mut asks = !begun;
            let mut missed = 0;
            while newest.load(Ordering::SeqCst) == turn && start.elapsed() < START_PAGE_DEADLINE {
                if asks {
                    if browser::open(&guest, &url).await.is_err() {
                        tokio::time::sleep(FIRST_PAGE_ASK).await;
                        continue;
                    }
                    (asks, missed) = (false, 0);
                }
                tokio::time::sleep(FIRST_PAGE_LOOK).await;
                match browser::arrival(&guest).await {
                    // An empty tab is all that a start page is.
                    Ok(seen) if seen == Arrival::Arrived || url == START_PAGE => {
                        // A browser that is started again later shows the start page.
                        let _ = browser::set_first_page(&guest, None);
                        return;
                    }
                    Ok(Arrival::Lost) => {
                        missed += 1;
                        asks = missed >= FIRST_PAGE_LOST;
                    }
                    Ok(_) | Err(_) => missed = 0,
                }
            }
            if newest.load(Ordering::SeqCst) == turn {
                tracing::error!(
                    "the first page was not there after {} s",
                    START_PAGE_DEADLINE.as_secs()
                );
            }
        });
    }

    /// Removes everything that a browser of before left.
    pub(super) async fn wipe_browser(&self) -> std::io::Result<()> {
        let profile = self.guest.profile();
        let cache = profile.file_name().map(|name| self.guest.home.join(".cache").join(name));
        for dir in [Some(profile), cache].into_iter().flatten() {
            let started = tokio::time::Instant::now();
            loop {
                match fs::remove_dir_all(&dir) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => break,
                    // A process that was just killed may end a write to it first.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::DirectoryNotEmpty
                            && started.elapsed() < WIPE_DEADLINE =>
                    {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    done => break done?,
                }
            }
        }
        installation::forget_crash_reports(&self.guest)
    }
}

/// The refusal of a step that failed.
pub(super) fn failed_at(what: &'static str) -> impl Fn(std::io::Error) -> Refusal {
    move |error| Refusal::failed(format!("{what} cannot be set: {error}"))
}

/// Refuses a claim that could not be carried out, before any of it is; returns its entropy.
pub(super) fn check(request: &ClaimRequest) -> Result<Vec<u8>, Refusal> {
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if request.secret.len() < 32 || !is_hex(&request.secret) {
        return Err(Refusal::bad("the secret has to be at least 32 hex digits"));
    }
    let name = &request.hostname;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(is_name) {
        return Err(Refusal::bad("the host name has to be 1 to 63 letters, digits and hyphens"));
    }
    check_wishes(&request.locale, request.screen, request.start_url.as_deref())?;
    if request.entropy.len() < 128 || !request.entropy.len().is_multiple_of(2) {
        return Err(Refusal::bad("the entropy has to be at least 64 bytes in hex"));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|d| d as u8);
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    let entropy: Option<Vec<u8>> = request.entropy.as_bytes().chunks_exact(2).map(pair).collect();
    entropy.ok_or_else(|| Refusal::bad("the entropy is not hex"))
}

fn check_wishes(locale: &str, screen: ScreenSize, url: Option<&str>) -> Result<(), Refusal> {
    let is_locale = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if locale.is_empty() || locale.len() > 35 || !locale.bytes().all(is_locale) {
        return Err(Refusal::bad("the locale has to be a language tag such as en-US"));
    }
    let range = 320..=7680;
    if !range.contains(&screen.width) || !range.contains(&screen.height) {
        return Err(Refusal::bad("a desktop is 320 to 7680 pixels wide and high"));
    }
    let is_url = |url: &str| url.len() <= 8192 && !url.chars().any(char::is_control);
    if url.is_some_and(|url| !is_url(url)) {
        return Err(Refusal::bad("the first page is not a link"));
    }
    Ok(())
}
