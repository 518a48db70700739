//! `holdfast image rm` and `prune`: what is not needed goes. An image is needed by machines, also those that no
//! server looks after at the moment, and by sessions that were put away.

use std::path::{Path, PathBuf};

use holdfast_host::{driver::DriverError, snapshot, statedir::StateDir, warm::WarmLibrary};
use holdfast_image::Library;
use serde_json::json;

use crate::{cli::Global, connect, output};

/// A digest, and who needs that image.
type Users = Vec<(String, String)>;

pub async fn rm(global: &Global, cache: &Path, image: String) -> anyhow::Result<()> {
    let (users, library) = (users(global).await?, Library::new(cache));
    let removed = tokio::task::spawn_blocking(move || {
        library.remove(&image, false, |digest| user_of(&users, digest))
    })
    .await??;
    eprintln!("{} is removed.", removed.digest);
    Ok(())
}

pub async fn prune(global: &Global, cache: PathBuf, dry_run: bool) -> anyhow::Result<()> {
    let users = users(global).await?;
    let work = move || clear(&cache, &users, dry_run);
    let (removed, bytes) = tokio::task::spawn_blocking(work).await??;
    if global.json {
        return output::json(&json!({ "removed": removed, "bytes": bytes, "dry_run": dry_run }));
    }
    for digest in &removed {
        println!("{digest}");
    }
    let count =
        if removed.len() == 1 { "1 image".to_owned() } else { format!("{} images", removed.len()) };
    let size = output::bytes(bytes);
    let said = match (bytes, dry_run) {
        (0, _) => "Nothing is there that nobody needs.".to_owned(),
        (_, true) => format!("{count} would be removed, and layers of theirs: at least {size}."),
        (_, false) => format!("{count} removed, and layers that no other is made from: {size}."),
    };
    eprintln!("{said}");
    Ok(())
}

/// Removes images that are neither current nor used, with what was made of and for them.
fn clear(cache: &Path, users: &Users, dry_run: bool) -> anyhow::Result<(Vec<String>, u64)> {
    let library = Library::new(cache);
    let current = library.current();
    let (mut removed, mut bytes) = (Vec::new(), 0);
    // One whose manifest cannot be read is told by `image ls`, and left to `image rm`.
    for manifest in library.list()?.into_iter().flatten() {
        let digest = &manifest.digest;
        if current.as_ref() == Some(digest) || user_of(users, digest).is_some() {
            continue;
        }
        if !dry_run {
            library.remove(digest, false, |digest| user_of(users, digest))?;
        }
        bytes += manifest.disk_bytes();
        removed.push(digest.clone());
    }
    let warm = WarmLibrary::new(cache);
    for image in warm.list()?.into_iter().filter(|warm| removed.contains(&warm.fits.image)) {
        if !dry_run {
            warm.remove(&image.path)?;
        }
        bytes += image.bytes;
    }
    if !dry_run {
        bytes += library.prune()?;
    }
    Ok((removed, bytes))
}

fn user_of(users: &Users, digest: &str) -> Option<String> {
    users.iter().find(|(used, _)| used == digest).map(|(_, user)| user.clone())
}

/// Who needs which image: what the server says, which may be elsewhere, and what is written down here.
async fn users(global: &Global) -> anyhow::Result<Users> {
    let mut users: Users = match connect::client(global)?.vms().await {
        Ok(list) => list.vms.into_iter().map(|vm| (vm.image, format!("VM {}", vm.id))).collect(),
        Err(error) if error.is_temporary() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let state_dir = crate::settings::local()?.state_dir;
    if state_dir.join("vms").is_dir() {
        let state = StateDir::open(&state_dir)?;
        for vm in state.list()? {
            match state.vm(vm).spec() {
                Ok(spec) => users.push((spec.image.digest, format!("VM {vm}"))),
                // It is being removed.
                Err(DriverError::NotFound(_)) => {}
                // What it needs is not known.
                Err(error) => return Err(error.into()),
            }
        }
    }
    for (name, image) in snapshot::images(&state_dir.join("snapshots"))? {
        users.push((image, format!("the checkpoint {name} of a session")));
    }
    Ok(users)
}
