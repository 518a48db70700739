//! What people and programs see: tables, JSON, progress, errors. Text of guests passes through here, so
//! nothing of it is a command to the person's terminal.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets};
use holdfast_api::client::ClientError;
use holdfast_core::printable;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

/// Ends the process silently when standard output is closed, instead of panicking in `println!`.
pub fn die_on_closed_pipe() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") {
            std::process::exit(0);
        }
        default(panic);
    }));
}

/// Prints a failure: one sentence, and what to do about it.
pub fn print_error(error: &anyhow::Error) {
    eprintln!("error: {}", printable::all(&without_numbers(&format!("{error:#}"))));
    let hint = error.chain().find_map(|cause| match cause.downcast_ref::<ClientError>()? {
        ClientError::Connect { .. } => Some(
            "Is the server running? Start one with `holdfast up`, or say where it is with --url or HOLDFAST_URL.",
        ),
        ClientError::Refused(problem) if problem.code == holdfast_api::Code::Unauthorized => Some(
            "Set HOLDFAST_TOKEN, or run this as the user that runs the server: its token is in the state directory.",
        ),
        ClientError::Refused(problem) if problem.code == holdfast_api::Code::Gone => Some(
            "Its timeline is kept for a while: see `holdfast session logs` and `holdfast session explain`.",
        ),
        ClientError::Url { .. } => Some("Give the address with --url or HOLDFAST_URL."),
        _ => None,
    });
    if let Some(hint) = hint {
        eprintln!("{hint}");
    }
}

/// The text without the kernel's numbers of errors, which say nothing that the words beside them do not:
/// ` (os error 13)`.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    clean
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A table without lines, cut to the width of the terminal only where there is one.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    let arrangement = if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    };
    table.set_content_arrangement(arrangement);
    table
}

/// Prints a table, or a sentence when it is empty.
pub fn print_table(table: &Table, empty: &str) {
    if table.is_empty() {
        eprintln!("{empty}");
        return;
    }
    // Padding at both ends of lines is noise for whoever copies them.
    for line in table.lines() {
        println!("{}", line.strip_prefix(' ').unwrap_or(&line).trim_end());
    }
}

/// Prints names with values, one a line.
pub fn fields(fields: &[(&str, String)]) {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        println!("{name:width$}  {}", printable::all(value));
    }
}

/// How long ago, such as `3m`.
pub fn ago(at: Timestamp) -> String {
    span(Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default())
}

/// A duration in its largest sensible unit.
pub fn span(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// A time for people, in whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Bytes for people.
pub fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Shows what goes on: a spinner on a terminal, lines elsewhere; always on standard error.
pub struct Steps {
    bar: Option<ProgressBar>,
}

impl Steps {
    pub fn new(first: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let steps = Self { bar };
        steps.now(first);
        steps
    }

    /// What is being waited for.
    pub fn now(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(printable::all(text));
        }
    }

    /// Something that is done.
    pub fn done(&self, text: &str) {
        let text = printable::all(text);
        match &self.bar {
            Some(bar) => bar.println(text),
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_words() {
        let refused = "cannot listen (Permission denied (os error 13)): choose another";
        assert_eq!(without_numbers(refused), "cannot listen (Permission denied): choose another");
        assert_eq!(without_numbers("a: b (os error 2)"), "a: b");
        assert_eq!(without_numbers("nothing of it"), "nothing of it");
    }
}
