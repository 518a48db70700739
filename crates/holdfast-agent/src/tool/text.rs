//! The output of a tool as text: escape sequences removed, wrapped lines joined, hyperlinks set apart.

use std::collections::VecDeque;

use crate::ansi::{Kind, Token, osc};

/// How much text is kept, in bytes: enough for a link and all that is said about it.
const KEPT: usize = 128 << 10;
/// Longest line that is kept in one piece, in bytes.
const LINE: usize = 32 << 10;
/// A line that is no shorter may have been wrapped by the tool itself.
const LIKELY_WIDTH: usize = 60;

/// Collects the text of a tool.
#[derive(Debug)]
pub(super) struct Transcript {
    /// Columns of the tool's terminal.
    columns: usize,
    lines: VecDeque<String>,
    kept: usize,
    line: String,
    /// The cursor is at the start of a line that has text.
    returned: bool,
    hyperlinks: Vec<String>,
}

impl Transcript {
    pub(super) fn new(columns: u16) -> Self {
        Self {
            columns: columns.into(),
            lines: VecDeque::new(),
            kept: 0,
            line: String::new(),
            returned: false,
            hyperlinks: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, token: Token<'_>) {
        match token {
            Token::Text(bytes) => {
                if self.returned {
                    self.end_line();
                }
                self.line.push_str(&String::from_utf8_lossy(bytes));
                if self.line.len() > LINE {
                    self.end_line();
                }
            }
            Token::Control(b'\n') => self.end_line(),
            Token::Control(b'\r') => self.returned = !self.line.is_empty(),
            Token::Control(b'\t') => self.line.push(' '),
            Token::Control(0x08) => {
                self.line.pop();
            }
            Token::Sequence(Kind::Csi, bytes) => self.csi(bytes),
            Token::Sequence(Kind::Osc, bytes) => self.hyperlink(bytes),
            _ => {}
        }
    }

    fn csi(&mut self, bytes: &[u8]) {
        let Some((end, parameters)) = bytes.get(2..).and_then(<[u8]>::split_last) else { return };
        let number = std::str::from_utf8(parameters).ok().and_then(|n| n.parse::<usize>().ok());
        let number = number.unwrap_or(1).clamp(1, self.columns);
        match end {
            // Some tools move over blanks instead of writing them.
            b'C' => self.line.extend(std::iter::repeat_n(' ', number)),
            b'G' if number == 1 => self.returned = !self.line.is_empty(),
            b'G' if number > self.line.chars().count() => {
                let blanks = number - 1 - self.line.chars().count();
                self.line.extend(std::iter::repeat_n(' ', blanks));
            }
            // The cursor goes elsewhere.
            b'A' | b'B' | b'E' | b'F' | b'G' | b'H' | b'd' | b'f' if !self.line.is_empty() => {
                self.end_line();
            }
            _ => {}
        }
    }

    fn hyperlink(&mut self, bytes: &[u8]) {
        let Some(rest) = osc(bytes).strip_prefix(b"8;") else { return };
        let Some(start) = rest.iter().position(|byte| *byte == b';') else { return };
        let url = String::from_utf8_lossy(&rest[start + 1..]).into_owned();
        if !url.is_empty() && self.hyperlinks.len() < 64 {
            self.hyperlinks.push(url);
        }
    }

    fn end_line(&mut self) {
        self.returned = false;
        let line = std::mem::take(&mut self.line);
        let is_frame = |c: char| ('\u{2500}'..='\u{257f}').contains(&c);
        // Frames around a text belong to none of its words.
        let framed = line.trim_end().ends_with(is_frame) && line.trim_start().starts_with(is_frame);
        let line = if framed {
            line.trim_matches(|c: char| is_frame(c) || c == ' ').to_owned()
        } else {
            line.trim_end().to_owned()
        };
        if line.is_empty() && self.lines.back().is_none_or(String::is_empty) {
            return;
        }
        self.kept += line.len() + 1;
        self.lines.push_back(line);
        while self.kept > KEPT
            && let Some(first) = self.lines.pop_front()
        {
            self.kept -= first.len() + 1;
        }
    }

    /// Hyperlinks since the last call.
    pub(super) fn take_hyperlinks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.hyperlinks)
    }

    /// All text that is kept, with the line that is not complete when `with_last`.
    pub(super) fn text(&self, with_last: bool) -> String {
        let last = (with_last && !self.line.is_empty()).then_some(&self.line);
        let lines: Vec<&str> = self.lines.iter().chain(last).map(String::as_str).collect();
        let mut text = String::with_capacity(self.kept + self.line.len());
        // Width of the wrapped paragraph that goes on, if one does.
        let mut paragraph = None;
        for (index, line) in lines.iter().enumerate() {
            text.push_str(line);
            let Some(next) = lines.get(index + 1) else { break };
            paragraph = self.wrapped_at(line, next, paragraph);
            if paragraph.is_none() {
                text.push('\n');
            }
        }
        text
    }

    /// Whether `next` continues a word of `line`; the width at which it was wrapped.
    fn wrapped_at(&self, line: &str, next: &str, paragraph: Option<usize>) -> Option<usize> {
        let width = line.chars().count();
        let next_width = next.chars().count();
        if width == self.columns && !next.is_empty() {
            return Some(width);
        }
        // A tool that wraps by itself, narrower than its terminal. Only links are put together again,
        // and only with what cannot be a line of its own.
        let is_word = !next.is_empty() && !next.contains(char::is_whitespace);
        let word = line.rsplit(' ').next().unwrap_or_default();
        let in_link = paragraph == Some(width) || word.contains("://");
        if width < LIKELY_WIDTH || !is_word || !in_link || next.contains("://") {
            return None;
        }
        let like_a_link = next.contains(|c: char| "=&%-_/+~".contains(c) || c.is_ascii_digit());
        let goes_on = next_width == width || (next_width < width && like_a_link);
        goes_on.then_some(width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ansi::Splitter;

    fn text_of(output: &str, columns: u16) -> String {
        let mut transcript = Transcript::new(columns);
        Splitter::default().feed(output.as_bytes(), |token| transcript.push(token));
        transcript.text(true)
    }

    #[test]
    fn colours_and_progress_leave_plain_lines() {
        assert_eq!(text_of("\x1b[1mhi\x1b[0m there\r\nnext\r\n", 80), "hi there\nnext");
        assert_eq!(text_of("10%\r50%\r100%\r\ndone", 80), "10%\n50%\n100%\ndone");
        assert_eq!(text_of("Paste\x1b[1Ccode\x1b[2Khere", 80), "Paste codehere");
        assert_eq!(text_of("ab\x08c", 80), "ac");
        assert_eq!(text_of("Paste\x1b[7Gcode\x1b[12Ghere\x1b[1Gover", 80), "Paste code here\nover");
    }

    #[test]
    fn a_link_that_the_tool_wrapped_is_whole_again() {
        let link = format!("https://a.example/authorize?client=1&state={}", "s0me-".repeat(60));
        for width in [64, 80, 100] {
            let lines: Vec<_> = link.as_bytes().chunks(width).collect();
            let printed = lines.join(&b"\r\n"[..]);
            let output =
                format!("Visit:\r\n{}\r\n\r\nWaiting\r\n", String::from_utf8_lossy(&printed));
            assert!(text_of(&output, 400).contains(&format!("\n{link}\n")), "width {width}");
        }
    }

    #[test]
    fn a_line_of_its_own_is_not_joined_to_a_link() {
        let link = format!("https://a.example/authorize?state={}", "x".repeat(60));
        let next = |line: &str| text_of(&format!("{link}\r\n{line}\r\n"), 400);
        assert_eq!(next("Waiting..."), format!("{link}\nWaiting..."));
        assert_eq!(next("Paste code here"), format!("{link}\nPaste code here"));
        assert_eq!(next("https://b.example/?x=1"), format!("{link}\nhttps://b.example/?x=1"));
    }

    #[test]
    fn lines_as_wide_as_the_terminal_go_on() {
        let long = "abcdefgh".repeat(5);
        let output = format!("{}\r\n{}\r\n", &long[..20], &long[20..]);
        assert_eq!(text_of(&output, 20), long);
    }

    #[test]
    fn frames_are_not_text() {
        let output = "\u{256d}\u{2500}\u{2500}\u{256e}\r\n\u{2502} code AB-12 \u{2502}\r\n\u{2570}\u{2500}\u{256f}\r\n";
        assert_eq!(text_of(output, 80).trim(), "code AB-12");
    }

    #[test]
    fn hyperlinks_are_read_and_memory_is_bounded() {
        let mut transcript = Transcript::new(80);
        let mut splitter = Splitter::default();
        splitter.feed(b"\x1b]8;id=1;https://a.example/?q=1;2\x1b\\here\x1b]8;;\x1b\\", |token| {
            transcript.push(token);
        });
        assert_eq!(transcript.take_hyperlinks(), ["https://a.example/?q=1;2"]);
        for _ in 0..20_000 {
            splitter.feed(b"a line of output that says nothing at all to anybody\r\n", |token| {
                transcript.push(token);
            });
        }
        for _ in 0..100 {
            splitter.feed(&vec![b'x'; 10_000], |token| transcript.push(token));
        }
        assert!(transcript.text(true).len() <= KEPT + 2 * LINE);
    }
}
