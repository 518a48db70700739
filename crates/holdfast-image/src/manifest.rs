//! `manifest.json` of an image: what it is made from, what is in it, and the hash of each file.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest;

/// What an image is made from. Its digest names the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    /// Format of the recipe.
    pub format: u32,
    /// State of Debian's archive.
    pub revision: String,
    /// Key of the layer of Debian packages.
    pub base: String,
    /// Key of the layer of tools; `None` for an image without them.
    pub tools: Option<String>,
    /// Key of configuration, users and name servers.
    pub config: String,
    /// Modules of the initramfs.
    pub modules: Vec<String>,
    /// SHA-256 of the agent's binary.
    pub agent: String,
    /// Name servers.
    pub resolvers: Vec<IpAddr>,
}

impl Inputs {
    /// The digest: 64 lower-case hex digits.
    pub fn digest(&self) -> String {
        digest::of_value(self)
    }
}

/// A tool in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolVersion {
    /// Its command.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `npm` or `deb`.
    pub kind: String,
}

/// A file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes that it takes on disk.
    pub disk_bytes: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The image's digest; names its directory too.
    pub digest: String,
    /// When it was built.
    pub created_at: Timestamp,
    /// Version of the program that built it.
    pub builder: String,
    /// What it is made from.
    pub inputs: Inputs,
    /// Release of its kernel, such as `6.1.0-56-cloud-amd64`.
    pub kernel: String,
    /// Versions of the Debian packages that matter most.
    pub packages: BTreeMap<String, String>,
    /// The sign-in tools.
    pub tools: Vec<ToolVersion>,
    /// Its files: `rootfs.img`, `vmlinux` and `initramfs.img`.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Bytes on disk of all its files.
    pub fn disk_bytes(&self) -> u64 {
        self.files.values().map(|file| file.disk_bytes).sum()
    }
}
