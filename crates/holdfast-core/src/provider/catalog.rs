//! The providers that a server knows: those that ship, and those that its operator added.

use super::{Provider, ProviderError, parse};

/// The providers that ship with Holdfast: file name and text.
pub const SHIPPED: [(&str, &str); 6] = [
    ("desktop.toml", include_str!("../../providers/desktop.toml")),
    ("codex.toml", include_str!("../../providers/codex.toml")),
    ("claude.toml", include_str!("../../providers/claude.toml")),
    ("claude-token.toml", include_str!("../../providers/claude-token.toml")),
    ("gemini.toml", include_str!("../../providers/gemini.toml")),
    ("gh.toml", include_str!("../../providers/gh.toml")),
];

/// A set of providers with distinct names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    providers: Vec<Provider>,
}

impl Catalog {
    /// The shipped providers.
    pub fn shipped() -> Result<Self, ProviderError> {
        let mut catalog = Self { providers: Vec::new() };
        for (_, text) in SHIPPED {
            catalog.add(parse(text)?);
        }
        Ok(catalog)
    }

    /// Adds a provider; one of the same name is replaced, so that an operator can change a shipped one.
    pub fn add(&mut self, provider: Provider) {
        match self.providers.iter_mut().find(|known| known.name == provider.name) {
            Some(known) => *known = provider,
            None => self.providers.push(provider),
        }
    }

    /// The provider of that name or alias.
    pub fn find(&self, name: &str) -> Option<&Provider> {
        self.providers
            .iter()
            .find(|p| p.name == name)
            .or_else(|| self.providers.iter().find(|p| p.aliases.iter().any(|a| a == name)))
    }

    /// All providers, shipped ones first.
    pub fn all(&self) -> &[Provider] {
        &self.providers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ships_can_be_read_and_found_by_every_name() {
        let catalog = Catalog::shipped().expect("shipped files are right");
        assert_eq!(catalog.all().len(), SHIPPED.len());
        for provider in catalog.all() {
            for name in std::iter::once(&provider.name).chain(&provider.aliases) {
                assert_eq!(catalog.find(name).map(|p| &p.name), Some(&provider.name));
            }
        }
        assert_eq!(catalog.find("codex_cli").map(|p| p.name.as_str()), Some("codex"));
        assert!(catalog.find("nothing").is_none());
    }
}
