//! News of the file system, by inotify: a name was made in a directory, a file was written to.
//!
//! Whoever waits for a condition asks for the news first and looks then, so nothing falls in between.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::{Errno, read},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Whatever is read from it only says that there was something.
const ROOM: usize = 4096;

/// News of one directory or file, from its making on.
pub(crate) struct News {
    /// There until the end.
    queue: Option<AsyncFd<Queue>>,
}

struct Queue(OwnedFd);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl News {
    /// Names that are made in a directory.
    pub(crate) fn of_names_in(dir: &Path) -> io::Result<Self> {
        Self::of(dir, WatchFlags::CREATE | WatchFlags::ONLYDIR)
    }

    /// What is written to a file.
    pub(crate) fn of_writes_to(file: &Path) -> io::Result<Self> {
        Self::of(file, WatchFlags::MODIFY)
    }

    #[allow(unsafe_code, reason = "registering a descriptor with the runtime")]
    fn of(path: &Path, what: WatchFlags) -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&queue, path, what | WatchFlags::DONT_FOLLOW)?;
        // SAFETY: `Queue` keeps one open descriptor until it is dropped, which is with the `AsyncFd`.
        let queue = unsafe { AsyncFd::register_with_interest(Queue(queue), Interest::READABLE) };
        Ok(Self { queue: Some(queue.map_err(|refused| refused.into_parts().1)?) })
    }

    /// Waits until there is something that an earlier call did not answer for.
    pub(crate) async fn next(&self) -> io::Result<()> {
        let Some(queue) = &self.queue else { return Ok(()) };
        let mut ready = queue.readable().await?;
        let mut events = [0_u8; ROOM];
        loop {
            match read(&queue.get_ref().0, &mut events) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The kernel lets go of a watch only when nobody can be looking at it any more, which takes up to
/// 20 ms: whoever has the news does not wait for that.
impl Drop for News {
    fn drop(&mut self) {
        let queue = self.queue.take();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(queue))),
            Err(_) => drop(queue),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, time::Duration};

    use super::*;

    #[tokio::test]
    async fn names_and_writes_are_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let names = News::of_names_in(dir.path()).unwrap();
        let path = dir.path().join("file");
        let mut file = fs::File::create(&path).unwrap();
        names.next().await.unwrap();
        let writes = News::of_writes_to(&path).unwrap();
        file.write_all(b"something").unwrap();
        writes.next().await.unwrap();
        for (what, quiet) in [("names", &names), ("writes", &writes)] {
            let more = tokio::time::timeout(Duration::from_millis(20), quiet.next()).await;
            assert!(more.is_err(), "{what} told twice");
        }
        drop(fs::File::create(dir.path().join("another")).unwrap());
        names.next().await.unwrap();
    }
}
