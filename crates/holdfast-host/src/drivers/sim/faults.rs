//! Faults that a test injects into the simulated driver.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_core::VmId;

use crate::driver::{DriverError, Result};

/// A call of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// [`crate::driver::Driver::create`]
    Create,
    /// [`crate::driver::Driver::connect`]
    Connect,
    /// [`crate::driver::Driver::start`]
    Start,
    /// [`crate::driver::Driver::pause`]
    Pause,
    /// [`crate::driver::Driver::resume`]
    Resume,
    /// [`crate::driver::Driver::snapshot`]
    Snapshot,
    /// [`crate::driver::Driver::stop`]
    Stop,
    /// [`crate::driver::Driver::destroy`]
    Destroy,
    /// [`crate::driver::Driver::inspect`]
    Inspect,
    /// [`crate::driver::Driver::list`]
    List,
    /// [`crate::driver::Driver::dial`]
    Dial,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done, and this is said.
    Fail(String),
    /// Like [`Fault::Fail`], of the kind that trying again does not mend.
    FailForGood(String),
    /// It is done, but the answer is an error, as when a deadline passes just before the end.
    DoneButFailed(String),
    /// Nothing is done and nothing answers.
    Hang,
    /// It takes this much longer.
    Slow(Duration),
    /// The process cannot be determined; of [`Step::Inspect`] alone.
    Unknown(String),
}

#[derive(Debug)]
struct Injected {
    step: Step,
    vm: Option<VmId>,
    fault: Fault,
    /// How often it still happens.
    left: usize,
}

/// The handle through which faults are injected. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    injected: Arc<Mutex<VecDeque<Injected>>>,
    often: Arc<Often>,
}

/// Faults without end: every so many calls that change the machine.
#[derive(Debug, Default)]
struct Often {
    /// Never when 0.
    every: AtomicU64,
    calls: AtomicU64,
}

impl Faults {
    /// Lets `fault` happen at the next `times` calls of `step`, of one VM or of any.
    pub fn inject(&self, step: Step, vm: Option<VmId>, fault: Fault, times: usize) {
        self.queue().push_back(Injected { step, vm, fault, left: times });
    }

    /// Lets every `every`th call that changes the machine fail from now on, in turns without having done
    /// anything and after having done it; 0 ends that.
    pub fn inject_every(&self, every: u64) {
        self.often.every.store(every, Ordering::Relaxed);
    }

    fn often(&self, step: Step) -> Option<Fault> {
        let every = self.often.every.load(Ordering::Relaxed);
        if every == 0 || matches!(step, Step::Inspect | Step::List | Step::Dial) {
            return None;
        }
        let call = self.often.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let why = format!("call {call} of this machine fails");
        match (call.is_multiple_of(every), (call / every) % 2) {
            (false, _) => None,
            (true, 0) => Some(Fault::DoneButFailed(why)),
            (true, _) => Some(Fault::Fail(why)),
        }
    }

    /// Forgets every fault that has not happened.
    pub fn clear(&self) {
        self.queue().clear();
    }

    /// How many injected faults have still to happen.
    pub fn left(&self) -> usize {
        self.queue().iter().map(|injected| injected.left).sum()
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<Injected>> {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, step: Step, vm: Option<VmId>) -> Option<Fault> {
        let mut queue = self.queue();
        let found = queue.iter_mut().find(|injected| {
            injected.step == step
                && injected.left > 0
                && (injected.vm.is_none() || injected.vm == vm)
        })?;
        found.left -= 1;
        let fault = found.fault.clone();
        queue.retain(|injected| injected.left > 0);
        Some(fault)
    }

    /// Runs a call, with what goes wrong in it.
    pub(super) async fn around<T>(
        &self,
        step: Step,
        vm: Option<VmId>,
        call: impl AsyncFnOnce(Option<String>) -> Result<T>,
    ) -> Result<T> {
        let operation = || format!("the simulated {step:?}").to_lowercase();
        match self.take(step, vm).or_else(|| self.often(step)) {
            None => call(None).await,
            Some(Fault::Fail(message)) => {
                Err(DriverError::Refused { operation: operation(), message })
            }
            Some(Fault::FailForGood(why)) => Err(DriverError::Image { path: operation(), why }),
            Some(Fault::DoneButFailed(message)) => {
                call(None).await?;
                Err(DriverError::Refused { operation: operation(), message })
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Slow(more)) => {
                tokio::time::sleep(more).await;
                call(None).await
            }
            Some(Fault::Unknown(why)) => call(Some(why)).await,
        }
    }
}
