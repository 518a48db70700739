//! What Holdfast itself puts into the guest, over Debian's packages: the files of `guest/` in this
//! crate, links, and the user.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
};

use serde::Serialize;

use crate::{Result, digest, error::IoContext as _, recipe::Guest};

/// Where the agent is in the guest: directory, relative to the root, and name.
pub(crate) const AGENT: (&str, &str) = ("usr/lib/holdfast", "agent");

/// Files with their content, relative to the root of the guest.
macro_rules! files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../guest/", $path)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "etc/chromium/policies/managed/holdfast.json",
    "etc/fonts/local.conf",
    "etc/holdfast/Xresources",
    "etc/holdfast/menu.xml",
    "etc/holdfast/openbox.xml",
    "etc/holdfast/rehearse",
    "etc/profile.d/holdfast.sh",
    "etc/skel/.bashrc",
    "etc/skel/.inputrc",
    "usr/share/holdfast/start.html",
    "usr/share/themes/Holdfast/openbox-3/themerc",
];

/// The agent opens links, whatever name a program calls its opener by.
const OPENERS: [&str; 4] = ["xdg-open", "x-www-browser", "sensible-browser", "www-browser"];

/// Files of `etc` that each guest has of its own since its claim, until it is switched off: links to memory. To
/// write to a file of the image is to copy it first, for which the first picture would wait.
const CLAIMED: [&str; 3] = ["hostname", "hosts", "machine-id"];

#[derive(Serialize)]
struct Key<'a> {
    files: Vec<(&'a str, String)>,
    openers: [&'a str; 4],
    claimed: [&'a str; 3],
    guest: &'a Guest,
    resolvers: &'a [IpAddr],
}

/// Key of all that this module lays down.
pub(crate) fn key(guest: &Guest, resolvers: &[IpAddr]) -> String {
    let files = FILES.iter().map(|(path, content)| (*path, digest::of_bytes(content))).collect();
    digest::of_value(&Key { files, openers: OPENERS, claimed: CLAIMED, guest, resolvers })
}

/// Lays configuration, links and user over the unpacked layers in `root`.
pub(crate) fn apply(root: &Path, guest: &Guest, resolvers: &[IpAddr]) -> Result<()> {
    let place = Place { root };
    for (path, content) in FILES {
        place.file(path, content, 0o644)?;
    }
    place.link("usr/lib/holdfast/open-url", "agent")?;
    for opener in OPENERS {
        place.link(&format!("usr/lib/holdfast/bin/{opener}"), "../agent")?;
        place.link(&format!("usr/local/bin/{opener}"), "../../lib/holdfast/agent")?;
    }
    let servers = resolvers
        .iter()
        .fold(String::new(), |text, server| text + &format!("nameserver {server}\n"));
    place.file("etc/resolv.conf", servers.as_bytes(), 0o644)?;
    for name in CLAIMED {
        place.link(&format!("etc/{name}"), &format!("/run/holdfast/{name}"))?;
    }
    place.link("var/lib/dbus/machine-id", "/etc/machine-id")?;
    place.file("etc/fstab", b"# The initramfs mounts everything.\n", 0o644)?;
    place.user(guest)
}

/// Links the tools' commands into the path.
pub(crate) fn link_tools<'a>(
    root: &Path,
    links: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<()> {
    let place = Place { root };
    for (command, program) in links {
        place.link(&format!("usr/local/bin/{command}"), &format!("/opt/tools/{program}"))?;
    }
    Ok(())
}

struct Place<'a> {
    root: &'a Path,
}

impl Place<'_> {
    /// Makes way for `path`, also where a link is, which must not be followed out of the root.
    fn clear(&self, path: &str) -> Result<std::path::PathBuf> {
        let path = self.root.join(path);
        let what = || format!("writing {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).doing(what)?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(what),
            _ => Ok(path),
        }
    }

    fn file(&self, path: &str, content: &[u8], mode: u32) -> Result<()> {
        let path = self.clear(path)?;
        let what = || format!("writing {}", path.display());
        fs::write(&path, content).doing(what)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).doing(what)
    }

    fn link(&self, path: &str, target: &str) -> Result<()> {
        let path = self.clear(path)?;
        symlink(target, &path).doing(|| format!("linking {}", path.display()))
    }

    /// Adds a line to a file unless it has one that starts alike.
    fn line(&self, path: &str, start: &str, rest: &str) -> Result<()> {
        let path = self.root.join(path);
        let what = || format!("writing {}", path.display());
        let mut text = fs::read_to_string(&path).doing(what)?;
        if !text.lines().any(|line| line.starts_with(start)) {
            text.extend([start, rest, "\n"]);
            fs::write(&path, text).doing(what)?;
        }
        Ok(())
    }

    /// The desktop's user: no password, no way to become root.
    fn user(&self, guest: &Guest) -> Result<()> {
        let Guest { user, uid, .. } = guest;
        self.line("etc/group", &format!("{user}:"), &format!("x:{uid}:"))?;
        self.line("etc/gshadow", &format!("{user}:"), "!::")?;
        self.line(
            "etc/passwd",
            &format!("{user}:"),
            &format!("x:{uid}:{uid}::/home/{user}:/bin/bash"),
        )?;
        self.line("etc/shadow", &format!("{user}:"), "*:19000:0:99999:7:::")?;
        let home = self.root.join(format!("home/{user}"));
        copy_skeleton(&self.root.join("etc/skel"), &home, *uid)?;
        for directory in ["Downloads", ".config", ".local/share", ".local/bin", ".cache"] {
            let mut path = home.clone();
            for part in directory.split('/') {
                path.push(part);
                make_directory(&path, *uid)?;
            }
        }
        Ok(())
    }
}

fn make_directory(path: &Path, uid: u32) -> Result<()> {
    let what = || format!("making {}", path.display());
    fs::create_dir_all(path).doing(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).doing(what)?;
    chown(path, Some(uid), Some(uid)).doing(what)
}

fn copy_skeleton(from: &Path, to: &Path, uid: u32) -> Result<()> {
    make_directory(to, uid)?;
    let what = || format!("copying {}", from.display());
    for entry in fs::read_dir(from).doing(what)? {
        let entry = entry.doing(what)?;
        let target = to.join(entry.file_name());
        if entry.file_type().doing(what)?.is_dir() {
            copy_skeleton(&entry.path(), &target, uid)?;
        } else {
            fs::copy(entry.path(), &target).doing(what)?;
            chown(&target, Some(uid), Some(uid)).doing(what)?;
        }
    }
    Ok(())
}
