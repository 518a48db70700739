//! One run: a task that owns the tool's process and terminal and decides how it stands.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_agent_api::tool::{
    Collected, Flow, Link, LinkSource, Outcome, ToolRequest, ToolState, ToolStatus,
};
use jiff::Timestamp;
use pty_process::{OwnedReadPty, OwnedWritePty};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Taken,
    choice::{Choice, Considered},
    collect,
    haste::Haste,
    link,
    link::Worth,
    redact::{REMOVED, Redactor, last_words, without},
    rules::{Compiled, Evidence},
    text::Transcript,
};
use crate::{
    ansi::{self, Splitter},
    browser, census,
    guest::Guest,
    shim,
    spawn::{self, Launch},
    terminal::in_pty,
};

/// Size of the tool's terminal: wide, so that links stay on one line.
const COLUMNS: u16 = 400;
const ROWS: u16 = 50;
/// How often a run is looked at.
const TICK: Duration = Duration::from_millis(100);
/// Output that ends in the middle of a line is taken for complete after this long.
const QUIET: Duration = Duration::from_millis(250);
/// How long a link may wait for the browser: on a starved machine without hardware virtualisation
/// Chromium was seen to need more than 3 minutes until it answered.
const BROWSER_DEADLINE: Duration = Duration::from_mins(10);
/// How long a tool that has succeeded may go on before it is ended.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// How long a tool may take to end before it is killed.
const GRACE: Duration = Duration::from_millis(300);
/// How much of the output is shown, in bytes.
const SHOWN: usize = 4 << 10;
/// How much of its end is searched for secrets, in bytes: what is removed makes room for what was before.
const LOOKED_AT: usize = 32 << 10;
/// Between text and the return key: tools that read both at once take the key for part of a paste.
const RETURN_DELAY: Duration = Duration::from_millis(120);

/// A run, seen from outside.
pub(super) struct Run {
    request: Arc<ToolRequest>,
    compiled: Arc<Compiled>,
    /// What the run's programs prove themselves with.
    pub(super) token: String,
    status: watch::Receiver<ToolStatus>,
    events: mpsc::Sender<Event>,
    found: Arc<Mutex<HashMap<String, String>>>,
}

enum Event {
    Caught(String),
    Typed(String),
    Open,
    Opened(String),
    End,
}

impl Run {
    pub(super) fn start(
        guest: &Guest,
        request: ToolRequest,
        compiled: Compiled,
        revision: u64,
    ) -> Arc<Self> {
        let (request, compiled) = (Arc::new(request), Arc::new(compiled));
        let token = uuid::Uuid::new_v4().simple().to_string();
        let (status, seen) = watch::channel(ToolStatus {
            run: request.run,
            revision,
            state: ToolState::Starting,
            link: None,
            user_code: None,
            wants_input: false,
            outcome: None,
            exit_code: None,
            output: String::new(),
            refused_links: Vec::new(),
            started_at: Timestamp::now(),
        });
        let (events, received) = mpsc::channel(64);
        let found = Arc::default();
        let task = Task {
            guest: guest.clone(),
            evidence: Evidence::gather(&guest.home, &request),
            request: Arc::clone(&request),
            compiled: Arc::clone(&compiled),
            mark: guest.mark(&format!("tool-{token}")),
            status,
            events: events.downgrade(),
            transcript: Transcript::new(COLUMNS),
            found: Arc::clone(&found),
            redactor: Redactor::default(),
            answered: HashSet::new(),
            links: Choice::default(),
            haste: Haste::of(None),
            opening: JoinSet::new(),
            typed_at: None,
            last_output: Instant::now(),
            started: Instant::now(),
        };
        tokio::spawn(task.run(token.clone(), received));
        Arc::new(Self { request, compiled, token, status: seen, events, found })
    }

    pub(super) fn number(&self) -> u32 {
        self.request.run
    }

    pub(super) fn status(&self) -> ToolStatus {
        self.status.borrow().clone()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.status.borrow().state == ToolState::Ended
    }

    pub(super) async fn newer_than(&self, revision: u64, wait: Duration) -> ToolStatus {
        let mut status = self.status.clone();
        let _ = timeout(wait, status.wait_for(|status| status.revision > revision)).await;
        self.status()
    }

    /// Takes a link that one of the run's programs wants opened.
    pub(super) fn caught(&self, url: &str) -> Taken {
        let refused = match self.compiled.links.worth(url) {
            Worth::Refused(why) => Some(format!("this link is not opened: {why}")),
            _ => None,
        };
        // A full queue means thousands of links; the run has one by now.
        let _ = self.events.try_send(Event::Caught(url.to_owned()));
        refused.map_or(Taken::ByRun, Taken::Refused)
    }

