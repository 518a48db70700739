//! What a clone has of its own: the pages of its memory that are no longer those of the template that
//! it maps privately.
//!
//! Such pages are in no file. The kernel tells which they are (`pagemap`), and reads and writes them for root
//! (`mem`): proc(5), Documentation/admin-guide/mm/pagemap.rst. The VMM has to hold still meanwhile: it is
//! stopped, or waits for the state of a snapshot.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
};

use crate::files::is_zero;

/// The changed pages, one behind the other.
pub(super) const CHANGED: &str = "changed.img";
/// Where they belong: for each run of them its offset in memory and its length, in bytes, as two 64-bit
/// numbers (little endian).
pub(super) const CHANGED_MAP: &str = "changed.map";

/// Of processors that the drivers know. The guest's pages may be of any size: these are the host's.
const PAGE: u64 = 4096;
/// A page is there. The bits of an entry of `pagemap`.
const PRESENT: u64 = 1 << 63;
/// It was written to swap, which only happens to what is in no file.
const SWAPPED: u64 = 1 << 62;
/// It is a page of the file that is mapped.
const OF_FILE: u64 = 1 << 61;
/// Bytes read or written at once.
const PIECE: u64 = 1 << 20;

/// Part of a template as a process maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Area {
    address: u64,
    bytes: u64,
    /// Where in the template it begins.
    offset: u64,
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Offset in the guest's memory.
    offset: u64,
    bytes: u64,
}

/// A clone's memory.
pub(super) struct CloneMemory {
    pid: i32,
    mem: File,
    areas: Vec<Area>,
}

impl CloneMemory {
    /// The memory of a process that maps the anonymous file `template`.
    pub(super) fn open(pid: i32, template: &str) -> io::Result<Self> {
        let mem = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let areas = areas(&fs::read_to_string(format!("/proc/{pid}/maps"))?, template);
        if areas.is_empty() {
            return Err(io::Error::other("the process maps no template"));
        }
        Ok(Self { pid, mem, areas })
    }

    /// Writes down what is not the template's.
    pub(super) fn save(&self, map: &File, pages: &File) -> io::Result<()> {
        let mut written = 0;
        let mut noted = Vec::new();
        for area in &self.areas {
            for run in runs(&self.entries(area)?, area.offset) {
                noted.extend([run.offset, run.bytes].map(u64::to_le_bytes).concat());
                each_piece(run, |offset, buffer| {
                    self.mem.read_exact_at(buffer, area.address + (offset - area.offset))?;
                    if !is_zero(buffer) {
                        pages.write_all_at(buffer, written)?;
                    }
                    written += buffer.len() as u64;
                    Ok(())
                })?;
            }
        }
        pages.set_len(written)?;
        map.write_all_at(&noted, 0)
    }

    /// Gives a clone what another one had of its own.
    pub(super) fn load(&self, map: &File, pages: &File) -> io::Result<()> {
        let mut noted = vec![0; map.metadata()?.len() as usize];
        map.read_exact_at(&mut noted, 0)?;
        let mut read = 0;
        let (numbers, _) = noted.as_chunks::<8>();
        for run in numbers.chunks_exact(2) {
            let [offset, bytes] = [run[0], run[1]].map(u64::from_le_bytes);
            let run = Run { offset, bytes };
            let fits = |area: &&Area| {
                let begin = run.offset.checked_sub(area.offset);
                begin.is_some_and(|begin| begin.saturating_add(run.bytes) <= area.bytes)
            };
            let area = self.areas.iter().find(fits);
            let area = area.ok_or_else(|| io::Error::other("a page lies beyond the memory"))?;
            each_piece(run, |offset, buffer| {
                pages.read_exact_at(buffer, read)?;
                read += buffer.len() as u64;
                self.mem.write_all_at(buffer, area.address + (offset - area.offset))
            })?;
        }
        Ok(())
    }

