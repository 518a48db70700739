//! Requests and answers.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Size of a desktop in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Screen {
    /// 320 to 7680.
    pub width: u16,
    /// 240 to 4320.
    pub height: u16,
}

/// Body of `POST /api/sessions`; every field has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateSession {
    /// Name of a provider; `desktop`, the plain one, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// A name for people, at most 100 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Size of the desktop; 1280 x 800 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub screen: Option<Screen>,
    /// An http or https page that the browser opens first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_url: Option<String>,
    /// Language such as `de-DE`; `en-US` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// IANA time zone such as `Europe/Berlin`; `Etc/UTC` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Memory in MiB, 1024 to the host's limit; the server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Virtual processors, 1 to the host's limit; the server's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// For a sign-in: the age public key that its credentials are sealed to; the owner's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// For a sign-in: where its end is announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<crate::Webhook>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its id; readable from now until its retention ends.
    pub id: Uuid,
    /// `requested`, `starting`, `ready`, `degraded`, `hibernating`, `hibernated`, `resuming`,
    /// `ending`, `ended` or `failed`.
    pub state: String,
    /// A sentence with the cause of the state, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why it ended: `user_request`, `lease_expired`, `idle`, `max_lifetime`, `completed`, `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<String>,
    /// Name for people; may be empty.
    pub name: String,
    /// Provider's name.
    pub provider: String,
    /// Owner's name.
    pub owner: String,
    /// Size of the desktop.
    pub screen: Screen,
    /// Memory of its VM in MiB.
    pub memory_mib: u32,
    /// Virtual processors of its VM.
    pub vcpus: u8,
    /// The VM serving it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<Uuid>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When its state last changed.
    #[schema(value_type = String, format = DateTime)]
    pub state_since: Timestamp,
    /// When the desktop could be used for the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ready_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// Until when somebody is known to be attached.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When somebody was last known to be attached.
    #[schema(value_type = String, format = DateTime)]
    pub last_heartbeat: Timestamp,
    /// When it counts as idle, unless somebody does something; absent without an idle limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub idle_at: Option<Timestamp>,
    /// When its maximum lifetime is over and it ends; absent once it is ending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ends_at: Option<Timestamp>,
    /// Until when it is kept with nobody attached; absent once it is ending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub kept_until: Option<Timestamp>,
    /// Page of this session in the dashboard, relative to the server.
    pub url: String,
}

/// Answer to `GET /api/sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// Newest first.
    pub sessions: Vec<Session>,
}

/// Answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Until when the session is protected now.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When it counts as idle, unless somebody does something; told once that is near.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub idle_at: Option<Timestamp>,
}

/// The VM serving a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionVm {
    /// Its id.
    pub vm_id: Uuid,
    /// Its address on its host, for display: unique there; nobody outside the host dials it.
    #[serde(rename = "vmIP")]
    #[schema(value_type = Option<String>)]
    pub vm_ip: Option<Ipv4Addr>,
    /// Where it stands: `planned`, `preparing`, `booting`, `restoring`, `running`, `unhealthy`,
    /// `paused`, `checkpointing`, `stopping`.
    pub state: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    /// When somebody was last known to be attached to its session.
    #[schema(value_type = String, format = DateTime)]
    pub last_heartbeat: Timestamp,
    /// Proportional memory of its VMM in MiB, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Processor time of its VMM in ms, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Disk space that it takes in MiB, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
}

/// A VM, for administrators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Vm {
    /// Its id.
    pub id: Uuid,
    /// The session it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<Uuid>,
    /// The host it runs on.
    pub host_id: Uuid,
    /// Where it stands.
    pub state: String,
    /// The driver that runs it.
    pub driver: String,
    /// Digest of its image.
    pub image: String,
    /// Its address on its host.
    #[serde(rename = "vmIP", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vm_ip: Option<Ipv4Addr>,
    /// Counts its boots and restores.
    pub incarnation: u32,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Proportional memory of its VMM in MiB, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Processor time of its VMM in ms, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Disk space that it takes in MiB, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
}

/// Answer to `GET /api/vms`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// VMs that are not gone.
    pub vms: Vec<Vm>,
}

/// A machine that runs VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The driver that it runs VMs with.
    pub driver: String,
    /// Why that driver was chosen.
    pub driver_reason: String,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Version of its server.
    pub version: String,
    /// When it last reported.
    #[schema(value_type = String, format = DateTime)]
    pub seen_at: Timestamp,
    /// Since when it takes no new sessions; absent while it takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub draining_since: Option<Timestamp>,
}

/// Answer to `GET /api/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    /// All hosts.
    pub hosts: Vec<Host>,
}

/// Something that a session can be made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// Its name, as in `CreateSession.provider`.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// A sentence about it.
    pub description: String,
    /// An SVG document for its tile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// For a tool to sign in: `loopback`, `paste_code` or `device_code`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<String>,
    /// For a tool to sign in: it hands credentials over, so a session needs a recipient.
    pub credentials: bool,
    /// For a tool to sign in: hosts that it and its sign-in page need, for whoever restricts egress
    /// before the host. Told, not enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// Answer to `GET /api/providers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderList {
    /// All providers.
    pub providers: Vec<Provider>,
}

