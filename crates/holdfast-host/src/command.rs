//! Runs the machine's own tools (`ip`, `nft`, `mke2fs`) to their end, in a network namespace when
//! asked. Owns how their failures read. Must never run anything that outlives the call.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::AsyncWriteExt as _;

use crate::error::DriverError;

/// No tool works longer than this on a healthy machine; one that does is killed.
const DEADLINE: Duration = Duration::from_secs(30);

/// One run of a tool.
pub(crate) struct Tool<'a> {
    program: &'static str,
    args: Vec<String>,
    input: &'a str,
    namespace: Option<Arc<OwnedFd>>,
}

impl<'a> Tool<'a> {
    pub(crate) fn new<S: Into<String>>(
        program: &'static str,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { program, args, input: "", namespace: None }
    }

    /// Text for its standard input.
    pub(crate) fn input(mut self, input: &'a str) -> Self {
        self.input = input;
        self
    }

    /// Runs it inside a network namespace.
    pub(crate) fn inside(mut self, namespace: &Arc<OwnedFd>) -> Self {
        self.namespace = Some(Arc::clone(namespace));
        self
    }

    /// Runs it and answers its standard output.
    pub(crate) async fn run(self) -> Result<String, DriverError> {
        let operation = format!("{} {}", self.program, self.args.join(" "));
        let mut command = tokio::process::Command::new(self.program);
        command
            .args(&self.args)
            .env("LC_ALL", "C")
            .env("PATH", path_of_administrators(std::env::var_os("PATH")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(namespace) = self.namespace {
            enter_before_exec(&mut command, namespace);
        }
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => missing(self.program),
            _ => DriverError::io(&operation, source),
        })?;
        let work = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A tool that ends early says why on its standard error.
                let _ = stdin.write_all(self.input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(DEADLINE, work)
            .await
            .map_err(|_| DriverError::Timeout { operation: operation.clone(), after: DEADLINE })?
            .map_err(|source| DriverError::io(&operation, source))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if message.contains("No space left on device") {
            return Err(DriverError::NoSpace { what: operation });
        }
        Err(DriverError::Refused { operation, message })
    }
}

/// Where these tools are, which the path of a user who became root often lacks.
fn path_of_administrators(path: Option<OsString>) -> OsString {
    let mut path = path.unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/local/sbin:/usr/sbin:/sbin");
    path
}

#[allow(unsafe_code, reason = "a child enters its namespace between fork and exec")]
fn enter_before_exec(command: &mut tokio::process::Command, namespace: Arc<OwnedFd>) {
    let enter = move || {
        // The descriptor is owned by the closure, so it is open for as long as this can run.
        // SAFETY: see above; borrowing does not close it.
        let fd = unsafe { BorrowedFd::borrow_raw(namespace.as_raw_fd()) };
        move_into_link_name_space(fd, Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
    };
    // SAFETY: the closure makes one system call and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

fn missing(program: &str) -> DriverError {
    let package = match program {
        "ip" => "iproute2",
        "nft" => "nftables",
        "mke2fs" => "e2fsprogs",
        other => other,
    };
    DriverError::Missing {
        program: program.to_owned(),
        remedy: format!("install it, on Debian with `apt-get install {package}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tools_are_found_where_users_do_not_look() {
        assert_eq!(path_of_administrators(None), "/usr/local/sbin:/usr/sbin:/sbin");
        let path = path_of_administrators(Some("/bin".into()));
        assert_eq!(path, "/bin:/usr/local/sbin:/usr/sbin:/sbin");
        let error = Tool::new("holdfast-none", ["x"]).run().await.unwrap_err();
        assert!(matches!(error, DriverError::Missing { .. }), "{error}");
    }
}
