//! `xdg-open` and the like: hands links to the agent, which opens them in the guest's browser.
//!
//! A link carries the token of the sign-in run that its program belongs to, if any, so that the link
//! of another program is never taken for that run's.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::ExitCode,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Environment variable with the token of a run. Inherited by what the run starts.
pub const TOKEN: &str = "HOLDFAST_RUN_TOKEN";
/// Environment variable with the socket that takes links.
pub const SOCKET: &str = "HOLDFAST_OPEN";
/// Longest request, in bytes.
pub const REQUEST_LIMIT: usize = 64 << 10;

/// A link to open, sent as one JSON document; the answer is empty, or says why not.
#[derive(Debug, Serialize, Deserialize)]
pub struct OpenLink {
    /// The link as it was given.
    pub url: String,
    /// Token of the run.
    #[serde(default)]
    pub token: Option<String>,
}

/// Opens every link among `arguments`.
pub fn main(arguments: Vec<String>) -> ExitCode {
    let socket = std::env::var_os(SOCKET).unwrap_or_else(|| "/run/holdfast/open.sock".into());
    let token = std::env::var(TOKEN).ok();
    let urls: Vec<_> = arguments.into_iter().filter(|word| !word.starts_with('-')).collect();
    if urls.is_empty() {
        eprintln!("usage: open-url URL...");
        return ExitCode::from(1);
    }
    for url in urls {
        match send(&socket, &OpenLink { url, token: token.clone() }) {
            Ok(answer) if answer.is_empty() => {}
            Ok(answer) => {
                eprintln!("{answer}");
                return ExitCode::from(4);
            }
            Err(error) => {
                eprintln!("the browser cannot be reached: {error}");
                return ExitCode::from(3);
            }
        }
    }
    ExitCode::SUCCESS
}

fn send(socket: &std::ffi::OsStr, link: &OpenLink) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&serde_json::to_vec(link)?)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
