//! The range that host-side addresses are taken from.

use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 network such as `10.213.0.0/16`. Each slot takes two neighbouring addresses of it; the
/// first two addresses stay unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    network: Ipv4Addr,
    prefix: u8,
}

/// The text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an IPv4 network such as 10.213.0.0/16, with a prefix of 0 to 32")]
pub struct ParseRangeError(String);

impl Range {
    /// How many slots fit.
    pub fn slots(&self) -> u32 {
        let addresses = 1_u64 << (32 - self.prefix);
        u32::try_from((addresses / 2).saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// The address of a slot's VM; the address below it is the host's end of the link.
    pub fn address(&self, slot: u32) -> Option<Ipv4Addr> {
        (slot < self.slots()).then(|| Ipv4Addr::from_bits(self.network.to_bits() + 2 * slot + 3))
    }
}

impl Default for Range {
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 213, 0, 0), prefix: 16 }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Range {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseRangeError(text.chars().take(64).collect());
        let (network, prefix) = text.split_once('/').ok_or_else(refused)?;
        let network: Ipv4Addr = network.parse().map_err(|_| refused())?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(refused)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self { network: Ipv4Addr::from_bits(network.to_bits() & mask), prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slots_have_addresses_of_their_own() {
        let range: Range = "10.9.9.7/28".parse().unwrap();
        assert_eq!(range.to_string(), "10.9.9.0/28");
        assert_eq!(range.slots(), 7);
        let mut seen = HashSet::new();
        for slot in 0..range.slots() {
            let address = range.address(slot).unwrap();
            assert!(seen.insert(address.to_bits()) && seen.insert(address.to_bits() - 1));
            assert!(address <= Ipv4Addr::new(10, 9, 9, 15) && address > Ipv4Addr::new(10, 9, 9, 2));
        }
        assert_eq!(range.address(7), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fe80::/64", "10.0.0.0/8; drop"] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }
}
