//! Firecracker's API, as much of it as is used here: HTTP over a Unix socket in the VM's jail. Every call
//! has a deadline. Those of a start share a connection; any other has one of its own, so a hung one never
//! blocks another.
//!
//! Types follow src/firecracker/swagger/firecracker.yaml of version 1.12.

use std::{fs::File, io, os::fd::AsRawFd as _, path::Path, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{Method, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::jail;
use crate::driver::{DriverError, Result};

/// A Firecracker that is alive answers within milliseconds.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer that is read. They are some hundred bytes long.
const ANSWER_LIMIT: usize = 64 << 10;

/// How ENOSPC reads in its messages.
const FULL: &str = "(os error 28)";

/// What boots.
#[derive(Debug, Serialize)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd_path: Option<&'static str>,
    pub(super) boot_args: String,
}

/// Size of the machine, and whether it is remembered which pages changed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: u32,
    pub(super) track_dirty_pages: bool,
}

/// A disk.
#[derive(Debug, Serialize)]
pub(super) struct Drive {
    #[serde(rename = "drive_id")]
    pub(super) id: &'static str,
    pub(super) path_on_host: &'static str,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rate_limiter: Option<RateLimiter>,
}

/// The network device.
#[derive(Debug, Serialize)]
pub(super) struct NetworkInterface {
    pub(super) iface_id: &'static str,
    pub(super) host_dev_name: &'static str,
    pub(super) guest_mac: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_rate_limiter: Option<RateLimiter>,
}

/// A limit on what flows.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct RateLimiter {
    bandwidth: Bucket,
}

/// `size` bytes in every `refill_time` ms.
#[derive(Debug, Clone, Copy, Serialize)]
struct Bucket {
    size: u64,
    refill_time: u64,
}

impl RateLimiter {
    pub(super) fn per_second(bytes: u64) -> Self {
        Self { bandwidth: Bucket { size: bytes, refill_time: 1000 } }
    }

    /// In the place of one that there may be: a bucket of no size ends it.
    pub(super) fn instead(bytes_per_second: Option<u64>) -> Self {
        let none = Self { bandwidth: Bucket { size: 0, refill_time: 0 } };
        bytes_per_second.map_or(none, Self::per_second)
    }
}

/// What changes of a disk.
#[derive(Debug, Serialize)]
pub(super) struct DriveUpdate {
    #[serde(rename = "drive_id")]
    pub(super) id: &'static str,
    pub(super) rate_limiter: RateLimiter,
}

/// What changes of the network device.
#[derive(Debug, Serialize)]
pub(super) struct NetworkUpdate {
    pub(super) iface_id: &'static str,
    pub(super) rx_rate_limiter: RateLimiter,
    pub(super) tx_rate_limiter: RateLimiter,
}

/// The device through which memory can be taken back; the guest takes it again before it kills a process.
#[derive(Debug, Serialize)]
pub(super) struct Balloon {
    pub(super) amount_mib: u32,
    pub(super) deflate_on_oom: bool,
}

/// The source of random bytes; it has no setting that is used.
#[derive(Debug, Serialize)]
pub(super) struct Entropy {}

/// A new state of the virtual processors.
#[derive(Debug, Serialize)]
pub(super) struct VmState {
    pub(super) state: &'static str,
}

/// Something to do.
#[derive(Debug, Serialize)]
pub(super) struct Action {
    pub(super) action_type: &'static str,
}

/// Where a snapshot is written.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotCreate {
    pub(super) snapshot_type: &'static str,
    pub(super) snapshot_path: String,
    pub(super) mem_file_path: String,
}

/// Where a snapshot is read.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotLoad {
    pub(super) snapshot_path: &'static str,
    pub(super) mem_backend: MemoryBackend,
    /// Changed pages are remembered: what is called `track_dirty_pages` at a boot.
    pub(super) enable_diff_snapshots: bool,
    pub(super) resume_vm: bool,
}

/// How the memory of a snapshot is read: `File` maps it privately.
#[derive(Debug, Serialize)]
pub(super) struct MemoryBackend {
    pub(super) backend_type: &'static str,
    pub(super) backend_path: &'static str,
}

/// Configuration file of a Firecracker without API.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ConfigFile {
    pub(super) boot_source: BootSource,
    pub(super) drives: [Drive; 0],
    pub(super) machine_config: MachineConfig,
}

#[derive(Debug, Deserialize)]
struct Fault {
    fault_message: String,
}

/// The API of one VM.
pub(super) struct Api<'a> {
    root: &'a Path,
}

impl<'a> Api<'a> {
    /// The API of the Firecracker whose jail this is.
    pub(super) fn of(root: &'a Path) -> Self {
        Self { root }
    }

