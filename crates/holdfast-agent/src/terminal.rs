//! Terminals: login shells of the desktop's user that outlive their viewers.
//!
//! The scrollback never starts within a character or escape sequence, and holds no questions to the
//! terminal: a viewer that came later would answer them again, into the shell.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use holdfast_agent_api::terminal::{FromAgent, FromViewer};
use pty_process::{OwnedReadPty, OwnedWritePty, Size};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    sync::mpsc,
    time::timeout,
};

use crate::{
    ansi::{self, Splitter, Token},
    guest::Guest,
    spawn::{self, Launch},
};

/// How much output a new viewer is shown, in bytes.
pub const SCROLLBACK: usize = 256 << 10;
/// How many pieces of output may wait for a viewer, of at most 16 KiB each.
const VIEWER_QUEUE: usize = 16;
/// A viewer that took nothing for this long is dropped: the shell must not wait for ever.
const VIEWER_PATIENCE: Duration = Duration::from_secs(10);
/// How long output may still come after the shell's end.
const LAST_OUTPUT: Duration = Duration::from_millis(300);
/// Most terminals at a time.
const MOST: usize = 16;

/// What a viewer is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Show {
    /// Bytes of the terminal.
    Output(Bytes),
    /// A message.
    Message(FromAgent),
}

/// All terminals by name.
pub struct Terminals {
    guest: Guest,
    all: Mutex<HashMap<String, Arc<Terminal>>>,
}

/// One shell and its PTY.
pub struct Terminal {
    state: Mutex<State>,
    keys: mpsc::Sender<Keys>,
}

#[derive(Default)]
struct State {
    scrollback: Scrollback,
    viewers: Vec<(u64, mpsc::Sender<Show>)>,
    next_viewer: u64,
    size: (u16, u16),
    ended: bool,
}

enum Keys {
    Typed(Bytes),
    Resize(u16, u16),
}

/// A viewer's end of a terminal; dropping it detaches.
pub struct Attached {
    terminal: Arc<Terminal>,
    viewer: u64,
    shows: mpsc::Receiver<Show>,
    /// What the terminal showed before, to be shown first.
    pub scrollback: Vec<Bytes>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Terminals {
    /// No terminal yet.
    pub fn new(guest: Guest) -> Arc<Self> {
        Arc::new(Self { guest, all: Mutex::default() })
    }

    /// Attaches to the terminal `name`, which is started when there is none.
    ///
    /// # Errors
    /// The name or size is not acceptable, there are too many, or the shell cannot be started.
    pub fn attach(self: &Arc<Self>, name: &str, cols: u16, rows: u16) -> io::Result<Attached> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(is_name) {
            return Err(invalid("a terminal's name has 1 to 64 letters, digits, hyphens"));
        }
        if !(1..=1000).contains(&cols) || !(1..=1000).contains(&rows) {
            return Err(invalid("a terminal has 1 to 1000 columns and rows"));
        }
        let mut all = lock(&self.all);
        if let Some(attached) = all.get(name).and_then(|terminal| terminal.attach(cols, rows)) {
            return Ok(attached);
        }
        if all.len() >= MOST {
            return Err(invalid("there are too many terminals"));
        }
        let terminal = self.start(name, cols, rows)?;
        let attached = terminal.attach(cols, rows).ok_or_else(|| invalid("the shell has ended"))?;
        all.insert(name.to_owned(), terminal);
        Ok(attached)
    }

    fn start(self: &Arc<Self>, name: &str, cols: u16, rows: u16) -> io::Result<Arc<Terminal>> {
        let launch = Launch {
            command: vec!["/bin/bash".to_owned(), "-l".to_owned()],
            env: vec![
                ("TERM".to_owned(), "xterm-256color".to_owned()),
                ("COLORTERM".to_owned(), "truecolor".to_owned()),
            ],
            mark: Some(self.guest.mark(&format!("terminal-{name}"))),
            ..Launch::default()
        };
        let (child, reader, writer) = in_pty(&self.guest, &launch, cols, rows)?;
        let (keys, typed) = mpsc::channel(64);
        let state = State { size: (cols, rows), ..State::default() };
        let terminal = Arc::new(Terminal { state: Mutex::new(state), keys });
        tokio::spawn(type_keys(writer, typed));
        let (terminals, name) = (Arc::clone(self), name.to_owned());
        let shown = Arc::clone(&terminal);
        tokio::spawn(async move {
            let code = shown.show(child, reader).await;
            // From here on an attach starts a new shell.
            terminals.forget(&name, &shown);
            shown.end(code).await;
        });
        Ok(terminal)
    }

