//! Which of the links that a run shows is the run's.
//!
//! Owns the order among links: the provider's rule first, then how the tool showed it. It never opens one.

use std::{collections::HashSet, time::Duration};

use holdfast_agent_api::tool::LinkSource;
use tokio::time::Instant;

use super::link::{Rules, Worth};

/// Links that are remembered as seen; a tool that prints more repeats itself.
const SEEN: usize = 1024;
/// Characters of a link that are shown.
const SHOWN: usize = 200;

/// The better of several links.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// Links that were looked at.
    seen: HashSet<String>,
    best: Option<Candidate>,
    /// The one that is the run's.
    released: Option<String>,
}

#[derive(Debug)]
struct Candidate {
    url: String,
    source: LinkSource,
    rank: usize,
    since: Instant,
}

/// What becomes of a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Considered {
    /// It was compared with the best so far, or looked at before.
    Weighed,
    /// It is never opened; the text names it and says why.
    Refused(String),
    /// The tool wants it opened, although it is not the one to sign in with.
    OnlyOpened,
}

impl Choice {
    /// Weighs a link against the best so far.
    pub(super) fn consider(
        &mut self,
        rules: &Rules,
        url: &str,
        source: LinkSource,
        now: Instant,
    ) -> Considered {
        if source != LinkSource::Browser && self.seen.contains(url) {
            return Considered::Weighed;
        }
        if self.seen.len() < SEEN {
            self.seen.insert(url.to_owned());
        }
        let rank = match rules.worth(url) {
            Worth::Rank(rank) => rank,
            Worth::Refused(why) => {
                return Considered::Refused(format!("{}: {why}", printable(url)));
            }
            Worth::PassedOver if source == LinkSource::Browser => return Considered::OnlyOpened,
            Worth::PassedOver => return Considered::Weighed,
        };
        let better = self.best.as_ref().is_none_or(|best| {
            let (old, new) = ((best.rank, order(best.source)), (rank, order(source)));
            // A printed link that went on, or one that the tool made anew.
            let longer = url.starts_with(&best.url) && url.len() > best.url.len();
            let renewed = rules.is_selective() && url != best.url;
            new < old && url != best.url || new == old && (longer || renewed)
        });
        if better {
            let since = self.best.as_ref().map_or(now, |best| best.since);
            self.best = Some(Candidate { url: url.to_owned(), source, rank, since });
        } else if let Some(best) = self.best.as_mut().filter(|best| best.url == url)
            && order(source) < order(best.source)
        {
            best.source = source;
        }
        Considered::Weighed
    }

    /// The best link with where it came from, when it becomes the run's now: nothing better is to be waited
    /// for any more, `settle` after the first.
    pub(super) fn release(
        &mut self,
        settle: Duration,
        now: Instant,
    ) -> Option<(String, LinkSource)> {
        let best = self.best.as_ref()?;
        let waits = best.rank > 0 && now.duration_since(best.since) < settle;
        if waits || self.released.as_deref() == Some(&best.url) {
            return None;
        }
        self.released = Some(best.url.clone());
        Some((best.url.clone(), best.source))
    }

    /// The link that is the run's.
    pub(super) fn released(&self) -> Option<&str> {
        self.released.as_deref()
    }
}

/// What a tool hands to a browser is whole; what it prints may be cut.
fn order(source: LinkSource) -> u8 {
    match source {
        LinkSource::Browser => 0,
        LinkSource::Hyperlink => 1,
        LinkSource::Output => 2,
    }
}

/// A link as it can be shown: short and without control characters.
fn printable(url: &str) -> String {
    let clean: String =
        url.chars().take(SHOWN).map(|c| if c.is_control() { '?' } else { c }).collect();
    if url.chars().count() > SHOWN { clean + "..." } else { clean }
}

#[cfg(test)]
mod tests {
    use holdfast_agent_api::tool::LinkRules;

    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    /// Those of a provider that prefers these patterns.
    fn rules(prefer: &[&str]) -> Rules {
        let prefer = prefer.iter().map(|&pattern| pattern.to_owned()).collect();
        Rules::new(&LinkRules { prefer, ..LinkRules::default() }).expect("patterns")
    }

