//! plan(desired, observed): the next step of a session, from its records and what its host holds.
//!
//! Planning is a pure function, so a server that was killed between any two steps plans the same
//! next step from the same records, and every combination can be tested.

use crate::{Session, SessionState, Vm, VmState};

/// What is known of a VMM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessSeen {
    /// It was never started, or may be started again.
    NotStarted,
    /// It runs.
    Running,
    /// It is proven gone.
    Exited,
    /// Nothing is proven.
    Unknown,
}

/// What the host holds of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// Its VMM.
    pub process: ProcessSeen,
    /// Its state directory and disk.
    pub directory: bool,
    /// Its network namespace.
    pub network: bool,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Wait for room on the host, then begin.
    Admit,
    /// The VM's row says that work on it has begun.
    BeginPreparing,
    /// Make state directory and disk.
    MakeDisk,
    /// Make the network.
    MakeNetwork,
    /// The VM's row says that it boots, or is restored, with a new incarnation.
    BeginStart,
    /// Start the VMM.
    StartVmm,
    /// Wait for agent and desktop, claim, and make the session ready.
    BringUp,
    /// The VMM ended while it was starting: try again, or give up.
    StartFailed,
    /// Watch health and leases.
    Watch,
    /// Write the VM's state into a checkpoint, from which the session is resumed later.
    Save,
    /// The checkpoint is written: free what the VM holds.
    PutAway,
    /// Take everything down and end the session.
    TearDown,
    /// Free what a failed session's VM holds; the session's row stays for its owner to read.
    Release,
    /// Nothing is proven: look again later, destroy nothing.
    LookAgain,
    /// Nothing to do.
    Rest,
}

/// The next step of a session with the VM tied to it.
pub fn plan(session: &Session, vm: &Vm, machine: Machine) -> Step {
    match session.state {
        SessionState::Requested => Step::Admit,
        // A hibernated session gave its room back, so it asks again.
        SessionState::Resuming if vm.state == VmState::Planned => Step::Admit,
        SessionState::Starting | SessionState::Resuming => plan_start(vm, machine),
        SessionState::Hibernating => match vm.state {
            VmState::Stopping | VmState::Gone => Step::PutAway,
            _ => Step::Save,
        },
        SessionState::Ready | SessionState::Degraded => Step::Watch,
        SessionState::Ending => Step::TearDown,
        SessionState::Failed if vm.state != VmState::Gone => Step::Release,
        SessionState::Failed | SessionState::Ended | SessionState::Hibernated => Step::Rest,
    }
}

fn plan_start(vm: &Vm, machine: Machine) -> Step {
    match vm.state {
        VmState::Planned => Step::BeginPreparing,
        VmState::Preparing if !machine.directory => Step::MakeDisk,
        VmState::Preparing if !machine.network => Step::MakeNetwork,
        VmState::Preparing => Step::BeginStart,
        VmState::Booting | VmState::Restoring => match machine.process {
            ProcessSeen::NotStarted => Step::StartVmm,
            ProcessSeen::Running => Step::BringUp,
            ProcessSeen::Exited => Step::StartFailed,
            ProcessSeen::Unknown => Step::LookAgain,
        },
        // Both rows become running and ready in one transaction, so this is only a repair.
        VmState::Running | VmState::Unhealthy | VmState::Paused | VmState::Checkpointing => {
            Step::BringUp
        }
        VmState::Stopping | VmState::Gone => Step::StartFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Generation, HostId, OwnerId, Screen, SessionId, SessionSpec, Timestamp, VmId};
    use uuid::Uuid;

    fn records(session: SessionState, vm: VmState) -> (Session, Vm) {
        let now = Timestamp::UNIX_EPOCH;
        let vm_id = VmId::from_uuid(Uuid::nil());
        let spec = SessionSpec {
            provider: "desktop".into(),
            name: String::new(),
            screen: Screen::DEFAULT,
            start_url: None,
            locale: "en-US".into(),
            timezone: "Etc/UTC".into(),
            memory_mib: 2048,
            vcpus: 2,
        };
        let session = Session {
            id: SessionId::from_uuid(Uuid::nil()),
            owner: OwnerId::from_uuid(Uuid::nil()),
            spec,
            state: session,
            vm: Some(vm_id),
            end_reason: None,
            detail: None,
            attempts: 0,
            lease_expires_at: now,
            last_heartbeat_at: now,
            checkpoint: None,
            created_at: now,
            state_since: now,
            ready_at: None,
            ended_at: None,
            generation: Generation::FIRST,
        };
        let vm = Vm {
            id: vm_id,
            session: Some(session.id),
            host: HostId::from_uuid(Uuid::nil()),
            state: vm,
            driver: "sim".into(),
            image: String::new(),
            address: None,
            incarnation: 0,
            secret: None,
            created_at: now,
            state_since: now,
            generation: Generation::FIRST,
        };
        (session, vm)
    }

    const PROCESSES: [ProcessSeen; 4] =
        [ProcessSeen::NotStarted, ProcessSeen::Running, ProcessSeen::Exited, ProcessSeen::Unknown];

    fn machines() -> impl Iterator<Item = Machine> {
        PROCESSES.into_iter().flat_map(|process| {
            [(false, false), (true, false), (false, true), (true, true)]
                .map(|(directory, network)| Machine { process, directory, network })
        })
    }

    #[test]
    fn a_start_walks_its_steps_in_order() {
        let walk = [
            (VmState::Planned, ProcessSeen::NotStarted, false, false, Step::BeginPreparing),
            (VmState::Preparing, ProcessSeen::NotStarted, false, false, Step::MakeDisk),
            (VmState::Preparing, ProcessSeen::NotStarted, true, false, Step::MakeNetwork),
            (VmState::Preparing, ProcessSeen::NotStarted, true, true, Step::BeginStart),
            (VmState::Booting, ProcessSeen::NotStarted, true, true, Step::StartVmm),
            (VmState::Booting, ProcessSeen::Running, true, true, Step::BringUp),
        ];
        for (state, process, directory, network, expected) in walk {
            let (session, vm) = records(SessionState::Starting, state);
            let step = plan(&session, &vm, Machine { process, directory, network });
            assert_eq!(step, expected, "{state}");
        }
    }

    #[test]
    fn ending_tears_down_whatever_is_there() {
        for vm_state in VmState::ALL {
            for machine in machines() {
                let (session, vm) = records(SessionState::Ending, vm_state);
                assert_eq!(plan(&session, &vm, machine), Step::TearDown);
            }
        }
    }

    #[test]
    fn only_an_end_or_a_failure_takes_down() {
        for state in SessionState::ALL {
            for vm_state in VmState::ALL {
                for machine in machines() {
                    let (session, vm) = records(state, vm_state);
                    let step = plan(&session, &vm, machine);
                    let destroys = matches!(step, Step::TearDown | Step::Release | Step::PutAway);
                    // A VM is put away only after the row says that its checkpoint is written.
                    let put_away = state == SessionState::Hibernating
                        && matches!(vm_state, VmState::Stopping | VmState::Gone);
                    let may =
                        put_away || matches!(state, SessionState::Ending | SessionState::Failed);
                    assert!(!destroys || may, "{state} {vm_state} {machine:?}");
                }
            }
        }
    }

    #[test]
    fn an_unknown_process_is_neither_started_nor_failed() {
        let unknown = Machine { process: ProcessSeen::Unknown, directory: true, network: true };
        for vm_state in [VmState::Booting, VmState::Restoring] {
            let (session, vm) = records(SessionState::Starting, vm_state);
            assert_eq!(plan(&session, &vm, unknown), Step::LookAgain);
        }
    }
}