/// An entry of a session's timeline. As a Server-Sent Event its `event` is `kind` and its `id` is `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Rises with every event; goes into `Last-Event-ID`.
    pub seq: i64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// `session.state`, `vm.state`, or `step.*` for a step within a state: `step.disk`,
    /// `step.network`, `step.start`, `step.agent`, `step.claim`, `step.desktop`, `step.browser`.
    pub kind: String,
    /// State before, for a transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// State after, for a transition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why, as a sentence.
    pub why: String,
    /// Who caused it: `user`, `reconciler`, `guest` or `host`.
    pub by: String,
    /// The VM concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<Uuid>,
}

/// Answer to `GET /api/sessions/{id}/events` when JSON was asked for instead of an event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<Event>,
}

/// Body of `POST /api/sessions/{id}/exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Time limit in ms, 1 to 600,000; 60,000 when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Standard input, base64.
    #[serde(default)]
    pub stdin: Option<String>,
    /// Run as root instead of the desktop's user.
    #[serde(default)]
    pub root: bool,
}

/// What a command left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// Exit code; 128 + signal when it was killed.
    pub exit_code: i32,
    /// The first MiB of standard output, base64.
    pub stdout: String,
    /// The first MiB of standard error, base64.
    pub stderr: String,
    /// Whether an output was cut.
    pub truncated: bool,
    /// Whether the time limit ended it.
    pub timed_out: bool,
}

/// End of the guest's serial console, and of its VMM's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Console {
    /// The text.
    pub text: String,
}

/// Answer to `GET /api/version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Version of the server.
    pub version: String,
    /// Driver in use.
    pub driver: String,
    /// Digest of the image that new sessions get.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Store in use: `sqlite` or `postgres`.
    pub store: String,
    /// Name of the caller's owner.
    pub owner: String,
    /// The caller is an administrator.
    pub admin: bool,
    /// What this server can do besides the basics: `hibernate`, `fork`, `sign_in`.
    pub features: Vec<String>,
}

/// Answer to `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// All checks passed.
    pub ready: bool,
    /// Each check by name.
    pub checks: Vec<Check>,
}

/// A check of readiness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// `store`, `driver`, `image` or `reconciler`.
    pub name: String,
    /// It passed.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
}

/// Body of `POST /api/tokens`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// Name of the owner, made when there is none; 1 to 100 characters.
    pub owner: String,
    /// A label for people; the owner's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// It may do everything for every owner.
    #[serde(default)]
    pub admin: bool,
    /// Days until it stops working, 1 to 3650; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_days: Option<u32>,
}

/// An access token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Its public id.
    pub id: Uuid,
    /// Name of its owner.
    pub owner: String,
    /// A label for people.
    pub name: String,
    /// It may do everything for every owner.
    pub admin: bool,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it stops working.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Timestamp>,
}

/// Answer to `POST /api/tokens`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// The token itself; shown here and never again.
    pub secret: String,
    /// What is kept of it.
    pub token: Token,
}

/// Answer to `GET /api/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// Newest first.
    pub tokens: Vec<Token>,
}

/// Why a session is alive or dead, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The verdict in one or two sentences.
    pub summary: String,
    /// The session's record.
    pub session: Session,
    /// Its VM's record.
    pub vm: Vm,
    /// What its host holds of the VM now; absent where this server does not drive it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineSeen>,
    /// Where its VM stands on the ladder of repairs; absent until it was probed by this server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthSeen>,
    /// What protects it.
    pub lease: Lease,
    /// Attempts at starting its VM since it was last ready.
    pub attempts: u32,
    /// How often the session's record was written.
    pub generation: i64,
    /// The last events, oldest first.
    pub events: Vec<Event>,
}

/// What a host holds of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineSeen {
    /// Its process, as a sentence.
    pub process: String,
    /// Its state directory exists; absent where that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<bool>,
    /// Its network exists; absent where that is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<bool>,
}

/// Where a VM stood on the ladder of repairs after its last probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthSeen {
    /// What was done, from bottom to top: `fine`, `probe` (again), `service` (restarted in the guest),
    /// `resume`, `restore` (the last checkpoint), `boot` (on the same disk), `given_up`.
    pub rung: String,
    /// What was found, as a sentence.
    pub finding: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub probed_at: Timestamp,
    /// Probes in a row that found something wrong.
    pub failures: u32,
    /// Since when something is wrong; absent while nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub failing_since: Option<Timestamp>,
    /// Restarts of a service in the guest since it was last well.
    pub service_restarts: u32,
    /// Attempts since then to let its processors run again.
    pub resumes: u32,
    /// Boots since then.
    pub boots: u32,
}

/// What protects a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Somebody is attached.
    pub live: bool,
    /// Until when the last heartbeat protects.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Streams open now.
    pub streams: usize,
}
