//! A simulated machine whose desktop is another server's bytes.

use std::{net::Ipv4Addr, net::SocketAddr, path::Path};

use async_trait::async_trait;
use holdfast_agent_api::VNC_PORT;
use holdfast_core::VmId;
use holdfast_host::{
    driver::{
        Driver, DriverError, GuestStream, Observed, Probe, Result, StartFrom, Stop, Usage, VmSpec,
    },
    drivers::sim::SimDriver,
};
use tokio::net::TcpStream;

/// Like [`SimDriver`], but the desktop's port leads to `source`.
pub(crate) struct Wired {
    inner: SimDriver,
    source: SocketAddr,
}

impl Wired {
    pub(crate) fn new(source: SocketAddr) -> Self {
        Self { inner: SimDriver::in_memory(), source }
    }
}

#[async_trait]
impl Driver for Wired {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn probe(&self) -> Probe {
        self.inner.probe().await
    }

    async fn create(&self, spec: &VmSpec) -> Result<()> {
        self.inner.create(spec).await
    }

    async fn connect(&self, vm: VmId) -> Result<Ipv4Addr> {
        self.inner.connect(vm).await
    }

    async fn start(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        self.inner.start(vm, from).await
    }

    async fn pause(&self, vm: VmId) -> Result<()> {
        self.inner.pause(vm).await
    }

    async fn resume(&self, vm: VmId) -> Result<()> {
        self.inner.resume(vm).await
    }

    async fn snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        self.inner.snapshot(vm, dest).await
    }

    async fn stop(&self, vm: VmId, how: Stop) -> Result<()> {
        self.inner.stop(vm, how).await
    }

    async fn destroy(&self, vm: VmId) -> Result<()> {
        self.inner.destroy(vm).await
    }

    async fn inspect(&self, vm: VmId) -> Result<Observed> {
        self.inner.inspect(vm).await
    }

    async fn list(&self) -> Result<Vec<Observed>> {
        self.inner.list().await
    }

    async fn wait_exit(&self, vm: VmId) -> Result<String> {
        self.inner.wait_exit(vm).await
    }

    async fn dial(&self, vm: VmId, port: u16) -> Result<GuestStream> {
        if port != VNC_PORT {
            return self.inner.dial(vm, port).await;
        }
        let dialled = TcpStream::connect(self.source).await.and_then(|stream| {
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        let stream = dialled.map_err(|error| DriverError::io("dialling the source", error))?;
        Ok(Box::pin(stream))
    }

    async fn console(&self, vm: VmId, max_bytes: usize) -> Result<String> {
        self.inner.console(vm, max_bytes).await
    }

    async fn usage(&self, vm: VmId) -> Result<Usage> {
        self.inner.usage(vm).await
    }
}
