//! Connections into a guest: the socket is made inside the VM's namespace and keeps it; the runtime
//! then uses it like any other.

use std::{
    io,
    net::{SocketAddrV4, TcpStream},
    sync::Arc,
    time::Duration,
};

use holdfast_core::VmId;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with},
};

use super::{GUEST, namespace};
use crate::driver::{DriverError, GuestStream, Result};

/// How long a guest may take to accept. It is on this machine; a second SYN goes out after one
/// second, a third after three.
const DEADLINE: Duration = Duration::from_secs(4);

/// Opens a connection to a TCP port of the guest.
pub(crate) async fn dial(vm: VmId, port: u16) -> Result<GuestStream> {
    let operation = format!("connecting to port {port} of VM {vm}");
    if !namespace::path(vm).exists() {
        return Err(DriverError::NotFound(vm));
    }
    let inside = Arc::new(namespace::open(vm)?);
    let socket = namespace::run(&inside, &operation, move || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        match connect(&socket, &SocketAddrV4::new(GUEST, port)) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    let io = |source: io::Error| DriverError::io(&operation, source);
    let stream = tokio::net::TcpStream::from_std(socket).map_err(io)?;
    tokio::time::timeout(DEADLINE, stream.writable())
        .await
        .map_err(|_| DriverError::Timeout { operation: operation.clone(), after: DEADLINE })?
        .map_err(io)?;
    if let Some(refused) = stream.take_error().map_err(io)? {
        return Err(io(refused));
    }
    stream.set_nodelay(true).map_err(io)?;
    Ok(Box::pin(stream))
}
