//! Why a server could not start or went down.

use std::{io, net::SocketAddr, path::PathBuf};

use holdfast_control::ControlError;
use holdfast_host::driver::DriverError;
use holdfast_store::StoreError;

/// Why a server could not start or went down.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// Somebody listens on the address already.
    #[error(
        "{0} is in use, perhaps by another Holdfast: stop that, or choose another address with --listen"
    )]
    AddressInUse(SocketAddr),
    /// The address is not one of this machine's, or not allowed.
    #[error("cannot listen on {address} ({why}): choose another address with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        why: io::Error,
    },
    /// Not run by root.
    #[error(
        "running VMs needs root, for namespaces and virtual networks: start the server with sudo, or try the API without VMs with --driver sim"
    )]
    NotRoot,
    /// The state directory cannot be used.
    #[error(
        "the state directory cannot be used ({path}: {why}): put that right, or choose another directory with --state-dir"
    )]
    StateDir {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        why: io::Error,
    },
    /// Another server uses the state directory.
    #[error(
        "another server (pid {pid}) uses the state directory {path}: stop that one, or choose another directory with --state-dir"
    )]
    StateDirInUse {
        /// The directory.
        path: PathBuf,
        /// The other server.
        pid: String,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No driver can be used.
    #[error("no driver can run VMs here: {0}")]
    NoDriver(String),
    /// There is no driver of that name.
    #[error("this version has no {0} driver")]
    UnknownDriver(String),
    /// The driver cannot be set up.
    #[error("the driver cannot be set up")]
    Driver(#[from] DriverError),
    /// There is no image.
    #[error(
        "there is no image to make a warm image of ({0}); build one with `holdfast image build`"
    )]
    NoImage(String),
    /// The warm image cannot be made.
    #[error(transparent)]
    Bake(#[from] holdfast_host::bake::BakeError),
    /// A value of the configuration cannot be used.
    #[error("{key} in the configuration cannot be used: {why}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes")]
    Random(#[source] getrandom::Error),
    /// Control could not take over.
    #[error("sessions could not be taken over")]
    Control(#[from] ControlError),
    /// The listener broke.
    #[error("the HTTP server broke")]
    Http(#[source] io::Error),
}

/// An error with its sources, as one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
