//! How a build tells what it is doing.

use std::fmt;

/// A step of a build, in the order in which they come. Steps whose result is cached are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Another builder has the lock.
    Waiting,
    /// Debian's packages are downloaded and installed: a minute or two.
    Base,
    /// The tools are downloaded from npm.
    Tools,
    /// The kernel is unpacked and the initramfs written.
    Kernel,
    /// The layers are unpacked.
    Unpack,
    /// Configuration is laid over them.
    Configure,
    /// The file system image is written.
    Filesystem,
    /// The agent is put into a copy of the system.
    Agent,
    /// The files of the image are hashed.
    Checksum,
    /// The image is synced to disk and put into the library.
    Publish,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "Waiting for another build",
            Self::Base => "Installing Debian packages",
            Self::Tools => "Fetching sign-in tools",
            Self::Kernel => "Preparing the kernel",
            Self::Unpack => "Unpacking layers",
            Self::Configure => "Configuring the guest",
            Self::Filesystem => "Writing the file system",
            Self::Agent => "Adding the agent",
            Self::Checksum => "Hashing",
            Self::Publish => "Publishing",
        })
    }
}

/// Is told how a build comes along. Called from the building thread and from threads that read the
/// output of programs; must return quickly.
pub trait Progress: Send + Sync {
    /// A step begins, and the one before it is done.
    fn stage(&self, stage: Stage);
    /// Share of the current step that is done, 0 to 1; not every step knows.
    fn fraction(&self, share: f64);
    /// A line of what is going on.
    fn line(&self, line: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: Stage) {}
    fn fraction(&self, _: f64) {}
    fn line(&self, _: &str) {}
}
