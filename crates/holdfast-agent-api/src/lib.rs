//! The protocol between host and guest agent, shared by both sides.
//!
//! The agent listens on [`AGENT_PORT`] inside the guest and speaks HTTP/1.1 with JSON bodies. Only
//! the host reaches it, through the VM's own network namespace. `GET /v1/health` and
//! `POST /v1/claim` need no secret; every other call carries `Authorization: Bearer <secret>` with
//! the secret of the first claim.
//!
//! | call | request | answer |
//! |---|---|---|
//! | `GET /v1/health` | | 200 [`Health`] |
//! | `POST /v1/claim` | [`ClaimRequest`] | 200 [`ClaimAnswer`]; 409 claimed with another secret |
//! | `POST /v1/settle` | | 200 [`Settled`]: only unclaimed, before a warm image is baked; 409 claimed |
//! | `POST /v1/assign` | [`AssignRequest`] | 200 [`ClaimAnswer`]: the session that the VM serves from now on |
//! | `POST /v1/rebind` | [`ClaimRequest`] | 200 [`ClaimAnswer`]: carries the secret of before and replaces the whole identity, after a checkpoint was restored |
//! | `POST /v1/clock` | [`ClockShift`] | 200 [`ClockAnswer`] |
//! | `POST /v1/freeze` | | 200 [`Frozen`]: the browser stands still, for a snapshot; it goes on with `thaw` or `rebind`, or by itself after two minutes |
//! | `POST /v1/thaw` | | 200 [`Frozen`] |
//! | `POST /v1/exec` | [`ExecRequest`] | 200 [`ExecAnswer`] |
//! | `POST /v1/services/{name}/restart` | | 200 [`ServiceHealth`]; 404 |
//! | `GET /v1/metrics` | | 200 [`Metrics`]; needs no secret while unclaimed |
//! | `POST /v1/tool` | [`tool::ToolRequest`] | 200 [`tool::ToolStatus`] |
//! | `GET /v1/tool?after=&waitMs=` | | 200 [`tool::ToolStatus`], once its revision is above `after` or the wait (at most 30,000 ms) is over; 404 no run yet |
//! | `POST /v1/tool/input` | [`tool::ToolInput`] | 200 [`tool::ToolStatus`]; 409 another run, or it ended |
//! | `POST /v1/tool/collect` | [`tool::CollectRequest`] | 200 [`tool::Collected`]; 409 another run, or it did not succeed |
//! | `POST /v1/tool/open` | [`tool::OpenRequest`] | 200 [`tool::ToolStatus`]: opens the run's link in the browser again |
//! | `POST /v1/shutdown` | | 202: services are stopped, file systems synced, the VM powers off |
//! | `GET /v1/terminals/{name}?cols=&rows=` | WebSocket | see [`terminal`] |
//!
//! Errors are [`AgentError`] with status 400, 401, 404, 409 or 500.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub mod link;
pub mod tool;

/// TCP port of the agent in the guest.
pub const AGENT_PORT: u16 = 8080;
/// TCP port of the VNC server in the guest (display :1).
pub const VNC_PORT: u16 = 5901;
/// Version of this protocol; rises when a host of before could not talk to the agent any more.
pub const PROTOCOL: u32 = 1;

/// Puts the guest's clock right. A difference and not a time, so that the call may take as long as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClockShift {
    /// Microseconds to set the clock forward by; backward where negative.
    pub by_us: i64,
}

/// Answer to a shift of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClockAnswer {
    /// Wall-clock time of the guest, after the shift.
    pub time: Timestamp,
}

/// Answer to a freeze or thaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frozen {
    /// Number of processes that were stopped, or let go on.
    pub processes: u32,
}

/// State of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// [`PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Version of the agent's package.
    pub version: String,
    /// Whether a claim was accepted.
    pub claimed: bool,
    /// The VM's id from the claim.
    pub vm_id: Option<String>,
    /// Milliseconds since the guest's kernel started.
    pub uptime_ms: u64,
    /// Wall-clock time of the guest.
    pub time: Timestamp,
    /// The guest's boot id from /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// Every supervised service by name: `xvnc`, `openbox`, `chromium`, `terminal`, `agent`.
    pub services: Vec<ServiceHealth>,
    /// Whether the desktop can be shown: the VNC server accepts connections and a window manager runs.
    pub desktop_ready: bool,
    /// Whether the browser's DevTools port answers and a page has finished loading.
    pub browser_ready: bool,
}

/// State of one supervised service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceHealth {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: ServiceState,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// Milliseconds since it was last started.
    pub age_ms: u64,
    /// How often it was started again after it ended by itself.
    pub restarts: u32,
    /// Why it last ended, such as `killed by signal 9`.
    pub last_error: Option<String>,
}

/// Where a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not started yet: it waits for another service.
    Waiting,
    /// Its process runs and is not known to be ready yet.
    Starting,
    /// It does its work.
    Running,
    /// It ended and will be started again after a delay.
    Restarting,
    /// It was stopped on purpose.
    Stopped,
}

