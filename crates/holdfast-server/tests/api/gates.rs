//! A driver that can be held at a step.

use std::{collections::HashSet, net::Ipv4Addr, path::Path, sync::Arc};

use async_trait::async_trait;
use holdfast_core::VmId;
use holdfast_host::driver::{
    Driver, GuestStream, Observed, Probe, Result, StartFrom, Stop, Usage, VmSpec,
};
use tokio::sync::watch;

/// Waits at the steps that are closed.
pub struct Gated {
    driver: Arc<dyn Driver>,
    closed: watch::Sender<HashSet<&'static str>>,
    reached: watch::Sender<HashSet<&'static str>>,
}

impl Gated {
    pub fn new(driver: Arc<dyn Driver>, closed: &[&'static str]) -> Self {
        Self {
            driver,
            closed: watch::Sender::new(closed.iter().copied().collect()),
            reached: watch::Sender::default(),
        }
    }

    pub fn open(&self) {
        self.closed.send_modify(HashSet::clear);
    }

    pub async fn reached(&self, step: &'static str) {
        let mut reached = self.reached.subscribe();
        reached.wait_for(|steps| steps.contains(step)).await.unwrap();
    }

    async fn pass(&self, step: &'static str) {
        self.reached.send_modify(|steps| {
            steps.insert(step);
        });
        let mut closed = self.closed.subscribe();
        closed.wait_for(|steps| !steps.contains(step)).await.unwrap();
    }
}

#[async_trait]
impl Driver for Gated {
    fn name(&self) -> &'static str {
        self.driver.name()
    }
    async fn probe(&self) -> Probe {
        self.driver.probe().await
    }
    async fn create(&self, spec: &VmSpec) -> Result<()> {
        self.pass("before create").await;
        self.driver.create(spec).await?;
        self.pass("after create").await;
        Ok(())
    }
    async fn connect(&self, vm: VmId) -> Result<Ipv4Addr> {
        self.pass("before connect").await;
        let address = self.driver.connect(vm).await?;
        self.pass("after connect").await;
        Ok(address)
    }
    async fn start(&self, vm: VmId, from: &StartFrom) -> Result<()> {
        self.pass("before start").await;
        self.driver.start(vm, from).await?;
        self.pass("after start").await;
        Ok(())
    }
    async fn pause(&self, vm: VmId) -> Result<()> {
        self.driver.pause(vm).await
    }
    async fn resume(&self, vm: VmId) -> Result<()> {
        self.driver.resume(vm).await
    }
    async fn snapshot(&self, vm: VmId, dest: &Path) -> Result<()> {
        self.driver.snapshot(vm, dest).await
    }
    async fn stop(&self, vm: VmId, how: Stop) -> Result<()> {
        self.driver.stop(vm, how).await
    }
    async fn destroy(&self, vm: VmId) -> Result<()> {
        self.pass("before destroy").await;
        self.driver.destroy(vm).await
    }
    async fn inspect(&self, vm: VmId) -> Result<Observed> {
        self.driver.inspect(vm).await
    }
    async fn list(&self) -> Result<Vec<Observed>> {
        self.driver.list().await
    }
    async fn wait_exit(&self, vm: VmId) -> Result<String> {
        self.driver.wait_exit(vm).await
    }
    async fn dial(&self, vm: VmId, port: u16) -> Result<GuestStream> {
        self.pass("dial").await;
        self.driver.dial(vm, port).await
    }
    async fn console(&self, vm: VmId, max_bytes: usize) -> Result<String> {
        self.driver.console(vm, max_bytes).await
    }
    async fn usage(&self, vm: VmId) -> Result<Usage> {
        self.driver.usage(vm).await
    }
}