    /// Considers each, and says which is released at the end of the wait.
    fn chosen(rules: &Rules, links: &[(&str, LinkSource)]) -> Option<String> {
        let (now, mut choice) = (Instant::now(), Choice::default());
        for (url, source) in links {
            assert_eq!(choice.consider(rules, url, *source, now), Considered::Weighed, "{url}");
        }
        choice.release(SETTLE, now + SETTLE).map(|(url, _)| url)
    }

    #[test]
    fn the_providers_rule_goes_before_how_it_was_shown() {
        let rules = rules(&["/authorize", "/docs"]);
        let (docs, sign_in) = ("https://a.example/docs", "https://a.example/authorize?x=1");
        let links = [(docs, LinkSource::Browser), (sign_in, LinkSource::Output)];
        assert_eq!(chosen(&rules, &links).as_deref(), Some(sign_in));
        assert_eq!(chosen(&rules, &[links[1], links[0]]).as_deref(), Some(sign_in));
    }

    #[test]
    fn what_the_tool_opens_goes_before_what_it_prints() {
        let rules = rules(&[]);
        let (printed, opened) = ("https://a.example/1", "https://a.example/2");
        let links = [(printed, LinkSource::Output), (opened, LinkSource::Browser)];
        assert_eq!(chosen(&rules, &links).as_deref(), Some(opened));
        let links = [(printed, LinkSource::Output), (printed, LinkSource::Hyperlink)];
        assert_eq!(chosen(&rules, &links).as_deref(), Some(printed));
    }

    #[test]
    fn a_printed_link_may_go_on() {
        let rules = rules(&[]);
        let (cut, whole) = ("https://a.example/1?state=ab", "https://a.example/1?state=abcdef");
        let links = [(cut, LinkSource::Output), (whole, LinkSource::Output)];
        assert_eq!(chosen(&rules, &links).as_deref(), Some(whole));
        assert_eq!(chosen(&rules, &[links[1], links[0]]).as_deref(), Some(whole));
    }

    #[test]
    fn a_link_is_released_once_and_waits_for_a_better_one() {
        let rules = rules(&["/authorize", "/docs"]);
        let (now, mut choice) = (Instant::now(), Choice::default());
        choice.consider(&rules, "https://a.example/docs", LinkSource::Browser, now);
        assert_eq!(choice.release(SETTLE, now), None);
        let sign_in = "https://a.example/authorize?x=1";
        choice.consider(&rules, sign_in, LinkSource::Output, now);
        let released = (sign_in.to_owned(), LinkSource::Output);
        assert_eq!(choice.release(SETTLE, now), Some(released), "the preferred one does not wait");
        assert_eq!(choice.release(SETTLE, now + SETTLE), None);
        // After a retry within the tool, its new link is the run's.
        let renewed = "https://a.example/authorize?x=2";
        choice.consider(&rules, renewed, LinkSource::Output, now);
        assert_eq!(choice.release(SETTLE, now), Some((renewed.to_owned(), LinkSource::Output)));
        assert_eq!(choice.released(), Some(renewed));
    }

    #[test]
    fn what_is_not_to_sign_in_with_is_opened_when_the_tool_says_so() {
        let rules = rules(&["/authorize", "/docs"]);
        let (now, mut choice) = (Instant::now(), Choice::default());
        let mut consider = |source| choice.consider(&rules, "https://a.example/help", source, now);
        assert_eq!(consider(LinkSource::Output), Considered::Weighed);
        assert_eq!(consider(LinkSource::Browser), Considered::OnlyOpened);
        assert_eq!(choice.release(SETTLE, now + SETTLE), None);
    }

    #[test]
    fn a_hostile_link_is_refused_by_name() {
        let (rules, now) = (rules(&[]), Instant::now());
        let mut choice = Choice::default();
        let url = format!("javascript:alert(1)\u{1b}[2J{}", "x".repeat(300));
        let Considered::Refused(why) = choice.consider(&rules, &url, LinkSource::Browser, now)
        else {
            panic!("it was not refused");
        };
        assert!(why.starts_with("javascript:alert(1)?[2Jxxx") && why.contains("...: "), "{why}");
        assert_eq!(choice.release(SETTLE, now + SETTLE), None);
    }
}