    /// Types a line; false when the run has ended.
    pub(super) async fn type_text(&self, text: String) -> bool {
        !self.has_ended() && self.events.send(Event::Typed(text)).await.is_ok()
    }

    pub(super) async fn open(&self) {
        if self.events.send(Event::Open).await.is_err() {
            tracing::debug!("the run ended; its link is not opened any more");
        }
    }

    /// Ends the run; returns once nothing of it is left.
    pub(super) async fn end(&self) {
        let _ = self.events.send(Event::End).await;
        let mut status = self.status.clone();
        let _ = status.wait_for(|status| status.state == ToolState::Ended).await;
    }

    pub(super) fn collect(
        &self,
        home: &Path,
        recipients: &[String],
    ) -> Result<Collected, collect::Error> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).clone();
        collect::collect(home, &self.request.credentials, &found, recipients)
    }
}

struct Task {
    guest: Guest,
    request: Arc<ToolRequest>,
    compiled: Arc<Compiled>,
    evidence: Evidence,
    mark: String,
    status: watch::Sender<ToolStatus>,
    events: mpsc::WeakSender<Event>,
    transcript: Transcript,
    /// Credentials in the output, by path.
    found: Arc<Mutex<HashMap<String, String>>>,
    redactor: Redactor,
    /// Prompts that were answered.
    answered: HashSet<usize>,
    links: Choice,
    haste: Haste,
    /// Links on their way to the browser; given up when another run takes the place of this one.
    opening: JoinSet<()>,
    typed_at: Option<usize>,
    last_output: Instant,
    started: Instant,
}

impl Task {
    async fn run(mut self, token: String, mut events: mpsc::Receiver<Event>) {
        let mut env = self.request.env.clone();
        env.extend([
            ("BROWSER".to_owned(), self.guest.shims().join("xdg-open").display().to_string()),
            (shim::TOKEN.to_owned(), token),
        ]);
        if !env.iter().any(|(name, _)| name == "TERM") {
            env.push(("TERM".to_owned(), "xterm-256color".to_owned()));
        }
        let launch = Launch {
            command: self.request.command.clone(),
            env,
            mark: Some(self.mark.clone()),
            ..Launch::default()
        };
        match in_pty(&self.guest, &launch, COLUMNS, ROWS) {
            Err(error) => {
                self.publish_end(Outcome::Failed { why: error.to_string() }, None);
            }
            Ok((child, reader, writer)) => {
                let (keys, typed) = mpsc::channel(64);
                let typist = tokio::spawn(type_keys(writer, typed));
                self.attend(child, reader, &keys, &mut events).await;
                typist.abort();
            }
        }
        // The link may be opened again for as long as this run is the current one.
        while let Some(event) = events.recv().await {
            match event {
                Event::Open => self.open_link(),
                Event::Opened(url) => self.note_opened(&url),
                _ => {}
            }
        }
    }

    /// Stays with the tool until it ended, or is known to have reached its end.
    async fn attend(
        &mut self,
        mut child: Child,
        mut reader: OwnedReadPty,
        keys: &mpsc::Sender<Vec<u8>>,
        events: &mut mpsc::Receiver<Event>,
    ) {
        let session = child.id();
        self.haste = Haste::of(session);
        let mut splitter = Splitter::default();
        let mut buffer = vec![0; 16 << 10];
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut prints = None;
        let mut exit: Option<(i32, Instant)> = None;
        let mut open = true;
        let outcome = loop {
            tokio::select! {
                read = reader.read(&mut buffer), if open => match read {
                    Ok(count) if count > 0 => self.take(&mut splitter, &buffer[..count], keys),
                    _ => open = false,
                },
                status = child.wait(), if exit.is_none() => {
                    exit = Some((status.map_or(-1, spawn::exit_code), Instant::now()));
                }
                event = events.recv() => match event {
                    Some(Event::End) => {
                        break Outcome::Failed { why: "a newer run took its place".to_owned() };
                    }
                    Some(event) => self.event(event, keys),
                    None => break Outcome::Failed { why: "the agent ends".to_owned() },
                },
                _ = ticks.tick() => {
                    // All output of a tool that ended is read before it is judged.
                    let last = exit.is_some_and(|(_, at)| !open || at.elapsed() > QUIET);
                    let code = exit.filter(|_| last).map(|(code, _)| code);
                    let stable = Some(self.evidence.prints());
                    let unchanged = stable == prints;
                    prints = stable;
                    if !unchanged {
                        self.redactor.learn(&self.guest.home, &self.request.credentials);
                    }
                    if let Some(outcome) = self.look(code, unchanged, keys) {
                        break outcome;
                    }
                }
            }
        };
        let succeeded = outcome == Outcome::Succeeded;
        if exit.is_none() && succeeded {
            // Its credentials are there; it may still finish what it does.
            let status = timeout(LAST_WORDS, child.wait()).await;
            exit = status.ok().map(|status| (status.map_or(-1, spawn::exit_code), Instant::now()));
        }
        let grace = if exit.is_some() { Duration::ZERO } else { GRACE };
        let (left, code) = tokio::join!(census::end(&self.mark, session, grace), async {
            match exit {
                Some((code, _)) => code,
                None => child.wait().await.map_or(-1, spawn::exit_code),
            }
        });
        if left > 0 {
            tracing::error!("{left} processes of run {} cannot be killed", self.request.run);
        }
        self.publish_end(outcome, Some(code));
    }

