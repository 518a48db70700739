//! Durable small files and sparse copies.
//!
//! Whatever is written here is either complete after a crash or not there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use rustix::fs::{OFlags, SeekFrom as Sparse, ioctl_ficlone, seek};
use serde::{Serialize, de::DeserializeOwned};

/// Unit of sparse copies and of checksums.
pub(crate) const CHUNK: usize = 64 * 1024;

/// Syncs a directory, so that names made or removed in it survive a crash.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Syncs files and directories at the same time: most of what each waits for, the others wait for too.
pub(crate) fn sync_all(paths: &[PathBuf]) -> io::Result<()> {
    let sync = |path: &PathBuf| File::open(path)?.sync_all();
    thread::scope(|scope| {
        let syncs: Vec<_> = paths.iter().map(|path| scope.spawn(move || sync(path))).collect();
        // All have ended by the first failure that is answered.
        let done: Vec<_> = syncs.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.into_iter().try_for_each(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Writes a JSON file: to a temporary name, synced, renamed, directory synced.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let (file, temporary) = temporary_json(path, value)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_dir(dir)
}

/// Writes a JSON file that survives the death of this process but not that of the machine, for what says
/// nothing once the machine was started again.
pub(crate) fn replace_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let (_, temporary) = temporary_json(path, value)?;
    fs::rename(&temporary, path)
}

fn temporary_json<T: Serialize>(path: &Path, value: &T) -> io::Result<(File, PathBuf)> {
    let temporary = path.with_extension("json.new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    Ok((file, temporary))
}

/// Reads a JSON file; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Space that a file takes on disk, in bytes; none while it has other names too, for then others need it
/// as well.
pub(crate) fn own_bytes(meta: &fs::Metadata) -> u64 {
    // st_blocks counts units of 512 bytes, whatever the file system's own are: stat(2).
    if meta.is_file() && meta.nlink() > 1 { 0 } else { meta.blocks() * 512 }
}

/// Removes a file; it need not be there.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The last `max` bytes of a file as text; empty when there is none.
pub(crate) fn tail(path: &Path, max: usize) -> io::Result<String> {
    let mut file =
        match OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
            Err(error) => return Err(error),
        };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(max as u64)))?;
    let mut bytes = Vec::new();
    file.take(max as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Copies a file block by block where the file system cannot share blocks; holes and zeros stay
/// holes. `to` is empty.
pub(crate) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    copy_chunks(from, to, |_, _| {})
}

/// Copies every chunk that is not all zeros, showing it to `visit`. `to` is empty.
pub(crate) fn copy_chunks(
    from: &File,
    to: &File,
    mut visit: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    each_chunk(from, |offset, chunk| {
        visit(offset, chunk);
        to.write_all_at(chunk, offset)
    })
}

/// Calls `visit` with offset and content of every chunk that is not all zeros.
pub(crate) fn each_chunk(
    from: &File,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let length = from.metadata()?.len();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        // A file system without holes answers the offset that it was asked about.
        let data = match seek(from, Sparse::Data(offset)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => offset,
        };
        let end = seek(from, Sparse::Hole(data)).unwrap_or(length).min(length);
        offset = data / CHUNK as u64 * CHUNK as u64;
        while offset < end {
            let wanted = CHUNK.min((length - offset) as usize);
            let chunk = &mut buffer[..wanted];
            from.read_exact_at(chunk, offset)?;
            if !is_zero(chunk) {
                visit(offset, chunk)?;
            }
            offset += wanted as u64;
        }
    }
    Ok(())
}

/// Most of a guest's memory is zeros, so this is what copying it costs: compared page by page, which the
/// C library does many bytes at a time.
pub(crate) fn is_zero(chunk: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    chunk.chunks(ZEROS.len()).all(|page| *page == ZEROS[..page.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_copies_are_equal_and_stay_sparse() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let from = File::create_new(dir.path().join("from")).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"first", 10).unwrap();
        from.write_all_at(b"last", (64 << 20) - 4).unwrap();
        let from = File::open(dir.path().join("from")).unwrap();
        let to = File::create_new(dir.path().join("to")).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(
            fs::read(dir.path().join("from")).unwrap(),
            fs::read(dir.path().join("to")).unwrap()
        );
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn seek_data_past_a_hole_in_the_middle_of_a_chunk_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create_new(&path).unwrap();
        file.write_all_at(&[1; 4096], 4096 * 15).unwrap();
        file.write_all_at(&[2; 4096], 4096 * 33).unwrap();
        let mut seen = 0;
        each_chunk(&File::open(&path).unwrap(), |_, chunk| {
            seen += chunk.iter().filter(|b| **b != 0).count();
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, 8192);
    }
}
