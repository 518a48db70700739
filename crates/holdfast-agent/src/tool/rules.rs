//! A request, checked and compiled, and what its outcome rules say about a run.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use holdfast_agent_api::tool::{Outcome, OutcomeRules, ToolRequest};
use regex::{Regex, RegexBuilder};

use super::link;

/// Largest compiled pattern, in bytes.
const PATTERN_LIMIT: usize = 1 << 20;
/// Longest run, in ms: a day.
const LONGEST_RUN: u64 = 86_400_000;

/// A request that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum PatternError {
    #[error("the pattern `{pattern}` is not valid: {why}")]
    Pattern { pattern: String, why: String },
    #[error("{0}")]
    Request(&'static str),
}

pub(super) fn compile(pattern: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT).multi_line(true).build().map_err(|error| {
        PatternError::Pattern { pattern: pattern.to_owned(), why: error.to_string() }
    })
}

/// The patterns of a request.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) links: link::Rules,
    pub(super) user_code: Option<Regex>,
    /// Pattern and answer.
    pub(super) prompts: Vec<(Regex, String)>,
    success: Option<Regex>,
    pub(super) refused: Option<Regex>,
    pub(super) expired: Option<Regex>,
    /// Path of a credential and the pattern that finds it in the output.
    pub(super) secrets: Vec<(String, Regex)>,
}

impl Compiled {
    pub(super) fn new(request: &ToolRequest) -> Result<Self, PatternError> {
        let check = |ok: bool, why| if ok { Ok(()) } else { Err(PatternError::Request(why)) };
        check(request.run > 0, "runs are counted from 1")?;
        check(!request.command.is_empty(), "the command is empty")?;
        let deadlines = [request.link_deadline_ms, request.deadline_ms];
        let in_range = |ms: &u64| (1..=LONGEST_RUN).contains(ms);
        check(deadlines.iter().all(in_range), "a deadline is 1 ms to one day")?;
        let outcome = &request.outcome;
        let files = outcome.files.iter().chain(request.credentials.iter().map(|c| &c.path));
        let mut files = files.map(Path::new);
        check(files.all(is_below), "files are named relative to the user's home")?;
        let optional = |pattern: &Option<String>| pattern.as_deref().map(compile).transpose();
        let mut secrets = Vec::new();
        for credential in &request.credentials {
            if let Some(pattern) = optional(&credential.output)? {
                check(pattern.captures_len() > 1, "a credential's pattern needs a group")?;
                secrets.push((credential.path.clone(), pattern));
            }
        }
        let user_code = optional(&request.user_code)?;
        let has_group = user_code.as_ref().is_none_or(|pattern| pattern.captures_len() > 1);
        check(has_group, "the user code's pattern needs a group")?;
        let prompts = request.prompts.iter().map(|p| Ok((compile(&p.pattern)?, p.send.clone())));
        Ok(Self {
            links: link::Rules::new(&request.link)?,
            user_code,
            prompts: prompts.collect::<Result<_, PatternError>>()?,
            success: optional(&outcome.output)?,
            refused: optional(&outcome.refused)?,
            expired: optional(&outcome.expired)?,
            secrets,
        })
    }
}

fn is_below(path: &Path) -> bool {
    !path.as_os_str().is_empty() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

/// What tells one state of a file from another.
type Print = (u64, i64, i64, u64);

/// Files as they were when the run started. What a run must have made is what has changed since.
#[derive(Debug)]
pub(super) struct Evidence {
    home: PathBuf,
    before: HashMap<String, Option<Print>>,
}

impl Evidence {
    pub(super) fn gather(home: &Path, request: &ToolRequest) -> Self {
        let files = request.outcome.files.iter().chain(request.credentials.iter().map(|c| &c.path));
        let before = files.map(|file| (file.clone(), print(&home.join(file)))).collect();
        Self { home: home.to_owned(), before }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.home.join(file)
    }

    /// Whether `file` was made or changed since, and is not empty.
    fn is_new(&self, file: &str) -> bool {
        let now = print(&self.path(file));
        now.is_some_and(|print| print.3 > 0) && self.before.get(file) != Some(&now)
    }

    fn is_there(&self, file: &str) -> bool {
        print(&self.path(file)).is_some_and(|print| print.3 > 0)
    }

    /// State of all files: the same twice means that nobody writes them now.
    pub(super) fn prints(&self) -> Vec<Option<Print>> {
        let mut names: Vec<_> = self.before.keys().collect();
        names.sort_unstable();
        names.into_iter().map(|file| print(&self.path(file))).collect()
    }

    /// What is missing for success, or nothing. `exit` is the exit code once the tool has ended.
    pub(super) fn missing(
        &self,
        request: &ToolRequest,
        compiled: &Compiled,
        text: &str,
        found: &HashMap<String, String>,
        exit: Option<i32>,
    ) -> Option<String> {
        let OutcomeRules { exit_code, files, output, .. } = &request.outcome;
        let by_code = exit_code.or_else(|| {
            // Without any rule the end has to be a good one, and new credentials have to be there.
            (files.is_empty() && output.is_none()).then_some(0)
        });
        match (by_code, exit) {
            (Some(_), None) => return Some("it has not ended".to_owned()),
            (Some(wanted), Some(code)) if wanted != code => {
                return Some(format!("it ended with exit code {code}"));
            }
            _ => {}
        }
        if let Some(file) = files.iter().find(|file| !self.is_new(file)) {
            return Some(format!("it did not write `{file}`"));
        }
        if compiled.success.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
            return Some("it did not say that it succeeded".to_owned());
        }
        let unproven = exit_code.is_none() && files.is_empty() && output.is_none();
        for credential in request.credentials.iter().filter(|c| !c.optional) {
            let there = match &credential.output {
                Some(_) => found.contains_key(&credential.path),
                None if unproven => self.is_new(&credential.path),
                None => self.is_there(&credential.path),
            };
            if !there {
                return Some(format!("it left no credentials in `{}`", credential.path));
            }
        }
        None
    }

    /// What the output says about the end, apart from success.
    pub(super) fn said(compiled: &Compiled, text: &str) -> Option<Outcome> {
        let says = |pattern: &Option<Regex>| pattern.as_ref().is_some_and(|p| p.is_match(text));
        if says(&compiled.refused) {
            Some(Outcome::Refused)
        } else if says(&compiled.expired) {
            Some(Outcome::Expired)
        } else {
            None
        }
    }
}

fn print(path: &Path) -> Option<Print> {
    let meta: io::Result<fs::Metadata> = fs::metadata(path);
    let meta = meta.ok().filter(fs::Metadata::is_file)?;
    Some((meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.len()))
}
