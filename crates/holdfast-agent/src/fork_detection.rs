//! Tells a process that its memory is a copy.
//!
//! Restoring a snapshot twice duplicates address spaces as `fork` does, but no kernel of the copies knows.
//! Libraries that keep the state of a random generator find a fork by a page that the kernel empties in the
//! child (`madvise(MADV_WIPEONFORK)`): `BoringSSL` does (`crypto/rand/fork_detect.cc`) and seeds every
//! thread's generator anew from the kernel once it finds that page empty. Here these pages are emptied by
//! hand. A process without one has not made any state yet.
//!
//! It must only be used on processes that stand still, after the kernel itself was reseeded.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
};

use serde::{Deserialize, Serialize};

/// A region of memory that is empty in a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    start: u64,
    len: u64,
}

/// Finds these regions in a process: those with the flag `wf` (proc(5), `VmFlags`).
///
/// # Errors
/// The process is not there, or may not be looked into.
pub fn regions(pid: u32) -> io::Result<Vec<Region>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut found = Vec::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_ascii_whitespace().any(|flag| flag == "wf") {
                found.extend(current);
            }
        } else if let Some(region) = region(line) {
            current = Some(region);
        }
    }
    Ok(found)
}

/// The region of a line such as `7f0c3b41e000-7f0c3b41f000 rw-p 00000000 00:00 0`.
fn region(line: &str) -> Option<Region> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    Some(Region { start, len: end.checked_sub(start)? })
}

/// Empties them, as the kernel does in a child.
///
/// # Errors
/// The process is not there, or its memory is another one now.
pub fn trigger(pid: u32, regions: &[Region]) -> io::Result<()> {
    if regions.is_empty() {
        return Ok(());
    }
    let memory = File::options().write(true).open(format!("/proc/{pid}/mem"))?;
    for region in regions {
        let zeros = vec![0; usize::try_from(region.len).map_err(io::Error::other)?];
        memory.write_all_at(&zeros, region.start)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::Script;

    #[test]
    fn a_process_finds_its_page_empty() {
        // 18 is MADV_WIPEONFORK.
        let script = "import mmap\n\
            page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
            other = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
            page.madvise(18)\n\
            page[0] = other[0] = 1\n\
            print('ready', flush=True)\n\
            input()\n\
            print(page[0], other[0], flush=True)";
        let mut script = Script::start(script);
        assert_eq!(script.line(), "ready");
        let found = regions(script.pid()).expect("readable");
        assert_eq!(found.iter().map(|region| region.len).collect::<Vec<_>>(), [4096]);
        trigger(script.pid(), &found).expect("emptied");
        script.tell("");
        assert_eq!(script.line(), "0 1");
        script.end();
    }

    #[test]
    fn a_header_is_told_from_a_figure() {
        let header = "7f0c3b41e000-7f0c3b41f000 rw-p 00000000 00:00 0 ";
        assert_eq!(region(header), Some(Region { start: 0x7f0c_3b41_e000, len: 4096 }));
        assert_eq!(region("Size:                  4 kB"), None);
        assert_eq!(region("VmFlags: rd wr mr mw me ac wf"), None);
    }
}
