//! QEMU's own protocol, as much of it as is used here. Every exchange has a connection of its own: QEMU
//! serves one at a time, and one that hangs is given up with its deadline.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::AsFd as _,
    path::Path,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest},
    net::UnixStream,
};

use crate::driver::{DriverError, Result};

/// Commands used here are answered within milliseconds by a VMM that is alive.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the VMM sends.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: Value,
    },
    Answer {
        #[serde(rename = "return")]
        answer: Value,
    },
    Refusal {
        error: Refusal,
    },
    Event {
        event: String,
    },
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// A connection, ready for commands.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// Names of events that came between answers.
    events: Vec<String>,
}

impl Qmp {
    /// Connects, and waits at most `deadline` for the VMM to be ready.
    pub(super) async fn connect(socket: &Path, deadline: Duration) -> Result<Self> {
        let connect = async {
            let stream = UnixStream::connect(socket)
                .await
                .map_err(|e| DriverError::io("connecting to the VMM", e))?;
            let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
            while !matches!(qmp.read().await?, Message::Greeting { .. }) {}
            qmp.exchange("qmp_capabilities", &json!({}), None).await?;
            Ok(qmp)
        };
        within("connecting to the VMM", deadline, connect).await
    }

    /// Runs a command.
    pub(super) async fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        within(command, DEADLINE, self.exchange(command, &arguments, None)).await
    }

    /// Hands an open file to the VMM, which knows it by `name` from then on.
    pub(super) async fn give(&mut self, name: &str, file: &impl std::os::fd::AsFd) -> Result<()> {
        let arguments = json!({ "fdname": name });
        within("getfd", DEADLINE, self.exchange("getfd", &arguments, Some(file.as_fd()))).await?;
        Ok(())
    }

    /// Lends an open file to the VMM, which opens it by the path in the answer, in the same mode, for as
    /// long as this connection lasts.
    pub(super) async fn lend(&mut self, file: &impl std::os::fd::AsFd) -> Result<String> {
        let none = json!({});
        let lent = self.exchange("add-fd", &none, Some(file.as_fd()));
        let lent = within("add-fd", DEADLINE, lent).await?;
        Ok(format!("/dev/fdset/{}", lent["fdset-id"]))
    }

    /// The VM's run state, such as `running`.
    pub(super) async fn status(&mut self) -> Result<String> {
        let answer = self.run("query-status", json!({})).await?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for an event of this name, also one that came since the last call. The caller has a deadline.
    pub(super) async fn event(&mut self, name: &str) -> Result<()> {
        let came = self.events.iter().any(|event| event == name);
        self.events.clear();
        if came {
            return Ok(());
        }
        loop {
            if matches!(self.read().await?, Message::Event { event } if event == name) {
                return Ok(());
            }
        }
    }

    async fn exchange(
        &mut self,
        command: &str,
        arguments: &Value,
        file: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<Value> {
        let io = |source| DriverError::io(format!("the VMM's `{command}`"), source);
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        let mut rest = text.as_bytes();
        if let Some(file) = file {
            let stream = self.stream.get_mut();
            let sent = stream
                .async_io(Interest::WRITABLE, || send_with(stream.as_fd(), rest, file))
                .await
                .map_err(io)?;
            rest = &rest[sent..];
        }
        self.stream.get_mut().write_all(rest).await.map_err(io)?;
        loop {
            match self.read().await? {
                Message::Answer { answer } => return Ok(answer),
                Message::Refusal { error } => {
                    return Err(DriverError::Refused {
                        operation: format!("the VMM's `{command}`"),
                        message: error.desc,
                    });
                }
                Message::Event { event } => self.events.push(event),
                Message::Greeting { .. } => {}
            }
        }
    }

    async fn read(&mut self) -> Result<Message> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await;
        match read.map_err(|e| DriverError::io("reading the VMM's answer", e))? {
            0 => Err(DriverError::io(
                "reading the VMM's answer",
                io::ErrorKind::UnexpectedEof.into(),
            )),
            _ => serde_json::from_str(&line).map_err(|e| DriverError::Refused {
                operation: "reading the VMM's answer".to_owned(),
                message: e.to_string(),
            }),
        }
    }
}

fn send_with(
    socket: std::os::fd::BorrowedFd<'_>,
    bytes: &[u8],
    file: std::os::fd::BorrowedFd<'_>,
) -> io::Result<usize> {
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

async fn within<T>(
    operation: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        Err(DriverError::Timeout { operation: format!("the VMM's `{operation}`"), after: deadline })
    })
}
