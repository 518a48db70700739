//! The TOML format of a provider, with errors that name line and column.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{Credential, Flow, Provider, Tool, is_safe_mode};

/// A provider's file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {why}")]
pub struct ProviderError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what is accepted.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Spanned<String>,
    #[serde(default)]
    aliases: Vec<Spanned<String>>,
    title: Spanned<String>,
    #[serde(default)]
    description: String,
    icon: Option<Spanned<String>>,
    tool: Option<ToolTable>,
    link: Option<LinkTable>,
    #[serde(default)]
    prompt: Vec<PromptTable>,
    success: Option<SuccessTable>,
    #[serde(default)]
    credential: Vec<CredentialTable>,
    #[serde(default)]
    egress: EgressTable,
    #[serde(default)]
    deadlines: DeadlineTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolTable {
    command: Spanned<Vec<String>>,
    flow: Spanned<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LinkTable {
    prefer: Vec<Spanned<String>>,
    ignore: Vec<Spanned<String>>,
    allow: Vec<Spanned<String>>,
    settle: Option<Spanned<String>>,
    user_code: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptTable {
    pattern: Spanned<String>,
    send: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuccessTable {
    exit_code: Option<i32>,
    #[serde(default)]
    files: Vec<Spanned<String>>,
    output: Option<Spanned<String>>,
    refused: Option<Spanned<String>>,
    expired: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialTable {
    path: Spanned<String>,
    mode: Option<Spanned<String>>,
    #[serde(default)]
    optional: bool,
    output: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EgressTable {
    hosts: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DeadlineTable {
    link: Option<Spanned<String>>,
    sign_in: Option<Spanned<String>>,
}

/// Reads a provider from the text of its file.
pub fn parse(text: &str) -> Result<Provider, ProviderError> {
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        problem(text, at, error.message().trim_end().to_owned())
    })?;
    Reader { text }.provider(file)
}

fn problem(text: &str, at: usize, why: String) -> ProviderError {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    ProviderError { line, column, why }
}

struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn provider(&self, file: File) -> Result<Provider, ProviderError> {
        self.name(&file.name)?;
        for alias in &file.aliases {
            if !is_name(alias.get_ref(), "-_") {
                return self.fail(&alias.span(), "an alias has 1 to 40 of a-z, 0-9, - and _");
            }
        }
        let title = file.title.get_ref().trim().to_owned();
        if title.is_empty() || title.chars().count() > 60 {
            return self.fail(&file.title.span(), "a title has 1 to 60 characters");
        }
        if let Some(icon) = &file.icon
            && (!icon.get_ref().trim_start().starts_with("<svg") || icon.get_ref().len() > 16_384)
        {
            return self.fail(&icon.span(), "an icon is an SVG document of at most 16 KiB");
        }
        let tool = match &file.tool {
            Some(table) => Some(self.tool(table, &file)?),
            None if file.link.is_some()
                || file.success.is_some()
                || !file.credential.is_empty() =>
            {
                return self.fail(
                    &file.name.span(),
                    "a provider with [link], [success] or [[credential]] needs [tool]",
                );
            }
            None => None,
        };
        Ok(Provider {
            name: file.name.into_inner(),
            aliases: file.aliases.into_iter().map(Spanned::into_inner).collect(),
            title,
            description: file.description,
            icon: file.icon.map(Spanned::into_inner),
            tool,
        })
    }

    fn tool(&self, table: &ToolTable, file: &File) -> Result<Tool, ProviderError> {
        if table.command.get_ref().first().is_none_or(|program| program.trim().is_empty()) {
            return self.fail(&table.command.span(), "a command needs at least a program");
        }
        let Some(flow) = Flow::from_name(table.flow.get_ref()) else {
            return self
                .fail(&table.flow.span(), "a flow is one of loopback, paste_code, device_code");
        };
        let none = LinkTable::default();
        let link = file.link.as_ref().unwrap_or(&none);
        if flow == Flow::DeviceCode && link.user_code.is_none() {
            return self.fail(
                &table.flow.span(),
                "the flow device_code needs link.user_code, a pattern with one group",
            );
        }
        if let Some(code) = &link.user_code {
            self.pattern_with_group(code)?;
        }
        for origin in &link.allow {
            let host = origin.get_ref().split_once("://").map(|(_, host)| host);
            let scheme_ok =
                origin.get_ref().starts_with("http://") || origin.get_ref().starts_with("https://");
            if !scheme_ok
                || host.is_none_or(|h| h.is_empty() || h.contains(['/', '?', '#', '@', ' ']))
            {
                return self.fail(
                    &origin.span(),
                    "an origin is written like http://host.holdfast.internal:9000, without a path",
                );
            }
        }
        let Some(success) = &file.success else {
            return self
                .fail(&table.command.span(), "a tool needs [success]: exit_code, files or output");
        };
        if success.exit_code.is_none() && success.files.is_empty() && success.output.is_none() {
            return self.fail(
                &table.command.span(),
                "[success] needs at least one of exit_code, files, output",
            );
        }
        let mut prompts = Vec::new();
        for prompt in &file.prompt {
            prompts.push((self.pattern(&prompt.pattern)?, prompt.send.clone()));
        }
        let mut credentials = Vec::new();
        for credential in &file.credential {
            credentials.push(self.credential(credential)?);
        }
        let optional =
            |pattern: &Option<Spanned<String>>| -> Result<Option<String>, ProviderError> {
                pattern.as_ref().map(|p| self.pattern(p)).transpose()
            };
        Ok(Tool {
            command: table.command.get_ref().clone(),
            env: table.env.clone().into_iter().collect(),
            flow,
            prefer: self.patterns(&link.prefer)?,
            ignore: self.patterns(&link.ignore)?,
            allow: link.allow.iter().map(|o| o.get_ref().clone()).collect(),
            settle: self.duration(link.settle.as_ref(), Duration::ZERO, Duration::from_mins(1))?,
            user_code: link.user_code.as_ref().map(|p| p.get_ref().clone()),
            prompts,
            exit_code: success.exit_code,
            success_files: success.files.iter().map(|f| self.path(f)).collect::<Result<_, _>>()?,
            success_output: optional(&success.output)?,
            refused: optional(&success.refused)?,
            expired: optional(&success.expired)?,
            credentials,
            hosts: file.egress.hosts.iter().map(|h| h.get_ref().clone()).collect(),
            link_deadline: self.duration(
                file.deadlines.link.as_ref(),
                Duration::from_mins(1),
                Duration::from_mins(10),
            )?,
            deadline: self.duration(
                file.deadlines.sign_in.as_ref(),
                Duration::from_mins(15),
                Duration::from_hours(2),
            )?,
        })
    }

    fn credential(&self, table: &CredentialTable) -> Result<Credential, ProviderError> {
        let mode = match &table.mode {
            None => 0o600,
            Some(text) => match u32::from_str_radix(text.get_ref(), 8) {
                Ok(mode) if is_safe_mode(mode) => mode,
                _ => {
                    return self.fail(
                        &text.span(),
                        "a mode is written in octal, like \"0600\", and lets nobody else write",
                    );
                }
            },
        };
        if let Some(output) = &table.output {
            self.pattern_with_group(output)?;
        }
        Ok(Credential {
            path: self.path(&table.path)?,
            mode,
            optional: table.optional,
            output: table.output.as_ref().map(|p| p.get_ref().clone()),
        })
    }

    fn name(&self, name: &Spanned<String>) -> Result<(), ProviderError> {
        if is_name(name.get_ref(), "-") {
            return Ok(());
        }
        self.fail(&name.span(), "a name has 1 to 40 of a-z, 0-9 and -, and starts with a letter")
    }

    /// A path below the home directory, which cannot lead out of it.
    fn path(&self, path: &Spanned<String>) -> Result<String, ProviderError> {
        let text = path.get_ref();
        let inside = !text.is_empty()
            && !text.starts_with('/')
            && !text.ends_with('/')
            && !text.contains('\0')
            && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if inside {
            return Ok(text.clone());
        }
        self.fail(
            &path.span(),
            "a path is relative to the home directory and stays in it, like .tool/auth.json",
        )
    }

    fn patterns(&self, patterns: &[Spanned<String>]) -> Result<Vec<String>, ProviderError> {
        patterns.iter().map(|p| self.pattern(p)).collect()
    }

    fn pattern(&self, pattern: &Spanned<String>) -> Result<String, ProviderError> {
        match regex::Regex::new(pattern.get_ref()) {
            Ok(_) => Ok(pattern.get_ref().clone()),
            Err(error) => self.fail(&pattern.span(), &format!("not a regular expression: {error}")),
        }
    }

    fn pattern_with_group(&self, pattern: &Spanned<String>) -> Result<(), ProviderError> {
        self.pattern(pattern)?;
        let groups = regex::Regex::new(pattern.get_ref()).map_or(0, |r| r.captures_len() - 1);
        if groups == 0 {
            return self
                .fail(&pattern.span(), "this pattern needs a group: what it finds is the value");
        }
        Ok(())
    }

    /// `500ms`, `30s`, `15m` or `2h`.
    fn duration(
        &self,
        text: Option<&Spanned<String>>,
        default: Duration,
        most: Duration,
    ) -> Result<Duration, ProviderError> {
        let Some(spanned) = text else { return Ok(default) };
        let text = spanned.get_ref();
        let units: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let parsed = units.into_iter().find_map(|(unit, ms)| {
            let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            Some(Duration::from_millis(number.checked_mul(ms)?))
        });
        match parsed {
            Some(duration) if duration <= most => Ok(duration),
            _ => self.fail(
                &spanned.span(),
                &format!(
                    "a duration is written like 500ms, 30s, 15m or 2h; at most {} s here",
                    most.as_secs()
                ),
            ),
        }
    }

    fn fail<T>(&self, at: &Range<usize>, why: &str) -> Result<T, ProviderError> {
        Err(problem(self.text, at.start, why.to_owned()))
    }
}

fn is_name(text: &str, also: &str) -> bool {
    (1..=40).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || also.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "tool"
title = "A tool"

[tool]
command = ["tool", "login"]
flow = "loopback"

[success]
exit_code = 0

[[credential]]
path = ".tool/auth.json"
"#;

    #[test]
    fn reads_a_short_file_with_defaults() {
        let tool = parse(GOOD).expect("good").tool.expect("has a tool");
        assert_eq!(tool.flow, Flow::Loopback);
        assert_eq!(tool.deadline, Duration::from_mins(15));
        assert_eq!(tool.credentials[0].mode, 0o600);
    }

    #[test]
    fn errors_name_the_line() {
        let cases = [
            ("name = \"tool\"", "name = \"Tool!\"", 2),
            ("flow = \"loopback\"", "flow = \"magic\"", 7),
            ("flow = \"loopback\"", "flow = \"device_code\"", 7),
            ("exit_code = 0", "output = '('", 10),
            ("path = \".tool/auth.json\"", "path = \"../../etc/shadow\"", 13),
            ("path = \".tool/auth.json\"", "path = \"/etc/shadow\"", 13),
            ("path = \".tool/auth.json\"", "path = \".a\"\nmode = \"rw\"", 14),
            ("path = \".tool/auth.json\"", "path = \".a\"\nmode = \"0666\"", 14),
            ("path = \".tool/auth.json\"", "path = \".a\"\nmode = \"4755\"", 14),
            ("command = [\"tool\", \"login\"]", "command = []", 6),
            ("exit_code = 0", "exit_cod = 0", 10),
            ("title = \"A tool\"", "title = 3", 3),
        ];
        for (from, to, line) in cases {
            let text = GOOD.replace(from, to);
            let error = parse(&text).expect_err(to);
            assert_eq!(error.line, line, "{to}: {error}");
        }
    }

    #[test]
    fn success_has_to_be_evidence() {
        let text = GOOD.replace("exit_code = 0", "");
        assert!(parse(&text).expect_err("no evidence").why.contains("at least one of"));
    }
}