    /// One call on a connection of its own.
    pub(super) async fn put<B: Serialize + Sync>(&self, path: &str, body: &B) -> Result<()> {
        self.put_within(path, body, DEADLINE).await
    }

    pub(super) async fn put_within<B: Serialize + Sync>(
        &self,
        path: &str,
        body: &B,
        deadline: Duration,
    ) -> Result<()> {
        self.connect().await?.put_within(path, body, deadline).await
    }

    pub(super) async fn state(&self, state: &'static str) -> Result<()> {
        self.connect().await?.state(state).await
    }

    /// A connection for several calls, one after the other.
    pub(super) async fn connect(&self) -> Result<Connection> {
        let connecting = "connecting to Firecracker's socket";
        let connect = async {
            let stream = connect(self.root).await.map_err(|e| DriverError::io(connecting, e))?;
            let shake = http1::handshake(TokioIo::new(stream));
            let (sender, driven) = shake.await.map_err(|e| broke(connecting, e))?;
            Ok(Connection { sender, driven: Box::pin(driven) })
        };
        tokio::time::timeout(DEADLINE, connect).await.unwrap_or_else(|_| {
            Err(DriverError::Timeout { operation: connecting.to_owned(), after: DEADLINE })
        })
    }
}

/// An open connection. Of no further use after a call that failed.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Driven beside each call and dropped with this, so no task outlives it.
    driven: Pin<Box<http1::Connection<TokioIo<UnixStream>, Full<Bytes>>>>,
}

impl Connection {
    pub(super) async fn put<B: Serialize + Sync>(&mut self, path: &str, body: &B) -> Result<()> {
        self.put_within(path, body, DEADLINE).await
    }

    pub(super) async fn put_within<B: Serialize + Sync>(
        &mut self,
        path: &str,
        body: &B,
        deadline: Duration,
    ) -> Result<()> {
        self.call(Method::PUT, path, Some(body), deadline).await.map(drop)
    }

    pub(super) async fn patch<B: Serialize + Sync>(&mut self, path: &str, body: &B) -> Result<()> {
        self.call(Method::PATCH, path, Some(body), DEADLINE).await.map(drop)
    }

    pub(super) async fn state(&mut self, state: &'static str) -> Result<()> {
        self.patch("/vm", &VmState { state }).await
    }

    /// How the machine is.
    pub(super) async fn machine(&mut self) -> Result<MachineConfig> {
        let path = "/machine-config";
        let answer = self.call(Method::GET, path, None::<&()>, DEADLINE).await?;
        serde_json::from_slice(&answer)
            .map_err(|e| protocol(&format!("Firecracker's `GET {path}`"), &e))
    }

    async fn call<B: Serialize + Sync>(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&B>,
        deadline: Duration,
    ) -> Result<Bytes> {
        let operation = format!("Firecracker's `{method} {path}`");
        let exchange = self.exchange(&operation, method, path, body);
        tokio::time::timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(DriverError::Timeout { operation, after: deadline }))
    }

    async fn exchange<B: Serialize + Sync>(
        &mut self,
        operation: &str,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Bytes> {
        let body = match body {
            Some(value) => serde_json::to_vec(value).map_err(|e| protocol(operation, &e))?,
            None => Vec::new(),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| protocol(operation, &e))?;
        let Self { sender, driven } = self;
        let answer = async {
            let broke = |error| broke(operation, error);
            sender.ready().await.map_err(broke)?;
            let response = sender.send_request(request).await.map_err(broke)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            let body = body.map_err(|e| DriverError::io(operation, io::Error::other(e)))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        let (status, body) = tokio::select! {
            answer = &mut answer => answer?,
            ended = driven.as_mut() => {
                ended.map_err(|e| broke(operation, e))?;
                answer.await?
            }
        };
        if status.is_success() {
            return Ok(body);
        }
        let message = match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => fault.fault_message,
            Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body)),
        };
        if message.contains(FULL) {
            return Err(DriverError::NoSpace { what: operation.to_owned() });
        }
        Err(DriverError::Refused { operation: operation.to_owned(), message })
    }
}

/// Connects to the socket itself: the name is the VMM's to change, and may not lead elsewhere. The path
/// through an open file also has room for a state directory of any length.
async fn connect(root: &Path) -> io::Result<UnixStream> {
    let root = File::open(root)?;
    let socket = jail::open_beneath(&root, jail::SOCKET, OFlags::PATH)?;
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

fn broke(operation: &str, error: hyper::Error) -> DriverError {
    DriverError::io(operation, io::Error::other(error))
}

fn protocol(operation: &str, error: &dyn std::error::Error) -> DriverError {
    DriverError::Refused { operation: operation.to_owned(), message: error.to_string() }
}
