//! The ids by which Chromium knows its installation. Copies of a guest have them in common; each gets
//! others of the same shape: in the files of the profile, and in the memory of a browser that goes on.
//!
//! None of them leaves a guest whose user has not signed in to the browser itself. It must never touch
//! what a person has made: history, cookies, settings.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::guest::{Guest, remove_if_there};

/// Parts of the names of settings that hold such an id.
const NAMES: &[&str] = &["guid", "client_id", "device_id", "salt", "seed", "randomization_source"];
/// Settings that are removed, and made anew when they are needed: among them are ids that are numbers.
const DRAWN_ANEW: &[&str] = &[
    "gcm",
    "invalidation",
    "instance_id",
    "uninstall_metrics",
    "user_experience_metrics",
    "variations",
];
/// Checksums and descriptions of what every installation has alike.
const ALIKE: &[&str] = &["protection", "extensions"];
/// Shorter values are no ids.
const SHORTEST: usize = 8;
/// Memory is read in pieces of this size, which overlap by the longest id.
const PIECE: usize = 1 << 20;

fn files(guest: &Guest) -> Vec<PathBuf> {
    let names = ["Local State", "Default/Preferences", "Default/Secure Preferences"];
    names.iter().map(|name| guest.profile().join(name)).collect()
}

/// How long ago a browser last wrote its settings; `None` while some were never written. It writes what
/// changed within ten seconds (`base/files/important_file_writer.cc`).
pub fn written_since(guest: &Guest) -> Option<Duration> {
    let ages = files(guest)
        .into_iter()
        .map(|file| fs::metadata(file).ok()?.modified().ok()?.elapsed().ok());
    // A file that is not made by every version does not count.
    let ages: Vec<_> = ages.collect();
    (ages[0].is_some() && ages[1].is_some()).then(|| ages.into_iter().flatten().min())?
}

/// Ids that the files of the profile hold.
pub fn ids(guest: &Guest) -> Vec<String> {
    let mut found = Vec::new();
    for file in files(guest) {
        // A file that is not there or is broken holds no id that would be used.
        let Ok(bytes) = fs::read(file) else { continue };
        if let Ok(value) = serde_json::from_slice(&bytes) {
            collect(&value, &mut found);
        }
    }
    found.sort();
    found.dedup();
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::String(id)
                if id.len() >= SHORTEST && NAMES.iter().any(|part| name.contains(part)) =>
            {
                found.push(id.clone());
            }
            _ if !ALIKE.contains(&name.as_str()) => collect(value, found),
            _ => {}
        }
    }
}

/// Another id of the same length and kind: hex and UUIDs stay so, any other text becomes letters and digits.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn another(id: &str) -> io::Result<String> {
    let mut random = vec![0; id.len()];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let hex = id.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let uuid = hex && id.len() == 36;
    let upper = id.chars().any(|c| c.is_ascii_uppercase());
    let digits: &[u8] = match (hex, upper) {
        (true, true) => b"0123456789ABCDEF",
        (true, false) => b"0123456789abcdef",
        (false, _) => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
    };
    let shape = |(at, (old, byte)): (usize, (char, &u8))| match old {
        // Version and variant (RFC 9562, sections 4.1 and 4.2).
        _ if uuid && (at == 14 || at == 19) => old,
        old if old.is_ascii_alphanumeric() => char::from(digits[usize::from(*byte) % digits.len()]),
        other => other,
    };
    Ok(id.chars().zip(&random).enumerate().map(shape).collect())
}

/// Gives the files of a profile other ids. The browser must not run, or has got the same.
///
/// # Errors
/// A file cannot be written.
pub fn replace_in_files(guest: &Guest, replaced: &[(String, String)]) -> io::Result<()> {
    for file in files(guest) {
        let Ok(mut text) = fs::read_to_string(&file) else { continue };
        for (old, new) in replaced {
            text = text.replace(old.as_str(), new);
        }
        // Written in place: owner and mode stay the user's.
        fs::write(&file, text)?;
    }
    forget_crash_reports(guest)
}

