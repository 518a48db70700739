//! The table of the desktop's services.

use std::{io, net::Ipv4Addr, path::Path};

use futures::future::{BoxFuture, FutureExt};
use holdfast_agent_api::VNC_PORT;
use tokio::net::TcpStream;

use super::chromium;
use crate::{
    browser,
    guest::{Guest, remove_if_there},
    spawn::Launch,
    x11,
};

/// A service.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Its name, unique.
    pub name: &'static str,
    /// Services that have to run before it is started.
    pub after: &'static [&'static str],
    /// Puts in order what an earlier process left behind. Called before every start.
    pub prepare: fn(&Guest) -> io::Result<()>,
    /// What to start.
    pub launch: fn(&Guest) -> Launch,
    /// Whether it does its work. Asked until it does, then no more.
    pub ready: fn(Guest) -> BoxFuture<'static, bool>,
}

/// The services of the desktop.
pub fn desktop() -> Vec<Spec> {
    vec![
        Spec {
            name: "xvnc",
            after: &[],
            prepare: unlock_display,
            launch: xvnc,
            ready: has_display,
        },
        Spec {
            name: "openbox",
            after: &["xvnc"],
            prepare: |_| Ok(()),
            launch: openbox,
            ready: |guest| on_display(guest, x11::Display::has_window_manager),
        },
        Spec {
            name: "chromium",
            after: &["openbox"],
            prepare: chromium::prepare,
            launch: chromium::launch,
            ready: |guest| async move { browser::is_ready(&guest).await }.boxed(),
        },
        Spec {
            name: "terminal",
            after: &["openbox"],
            prepare: |_| Ok(()),
            launch: xterm,
            ready: |guest| on_display(guest, x11::Display::shows_terminal),
        },
    ]
}

fn words(command: &str) -> Vec<String> {
    command.split_ascii_whitespace().map(str::to_owned).collect()
}

fn xvnc(guest: &Guest) -> Launch {
    let screen = guest.settings().screen;
    // Everybody comes from the gateway's one address: whoever leaves in the middle of a handshake, as on a
    // bad line, must not keep the others out.
    let command = words(&format!(
        "Xvnc {} -geometry {}x{} -depth 24 -rfbport {VNC_PORT} -interface 0.0.0.0 \
         -SecurityTypes None -AlwaysShared -AcceptSetDesktopSize -AcceptCutText -SendCutText \
         -UseBlacklist=0 -IdleTimeout 0 -MaxIdleTime 0 -MaxConnectionTime 0 \
         -MaxDisconnectionTime 0 -nolisten tcp -desktop holdfast",
        guest.display, screen.width, screen.height
    ));
    Launch { command, ..Launch::default() }
}

/// A server that was killed leaves its lock behind, and its successor takes it for a living one.
fn unlock_display(guest: &Guest) -> io::Result<()> {
    let number = guest.display.trim_start_matches(':');
    for path in [format!("/tmp/.X{number}-lock"), format!("/tmp/.X11-unix/X{number}")] {
        remove_if_there(Path::new(&path))?;
    }
    Ok(())
}

fn has_display(guest: Guest) -> BoxFuture<'static, bool> {
    async move {
        TcpStream::connect((Ipv4Addr::LOCALHOST, VNC_PORT)).await.is_ok()
            && on_display(guest, |display| display.size().map(|_| true)).await
    }
    .boxed()
}

fn on_display(
    guest: Guest,
    question: fn(&x11::Display) -> Result<bool, x11::Error>,
) -> BoxFuture<'static, bool> {
    let ask = move || x11::Display::open(&guest.display).and_then(|display| question(&display));
    tokio::task::spawn_blocking(ask).map(|answer| matches!(answer, Ok(Ok(true)))).boxed()
}

fn openbox(_: &Guest) -> Launch {
    let mut command = words("openbox --sm-disable");
    let configuration = "/etc/holdfast/openbox.xml";
    if Path::new(configuration).exists() {
        command.extend(["--config-file".to_owned(), configuration.to_owned()]);
    }
    Launch { command, ..Launch::default() }
}

fn xterm(guest: &Guest) -> Launch {
    let mut env = vec![("TERM".to_owned(), "xterm-256color".to_owned())];
    let resources = "/etc/holdfast/Xresources";
    if Path::new(resources).exists() {
        env.push(("XENVIRONMENT".to_owned(), resources.to_owned()));
    }
    let mut command = words("xterm -name holdfast-terminal -title Terminal -e");
    command.extend([guest.exe.display().to_string(), "shell".to_owned()]);
    Launch { command, env, ..Launch::default() }
}
