//! What counts as a sign-in link, and which of several is the one.

use std::sync::LazyLock;

use holdfast_agent_api::tool::LinkRules;
use regex::Regex;

use super::rules::{PatternError, compile};

/// Longest link, in bytes.
const LONGEST: usize = 8 << 10;

static LINKS: LazyLock<Regex> = LazyLock::new(|| {
    // Printable ASCII without blanks and without what sets links apart from their surroundings.
    Regex::new(r"(?i)https?://[\x21\x23-\x26\x28-\x3b\x3d\x3f-\x5b\x5d\x5f\x61-\x7a\x7e]+")
        .expect("the pattern is constant and tested")
});

/// Rules, compiled.
#[derive(Debug)]
pub(super) struct Rules {
    prefer: Vec<Regex>,
    ignore: Vec<Regex>,
    allow: Vec<String>,
}

/// What a link is worth.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It may be the run's; lower is better.
    Rank(usize),
    /// A link as any other.
    PassedOver,
    /// It must not be opened, and why.
    Refused(&'static str),
}

impl Rules {
    pub(super) fn new(rules: &LinkRules) -> Result<Self, PatternError> {
        let all = |patterns: &[String]| -> Result<Vec<Regex>, PatternError> {
            patterns.iter().map(|pattern| compile(pattern)).collect()
        };
        let origin = |text: &String| text.trim_end_matches('/').to_ascii_lowercase();
        Ok(Self {
            prefer: all(&rules.prefer)?,
            ignore: all(&rules.ignore)?,
            allow: rules.allow.iter().map(origin).collect(),
        })
    }

    pub(super) fn worth(&self, url: &str) -> Worth {
        if let Err(why) = acceptable(url, &self.allow) {
            return Worth::Refused(why);
        }
        if self.ignore.iter().any(|pattern| pattern.is_match(url)) {
            return Worth::PassedOver;
        }
        if self.prefer.is_empty() {
            return Worth::Rank(0);
        }
        let rank = self.prefer.iter().position(|pattern| pattern.is_match(url));
        rank.map_or(Worth::PassedOver, Worth::Rank)
    }

    /// Whether order alone tells links of the same worth apart: without preferences the first counts.
    pub(super) fn is_selective(&self) -> bool {
        !self.prefer.is_empty()
    }
}

/// Links in `text`, each with the place where it ends.
pub(super) fn find(text: &str) -> impl Iterator<Item = (&str, usize)> {
    LINKS.find_iter(text).map(|found| {
        let mut url = found.as_str();
        // Punctuation after a link is not part of it; a bracket is when it was opened within.
        loop {
            let count = |c: char| url.matches(c).count();
            url = match url.chars().next_back() {
                Some('.' | ',' | ';' | ':' | '!' | '?' | '*') => &url[..url.len() - 1],
                Some(')') if count(')') > count('(') => &url[..url.len() - 1],
                Some(']') if count(']') > count('[') => &url[..url.len() - 1],
                _ => break,
            };
        }
        (url, found.end())
    })
}

/// Why a link must not be opened, if so: it has to be `https` to a public name, or to have an allowed
/// origin.
pub(super) fn acceptable(url: &str, allow: &[String]) -> Result<(), &'static str> {
    if url.len() > LONGEST {
        return Err("it is longer than 8 KiB");
    }
    if url.chars().any(char::is_control) {
        return Err("it contains control characters");
    }
    if !url.is_ascii() || url.contains([' ', '\\', '"', '<', '>', '`']) {
        return Err("it contains characters that no link has");
    }
    let Some((scheme, rest)) = url.split_once(':') else { return Err("it is not a link") };
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "https" && scheme != "http" {
        return Err("it is not a web link");
    }
    let Some(rest) = rest.strip_prefix("//") else { return Err("it names no host") };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if authority.contains('@') {
        return Err("it hides its host behind a user name");
    }
    let authority = authority.to_ascii_lowercase();
    if allow.contains(&format!("{scheme}://{authority}")) {
        return Ok(());
    }
    if scheme != "https" {
        return Err("it is not https");
    }
    let host = match authority.split_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => host,
        None => &authority,
        Some(_) => return Err("its host is not a name"),
    };
    public_name(host.strip_suffix('.').unwrap_or(host))
}