    fn entries(&self, area: &Area) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; (area.bytes / PAGE * 8) as usize];
        File::open(format!("/proc/{}/pagemap", self.pid))?
            .read_exact_at(&mut bytes, area.address / PAGE * 8)?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_ne_bytes(*entry)).collect())
    }
}

/// Lines of `maps` look like `7f10-7f20 rw-p 00000000 00:01 1042 /memfd:name (deleted)`.
fn areas(maps: &str, template: &str) -> Vec<Area> {
    let file = format!("/memfd:{template} (deleted)");
    let area = |line: &str| {
        let fields = line.strip_suffix(&file)?;
        let mut fields = fields.split_whitespace();
        let (from, to) = fields.next()?.split_once('-')?;
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        let (address, end) = (number(from)?, number(to)?);
        let offset = fields.nth(1).and_then(number)?;
        Some(Area { address, bytes: end - address, offset })
    };
    maps.lines().filter_map(area).collect()
}

/// Runs of pages that are the process's own.
fn runs(entries: &[u64], offset: u64) -> Vec<Run> {
    let is_own = |entry: u64| entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT;
    let mut runs: Vec<Run> = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let offset = offset + number as u64 * PAGE;
        match runs.last_mut() {
            _ if !is_own(*entry) => {}
            Some(run) if run.offset + run.bytes == offset => run.bytes += PAGE,
            _ => runs.push(Run { offset, bytes: PAGE }),
        }
    }
    runs
}

fn each_piece(run: Run, mut work: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(run.bytes) as usize];
    let mut done = 0;
    while done < run.bytes {
        let bytes = PIECE.min(run.bytes - done);
        work(run.offset + done, &mut buffer[..bytes as usize])?;
        done += bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_the_template_are_found_and_no_others() {
        let maps = "55d0-55d1 r--p 00000000 fe:00 77 /usr/bin/qemu\n\
            7f1000000000-7f1000200000 rw-p 00000000 00:01 1042 /memfd:t (deleted)\n\
            7f1000200000-7f1000300000 rw-p 00200000 00:01 1042 /memfd:t (deleted)\n\
            7f2000000000-7f2000200000 rw-p 00000000 00:01 1043 /memfd:other-t (deleted)\n\
            7f3000000000-7f3000200000 rw-p 00000000 00:00 0 \n";
        let found = areas(maps, "t");
        let first = Area { address: 0x7f10_0000_0000, bytes: 0x20_0000, offset: 0 };
        let second = Area { address: 0x7f10_0020_0000, bytes: 0x10_0000, offset: 0x20_0000 };
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn own_pages_are_those_in_no_file_also_when_swapped() {
        let entries = [0, PRESENT | OF_FILE, PRESENT, PRESENT | 7, 0, SWAPPED, PRESENT | OF_FILE];
        let run = |offset, pages| Run { offset: offset * PAGE, bytes: pages * PAGE };
        assert_eq!(runs(&entries, 10 * PAGE), [run(12, 2), run(15, 1)]);
        assert_eq!(runs(&[], 0), []);
    }

    #[test]
    fn pages_that_lie_nowhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            File::options()
                .create_new(true)
                .read(true)
                .write(true)
                .open(dir.path().join(name))
                .unwrap()
        };
        let (map, pages) = (file(CHANGED_MAP), file(CHANGED));
        pages.set_len(2 * PAGE).unwrap();
        let area = Area { address: 0, bytes: 4 * PAGE, offset: 0 };
        let memory = CloneMemory { pid: 0, mem: file("mem"), areas: vec![area] };
        for (offset, bytes, fits) in
            [(0, PAGE, true), (3 * PAGE, 2 * PAGE, false), (u64::MAX, PAGE, false)]
        {
            map.write_all_at(&[offset, bytes].map(u64::to_le_bytes).concat(), 0).unwrap();
            assert_eq!(memory.load(&map, &pages).is_ok(), fits, "{offset} {bytes}");
        }
    }
}
