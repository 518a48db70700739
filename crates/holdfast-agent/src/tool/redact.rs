//! What of a tool's output must not leave the guest: credentials as its files hold them, codes that its
//! person pasted and the terminal echoes, and words that look like either.

use std::{collections::HashSet, path::Path};

use holdfast_agent_api::tool::CredentialFile;
use regex::Regex;

use super::collect::read_below;

/// What stands in the place of a secret.
pub(super) const REMOVED: &str = "[removed]";
/// Shorter words of a credential file are no secrets, in bytes.
const SHORTEST: usize = 16;
/// Shorter words of a pasted code are no secrets, in bytes.
const SHORTEST_TYPED: usize = 4;
/// A word of letters and digits that is no shorter looks like a secret, in bytes.
const LOOKS_MADE: usize = 24;

/// The secrets of a run.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    /// Words of its credential files.
    kept: HashSet<String>,
    /// What was pasted, whole and in words.
    typed: HashSet<String>,
}

impl Redactor {
    /// Learns what the credential files hold now.
    pub(super) fn learn(&mut self, home: &Path, credentials: &[CredentialFile]) {
        for credential in credentials.iter().filter(|credential| credential.output.is_none()) {
            // One that cannot be read now is read when it has changed.
            let Ok(Some(content)) = read_below(home, &credential.path) else { continue };
            let content = String::from_utf8_lossy(&content);
            let words = content.split(|c| !is_of_word(c));
            let words = words.flat_map(|word| word.split(|c| !is_of_part(c)).chain([word]));
            self.kept.extend(words.filter(|w| w.len() >= SHORTEST).map(str::to_owned));
        }
    }

    /// Learns what was pasted.
    pub(super) fn typed(&mut self, text: &str) {
        let words = text.split(|c| !is_of_word(c)).chain([text]);
        self.typed.extend(words.filter(|w| w.len() >= SHORTEST_TYPED).map(str::to_owned));
    }

    /// `text` without secrets.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The longest first, for it may contain the others.
        let mut typed: Vec<_> = self.typed.iter().collect();
        typed.sort_unstable_by_key(|word| std::cmp::Reverse(word.len()));
        for word in typed {
            text = text.replace(word.as_str(), REMOVED);
        }
        let mut clean = String::with_capacity(text.len());
        let apart = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ',');
        for piece in text.split_inclusive(apart) {
            // A link is made of such words, and is no secret to who reads this.
            let in_link = piece.contains("://");
            let mut rest = piece;
            while let Some(start) = rest.find(is_of_word) {
                let (before, from) = rest.split_at(start);
                let (word, after) =
                    from.split_at(from.find(|c| !is_of_word(c)).unwrap_or(from.len()));
                clean.push_str(before);
                clean.push_str(if self.is_secret(word, in_link) { REMOVED } else { word });
                rest = after;
            }
            clean.push_str(rest);
        }
        clean
    }

    fn is_secret(&self, word: &str, in_link: bool) -> bool {
        self.kept.contains(word)
            || word
                .split(|c| !is_of_part(c))
                .any(|part| self.kept.contains(part) || !in_link && looks_made(part))
    }
}

/// The last whole words of `text`, at most so many bytes of them: half a secret is not recognised.
pub(super) fn last_words(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let start = text.len() - most;
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let end = &text[start..];
    end.split_once(char::is_whitespace).map_or("", |(_, words)| words)
}

/// Replaces the first group of every match.
pub(super) fn without(pattern: &Regex, text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut end = 0;
    for group in pattern.captures_iter(text).filter_map(|captures| captures.get(1)) {
        out.push_str(&text[end..group.start()]);
        out.push_str(REMOVED);
        end = group.end();
    }
    out.push_str(&text[end..]);
    out
}

/// Characters of base64, of JSON web tokens and of what separates their parts.
fn is_of_word(c: char) -> bool {
    is_of_part(c) || matches!(c, '.' | '+' | '/' | '=' | '~')
}

fn is_of_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_')
}

/// Whether a machine made it, such as a token that is printed before it is written to its file.
fn looks_made(part: &str) -> bool {
    part.len() >= LOOKS_MADE
        && part.contains(|c: char| c.is_ascii_digit())
        && part.contains(|c: char| c.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_credential_files_are_removed_wherever_they_stand() {
        let home = tempfile::tempdir().expect("a directory");
        let file = |path: &str, output: Option<&str>| CredentialFile {
            path: path.to_owned(),
            mode: 0o600,
            optional: false,
            output: output.map(str::to_owned),
        };
        let json =
            r#"{"access_token":"onlyletterstoken","refresh":"1//0ab+Cd/ef=gh.ijkl","user":"ada"}"#;
        std::fs::write(home.path().join("auth.json"), json).expect("written");
        std::fs::write(home.path().join("hosts.yml"), "host:\n  oauth: gho_lettersonlyhere\n")
            .expect("written");
        let mut redactor = Redactor::default();
        redactor.learn(
            home.path(),
            &[file("auth.json", None), file("hosts.yml", None), file("none", None)],
        );
        for (printed, shown) in [
            ("token onlyletterstoken.", "token [removed]"),
            ("TOKEN=onlyletterstoken", "[removed]"),
            ("{\"t\":\"onlyletterstoken\"}", "{\"t\":\"[removed]\"}"),
            ("https://a.example/?t=onlyletterstoken&x=1", "https://a.example/?[removed]&x=1"),
            ("(1//0ab+Cd/ef=gh.ijkl)", "([removed])"),
            ("gho_lettersonlyhere\n", "[removed]\n"),
            ("Hello ada, welcome", "Hello ada, welcome"),
        ] {
            assert_eq!(redactor.clean(printed), shown, "{printed}");
        }
    }

    #[test]
    fn what_was_pasted_is_removed_whole_and_in_parts() {
        let mut redactor = Redactor::default();
        redactor.typed("s3cret#st4te");
        redactor.typed("y");
        let echoed = "Paste code here: s3cret#st4te\nno code s3cret for st4te, try again";
        let shown = "Paste code here: [removed]\nno code [removed] for [removed], try again";
        assert_eq!(redactor.clean(echoed), shown);
    }

    #[test]
    fn no_half_secret_is_looked_at() {
        assert_eq!(last_words("one two three", 13), "one two three");
        assert_eq!(last_words("one two three", 9), "three");
        assert_eq!(last_words("\u{fc}\u{fc} two", 5), "two");
        assert_eq!(last_words("onetwothree", 5), "");
    }

    #[test]
    fn what_looks_like_a_token_is_removed_but_no_link() {
        let redactor = Redactor::default();
        let token = "sk-test-oat01-AbCdEfGh0123456789";
        assert_eq!(redactor.clean(&format!("Your token: {token}\n")), "Your token: [removed]\n");
        for plain in [
            "https://auth.example/authorize?state=0123456789abcdef0123456789abcdef&x=1",
            "panicked at src/commands/login/authorization_code_flow.rs:10:5",
            "Error: permission denied, open '/home/user/.config/tool/hosts.yml'",
            "code: AB12-CD34",
        ] {
            assert_eq!(redactor.clean(plain), plain);
        }
        let json = format!("{{\"issuer\":\"https://a.example\",\"token\":\"{token}\"}}");
        assert!(!redactor.clean(&json).contains("AbCdEfGh"));
    }
}