/// Gives the profile of a browser that does not run other ids throughout.
///
/// # Errors
/// A file cannot be written, or the kernel gives no random bytes.
pub fn renew(guest: &Guest) -> io::Result<()> {
    let mut replaced = Vec::new();
    for id in ids(guest) {
        let new = another(&id)?;
        replaced.push((id, new));
    }
    replace_in_files(guest, &replaced)?;
    for file in files(guest) {
        let Ok(bytes) = fs::read(&file) else { continue };
        let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let Some(fields) = value.as_object_mut() else { continue };
        fields.retain(|name, _| !DRAWN_ANEW.iter().any(|key| name.starts_with(key)));
        fs::write(&file, serde_json::to_vec(&value)?)?;
    }
    Ok(())
}

/// The handler of crashes keeps an id of its own outside of the profile, and makes another one.
///
/// # Errors
/// The file that holds it cannot be removed.
pub fn forget_crash_reports(guest: &Guest) -> io::Result<()> {
    remove_if_there(&guest.home.join(".config/chromium/Crash Reports/settings.dat"))
}

/// Where a process has an id in its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    at: u64,
    /// Which of the ids.
    id: usize,
}

/// Finds ids in the memory that a process writes to and shares with no file. It must stand still.
///
/// # Errors
/// The process is not there, or may not be looked into.
pub fn find_in_memory(pid: u32, ids: &[String]) -> io::Result<Vec<Place>> {
    let longest = ids.iter().map(String::len).max().unwrap_or_default();
    if longest == 0 {
        return Ok(Vec::new());
    }
    let any = ids.iter().map(|id| regex::escape(id)).collect::<Vec<_>>().join("|");
    let any = regex::bytes::Regex::new(&any).map_err(io::Error::other)?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut found = Vec::new();
    let mut piece = vec![0; PIECE + longest];
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some(rights)) = (fields.next(), fields.next()) else { continue };
        let inode = fields.nth(2);
        if !rights.starts_with("rw") || !rights.ends_with('p') || inode != Some("0") {
            continue;
        }
        let Some((start, end)) = range.split_once('-') else { continue };
        let address = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
        let (mut at, end) = (address(start)?, address(end)?);
        while at < end {
            let wanted = piece.len().min(usize::try_from(end - at).map_err(io::Error::other)?);
            // What is not backed by memory, such as a guard page, holds no id.
            let read = memory.read_at(&mut piece[..wanted], at).unwrap_or_default();
            found.extend(any.find_iter(&piece[..read]).filter_map(|seen| {
                let id = ids.iter().position(|id| id.as_bytes() == seen.as_bytes())?;
                Some(Place { at: at + seen.start() as u64, id })
            }));
            at += PIECE as u64;
        }
    }
    // Pieces overlap.
    found.sort_by_key(|place| (place.at, place.id));
    found.dedup();
    Ok(found)
}

