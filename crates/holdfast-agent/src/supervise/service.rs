//! One service: a task that owns its process.

use std::{fs, io, process::Stdio, sync::Arc, time::Duration};

use holdfast_agent_api::ServiceState;
use tokio::{
    process::Child,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use super::{Board, Entry, table::Spec, uptime_ms};
use crate::{census, guest::Guest, spawn};

/// How long a service may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// A process that lived this long is started again at once.
const STEADY: Duration = Duration::from_secs(20);
/// Longest wait before a start.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// What a service is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Run; nothing when it does.
    Start,
    /// Stop, and stay so.
    Stop,
    /// End what runs, and run.
    Restart,
}

/// Handle of a service.
pub struct Service {
    /// Its name.
    pub name: &'static str,
    orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    /// Leaves the process to the next supervisor, as the end of this program would.
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub(super) fn start(
        guest: Guest,
        spec: Spec,
        board: Arc<watch::Sender<Board>>,
        runs: bool,
    ) -> Self {
        let (orders, receiver) = mpsc::channel(8);
        let name = spec.name;
        let task = Task { guest, spec, board, orders: receiver, runs, delay: Duration::ZERO };
        Self { name, orders, task: tokio::spawn(task.run()) }
    }

    /// Gives an order and waits until it was carried out.
    pub async fn order(&self, order: Order) {
        let (done, carried_out) = oneshot::channel();
        if self.orders.send((order, done)).await.is_ok() {
            let _ = carried_out.await;
        }
    }
}

struct Task {
    guest: Guest,
    spec: Spec,
    board: Arc<watch::Sender<Board>>,
    orders: mpsc::Receiver<(Order, oneshot::Sender<()>)>,
    runs: bool,
    delay: Duration,
}

/// Why a process is no more.
enum End {
    ByItself(std::process::ExitStatus),
    Ordered,
    /// The supervisor itself ends.
    Closed,
}

impl Task {
    async fn run(mut self) {
        loop {
            if !self.runs {
                self.note(|entry| entry.state = ServiceState::Stopped);
                match self.orders.recv().await {
                    Some((order, done)) => {
                        self.runs = order != Order::Stop;
                        let _ = done.send(());
                    }
                    None => return,
                }
                continue;
            }
            if !self.needs_are_met() {
                self.note(|entry| {
                    if entry.state != ServiceState::Restarting {
                        entry.state = ServiceState::Waiting;
                    }
                });
                if !self.wait_for_needs().await {
                    return;
                }
                continue;
            }
            let started = Instant::now();
            let child = match self.launch() {
                Ok(child) => child,
                Err(error) => {
                    tracing::error!("{} cannot be started: {error}", self.spec.name);
                    self.note(|entry| {
                        entry.state = ServiceState::Restarting;
                        entry.last_error = Some(format!("cannot be started: {error}"));
                    });
                    if !self.pause(started).await {
                        return;
                    }
                    continue;
                }
            };
            match self.attend(child).await {
                End::ByItself(status) => {
                    let why = spawn::ending(status);
                    tracing::warn!("{} {why}", self.spec.name);
                    self.note(|entry| {
                        entry.state = ServiceState::Restarting;
                        entry.pid = None;
                        entry.restarts += 1;
                        entry.last_error = Some(why);
                    });
                    if !self.pause(started).await {
                        return;
                    }
                }
                // Its new state was noted before the order counted as carried out.
                End::Ordered => {}
                End::Closed => return,
            }
        }
    }

    fn launch(&self) -> io::Result<Child> {
        (self.spec.prepare)(&self.guest)?;
        let mut launch = (self.spec.launch)(&self.guest);
        launch.mark = Some(self.mark());
        let dir = self.guest.run.join("log");
        fs::create_dir_all(&dir)?;
        // Opened for appending, so that the file can be cut while it is written to.
        let path = dir.join(format!("{}.log", self.spec.name));
        let log = fs::OpenOptions::new().create(true).append(true).open(path)?;
        let child = spawn::command(&self.guest, &launch)?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let pid = child.id();
        self.note(|entry| {
            entry.state = ServiceState::Starting;
            entry.pid = pid;
            entry.started_ms = uptime_ms();
        });
        Ok(child)
    }