/// Gives a guest its identity. The first claim wins; repeating it with the same secret is harmless
/// and answered like the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRequest {
    /// The VM's id.
    pub vm_id: String,
    /// The session's id, where it has one already.
    pub session_id: Option<String>,
    /// At least 32 hex digits; every later call carries it.
    pub secret: String,
    /// Wall-clock time to set.
    pub time: Timestamp,
    /// At least 64 bytes of entropy, hex; mixed into the kernel's generator, which is then reseeded.
    pub entropy: String,
    /// Host name to set, without a domain.
    pub hostname: String,
    /// Name servers to set; empty leaves the image's own.
    #[serde(default)]
    pub dns: Vec<std::net::IpAddr>,
    /// Language of the desktop, such as `en-US`.
    pub locale: String,
    /// IANA name of the time zone.
    pub timezone: String,
    /// Size of the desktop.
    pub screen: ScreenSize,
    /// Page to open first.
    pub start_url: Option<String>,
    /// The guest comes from a snapshot that other guests come from too: every process that may have
    /// made randomness before it is replaced or told so, and machine id and host keys are new.
    #[serde(default)]
    pub cloned: bool,
    /// A cloned guest starts a browser of its own instead of the one that was held still in the snapshot.
    #[serde(default)]
    pub fresh_browser: bool,
    /// How long the browser waits before it starts or goes on, in ms, at most 30,000: on a host where other guests
    /// are coming up, their desktops go before this one's browser. A tool's link starts it at once.
    #[serde(default)]
    pub browser_after_ms: u32,
}

/// Gives a claimed guest to a session: what a person asked for, without a new identity. Repeating it
/// is harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignRequest {
    /// The session's id.
    pub session_id: String,
    /// Wall-clock time to set.
    pub time: Timestamp,
    /// Language of the desktop, such as `en-US`.
    pub locale: String,
    /// IANA name of the time zone.
    pub timezone: String,
    /// Size of the desktop.
    pub screen: ScreenSize,
    /// Page to open first.
    pub start_url: Option<String>,
}

/// A guest that may be snapshotted: its browser is new and is held still until the claim of each clone,
/// nothing waits to be written, and its processors were idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// Share of one processor that the guest used over the last second, in thousandths.
    pub busy_permille: u32,
    /// Milliseconds that settling took.
    pub took_ms: u64,
}

/// Size of a desktop in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScreenSize {
    /// Width.
    pub width: u16,
    /// Height.
    pub height: u16,
}

/// Answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimAnswer {
    /// The guest's boot id.
    pub boot_id: String,
    /// The guest's clock after it was set.
    pub time: Timestamp,
    /// Milliseconds since the guest's kernel started.
    pub uptime_ms: u64,
    /// As in [`Health`].
    pub desktop_ready: bool,
}

/// Runs a command as the desktop's user and waits for its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// Program and arguments; at least one.
    pub command: Vec<String>,
    /// Additional environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Standard input, base64.
    #[serde(default)]
    pub stdin: Option<String>,
    /// The command's whole process group is killed after this long. 1 to 600,000 ms.
    pub timeout_ms: u64,
    /// Run as root instead of the desktop's user.
    #[serde(default)]
    pub root: bool,
}

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecAnswer {
    /// Exit code; 128 + signal when it was killed.
    pub exit_code: i32,
    /// The first MiB of standard output, base64.
    pub stdout: String,
    /// The first MiB of standard error, base64.
    pub stderr: String,
    /// Whether an output was longer than what is returned.
    pub truncated: bool,
    /// Whether the time limit ended it.
    pub timed_out: bool,
}

/// Figures of the guest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// MemTotal in KiB.
    pub memory_total_kib: u64,
    /// MemAvailable in KiB.
    pub memory_available_kib: u64,
    /// Load average over one minute.
    pub load1: f64,
    /// Size of the writable disk in bytes.
    pub disk_total_bytes: u64,
    /// Free space of the writable disk in bytes.
    pub disk_free_bytes: u64,
    /// Processor time used since boot, all processors, in ms.
    pub cpu_busy_ms: u64,
}

/// Why the agent refused a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// A sentence.
    pub error: String,
}

/// Terminals: WebSocket messages of `GET /v1/terminals/{name}`.
///
/// Binary messages are bytes of the PTY, in both directions. Text messages are JSON: the viewer
/// sends [`terminal::FromViewer`], the agent sends [`terminal::FromAgent`]. The terminal is made at
/// the first attach, outlives its viewers, and sends its scrollback (the last 256 KiB) to each new
/// one before anything else. Several viewers see the same terminal.
pub mod terminal {
    use serde::{Deserialize, Serialize};

    /// Text message from a viewer.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    pub enum FromViewer {
        /// The viewer's size changed.
        Resize {
            /// Columns, 1 to 1000.
            cols: u16,
            /// Rows, 1 to 1000.
            rows: u16,
        },
    }

    /// Text message from the agent.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    pub enum FromAgent {
        /// Scrollback is complete; what follows is live.
        Ready,
        /// The shell ended; the next attach starts a new one.
        Exit {
            /// Exit code, 128 + signal when killed.
            code: i32,
        },
    }
}
