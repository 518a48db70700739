//! Splits what a program writes to its terminal into text, control characters and escape sequences,
//! without ever cutting one of them in two.
//!
//! Also knows which sequences are questions to the terminal, and what to answer when there is none.

/// Longest sequence that is kept in one piece, in bytes; pictures are longer and pass in parts.
const SEQUENCE_LIMIT: usize = 64 << 10;

/// A piece of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// Printable bytes, whole characters as far as they are UTF-8.
    Text(&'a [u8]),
    /// A control character.
    Control(u8),
    /// A whole escape sequence, as it was written.
    Sequence(Kind, &'a [u8]),
    /// Part of a sequence that is too long to be kept, or was broken off.
    Broken(&'a [u8]),
}

impl Token<'_> {
    /// The bytes as they were written.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(bytes) | Self::Sequence(_, bytes) | Self::Broken(bytes) => {
                out.extend_from_slice(bytes);
            }
            Self::Control(byte) => out.push(*byte),
        }
    }

    /// Whether it asks the terminal something.
    pub fn is_query(&self) -> bool {
        match self {
            Self::Sequence(kind, bytes) => is_query(*kind, bytes),
            _ => false,
        }
    }
}

/// Kind of an escape sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ESC and one final character.
    Escape,
    /// `ESC [` up to its final character.
    Csi,
    /// `ESC ]` up to BEL or `ESC \`.
    Osc,
    /// DCS, SOS, PM or APC up to `ESC \`.
    String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Ground,
    /// A character of which so many bytes are missing.
    Character(usize),
    Escape,
    Csi,
    Str(Kind),
    /// ESC within a string.
    StrEscape(Kind),
}

/// The splitter. Feed it all bytes in their order.
#[derive(Debug, Default)]
pub struct Splitter {
    state: State,
    pending: Vec<u8>,
}

