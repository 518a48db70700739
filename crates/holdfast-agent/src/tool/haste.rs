//! A tool goes first until its link is there. In a fresh clone the browser starts beside it and would
//! take most of the processors, for a page that nobody has asked for yet.

use rustix::process::{Pid, setpriority_pgrp};

/// Nice value of a tool that is waited for: about nine tenths of a contested processor.
const FIRST: i32 = -10;
/// Nice value of everything else.
const AS_ALL: i32 = 0;

/// A tool's processes go first for as long as this is not ended.
pub(super) struct Haste(Option<Pid>);

impl Haste {
    /// Lets the process group of a tool, which its first process leads, go first.
    pub(super) fn of(leader: Option<u32>) -> Self {
        let leader = leader.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        set(leader, FIRST);
        Self(leader)
    }

    /// The tool runs as everything else does from now on.
    pub(super) fn end(&mut self) {
        set(self.0.take(), AS_ALL);
    }
}

fn set(group: Option<Pid>, nice: i32) {
    if group.is_some()
        && let Err(error) = setpriority_pgrp(group, nice)
    {
        // It ended at once, or the agent is not root, as in its tests.
        tracing::debug!("a tool's priority was not changed: {error}");
    }
}
