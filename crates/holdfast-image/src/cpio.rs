//! Writes cpio archives in the `newc` format, which the kernel unpacks as an initramfs.
//!
//! Every entry belongs to root and carries time 0, so the same content gives the same bytes.

use std::io::{self, Write};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes entries one after the other. Directories have to come before what is in them.
pub(crate) struct Writer<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory; `path` is relative to the root, without a leading slash.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, S_IFDIR | 0o755, 2, (0, 0), &[])
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | permissions, 1, (0, 0), content)
    }

    /// Adds a character device.
    pub(crate) fn device(
        &mut self,
        path: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(path, S_IFCHR | permissions, 1, (major, minor), &[])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.raw_entry(0, "TRAILER!!!", 0, 1, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        self.raw_entry(self.inode, path, mode, links, device, content)
    }

    fn raw_entry(
        &mut self,
        inode: u32,
        path: &str,
        mode: u32,
        links: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_long =
            |_| io::Error::new(io::ErrorKind::FileTooLarge, "over 4 GiB in a cpio entry");
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_long)?;
        // magic, then: inode, mode, uid, gid, links, mtime, size, device of the file (major, minor),
        // device that it is (major, minor), size of the name with its NUL, checksum (unused).
        write!(self.out, "070701")?;
        for field in [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0] {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        // The header of 110 bytes with the name, and the content, are each padded to 4 bytes.
        self.pad(110 + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::Writer;

    fn archive() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        writer.directory("dev").unwrap();
        writer.device("dev/console", 0o600, 5, 1).unwrap();
        writer.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        for length in 0..5 {
            writer.file(&format!("pad{}", "x".repeat(length)), 0o644, &vec![7; length]).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(archive(), archive());
        assert_eq!(archive().len() % 4, 0);
    }

    #[test]
    fn gnu_cpio_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let mut child = Command::new("cpio")
                .args(arguments)
                .current_dir(directory.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("cpio is installed");
            child.stdin.take().unwrap().write_all(&archive()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let listing = run(&["-itv"]);
        assert!(listing.contains("crw-------   1 root     root       5,   1"), "{listing}");
        assert!(listing.contains("-rwxr-xr-x   1 root     root           10"), "{listing}");
        run(&["-id", "--quiet", "init", "pad*"]);
        assert_eq!(std::fs::read(directory.path().join("init")).unwrap(), b"#!/bin/sh\n");
        for length in 0..5 {
            let name = format!("pad{}", "x".repeat(length));
            assert_eq!(std::fs::read(directory.path().join(name)).unwrap(), vec![7; length]);
        }
    }
}