impl Splitter {
    /// Takes `bytes` and hands over what is complete.
    pub fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(Token<'_>)) {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            rest = &rest[self.step(byte, rest, &mut sink)..];
        }
    }

    /// Hands over what will never be complete.
    pub fn finish(&mut self, mut sink: impl FnMut(Token<'_>)) {
        self.give_up(&mut sink);
    }

    /// Takes one step; returns how many bytes of `rest`, which starts with `byte`, it used up.
    fn step(&mut self, byte: u8, rest: &[u8], sink: &mut impl FnMut(Token<'_>)) -> usize {
        match self.state {
            State::Ground => return self.ground(byte, rest, sink),
            State::Character(missing) => {
                if byte & 0xc0 != 0x80 {
                    sink(Token::Text(&self.pending));
                    self.reset();
                    return 0;
                }
                self.pending.push(byte);
                if missing == 1 {
                    sink(Token::Text(&self.pending));
                    self.reset();
                } else {
                    self.state = State::Character(missing - 1);
                }
            }
            State::Escape => match byte {
                b'[' if self.pending.len() == 1 => self.go_on(byte, State::Csi),
                b']' if self.pending.len() == 1 => self.go_on(byte, State::Str(Kind::Osc)),
                b'P' | b'X' | b'^' | b'_' if self.pending.len() == 1 => {
                    self.go_on(byte, State::Str(Kind::String));
                }
                0x20..=0x2f => self.go_on(byte, State::Escape),
                0x30..=0x7e => self.complete(byte, Kind::Escape, sink),
                _ => {
                    self.give_up(sink);
                    return 0;
                }
            },
            State::Csi => match byte {
                0x20..=0x3f if self.pending.len() < SEQUENCE_LIMIT => {
                    self.go_on(byte, State::Csi);
                }
                0x40..=0x7e => self.complete(byte, Kind::Csi, sink),
                // Terminals act on these without leaving the sequence.
                0x07..=0x0d => sink(Token::Control(byte)),
                _ => {
                    self.give_up(sink);
                    return 0;
                }
            },
            State::Str(kind) => match byte {
                0x07 if kind == Kind::Osc => self.complete(byte, kind, sink),
                0x1b => self.state = State::StrEscape(kind),
                0x18 | 0x1a => self.give_up(sink),
                _ => {
                    self.go_on(byte, State::Str(kind));
                    if self.pending.len() >= SEQUENCE_LIMIT {
                        sink(Token::Broken(&self.pending));
                        self.pending.clear();
                    }
                }
            },
            State::StrEscape(kind) => {
                if byte == b'\\' {
                    self.pending.push(0x1b);
                    self.complete(byte, kind, sink);
                } else {
                    self.give_up(sink);
                    self.go_on(0x1b, State::Escape);
                    return 0;
                }
            }
        }
        1
    }

    fn ground(&mut self, byte: u8, rest: &[u8], sink: &mut impl FnMut(Token<'_>)) -> usize {
        if byte == 0x1b {
            self.go_on(byte, State::Escape);
            return 1;
        }
        let is_control = |byte: u8| byte < 0x20 || byte == 0x7f;
        if is_control(byte) {
            sink(Token::Control(byte));
            return 1;
        }
        let end = rest.iter().position(|b| is_control(*b)).unwrap_or(rest.len());
        let text = &rest[..end];
        // A character that is cut by the end of the input waits for its other bytes.
        let missing = if end == rest.len() { missing_of_last(text) } else { None };
        let whole = missing.map_or(text.len(), |(start, _)| start);
        if whole > 0 {
            sink(Token::Text(&text[..whole]));
        }
        if let Some((start, count)) = missing {
            self.pending.extend_from_slice(&text[start..]);
            self.state = State::Character(count);
        }
        end
    }

    fn go_on(&mut self, byte: u8, state: State) {
        self.pending.push(byte);
        self.state = state;
    }

    fn complete(&mut self, byte: u8, kind: Kind, sink: &mut impl FnMut(Token<'_>)) {
        self.pending.push(byte);
        sink(Token::Sequence(kind, &self.pending));
        self.reset();
    }

    fn give_up(&mut self, sink: &mut impl FnMut(Token<'_>)) {
        if !self.pending.is_empty() {
            sink(Token::Broken(&self.pending));
        }
        self.reset();
    }

    fn reset(&mut self) {
        self.pending.clear();
        self.state = State::Ground;
    }
}

/// Where an unfinished character starts at the end of `text`, and how many bytes it lacks.
fn missing_of_last(text: &[u8]) -> Option<(usize, usize)> {
    for back in 1..=text.len().min(3) {
        let start = text.len() - back;
        let length = match text[start] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return None,
        };
        return (length > back).then(|| (start, length - back));
    }
    None
}

/// Parameters and final characters of a CSI sequence.
fn csi(bytes: &[u8]) -> (&str, &str) {
    let body = std::str::from_utf8(bytes.get(2..).unwrap_or_default()).unwrap_or_default();
    let end = body.find(|c: char| !matches!(c, '0'..='?')).unwrap_or(body.len());
    body.split_at(end)
}

/// What stands between `ESC ]` and the end of an OSC sequence.
pub fn osc(bytes: &[u8]) -> &[u8] {
    let body = bytes.get(2..).unwrap_or_default();
    body.strip_suffix(b"\x07").or_else(|| body.strip_suffix(b"\x1b\\")).unwrap_or(body)
}

fn is_query(kind: Kind, bytes: &[u8]) -> bool {
    match kind {
        Kind::Escape => bytes == b"\x1bZ",
        Kind::Csi => {
            let (parameters, end) = csi(bytes);
            match end {
                "n" | "c" | "x" | "$p" => true,
                "q" => parameters.starts_with('>'),
                "u" => parameters.starts_with('?'),
                "t" => matches!(
                    parameters,
                    "11" | "13" | "14" | "15" | "16" | "18" | "19" | "20" | "21"
                ),
                _ => false,
            }
        }
        Kind::Osc => osc(bytes).ends_with(b";?"),
        Kind::String => [b"\x1bP+q", b"\x1bP$q"].iter().any(|start| bytes.starts_with(*start)),
    }
}

/// What a terminal of `columns` x `rows` answers to a query, when none is there to do it: a tool must
/// not wait for ever.
pub fn answer(token: Token<'_>, columns: u16, rows: u16) -> Option<Vec<u8>> {
    let Token::Sequence(kind, bytes) = token else { return None };
    let text = match kind {
        Kind::Escape => (bytes == b"\x1bZ").then(|| "\x1b[?62;22c".to_owned())?,
        Kind::Csi => match csi(bytes) {
            ("5", "n") => "\x1b[0n".to_owned(),
            ("6", "n") => "\x1b[1;1R".to_owned(),
            ("?6", "n") => "\x1b[?1;1R".to_owned(),
            ("" | "0", "c") => "\x1b[?62;22c".to_owned(),
            (">" | ">0", "c") => "\x1b[>41;370;0c".to_owned(),
            (parameters, "$p") => format!("\x1b[{parameters};0$y"),
            (">" | ">0", "q") => "\x1bP>|holdfast\x1b\\".to_owned(),
            ("18", "t") => format!("\x1b[8;{rows};{columns}t"),
            _ => return None,
        },
        Kind::Osc => {
            let (colour, value) = match osc(bytes) {
                b"10;?" => ("10", "e6e6/e6e6/e6e6"),
                b"11;?" => ("11", "1717/1c1c/2626"),
                b"12;?" => ("12", "e6e6/e6e6/e6e6"),
                _ => return None,
            };
            let end = if bytes.ends_with(b"\x07") { "\x07" } else { "\x1b\\" };
            format!("\x1b]{colour};rgb:{value}{end}")
        }
        Kind::String => "\x1bP0+r\x1b\\".to_owned(),
    };
    Some(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "a\u{e9}\u{1f600}\r\n\x1b[1;31mred\x1b[0m\x1b]8;;https://a.example/?x=1\x1b\\link\x1b]8;;\x07\x1b(B\x1b[6n\x1bP+q544e\x1b\\z";

    fn split(chunks: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let mut splitter = Splitter::default();
        let mut all = Vec::new();
        let mut take = |token: Token<'_>| {
            let mut bytes = Vec::new();
            token.append_to(&mut bytes);
            all.push((matches!(token, Token::Text(_)), bytes));
        };
        for chunk in chunks {
            splitter.feed(chunk, &mut take);
        }
        splitter.finish(&mut take);
        all
    }

    #[test]
    fn no_cut_of_the_input_changes_the_pieces() {
        let bytes = SAMPLE.as_bytes();
        let join = |pieces: Vec<(bool, Vec<u8>)>| {
            // Neighbouring texts are one text.
            let mut joined: Vec<(bool, Vec<u8>)> = Vec::new();
            for (is_text, piece) in pieces {
                match joined.last_mut() {
                    Some((true, last)) if is_text => last.extend(piece),
                    _ => joined.push((is_text, piece)),
                }
            }
            joined
        };
        let whole = join(split(&[bytes]));
        assert_eq!(whole.iter().flat_map(|(_, b)| b.clone()).collect::<Vec<_>>(), bytes);
        for cut in 0..=bytes.len() {
            let pieces = split(&[&bytes[..cut], &bytes[cut..]]);
            for (is_text, piece) in &pieces {
                assert!(!is_text || std::str::from_utf8(piece).is_ok(), "cut at {cut}: {piece:?}");
            }
            assert_eq!(join(pieces), whole, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(join(split(&single)), whole);
    }

    #[test]
    fn nothing_is_lost_of_broken_output() {
        for broken in [
            &b"\xff\xfe\xc3(\x1b"[..],
            b"\x1b[12\x1b[0m",
            b"\x1b]8;;unfinished",
            b"\x1b]8;;\x1b[0mx",
            b"\x1b[\x80x",
        ] {
            let out: Vec<u8> = split(&[broken]).into_iter().flat_map(|(_, b)| b).collect();
            assert_eq!(out, broken);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut splitter = Splitter::default();
        let mut passed = 0;
        splitter.feed(b"\x1bP", |_| {});
        for _ in 0..64 {
            splitter.feed(&vec![b'x'; 64 << 10], |token| {
                let mut bytes = Vec::new();
                token.append_to(&mut bytes);
                passed += bytes.len();
            });
            assert!(splitter.pending.len() <= SEQUENCE_LIMIT);
        }
        assert!(passed > 63 * (64 << 10));
    }

    #[test]
    fn queries_are_answered() {
        let answers = |text: &str| {
            let mut all = Vec::new();
            Splitter::default().feed(text.as_bytes(), |token| {
                let answer = answer(token, 80, 24);
                assert!(answer.is_none() || token.is_query(), "{token:?}");
                all.extend(answer.unwrap_or_default());
            });
            String::from_utf8(all).expect("text")
        };
        assert_eq!(answers("\x1b[6n"), "\x1b[1;1R");
        assert_eq!(answers("\x1b[c"), "\x1b[?62;22c");
        assert_eq!(answers("\x1b]11;?\x07"), "\x1b]11;rgb:1717/1c1c/2626\x07");
        assert_eq!(answers("\x1b]10;?\x1b\\"), "\x1b]10;rgb:e6e6/e6e6/e6e6\x1b\\");
        assert_eq!(answers("\x1b[?2026$p"), "\x1b[?2026;0$y");
        assert_eq!(answers("plain \x1b[31m\x1b[2J\x1b[8;24;80t\x1b]0;title\x07"), "");
    }
}
