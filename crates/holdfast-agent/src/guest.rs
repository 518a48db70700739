//! Where things are in a guest, and as whom they run.
//!
//! What the agent expects of the image:
//!
//! | path | what |
//! |---|---|
//! | `/usr/lib/holdfast/agent` | this program; `/init` of the initramfs is the same file |
//! | `/usr/lib/holdfast/bin/{xdg-open,x-www-browser,sensible-browser,www-browser}` | links to `../agent`, first in PATH |
//! | `/usr/lib/holdfast/open-url` | link to `agent` |
//! | `/etc/holdfast/openbox.xml` | Openbox' rc.xml; Openbox' own default when absent |
//! | `/etc/holdfast/Xresources` | read by xterm through `XENVIRONMENT`; may be absent |
//! | `/etc/chromium/policies/managed/*.json` | Chromium's policies |
//! | `/usr/lib/chromium/chromium`, `/usr/bin/{Xvnc,openbox,xterm,bash}` | the desktop's programs |
//! | user `user`, uid and gid 1000, home `/home/user` | whom the desktop belongs to |
//!
//! In the initramfs: `/init`, `/modules/order` (one file name a line) and `/modules/*.ko`.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use holdfast_agent_api::{AGENT_PORT, ScreenSize};
use serde::{Deserialize, Serialize};

/// Environment variable with the path of a JSON file of a [`Guest`], instead of the image's.
pub const GUEST_VARIABLE: &str = "HOLDFAST_GUEST";

/// Paths, ports and the user of a guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Guest {
    /// Sockets and state that last until the guest is switched off.
    pub run: PathBuf,
    /// Root of the files that a claim changes (`etc/hostname` and others). Only `/` is a whole
    /// guest: elsewhere clock, entropy, host name and power are left alone.
    pub root: PathBuf,
    /// This program.
    pub exe: PathBuf,
    /// Where `serve` listens.
    pub listen: SocketAddr,
    /// Whom the desktop belongs to; `None`: whoever runs this program.
    pub user: Option<User>,
    /// The user's home.
    pub home: PathBuf,
    /// Port of Chromium's DevTools on the loopback.
    pub devtools: u16,
    /// X display, such as `:1`.
    pub display: String,
}

/// A user by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Guest {
    /// The guest of an image.
    pub fn image() -> Self {
        Self {
            run: "/run/holdfast".into(),
            root: "/".into(),
            exe: "/usr/lib/holdfast/agent".into(),
            listen: SocketAddr::from(([0, 0, 0, 0], AGENT_PORT)),
            user: Some(User { uid: 1000, gid: 1000 }),
            home: "/home/user".into(),
            devtools: 9222,
            display: ":1".to_owned(),
        }
    }

    /// The guest that [`GUEST_VARIABLE`] names, or else that of an image.
    ///
    /// # Errors
    /// The file cannot be read or is not a guest.
    pub fn from_env() -> io::Result<Self> {
        match std::env::var_os(GUEST_VARIABLE) {
            Some(path) => serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other),
            None => Ok(Self::image()),
        }
    }

    /// Whether this is a whole guest, whose clock, entropy, name and power are the agent's to set.
    pub fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Socket of the supervisor.
    pub fn supervise_socket(&self) -> PathBuf {
        self.run.join("supervise.sock")
    }

    /// Socket of terminals and sign-in runs.
    pub fn hold_socket(&self) -> PathBuf {
        self.run.join("hold.sock")
    }

    /// Socket that takes links to open; anybody in the guest may write to it.
    pub fn open_socket(&self) -> PathBuf {
        self.run.join("open.sock")
    }

    /// Folder of the browser shims, made by `hold`.
    pub fn shims(&self) -> PathBuf {
        self.run.join("bin")
    }

    /// Mark of the processes of `what` in this guest; see [`crate::census`].
    pub fn mark(&self, what: &str) -> String {
        format!("{} {what}", self.run.display())
    }

    /// Chromium's profile. DevTools are refused for Chromium's default folder.
    pub fn profile(&self) -> PathBuf {
        self.home.join(".config/holdfast-chromium")
    }

    /// What a session wants of the desktop; see [`Settings`].
    pub fn settings(&self) -> Settings {
        fs::read(self.settings_file())
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_else(Settings::of_kernel)
    }

    /// Keeps `settings` for every service that starts from now on.
    pub fn write_settings(&self, settings: &Settings) -> io::Result<()> {
        write_atomically(&self.settings_file(), &serde_json::to_vec(settings)?, 0o600)
    }

    fn settings_file(&self) -> PathBuf {
        self.run.join("settings.json")
    }

    /// Environment of everything that runs as the desktop's user.
    pub fn environment(&self) -> Vec<(String, String)> {
        let locale = self.settings().locale;
        let path = |p: &Path| p.to_string_lossy().into_owned();
        let shims = path(&self.shims());
        let mut environment = vec![
            ("HOME".to_owned(), path(&self.home)),
            ("SHELL".to_owned(), "/bin/bash".to_owned()),
            (
                "PATH".to_owned(),
                format!(
                    "{shims}:{}:/usr/local/bin:/usr/bin:/bin",
                    path(&self.home.join(".local/bin"))
                ),
            ),
            ("DISPLAY".to_owned(), self.display.clone()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ("LANGUAGE".to_owned(), format!("{}:en", locale.replace('-', "_"))),
            ("BROWSER".to_owned(), format!("{shims}/xdg-open")),
            ("HOLDFAST_OPEN".to_owned(), path(&self.open_socket())),
        ];
        if let Some(user) = self.user {
            environment.extend([
                ("USER".to_owned(), "user".to_owned()),
                ("LOGNAME".to_owned(), "user".to_owned()),
                ("XDG_RUNTIME_DIR".to_owned(), format!("/run/user/{}", user.uid)),
            ]);
        }
        environment
    }
}

/// What a session wants of the desktop. Kept in the run directory, read at every start of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Language, such as `en-US`.
    pub locale: String,
    /// Size of the desktop.
    pub screen: ScreenSize,
}

impl Settings {
    /// Before a claim: `holdfast.screen=WIDTHxHEIGHT` of the kernel's command line, or 1280x800.
    pub fn of_kernel() -> Self {
        let screen = kernel_option("holdfast.screen").and_then(|value| {
            let (width, height) = value.split_once('x')?;
            Some(ScreenSize { width: width.parse().ok()?, height: height.parse().ok()? })
        });
        Self {
            locale: "en-US".to_owned(),
            screen: screen.unwrap_or(ScreenSize { width: 1280, height: 800 }),
        }
    }
}

/// Value of `name=value` on the kernel's command line.
pub fn kernel_option(name: &str) -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// Removes a file that need not be there.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Replaces a file in one step, so no reader ever sees half of it.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    fs::rename(&temporary, path)
}
