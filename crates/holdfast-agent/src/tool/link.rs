//! What counts as a sign-in link, and which of several is the one.

use std::sync::LazyLock;

use holdfast_agent_api::{link::acceptable, tool::LinkRules};
use regex::Regex;

use super::rules::{PatternError, compile};

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
        Ok(Self {
            prefer: all(&rules.prefer)?,
            ignore: all(&rules.ignore)?,
            allow: rules.allow.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
