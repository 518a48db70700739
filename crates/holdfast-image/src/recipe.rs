//! The recipe: what an image is made of, as data. Owned by `recipe/recipe.toml` in this crate.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{ImageError, Result};

const RECIPE: &str = include_str!("../recipe/recipe.toml");
/// Pins every file of the npm tools by its hash.
pub(crate) const PACKAGE_LOCK: &str = include_str!("../recipe/package-lock.json");

/// What an image is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of the way in which images are put together.
    pub format: u32,
    /// Names the state of Debian's archive.
    pub revision: String,
    /// Debian's part.
    pub base: Base,
    /// Modules of the initramfs.
    pub kernel: Kernel,
    /// Tools from npm.
    pub tools: Tools,
    /// Users and network of the guest.
    pub guest: Guest,
}

/// Debian's part of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Debian release.
    pub suite: String,
    /// Lines of sources.list.
    pub sources: Vec<String>,
    /// Package that depends on the kernel to boot.
    pub kernel: String,
    /// Packages to install, without what they recommend.
    pub packages: Vec<String>,
    /// Names that an empty package provides.
    pub provided: Vec<String>,
    /// Paths that are not unpacked.
    pub exclude: Vec<String>,
    /// Paths among those that are.
    pub include: Vec<String>,
    /// Locales to generate, without `.UTF-8`.
    pub locales: Vec<String>,
    /// Patterns of files to remove at the end.
    pub remove: Vec<String>,
    /// Packages whose versions the manifest shows.
    pub notable: Vec<String>,
}

/// What the initramfs loads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Names of modules, without `.ko`.
    pub modules: Vec<String>,
}

/// Tools from npm and the Node that runs them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    /// Node itself.
    pub node: Node,
    /// Paths below /opt/tools to remove.
    pub remove: Vec<String>,
    /// The tools.
    pub npm: Vec<NpmTool>,
}

/// The Node that runs the tools.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Package on npm.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The binary, relative to /opt/tools.
    pub program: String,
}

/// A tool from npm.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NpmTool {
    /// Command in the guest.
    pub name: String,
    /// Package on npm.
    pub package: String,
    /// Its version.
    pub version: String,
    /// What the command runs, relative to /opt/tools.
    pub program: String,
}

/// Users and network of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Name of the desktop's user and group.
    pub user: String,
    /// Their numbers.
    pub uid: u32,
    /// Name servers.
    pub resolvers: Vec<IpAddr>,
}

impl Recipe {
    /// The recipe of this program.
    pub fn builtin() -> Result<Self> {
        toml::from_str(RECIPE).map_err(|error| ImageError::Recipe { why: error.to_string() })
    }

    /// `package.json` of the npm tools.
    pub(crate) fn package_json(&self) -> String {
        let node = (&self.tools.node.package, &self.tools.node.version);
        let tools = self.tools.npm.iter().map(|tool| (&tool.package, &tool.version));
        let dependencies: std::collections::BTreeMap<_, _> = tools.chain([node]).collect();
        serde_json::json!({
            "name": "holdfast-tools",
            "private": true,
            "dependencies": dependencies,
        })
        .to_string()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]
mod tests {
    use super::{PACKAGE_LOCK, Recipe};

    #[test]
    fn the_lock_pins_what_the_recipe_names() {
        let recipe = Recipe::builtin().unwrap();
        let package: serde_json::Value = serde_json::from_str(&recipe.package_json()).unwrap();
        let lock: serde_json::Value = serde_json::from_str(PACKAGE_LOCK).unwrap();
        assert_eq!(lock["packages"][""]["dependencies"], package["dependencies"]);
        for (path, entry) in lock["packages"].as_object().unwrap() {
            if !path.is_empty() {
                assert!(entry["integrity"].as_str().unwrap().starts_with("sha512-"), "{path}");
            }
        }
    }
}
