//! A sign-in tool in the guest: how it is run, how its link is recognised, what success looks like,
//! and how its credentials are handed over.
//!
//! One run at a time. A run has the number that the host gave it; links, codes and outcomes belong to
//! that run and are never carried into the next. Patterns are regular expressions in the syntax of the
//! `regex` crate, applied to the output as text: escape sequences removed, wrapped lines joined.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Starts a run. A run with the same number is answered with its status; a run with a lower number is
/// ended first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolRequest {
    /// Number of the run, from 1.
    pub run: u32,
    /// Program and arguments; at least one. Run as the desktop's user, in a PTY.
    pub command: Vec<String>,
    /// Additional environment. `BROWSER` is the agent's own.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// How the link is recognised.
    pub link: LinkRules,
    /// How the person's consent comes back to the tool.
    pub flow: Flow,
    /// Finds the code to be typed on the provider's page; its first group is the code.
    #[serde(default)]
    pub user_code: Option<String>,
    /// Answers to questions that the tool asks before it shows its link.
    #[serde(default)]
    pub prompts: Vec<Prompt>,
    /// What the end of the tool means.
    pub outcome: OutcomeRules,
    /// The files that are the credentials.
    pub credentials: Vec<CredentialFile>,
    /// The run has failed when there is no link after this long, in ms.
    pub link_deadline_ms: u64,
    /// The run has expired when it did not end after this long, in ms.
    pub deadline_ms: u64,
}

/// How consent comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    /// The provider redirects the browser to a port of the tool on the guest's loopback.
    Loopback,
    /// The provider shows a code that is pasted to the tool.
    PasteCode,
    /// The tool shows a code that is typed on the provider's page.
    DeviceCode,
}

/// How a link is recognised. Only `https` links to public names count, and those that `allow` names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkRules {
    /// Patterns, best first; a link that matches an earlier one replaces one that matches a later one.
    /// Empty: every acceptable link matches.
    #[serde(default)]
    pub prefer: Vec<String>,
    /// Links that match one of these are passed over.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// Origins, such as `http://host.holdfast.internal:9000`, that are acceptable although they are not
    /// public `https`.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Hold a link back until one that matches the first of `prefer` came, or for this long, in ms.
    #[serde(default)]
    pub settle_ms: u64,
}

/// An answer to a question of the tool, given at most once in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Finds the question.
    pub pattern: String,
    /// What to type, as it is: `\r` is the return key.
    pub send: String,
}

/// What the end of a tool means. Success needs every condition that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeRules {
    /// Exit code of success. `None`: the tool may go on running.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Files, relative to the user's home, that have to exist, be newer than the run's start and not be
    /// empty.
    #[serde(default)]
    pub files: Vec<String>,
    /// Has to be found in the output.
    #[serde(default)]
    pub output: Option<String>,
    /// Found in the output: the person, or the provider, refused.
    #[serde(default)]
    pub refused: Option<String>,
    /// Found in the output: the link or code ran out.
    #[serde(default)]
    pub expired: Option<String>,
}

/// A file that belongs to the credentials, or text of the output that does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialFile {
    /// Path relative to the user's home, where it is read from and where the tool expects it.
    pub path: String,
    /// Mode on the user's own machine, such as 0o600.
    pub mode: u32,
    /// Its absence is no error.
    #[serde(default)]
    pub optional: bool,
    /// Instead of a file: a pattern whose first group, found in the output, is the content.
    #[serde(default)]
    pub output: Option<String>,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolState {
    /// It runs and has shown no link yet.
    Starting,
    /// Its link was caught; it waits for the person.
    Waiting,
    /// It ended, or is known to have reached its end.
    Ended,
}

/// A link that was caught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The link, exactly as the tool made it.
    pub url: String,
    /// How it was caught.
    pub source: LinkSource,
    /// When.
    pub caught_at: Timestamp,
    /// It was opened in the browser.
    pub opened: bool,
}

/// How a link was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkSource {
    /// The tool asked for a browser.
    Browser,
    /// A hyperlink (OSC 8) in the output.
    Hyperlink,
    /// Text of the output.
    Output,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// Signed in; the credentials can be collected.
    Succeeded,
    /// The person, or the provider, refused.
    Refused,
    /// The link, the code or the run's deadline ran out.
    Expired,
    /// The tool failed, ended without a link, or was not there.
    Failed {
        /// Why, as a sentence.
        why: String,
    },
}

/// State of the current run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolStatus {
    /// Number of the run.
    pub run: u32,
    /// Rises with every change.
    pub revision: u64,
    /// Where it stands.
    pub state: ToolState,
    /// Its link.
    pub link: Option<Link>,
    /// Code to be typed on the provider's page.
    pub user_code: Option<String>,
    /// It asks for a code (flow [`Flow::PasteCode`]) and none was sent since.
    pub wants_input: bool,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Exit code of the tool, 128 + signal when it was killed.
    pub exit_code: Option<i32>,
    /// The last 4 KiB of its output as text, without what `credentials` finds in it, words of credential
    /// files, pasted codes and what looks like them. Empty once it succeeded.
    pub output: String,
    /// Links that were refused, with the reason, at most 16.
    pub refused_links: Vec<String>,
    /// When the run started.
    pub started_at: Timestamp,
}

/// Text for the tool.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolInput {
    /// The run that it is meant for.
    pub run: u32,
    /// At most 4,096 characters without control characters; the return key is added.
    pub text: String,
}

/// Opens the run's link in the browser again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRequest {
    /// The run whose link it is.
    pub run: u32,
}

/// Asks for the credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectRequest {
    /// The run that made them.
    pub run: u32,
    /// age public keys (`age1...`) to encrypt them to; at least one.
    pub recipients: Vec<String>,
}

/// Credentials, encrypted in the guest: neither host nor store ever see them in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// An age file (binary format), base64. Its plaintext is the JSON of a [`Bundle`].
    pub ciphertext: String,
    /// Paths, sizes and modes of the files in it.
    pub files: Vec<CollectedFile>,
}

/// A file in a bundle, without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectedFile {
    /// Path relative to the user's home.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Mode on the user's own machine.
    pub mode: u32,
}

/// What is inside the encrypted file.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The files.
    pub files: Vec<BundleFile>,
}

/// A file with its content.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFile {
    /// Path relative to the user's home.
    pub path: String,
    /// Mode on the user's own machine.
    pub mode: u32,
    /// Content, base64.
    pub content: String,
}
