//! Text of a guest as it may be shown: no control characters, which a terminal would obey, no marks that
//! turn the direction of what follows, and no more than was asked for.

/// `text` on one line, at most so many bytes of its start.
pub fn line(text: &str, most: usize) -> String {
    let mut clean = String::new();
    for c in text.chars() {
        let c = if c.is_whitespace() { ' ' } else { c };
        if obeyed(c) {
            continue;
        }
        if clean.len() + c.len_utf8() > most {
            break;
        }
        clean.push(c);
    }
    clean
}

/// `text` with its line breaks and tabs, at most so many bytes of its end.
pub fn end(text: &str, most: usize) -> String {
    let mut clean = all(text);
    let start = clean.len().saturating_sub(most);
    let start = (start..=clean.len()).find(|at| clean.is_char_boundary(*at));
    clean.split_off(start.unwrap_or_default())
}

/// All of `text` with its line breaks and tabs.
pub fn all(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !obeyed(*c)).collect()
}

/// Whether a character is a command rather than a part of the text.
fn obeyed(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || turns
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[31m\u{9b}2J\u{7}\u{202e}b\r\n\tc\u{0}d";

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(line(HOSTILE, 100), "a[31m2Jb   cd");
        assert_eq!(all(HOSTILE), "a[31m2Jb\n\tcd");
        assert_eq!(all("plain \u{fc}\u{4e2d} text\n"), "plain \u{fc}\u{4e2d} text\n");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(
            (line("\u{fc}\u{fc}\u{fc}", 5), end("\u{fc}\u{fc}\u{fc}", 5)),
            ("\u{fc}\u{fc}".into(), "\u{fc}\u{fc}".into())
        );
        assert_eq!((line("abc", 3).as_str(), end("abc", 2).as_str()), ("abc", "bc"));
        assert_eq!((line("abc", 0), end("abc", 0)), (String::new(), String::new()));
    }
}