    fn forget(&self, name: &str, terminal: &Arc<Terminal>) {
        let mut all = lock(&self.all);
        if all.get(name).is_some_and(|current| Arc::ptr_eq(current, terminal)) {
            all.remove(name);
        }
    }
}

/// Starts a program in a PTY of its own, as leader of a session.
pub fn in_pty(
    guest: &Guest,
    launch: &Launch,
    cols: u16,
    rows: u16,
) -> io::Result<(Child, OwnedReadPty, OwnedWritePty)> {
    let command = spawn::command(guest, launch)?;
    let (pty, pts) = pty_process::open().map_err(io::Error::other)?;
    pty.resize(Size::new(rows, cols)).map_err(io::Error::other)?;
    if let Some(user) = guest.user {
        // Programs that open their terminal by name need to be its owner.
        use std::os::{fd::AsFd, unix::ffi::OsStrExt};
        let name = rustix::pty::ptsname(pty.as_fd(), Vec::new())?;
        let path = std::ffi::OsStr::from_bytes(name.as_bytes());
        std::os::unix::fs::chown(path, Some(user.uid), None)?;
    }
    let child = pty_process::Command::from(command).spawn(pts).map_err(|error| match error {
        pty_process::Error::Io(error) => error,
        other => io::Error::other(other),
    })?;
    let (reader, writer) = pty.into_split();
    Ok((child, reader, writer))
}

/// Types what viewers send. A shell that does not read holds up the viewers' keys, never its output.
async fn type_keys(mut writer: OwnedWritePty, mut keys: mpsc::Receiver<Keys>) {
    while let Some(key) = keys.recv().await {
        let done = match key {
            Keys::Typed(bytes) => writer.write_all(&bytes).await.is_ok(),
            Keys::Resize(cols, rows) => writer.resize(Size::new(rows, cols)).is_ok(),
        };
        if !done {
            return;
        }
    }
}

impl Terminal {
    fn attach(self: &Arc<Self>, cols: u16, rows: u16) -> Option<Attached> {
        let mut state = lock(&self.state);
        if state.ended {
            return None;
        }
        let (sender, shows) = mpsc::channel(VIEWER_QUEUE);
        let viewer = state.next_viewer;
        state.next_viewer += 1;
        state.viewers.push((viewer, sender));
        let scrollback = state.scrollback.chunks();
        drop(state);
        self.resize(cols, rows);
        Some(Attached { terminal: Arc::clone(self), viewer, shows, scrollback })
    }

    fn resize(&self, cols: u16, rows: u16) {
        let mut state = lock(&self.state);
        if state.size != (cols, rows) {
            state.size = (cols, rows);
            // Full only when the shell does not read; the next resize is tried again then.
            let _ = self.keys.try_send(Keys::Resize(cols, rows));
        }
    }

    /// Passes output on until the shell ends; returns its exit code.
    async fn show(&self, mut child: Child, mut reader: OwnedReadPty) -> i32 {
        let mut splitter = Splitter::default();
        let mut buffer = vec![0; 16 << 10];
        let mut ended = None;
        loop {
            let count = tokio::select! {
                biased;
                read = reader.read(&mut buffer) => read.unwrap_or(0),
                status = child.wait(), if ended.is_none() => {
                    ended = Some(status.map_or(-1, spawn::exit_code));
                    continue;
                }
                () = tokio::time::sleep(LAST_OUTPUT), if ended.is_some() => 0,
            };
            if count == 0 {
                break;
            }
            self.take(&mut splitter, &buffer[..count]).await;
        }
        match ended {
            Some(code) => code,
            None => child.wait().await.map_or(-1, spawn::exit_code),
        }
    }

