//! SHA-256 of bytes, values and files, as lower-case hex.

use std::{fmt::Write as _, fs::File, io::Read as _, path::Path};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{Result, error::IoContext as _};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
        text
    })
}

/// Of bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Of a value: its JSON, whose order of fields is that of the type.
pub(crate) fn of_value(value: &impl Serialize) -> String {
    of_bytes(&serde_json::to_vec(value).expect("plain data with string keys serialises"))
}

/// Of a file. `seen` is told of every chunk's length.
pub(crate) fn of_file(path: &Path, mut seen: impl FnMut(u64)) -> Result<String> {
    let what = || format!("reading {}", path.display());
    let mut file = File::open(path).doing(what)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer).doing(what)?;
        if count == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..count]);
        seen(count as u64);
    }
}
