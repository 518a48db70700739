//! How Chromium is started, and what has to be put in order before.

use std::{fs, io, path::Path};

use serde_json::Value;

use crate::{
    browser::{self, START_PAGE},
    guest::{Guest, remove_if_there},
    spawn::Launch,
};

/// Debian's own program behind the script `/usr/bin/chromium`.
const PROGRAM: &str = "/usr/lib/chromium/chromium";

const FLAGS: &[&str] = &[
    "--no-first-run",
    "--no-default-browser-check",
    "--password-store=basic",
    "--hide-crash-restore-bubble",
    // There is no graphics card; trying one costs seconds.
    "--disable-gpu",
    "--ozone-platform=x11",
    // An idle guest is quiet, and talks to nobody but the pages that a person opens.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--disable-breakpad",
    "--no-pings",
    // The address bar's list as a page keeps two renderers busy on a guest without a graphics card;
    // a spare renderer and models on the device cost memory in every guest.
    "--disable-features=Translate,MediaRouter,OptimizationHints,GlobalMediaControls,\
     WebUIOmniboxPopup,WebUIOmniboxFullPopup,WebUIOmniboxAimPopup,SpareRendererForSitePerProcess,\
     OptimizationGuideModelExecution,OptimizationGuideOnDeviceModel,Lens,LensOverlay,LensStandalone",
    "--disable-field-trial-config",
    // Seconds. A child that has not heard from the browser within the 15 s of the default ends itself;
    // on a busy host that is the network service, and every page that was on its way is lost with it.
    "--ipc-connection-timeout=300",
    // Set by Debian's script.
    "--show-component-extension-options",
    "--no-service-autorun",
];

pub(super) fn launch(guest: &Guest) -> Launch {
    let mut command = vec![PROGRAM.to_owned()];
    command.extend(FLAGS.iter().map(|flag| (*flag).to_owned()));
    command.push(format!("--lang={}", guest.settings().locale));
    command.push(format!("--remote-debugging-port={}", guest.devtools));
    command.push(format!("--user-data-dir={}", guest.profile().display()));
    if matches!(browser::kept_tabs(guest), Ok(Some(_))) {
        command.push("--restore-last-session".to_owned());
    } else {
        command.push(browser::first_page(guest).unwrap_or_else(|| START_PAGE.to_owned()));
    }
    let env = vec![("CHROME_WRAPPER".to_owned(), "/usr/bin/chromium".to_owned())];
    Launch { command, env, ..Launch::default() }
}

/// Removes the locks of a Chromium that was killed (also on a host of another name, where it would
/// refuse to start), and has it take the last end for an orderly one.
pub(super) fn prepare(guest: &Guest) -> io::Result<()> {
    let profile = guest.profile();
    for name in ["SingletonLock", "SingletonCookie", "SingletonSocket"] {
        remove_if_there(&profile.join(name))?;
    }
    // Broken preferences are Chromium's own to repair.
    let _ = end_was_orderly(&profile.join("Default/Preferences"));
    Ok(())
}

fn end_was_orderly(path: &Path) -> io::Result<()> {
    let mut preferences: Value = serde_json::from_slice(&fs::read(path)?)?;
    let Some(profile) = preferences.get_mut("profile").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    profile.insert("exit_type".to_owned(), Value::from("Normal"));
    profile.insert("exited_cleanly".to_owned(), Value::from(true));
    // Written in place: owner and mode stay the user's.
    fs::write(path, serde_json::to_vec(&preferences)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_chromium_leaves_nothing_in_the_way() {
        let home = tempfile::tempdir().expect("a directory");
        let guest = Guest { home: home.path().into(), ..Guest::image() };
        let default = guest.profile().join("Default");
        fs::create_dir_all(&default).expect("a profile");
        let lock = guest.profile().join("SingletonLock");
        std::os::unix::fs::symlink("other-host-4711", &lock).expect("a stale lock");
        let preferences = default.join("Preferences");
        fs::write(&preferences, r#"{"profile":{"exit_type":"Crashed","name":"x"},"a":1}"#)
            .expect("preferences");
        prepare(&guest).expect("prepared");
        assert!(lock.symlink_metadata().is_err(), "the lock is still there");
        let now: Value =
            serde_json::from_slice(&fs::read(&preferences).expect("there")).expect("JSON");
        assert_eq!(now["profile"]["exit_type"], "Normal");
        assert_eq!((&now["profile"]["name"], &now["a"]), (&Value::from("x"), &Value::from(1)));
    }

    #[test]
    fn a_first_start_needs_no_profile() {
        let home = tempfile::tempdir().expect("a directory");
        let guest = Guest { home: home.path().into(), ..Guest::image() };
        prepare(&guest).expect("prepared");
        assert!(launch(&guest).command.iter().all(|flag| flag != "--no-sandbox"));
    }
}