    fn take(&mut self, splitter: &mut Splitter, bytes: &[u8], keys: &mpsc::Sender<Vec<u8>>) {
        self.last_output = Instant::now();
        splitter.feed(bytes, |token| {
            // Nobody looks at this terminal, so the agent answers for it.
            if let Some(answer) = ansi::answer(token, COLUMNS, ROWS) {
                let _ = keys.try_send(answer);
            }
            self.transcript.push(token);
        });
    }

    fn event(&mut self, event: Event, keys: &mpsc::Sender<Vec<u8>>) {
        match event {
            Event::Caught(url) => {
                self.consider(&url, LinkSource::Browser);
                self.release_link();
            }
            Event::Typed(text) => {
                self.typed_at = Some(self.transcript.text(true).len());
                self.redactor.typed(&text);
                let _ = keys.try_send(text.into_bytes());
                let keys = keys.clone();
                tokio::spawn(async move {
                    sleep(RETURN_DELAY).await;
                    let _ = keys.send(b"\r".to_vec()).await;
                });
                self.change(|status| status.wants_input = false);
            }
            Event::Open => self.open_link(),
            Event::Opened(url) => self.note_opened(&url),
            Event::End => {}
        }
    }

    /// Looks at everything once; returns the outcome when there is one.
    fn look(
        &mut self,
        exit: Option<i32>,
        files_are_stable: bool,
        keys: &mpsc::Sender<Vec<u8>>,
    ) -> Option<Outcome> {
        let quiet = self.last_output.elapsed() > QUIET || exit.is_some();
        let text = self.transcript.text(true);
        self.find_secrets(&text, quiet);
        self.answer_prompts(&text, keys);
        for url in self.transcript.take_hyperlinks() {
            self.consider(&url, LinkSource::Hyperlink);
        }
        let end = text.trim_end().len();
        let links: Vec<String> = link::find(&text)
            // What comes next may belong to a link at the end.
            .filter(|(_, stop)| quiet || *stop < end)
            .map(|(url, _)| url.to_owned())
            .collect();
        for url in links {
            self.consider(&url, LinkSource::Output);
        }
        self.release_link();
        let code = self.compiled.user_code.as_ref().and_then(|pattern| {
            pattern.captures_iter(&text).last()?.get(1).map(|code| code.as_str().to_owned())
        });
        let wants_input = self.wants_input(&text);
        let output = self.shown(&self.transcript.text(quiet));
        self.change(|status| {
            status.user_code = code.or(status.user_code.take());
            status.wants_input = wants_input;
            status.output = output;
        });
        self.judge(&text, exit, files_are_stable && quiet)
    }