/// Writes other ids to where [`find_in_memory`] found the old ones. The process must still stand still.
///
/// # Errors
/// Something else is in a place now; what came before it was written.
pub fn replace_in_memory(
    pid: u32,
    places: &[Place],
    replaced: &[(String, String)],
) -> io::Result<()> {
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    for place in places {
        let Some((old, new)) = replaced.get(place.id) else { continue };
        let mut there = vec![0; old.len()];
        memory.read_exact_at(&mut there, place.at)?;
        if there != old.as_bytes() {
            return Err(io::Error::other("an id is no longer where it was"));
        }
        memory.write_all_at(new.as_bytes(), place.at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::Script;

    fn guest(home: &std::path::Path) -> Guest {
        let guest = Guest { home: home.into(), ..Guest::image() };
        fs::create_dir_all(guest.profile().join("Default")).expect("a profile");
        guest
    }

    #[test]
    fn another_id_has_the_same_shape() {
        for id in [
            "609bc4e0-579e-4ad8-8ca3-ac0e1d0f9da5",
            "9364C4441F42B6DC47C6876954B3DFF5",
            "H7byrHyfHfk=",
        ] {
            let new = another(id).expect("random");
            assert_ne!(new, id);
            assert_eq!(new.len(), id.len());
            assert_eq!(new.ends_with('='), id.ends_with('='));
            assert_eq!(new.find('-'), id.find('-'));
            // In base64, either case may be missing by chance.
            let is_hex = |c: char| c == '-' || c.is_ascii_hexdigit();
            if id.chars().all(is_hex) {
                assert!(new.chars().all(is_hex), "{new}");
                assert_eq!(
                    new,
                    if id.contains('-') { new.to_lowercase() } else { new.to_uppercase() }
                );
            }
        }
        let uuid = another("609bc4e0-579e-4ad8-8ca3-ac0e1d0f9da5").expect("random");
        assert_eq!(uuid::Uuid::parse_str(&uuid).expect("a UUID").get_version_num(), 4);
    }

    #[test]
    fn files_get_other_ids_and_keep_the_rest() {
        let home = tempfile::tempdir().expect("a directory");
        let guest = guest(home.path());
        let preferences = guest.profile().join("Default/Preferences");
        let text = r#"{"enterprise_profile_guid":"609bc4e0-579e-4ad8-8ca3-ac0e1d0f9da5",
            "gcm":{"x":1},"homepage":"https://a.example/","protection":{"salt":"aaaaaaaaaaaa"}}"#;
        fs::write(&preferences, text).expect("preferences");
        let state = guest.profile().join("Local State");
        let text = r#"{"user_experience_metrics":{"low_entropy_source3":929},"a":2}"#;
        fs::write(&state, text).expect("a state");
        let reports = home.path().join(".config/chromium/Crash Reports");
        fs::create_dir_all(&reports).expect("a directory");
        fs::write(reports.join("settings.dat"), "an id").expect("written");
        renew(&guest).expect("renewed");
        let read = |path| -> Value {
            serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
        };
        let new = read(&preferences);
        assert_ne!(new["enterprise_profile_guid"], "609bc4e0-579e-4ad8-8ca3-ac0e1d0f9da5");
        assert_eq!(new["homepage"], "https://a.example/");
        assert_eq!(new["protection"]["salt"], "aaaaaaaaaaaa");
        assert_eq!(new["gcm"], Value::Null);
        assert_eq!(read(&state), serde_json::json!({ "a": 2 }));
        assert!(!reports.join("settings.dat").exists());
        renew(&guest).expect("again");
    }

    #[test]
    fn a_process_has_another_id_in_its_memory() {
        // Made at run time, so that the text is on the heap alone.
        let script = "import base64\n\
            print('ready', flush=True)\n\
            value = base64.b64decode(input()).decode()\n\
            print('made', flush=True)\n\
            input()\n\
            print(value, flush=True)";
        let mut script = Script::start(script);
        assert_eq!(script.line(), "ready");
        script.tell("aW5zdGFsbGF0aW9uLTQ3MTEtMDgxNQ==");
        assert_eq!(script.line(), "made");
        let ids = ["nowhere-to-be-found".to_owned(), "installation-4711-0815".to_owned()];
        let places = find_in_memory(script.pid(), &ids).expect("readable");
        assert!(!places.is_empty() && places.iter().all(|place| place.id == 1), "{places:?}");
        let replaced = ids.map(|id| (id.clone(), id.replace("4711", "1234")));
        replace_in_memory(script.pid(), &places, &replaced).expect("replaced");
        let again = replace_in_memory(script.pid(), &places, &replaced);
        again.expect_err("the old one is no longer there");
        script.tell("");
        assert_eq!(script.line(), "installation-1234-0815");
        script.end();
    }
}
