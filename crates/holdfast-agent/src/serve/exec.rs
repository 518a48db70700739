//! Runs a command and waits for its end.

use std::{process::Stdio, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use holdfast_agent_api::{ExecAnswer, ExecRequest};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    guest::Guest,
    spawn::{self, Launch},
    wire::Refusal,
};

/// How much of an output is returned, in bytes.
const OUTPUT_LIMIT: usize = 1 << 20;
/// How long an output may stay open after the command's own end: a daemon that it left behind holds it.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

pub(super) async fn run(guest: &Guest, request: ExecRequest) -> Result<ExecAnswer, Refusal> {
    if !(1..=600_000).contains(&request.timeout_ms) {
        return Err(Refusal::bad("timeoutMs has to be 1 to 600000"));
    }
    let stdin = request.stdin.as_deref().unwrap_or_default();
    let stdin = STANDARD.decode(stdin).map_err(|_| Refusal::bad("stdin is not base64"))?;
    let launch = Launch {
        command: request.command,
        env: request.env,
        cwd: request.cwd.map(Into::into),
        root: request.root,
        mark: None,
    };
    let mut child = spawn::command(guest, &launch)
        .and_then(|mut command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            // A group of its own, so that all of it can be killed; dropped with the call.
            command.process_group(0).kill_on_drop(true).spawn()
        })
        .map_err(|error| Refusal::bad(format!("the command cannot be started: {error}")))?;
    let group = Group(child.id());
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    let mut input = child.stdin.take();
    let feed = async move {
        if let Some(input) = &mut input {
            // A command that does not read its input has every right to.
            let _ = input.write_all(&stdin).await;
        }
        drop(input);
        std::future::pending::<()>().await;
    };
    let (mut out, mut err) = (Output::default(), Output::default());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut status = None;
    let timed_out = {
        let outputs = async { tokio::join!(out.read(stdout), err.read(stderr)) };
        tokio::pin!(outputs, feed);
        let mut closed = false;
        let ended = timeout_at(deadline, async {
            loop {
                tokio::select! {
                    ended = child.wait() => return ended,
                    _ = &mut outputs, if !closed => closed = true,
                    () = &mut feed => {}
                }
            }
        });
        let timed_out = if let Ok(ended) = ended.await {
            status = Some(ended.map_err(Refusal::failed)?);
            false
        } else {
            group.kill();
            true
        };
        if !closed {
            tokio::select! { _ = &mut outputs => {} () = sleep(OUTPUT_GRACE) => {} }
        }
        timed_out
    };
    let status = match status {
        Some(status) => status,
        None => child.wait().await.map_err(Refusal::failed)?,
    };
    group.let_go();
    Ok(ExecAnswer {
        exit_code: spawn::exit_code(status),
        truncated: out.truncated || err.truncated,
        stdout: STANDARD.encode(out.kept),
        stderr: STANDARD.encode(err.kept),
        timed_out,
    })
}

/// The process group of a command; killed when the call is dropped before its end.
struct Group(Option<u32>);

impl Group {
    fn kill(&self) {
        let group = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    fn let_go(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Default)]
struct Output {
    kept: Vec<u8>,
    truncated: bool,
}

impl Output {
    /// Reads to the end; what is over the limit is read and dropped, so that the command goes on.
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) {
        let Some(mut stream) = stream else { return };
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            let room = (OUTPUT_LIMIT - self.kept.len()).min(count);
            self.kept.extend_from_slice(&buffer[..room]);
            self.truncated |= room < count;
        }
    }
}