    async fn take(&self, splitter: &mut Splitter, bytes: &[u8]) {
        // The first viewer is the terminal; the others only look on.
        let (mut for_first, mut for_others) = (Vec::with_capacity(bytes.len()), Vec::new());
        let mut queries = false;
        let mut answers = Vec::new();
        let (cols, rows) = lock(&self.state).size;
        splitter.feed(bytes, |token: Token<'_>| {
            if token.is_query() {
                if !queries {
                    for_others.clone_from(&for_first);
                    queries = true;
                }
                answers.extend(ansi::answer(token, cols, rows).unwrap_or_default());
            } else if queries {
                token.append_to(&mut for_others);
            }
            token.append_to(&mut for_first);
        });
        let for_first = Bytes::from(for_first);
        let for_others = if queries { Bytes::from(for_others) } else { for_first.clone() };
        let viewers = {
            let mut state = lock(&self.state);
            state.scrollback.push(&for_others);
            state.viewers.clone()
        };
        if viewers.is_empty() && !answers.is_empty() {
            let _ = self.keys.try_send(Keys::Typed(answers.into()));
        }
        for (index, (viewer, sender)) in viewers.iter().enumerate() {
            let output = if index == 0 { &for_first } else { &for_others };
            if output.is_empty() {
                continue;
            }
            // Waiting here is what slows a program down that prints faster than it can be shown.
            let sent = timeout(VIEWER_PATIENCE, sender.send(Show::Output(output.clone()))).await;
            if !matches!(sent, Ok(Ok(()))) {
                self.detach(*viewer);
            }
        }
    }

    fn detach(&self, viewer: u64) {
        lock(&self.state).viewers.retain(|(other, _)| *other != viewer);
    }

    async fn end(&self, code: i32) {
        let viewers = {
            let mut state = lock(&self.state);
            state.ended = true;
            std::mem::take(&mut state.viewers)
        };
        for (_, sender) in viewers {
            let exit = Show::Message(FromAgent::Exit { code });
            let _ = timeout(VIEWER_PATIENCE, sender.send(exit)).await;
        }
    }
}

impl Attached {
    /// The next thing to show; `None` once the terminal has ended, or the viewer was too slow.
    pub async fn next(&mut self) -> Option<Show> {
        self.shows.recv().await
    }

    /// The way to the shell.
    pub fn keyboard(&self) -> Keyboard {
        Keyboard(Arc::clone(&self.terminal))
    }
}

/// A viewer's way to a shell.
pub struct Keyboard(Arc<Terminal>);

impl Keyboard {
    /// Types `bytes`. Waits while the shell does not read.
    pub async fn type_bytes(&self, bytes: Bytes) {
        let _ = self.0.keys.send(Keys::Typed(bytes)).await;
    }

    /// Carries out a message of the viewer.
    pub fn message(&self, message: &FromViewer) {
        let FromViewer::Resize { cols, rows } = *message;
        if (1..=1000).contains(&cols) && (1..=1000).contains(&rows) {
            self.0.resize(cols, rows);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.terminal.detach(self.viewer);
    }
}

/// The last output in pieces, each of whole characters and sequences.
#[derive(Debug, Default)]
struct Scrollback {
    chunks: VecDeque<Vec<u8>>,
    size: usize,
}

impl Scrollback {
    fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.size += bytes.len();
        match self.chunks.back_mut() {
            Some(last) if last.len() + bytes.len() <= 4096 => last.extend_from_slice(bytes),
            _ => self.chunks.push_back(bytes.to_vec()),
        }
        while let Some(first) = self.chunks.front()
            && self.size > SCROLLBACK
        {
            self.size -= first.len();
            self.chunks.pop_front();
        }
    }

    fn chunks(&self) -> Vec<Bytes> {
        self.chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk)).collect()
    }
}