    fn judge(&self, text: &str, exit: Option<i32>, stable: bool) -> Option<Outcome> {
        if let Some(outcome) = Evidence::said(&self.compiled, text) {
            return Some(outcome);
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = self.evidence.missing(&self.request, &self.compiled, text, &found, exit);
        match missing {
            None if exit.is_some() || stable => return Some(Outcome::Succeeded),
            Some(why) if exit.is_some() => {
                let without =
                    if self.links.released().is_none() { " and showed no link" } else { "" };
                let command = self.request.command.first().map_or("", String::as_str);
                return Some(Outcome::Failed { why: format!("`{command}` ended{without}: {why}") });
            }
            _ => {}
        }
        let elapsed = self.started.elapsed();
        if elapsed > Duration::from_millis(self.request.deadline_ms) {
            return Some(Outcome::Expired);
        }
        let link_deadline = Duration::from_millis(self.request.link_deadline_ms);
        (self.links.released().is_none() && elapsed > link_deadline).then(|| Outcome::Failed {
            why: format!("the tool showed no link within {} s", link_deadline.as_secs_f64()),
        })
    }

    fn find_secrets(&self, text: &str, quiet: bool) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, pattern) in &self.compiled.secrets {
            let last = pattern.captures_iter(text).last().and_then(|c| c.get(1));
            // One that is still being printed is not all there.
            if let Some(secret) = last.filter(|m| quiet || m.end() < text.len()) {
                found.insert(path.clone(), secret.as_str().to_owned());
            }
        }
    }

    fn answer_prompts(&mut self, text: &str, keys: &mpsc::Sender<Vec<u8>>) {
        let compiled = Arc::clone(&self.compiled);
        for (index, (pattern, answer)) in compiled.prompts.iter().enumerate() {
            if !self.answered.contains(&index) && pattern.is_match(text) {
                self.answered.insert(index);
                let _ = keys.try_send(answer.clone().into_bytes());
            }
        }
    }

    /// Weighs a link against the best so far.
    fn consider(&mut self, url: &str, source: LinkSource) {
        match self.links.consider(&self.compiled.links, url, source, Instant::now()) {
            Considered::Weighed => {}
            Considered::OnlyOpened => self.open_in_browser(url.to_owned()),
            Considered::Refused(line) => self.change(|status| {
                if status.refused_links.len() < 16 && !status.refused_links.contains(&line) {
                    status.refused_links.push(line);
                }
            }),
        }
    }

    /// Makes the best link the run's, once nothing better is to be waited for.
    fn release_link(&mut self) {
        let settle = Duration::from_millis(self.request.link.settle_ms);
        let Some((url, source)) = self.links.release(settle, Instant::now()) else { return };
        let link = Link { url, source, caught_at: Timestamp::now(), opened: false };
        self.haste.end();
        let wants_input = self.request.flow == Flow::PasteCode && self.typed_at.is_none();
        self.change(|status| {
            status.link = Some(link);
            status.state = ToolState::Waiting;
            status.wants_input = wants_input;
        });
        self.open_link();
    }

    fn wants_input(&self, text: &str) -> bool {
        if self.request.flow != Flow::PasteCode || self.links.released().is_none() {
            return false;
        }
        let Some(typed_at) = self.typed_at else { return true };
        // What was typed was not accepted, and it asks again.
        let since = text.get(typed_at.min(text.len())..).unwrap_or_default().to_ascii_lowercase();
        ["invalid code", "invalid oauth code", "try again", "paste code", "paste the code", "retry"]
            .iter()
            .any(|again| since.contains(again))
    }

    fn open_link(&mut self) {
        if let Some(url) = self.links.released() {
            self.open_in_browser(url.to_owned());
        }
    }

    fn open_in_browser(&mut self, url: String) {
        let (guest, events) = (self.guest.clone(), self.events.clone());
        while self.opening.try_join_next().is_some() {}
        self.opening.spawn(async move {
            match browser::show(&guest, &url, BROWSER_DEADLINE).await {
                Ok(()) => {
                    if let Some(events) = events.upgrade() {
                        let _ = events.send(Event::Opened(url)).await;
                    }
                }
                Err(error) => tracing::warn!("a sign-in link cannot be opened: {error}"),
            }
        });
    }

    fn note_opened(&self, url: &str) {
        self.change(|status| {
            if let Some(link) = status.link.as_mut().filter(|link| link.url == url) {
                link.opened = true;
            }
        });
    }

    /// The end of `text` without credentials.
    fn shown(&self, text: &str) -> String {
        let mut shown = last_words(text, LOOKED_AT).to_owned();
        for (_, pattern) in &self.compiled.secrets {
            shown = without(pattern, &shown);
        }
        for secret in self.found.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if !secret.is_empty() {
                shown = shown.replace(secret.as_str(), REMOVED);
            }
        }
        let mut shown = self.redactor.clean(&shown);
        let start = shown.len().saturating_sub(SHOWN);
        let start = (start..=shown.len()).find(|at| shown.is_char_boundary(*at)).unwrap_or(0);
        shown.split_off(start)
    }

    fn publish_end(&self, outcome: Outcome, exit_code: Option<i32>) {
        let output = match outcome {
            // It explains nothing, and tools print what they were given.
            Outcome::Succeeded => String::new(),
            _ => self.shown(&self.transcript.text(true)),
        };
        self.change(|status| {
            status.state = ToolState::Ended;
            status.outcome = Some(outcome);
            status.exit_code = exit_code;
            status.wants_input = false;
            status.output = output;
        });
    }

    fn change(&self, change: impl FnOnce(&mut ToolStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            let changed = *status != before;
            status.revision += u64::from(changed);
            changed
        });
    }
}

async fn type_keys(mut writer: OwnedWritePty, mut keys: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = keys.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