    /// Stays with a process until it ends.
    async fn attend(&mut self, mut child: Child) -> End {
        let leader = child.id();
        let guest = self.guest.clone();
        let probe = self.spec.ready;
        let ready = async move {
            let mut pause = Duration::from_millis(20);
            while !probe(guest.clone()).await {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(400));
            }
        };
        tokio::pin!(ready);
        let mut is_ready = false;
        loop {
            tokio::select! {
                status = child.wait() => {
                    // Nothing of it may hold on to a port or profile that the next one needs.
                    self.end_all(leader, Duration::ZERO).await;
                    return match status {
                        Ok(status) => End::ByItself(status),
                        Err(error) => {
                            tracing::error!("{} is lost sight of: {error}", self.spec.name);
                            self.note(|entry| {
                                entry.state = ServiceState::Waiting;
                                entry.pid = None;
                            });
                            End::Ordered
                        }
                    };
                }
                () = &mut ready, if !is_ready => {
                    is_ready = true;
                    self.note(|entry| entry.state = ServiceState::Running);
                }
                order = self.orders.recv() => {
                    let Some((order, done)) = order else {
                        self.end_all(leader, Duration::ZERO).await;
                        return End::Closed;
                    };
                    if order == Order::Start {
                        self.note(|entry| entry.wanted += 1);
                        let _ = done.send(());
                        continue;
                    }
                    tokio::join!(self.end_all(leader, GRACE), child.wait()).1.ok();
                    self.runs = order != Order::Stop;
                    self.delay = Duration::ZERO;
                    let state =
                        if self.runs { ServiceState::Waiting } else { ServiceState::Stopped };
                    self.note(|entry| {
                        entry.state = state;
                        entry.pid = None;
                    });
                    let _ = done.send(());
                    return End::Ordered;
                }
            }
        }
    }

    /// `leader`: the process that was started, also after its end.
    async fn end_all(&self, leader: Option<u32>, grace: Duration) {
        let left = census::end(&self.mark(), leader, grace).await;
        if left > 0 {
            tracing::error!("{left} processes of {} cannot be killed", self.spec.name);
        }
    }

    fn mark(&self) -> String {
        self.guest.mark(&format!("service-{}", self.spec.name))
    }

    fn needs_are_met(&self) -> bool {
        met(&self.board.borrow(), self.spec.after)
    }

    /// False when the supervisor ends.
    async fn wait_for_needs(&mut self) -> bool {
        let after = self.spec.after;
        let mut board = self.board.subscribe();
        tokio::select! {
            change = board.wait_for(|board| met(board, after)) => change.is_ok(),
            order = self.orders.recv() => self.take(order),
        }
    }

    /// Waits before the next start; an order ends the wait. False when the supervisor ends.
    async fn pause(&mut self, started: Instant) -> bool {
        if started.elapsed() >= STEADY {
            self.delay = Duration::ZERO;
        }
        let delay = self.delay;
        self.delay = (self.delay * 2).clamp(Duration::from_millis(100), LONGEST_DELAY);
        tokio::select! {
            () = sleep(delay) => true,
            order = self.orders.recv() => self.take(order),
        }
    }

    fn take(&mut self, order: Option<(Order, oneshot::Sender<()>)>) -> bool {
        let Some((order, done)) = order else { return false };
        self.runs = order != Order::Stop;
        if !self.runs {
            self.note(|entry| entry.state = ServiceState::Stopped);
        }
        let _ = done.send(());
        true
    }

    fn note(&self, change: impl FnOnce(&mut Entry)) {
        self.board.send_modify(|board| {
            if let Some(entry) = board.services.iter_mut().find(|e| e.name == self.spec.name) {
                change(entry);
                board.revision += 1;
            }
        });
    }
}

fn met(board: &Board, needs: &[&str]) -> bool {
    needs.iter().all(|need| board.runs(need))
}
