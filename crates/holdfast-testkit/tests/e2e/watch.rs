//! People who use a session and come back by themselves when the way to it breaks: a viewer, a page in a
//! real browser, and somebody who types.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_testkit::{api::Api, terminal::Terminal, wait};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};
use uuid::Uuid;

use crate::fixture;

/// Pause of a viewer between pictures, and before it tries again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a picture may take; after that the viewer gives up and connects again.
const PICTURE: Duration = Duration::from_secs(20);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A viewer of a desktop that asks for picture after picture.
pub(crate) struct Watcher {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What a watcher saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Pictures.
    pub pictures: u64,
    /// When the last picture that came was asked for.
    asked: Option<Instant>,
    /// Why each stream ended that had shown something.
    pub drops: Vec<String>,
}

impl Watcher {
    /// Watches until it is dropped.
    pub(crate) fn start(api: &Api, session: Uuid) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (api, log) = (api.clone(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                if let Err(why) = watch(&api, session, &log).await {
                    lock(&log).drops.push(why);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { seen, task }
    }

    /// What it saw so far.
    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until it has seen a picture that it asked for after `since`.
    pub(crate) async fn sees(&mut self, since: Instant, deadline: Duration) -> Result<()> {
        let sees = wait::until("the viewer sees the desktop", deadline, async || {
            Ok(lock(&self.seen).asked.filter(|asked| *asked >= since).map(drop))
        });
        let sees = sees.await;
        sees.with_context(|| format!("{:?}", self.seen()))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches until the stream ends, which is an error once it has shown something.
async fn watch(api: &Api, session: Uuid, log: &Mutex<Seen>) -> Result<(), String> {
    let connected = tokio::time::timeout(CONNECT, fixture::desktop(api, session)).await;
    let Ok(Ok((mut viewer, closed))) = connected else { return Ok(()) };
    let mut shown = false;
    loop {
        let asked = Instant::now();
        match tokio::time::timeout(PICTURE, viewer.frame()).await {
            Ok(Ok(_)) => {
                let mut seen = lock(log);
                seen.pictures += 1;
                seen.asked = Some(asked);
                shown = true;
            }
            Ok(Err(_)) if !shown => return Ok(()),
            Ok(Err(error)) => {
                let closed = tokio::time::timeout(CONNECT, closed).await;
                return Err(format!("{error:#}, {closed:?}"));
            }
            Err(_) => return Err(format!("no picture within {PICTURE:?}")),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session's page in a real browser.
pub(crate) struct PageWatcher {
    /// Since when its desktop is live, or is not.
    live: Arc<Mutex<(bool, Instant)>>,
    node: Child,
    reader: JoinHandle<()>,
}

impl PageWatcher {
    /// Opens the page; `web/e2e/watch.js` does.
    pub(crate) fn start(api: &Api, session: Uuid) -> Result<Self> {
        let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
        ensure!(web.join("node_modules").is_dir(), "run `npm ci` in web/");
        let mut node = Command::new("node")
            .arg("e2e/watch.js")
            .arg(session.to_string())
            .current_dir(&web)
            .env("HOLDFAST_URL", format!("http://{}", api.address))
            .env("HOLDFAST_TOKEN", &api.token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("node could not be started")?;
        let live = Arc::new(Mutex::new((false, Instant::now())));
        let (state, output) = (Arc::clone(&live), node.stdout.take().context("piped")?);
        let reader = tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                *lock(&state) = (line == "live", Instant::now());
            }
        });
        Ok(Self { live, node, reader })
    }

    /// Waits until the desktop is live, where `since` is given for having become so after that.
    pub(crate) async fn sees(&mut self, since: Option<Instant>, deadline: Duration) -> Result<()> {
        wait::until("the page shows the desktop", deadline, async || {
            if let Some(status) = self.node.try_wait()? {
                bail!("the browser ended with {status}");
            }
            let (live, changed) = *lock(&self.live);
            Ok((live && since.is_none_or(|since| changed >= since)).then_some(()))
        })
        .await
    }

    /// Waits until the page knows that the desktop is away.
    pub(crate) async fn misses(&self, deadline: Duration) -> Result<()> {
        wait::until("the page says that it is away", deadline, async || {
            Ok((!lock(&self.live).0).then_some(()))
        })
        .await
    }

    /// Closes it; an error that the page did not catch is one here.
    pub(crate) async fn stop(mut self) -> Result<()> {
        drop(self.node.stdin.take());
        let status = tokio::time::timeout(fixture::SOON, self.node.wait()).await??;
        self.reader.abort();
        ensure!(status.success(), "the browser ended with {status}");
        Ok(())
    }
}

/// Somebody who types line after line into a session's terminal.
pub(crate) struct Typist {
    /// How many lines were answered, and when the last one was typed.
    typed: Arc<Mutex<(u32, Option<Instant>)>>,
    task: JoinHandle<()>,
}

impl Typist {
    /// Types `<shell> <number>` into the file `typed` of the guest's user, until it is stopped.
    pub(crate) fn start(api: &Api, session: Uuid) -> Self {
        let typed = Arc::new(Mutex::new((0, None)));
        let (api, log) = (api.clone(), Arc::clone(&typed));
        let task = tokio::spawn(async move {
            let mut number = 0;
            loop {
                let attached = Terminal::attach(api.address, session, &api.token);
                if let Ok(Ok(mut terminal)) = tokio::time::timeout(CONNECT, attached).await {
                    while type_line(&mut terminal, &mut number, &log).await.is_ok() {}
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { typed, task }
    }

    /// Waits until a line typed after `since` was answered.
    pub(crate) async fn types(&self, since: Instant, deadline: Duration) -> Result<()> {
        wait::until("what is typed is answered", deadline, async || {
            Ok(lock(&self.typed).1.filter(|at| *at >= since).map(drop))
        })
        .await
    }

    /// Stops; answers how many lines were answered.
    pub(crate) async fn stop(self) -> Result<u32> {
        self.task.abort();
        // Only a panic is a failure here.
        if let Err(error) = self.task.await {
            ensure!(!error.is_panic(), "the typist: {error}");
        }
        Ok(lock(&self.typed).0)
    }
}

fn note(log: &Mutex<(u32, Option<Instant>)>, at: Instant) {
    let mut typed = lock(log);
    *typed = (typed.0 + 1, Some(at));
}

async fn type_line(
    terminal: &mut Terminal,
    number: &mut u32,
    log: &Mutex<(u32, Option<Instant>)>,
) -> Result<()> {
    *number += 1;
    let at = Instant::now();
    terminal
        .type_text(&format!("echo $$ {number} >>~/typed; echo line-$(({number}*2)).\n"))
        .await?;
    terminal.expect(&format!("line-{}.", *number * 2), PICTURE).await?;
    note(log, at);
    tokio::time::sleep(PAUSE).await;
    Ok(())
}