fn public_name(host: &str) -> Result<(), &'static str> {
    let is_label = |label: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(is_part)
    };
    let labels: Vec<&str> = host.split('.').collect();
    if host.len() > 253 || !labels.iter().all(|label| is_label(label)) {
        return Err("its host is not a name");
    }
    let Some((last, others)) = labels.split_last() else { return Err("it names no host") };
    // No top-level domain starts with a digit; addresses do in all their notations.
    if last.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("its host is an address");
    }
    let private =
        ["localhost", "local", "internal", "lan", "home", "corp", "intranet", "arpa", "test"];
    if others.is_empty() || private.contains(last) {
        return Err("its host is not a public name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_links_are_refused() {
        let long = format!("https://a.example/{}", "x".repeat(LONGEST));
        for url in [
            "javascript:alert(1)",
            "JavaScript://a.example/%0aalert(1)",
            "file:///etc/passwd",
            "data:text/html,<script>",
            "chrome://settings",
            "ftp://a.example/",
            "http://a.example/",
            "https://localhost/",
            "https://localhost:8080/",
            "https://a.localhost/",
            "https://LOCALHOST./",
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0x7f000001/",
            "https://017700000001/",
            "https://10.0.0.1/",
            "https://172.30.0.1/",
            "https://192.168.1.1/",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/",
            "https://[fd00::1]/",
            "https://router/",
            "https://printer.local/",
            "https://metadata.google.internal/",
            "https://host.holdfast.internal:9000/",
            "https://accounts.google.com@evil.example/",
            "https://accounts.google.com:443@evil.example/",
            "https://good.example\\@evil.example/",
            "https://good.example\n/",
            "https://a.example/\u{1b}[31m",
            "https://a.example/\u{202e}x",
            "https://a.example:0/",
            "https://a.example:99999/",
            "https://a.example:/",
            "https://.example/",
            "https:///path",
            "https:a.example",
            "https://%6c%6f%63alhost/",
            "a.example",
            "",
            long.as_str(),
        ] {
            assert!(acceptable(url, &[]).is_err(), "{url} was accepted");
        }
    }

    #[test]
    fn real_links_are_accepted() {
        for url in [
            "https://auth.openai.com/oauth/authorize?response_type=code&client_id=app_EMoamEEZ73f0CkXaXp7hrann&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback",
            "https://claude.ai/oauth/authorize?code=true&scope=user%3Ainference",
            "https://github.com/login/device",
            "HTTPS://GitHub.com/login/device",
            "https://a.example:8443/x?mail=a@b.example#@",
            "https://xn--bcher-kva.example/",
        ] {
            assert_eq!(acceptable(url, &[]), Ok(()), "{url}");
        }
    }

    #[test]
    fn only_named_origins_are_allowed_besides() {
        let rules = LinkRules {
            allow: vec!["http://host.holdfast.internal:9000/".to_owned()],
            ..LinkRules::default()
        };
        let rules = Rules::new(&rules).expect("valid");
        assert_eq!(rules.worth("http://host.holdfast.internal:9000/auth?x=1"), Worth::Rank(0));
        for url in [
            "http://host.holdfast.internal:9001/",
            "https://host.holdfast.internal:9000/",
            "http://host.holdfast.internal:9000@evil.example/",
            "http://host.holdfast.internal:9000.evil.example/",
        ] {
            assert!(matches!(rules.worth(url), Worth::Refused(_)), "{url}");
        }
    }

    #[test]
    fn preferences_rank_and_select() {
        let rules = LinkRules {
            prefer: vec!["localhost".to_owned(), "^https://claude".to_owned()],
            ignore: vec!["/docs".to_owned()],
            ..LinkRules::default()
        };
        let rules = Rules::new(&rules).expect("valid");
        assert_eq!(rules.worth("https://claude.example/?to=localhost"), Worth::Rank(0));
        assert_eq!(rules.worth("https://claude.example/"), Worth::Rank(1));
        assert_eq!(rules.worth("https://claude.example/docs"), Worth::PassedOver);
        assert_eq!(rules.worth("https://other.example/"), Worth::PassedOver);
    }

    #[test]
    fn links_are_found_without_what_surrounds_them() {
        let found = |text| find(text).map(|(url, _)| url.to_owned()).collect::<Vec<_>>();
        assert_eq!(found("see https://a.example/x?y=(1)."), ["https://a.example/x?y=(1)"]);
        assert_eq!(found("(https://a.example/x)"), ["https://a.example/x"]);
        assert_eq!(
            found("<https://a.example/>,'http://b.example'"),
            ["https://a.example/", "http://b.example"]
        );
        assert_eq!(found("nothing here: ftp://a.example"), Vec::<String>::new());
    }
}
