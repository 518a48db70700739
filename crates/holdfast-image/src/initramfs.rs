//! The initramfs: the agent as `/init`, the modules it loads, and `/modules/order`, the names of
//! their files one a line in the order of loading.

use std::{fs::File, io::BufWriter, path::Path};

use crate::{Result, cpio, error::IoContext as _};

/// Writes it. `modules` are names and contents in the order of loading.
pub(crate) fn write(path: &Path, agent: &[u8], modules: &[(String, Vec<u8>)]) -> Result<()> {
    let what = || format!("writing {}", path.display());
    let write = || -> std::io::Result<()> {
        let mut archive = cpio::Writer::new(BufWriter::new(File::create(path)?));
        for directory in ["dev", "proc", "sys", "modules"] {
            archive.directory(directory)?;
        }
        // The kernel opens it for /init before anything is mounted.
        archive.device("dev/console", 0o600, 5, 1)?;
        let mut order = String::new();
        for (name, content) in modules {
            archive.file(&format!("modules/{name}.ko"), 0o644, content)?;
            order.push_str(name);
            order.push_str(".ko\n");
        }
        archive.file("modules/order", 0o644, order.as_bytes())?;
        archive.file("init", 0o755, agent)?;
        archive.finish()?;
        Ok(())
    };
    write().doing(what)
}
