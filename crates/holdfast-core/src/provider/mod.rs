//! Providers: tools to sign in, described as data.
//!
//! Owns the TOML format, its validation and the providers that ship with Holdfast. Must never know
//! how a tool is run: that is the agent's, which gets what it needs from here.

mod catalog;
mod parse;

use std::time::Duration;

pub use catalog::{Catalog, SHIPPED};
pub use parse::{ProviderError, parse};

/// Name of the provider that is no tool: a plain desktop.
pub const DESKTOP: &str = "desktop";

/// A tool to sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its one name everywhere: lower-case letters, digits and `-`, 1 to 40 characters.
    pub name: String,
    /// Other names that mean it, such as those of older clients.
    pub aliases: Vec<String>,
    /// Its name for people.
    pub title: String,
    /// A sentence about it.
    pub description: String,
    /// An SVG document for its tile; `None` shows its first letter.
    pub icon: Option<String>,
    /// How to sign in; `None` for a plain desktop.
    pub tool: Option<Tool>,
}

/// How a tool is run and understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Program and arguments; at least one.
    pub command: Vec<String>,
    /// Additional environment.
    pub env: Vec<(String, String)>,
    /// How consent comes back.
    pub flow: Flow,
    /// Patterns of the link, best first; empty means every acceptable link.
    pub prefer: Vec<String>,
    /// Patterns of links to pass over.
    pub ignore: Vec<String>,
    /// Origins that are acceptable although they are not public `https`.
    pub allow: Vec<String>,
    /// How long a link is held back for a better one.
    pub settle: Duration,
    /// Finds the code to be typed on the provider's page; its first group is the code.
    pub user_code: Option<String>,
    /// Answers to questions asked before the link: pattern, and text to type.
    pub prompts: Vec<(String, String)>,
    /// Exit code of success; `None`: the tool may go on running.
    pub exit_code: Option<i32>,
    /// Files, relative to the home directory, that success writes.
    pub success_files: Vec<String>,
    /// Output of success.
    pub success_output: Option<String>,
    /// Output that means that the person or the provider refused.
    pub refused: Option<String>,
    /// Output that means that the link or code ran out.
    pub expired: Option<String>,
    /// What is handed over.
    pub credentials: Vec<Credential>,
    /// Hosts that the tool and the sign-in page need, for people who restrict egress.
    pub hosts: Vec<String>,
    /// No link after this long means failure.
    pub link_deadline: Duration,
    /// No end after this long means that the sign-in expired.
    pub deadline: Duration,
}

impl Tool {
    /// Whether a file of this path and mode is one that the provider hands over.
    pub fn hands_over(&self, path: &str, mode: u32) -> bool {
        self.credentials.iter().any(|known| known.path == path && known.mode == mode)
    }
}

/// Whether a credential may have this mode: others may read it at most, and it runs as nobody else.
pub const fn is_safe_mode(mode: u32) -> bool {
    mode & !0o755 == 0
}

/// How consent comes back to the tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The browser is redirected to a port of the tool.
    Loopback,
    /// A code is pasted to the tool.
    PasteCode,
    /// A code of the tool is typed on the provider's page.
    DeviceCode,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 3] = [Self::Loopback, Self::PasteCode, Self::DeviceCode];

    /// The name used in files, in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::PasteCode => "paste_code",
            Self::DeviceCode => "device_code",
        }
    }

    /// The flow of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.as_str() == name)
    }
}

/// Something that is handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Where the tool keeps and expects it, relative to the home directory.
    pub path: String,
    /// File mode on the person's own machine, see [`is_safe_mode`].
    pub mode: u32,
    /// Its absence is no error.
    pub optional: bool,
    /// Found in the output instead of in a file: the first group of this pattern.
    pub output: Option<String>,
}
