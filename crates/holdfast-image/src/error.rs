//! Errors of the image builder and library. Each says what to do.

use std::{io, path::PathBuf};

/// Why an image could not be built, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The process is not root.
    #[error(
        "an image can only be built as root: it holds files of several users; run it with sudo"
    )]
    NotRoot,
    /// Programs are not installed.
    #[error(
        "{} not installed; on Debian or Ubuntu: apt-get install {}",
        list_programs(programs),
        packages.join(" ")
    )]
    Missing {
        /// The programs.
        programs: Vec<String>,
        /// The Debian packages that hold them.
        packages: Vec<String>,
    },
    /// There is not enough space.
    #[error(
        "the build needs {needed_mib} MiB in {}, where {free_mib} MiB are free: free some or choose \
         another cache directory",
        path.display()
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What the build takes at most, in MiB.
        needed_mib: u64,
        /// What is free, in MiB.
        free_mib: u64,
    },
    /// A download failed for want of a network.
    #[error(
        "{what} could not be downloaded, because {from} cannot be reached: connect this machine to \
         the network, or set http_proxy, and build again"
    )]
    NoNetwork {
        /// What was to be downloaded.
        what: &'static str,
        /// From where.
        from: String,
    },
    /// A program failed.
    #[error("{what} failed ({status}): {remedy}\n{output}")]
    Command {
        /// What was being done.
        what: &'static str,
        /// Its exit status.
        status: String,
        /// What to do.
        remedy: &'static str,
        /// The end of its output.
        output: String,
    },
    /// The agent's binary cannot be used.
    #[error("the agent at {} cannot be used: {why}", path.display())]
    Agent {
        /// The binary.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// The kernel package is not what was expected.
    #[error("Debian's kernel package cannot be used: {why}")]
    Kernel {
        /// What is wrong.
        why: String,
    },
    /// A layer or a tool is not what was expected.
    #[error("the {what} came out incomplete: {why}")]
    Incomplete {
        /// What was built.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// There is no image that new VMs boot.
    #[error("there is no image in {}; build one with `holdfast image build`", library.display())]
    NoCurrent {
        /// The library.
        library: PathBuf,
    },
    /// There is no such image.
    #[error("there is no image {digest} in {}; `holdfast image ls` shows all", library.display())]
    NotFound {
        /// What was asked for.
        digest: String,
        /// The library.
        library: PathBuf,
    },
    /// Several images fit.
    #[error("{digest} names {count} images: give more of its digits")]
    Ambiguous {
        /// What was asked for.
        digest: String,
        /// How many fit.
        count: usize,
    },
    /// The image is the one that new VMs boot.
    #[error("image {digest} is the current one: build another first, or force it")]
    Current {
        /// The image.
        digest: String,
    },
    /// VMs run from the image.
    #[error("image {digest} is in use by {by}: end it first, or force it")]
    InUse {
        /// The image.
        digest: String,
        /// Who uses it.
        by: String,
    },
    /// The manifest cannot be understood.
    #[error(
        "the manifest of image {digest} cannot be read ({why}): remove the image and build again"
    )]
    Manifest {
        /// The image.
        digest: String,
        /// What is wrong.
        why: String,
    },
    /// The recipe of this program is wrong.
    #[error("the recipe cannot be used: {why}")]
    Recipe {
        /// What is wrong.
        why: String,
    },
    /// An I/O operation failed.
    #[error("{operation} failed")]
    Io {
        /// What was tried.
        operation: String,
        /// Why.
        source: io::Error,
    },
}

fn list_programs(programs: &[String]) -> String {
    let verb = if programs.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", programs.join(", "))
}

/// Turns an I/O error into an [`ImageError`] that says what was tried.
pub(crate) trait IoContext<T> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn doing(self, operation: impl FnOnce() -> String) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io { operation: operation(), source: source.into() })
    }
}
