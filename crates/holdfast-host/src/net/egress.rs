//! What a guest may reach, as two sets of nft rules that each enforce the whole policy: one in the
//! VM's namespace, one on the host. A mistake in one is caught by the other.
//!
//! In this order: only the guest's own address may send; services of the host that the policy names;
//! then never what must never be reached; then private networks that the policy names; then no private
//! network; then public addresses where the policy says so. IPv6 is off.

use std::{fmt::Write as _, net::Ipv4Addr};

use super::{GATEWAY, GUEST, OUT, Range, TAP};
use crate::{
    driver::{DriverError, EgressPolicy, Result},
    registry::Lease,
};

/// Never reachable, whatever the policy says: this network, loopback, link-local with its metadata
/// services, the guests' own network, multicast, reserved and broadcast (RFC 6890).
const NEVER: [&str; 6] =
    ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.30.0.0/30", "224.0.0.0/4", "240.0.0.0/4"];

/// Not public (RFC 6890): private, shared by carriers, protocol assignments, documentation,
/// benchmarks. `172.16.0.0/12` and the like overlap [`NEVER`], which is asked first.
const PRIVATE: [&str; 10] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
];

/// Connections that a guest may have open at once: a browser has some hundreds, the host's table room
/// for 65,536 or more (nf_conntrack_max).
const CONNECTIONS: u32 = 4096;

/// The rules of one VM.
pub(crate) struct Rules {
    link: String,
    own: Ipv4Addr,
    host: Ipv4Addr,
    never: String,
    private: String,
    allowed: Option<String>,
    ports: Option<String>,
    internet: bool,
}

impl Rules {
    /// Refuses a policy that cannot be read.
    pub(crate) fn new(
        lease: &Lease,
        range: Range,
        policy: &EgressPolicy,
        host_addresses: &[Ipv4Addr],
    ) -> Result<Self> {
        let mut allowed = Vec::new();
        for network in &policy.private_networks {
            let network: Range = network.parse().map_err(|error| DriverError::Refused {
                operation: "applying the egress policy".to_owned(),
                message: format!("{error}"),
            })?;
            allowed.push(network.to_string());
        }
        let mut never: Vec<String> = NEVER.iter().map(ToString::to_string).collect();
        never.push(range.to_string());
        never.extend(host_addresses.iter().map(ToString::to_string));
        let some = |list: Vec<String>| (!list.is_empty()).then(|| list.join(", "));
        Ok(Self {
            link: lease.link(),
            own: lease.address,
            host: lease.host_end(),
            never: never.join(", "),
            private: PRIVATE.join(", "),
            allowed: some(allowed),
            ports: some(policy.host_ports.iter().map(ToString::to_string).collect()),
            internet: policy.internet,
        })
    }

    /// Rules for inside the namespace, replacing earlier ones in one transaction.
    pub(crate) fn inside(&self, table: &str) -> String {
        let mut text = replace(table);
        let Self { own, host, .. } = self;
        if let Some(ports) = &self.ports {
            let _ = writeln!(
                text,
                "add chain inet {table} to_host {{ type nat hook prerouting priority dstnat; }}
                 add rule inet {table} to_host iifname {TAP} ip saddr {GUEST} ip daddr {GATEWAY} tcp dport {{ {ports} }} dnat ip to {host}"
            );
        }
        let _ = writeln!(
            text,
            "add chain inet {table} hide {{ type nat hook postrouting priority srcnat; }}
             add rule inet {table} hide oifname {OUT} ip saddr {GUEST} snat ip to {own}
             add chain inet {table} input {{ type filter hook input priority filter; policy drop; }}
             add rule inet {table} input iifname lo accept
             add rule inet {table} input iifname {TAP} ip saddr {GUEST} ip daddr {GATEWAY} ct state established accept
             add rule inet {table} input iifname {TAP} ip saddr {GUEST} ip daddr {GATEWAY} icmp type echo-request accept
             add chain inet {table} output {{ type filter hook output priority filter; policy drop; }}
             add rule inet {table} output oifname lo accept
             add rule inet {table} output oifname {TAP} ip daddr {GUEST} accept
             add chain inet {table} forward {{ type filter hook forward priority filter; policy drop; }}
             add chain inet {table} leave"
        );
        self.leave(&mut text, table, GUEST);
        let _ = writeln!(
            text,
            "add rule inet {table} forward iifname {TAP} oifname {OUT} jump leave
             add rule inet {table} forward iifname {OUT} oifname {TAP} ip daddr {GUEST} ct state established,related accept"
        );
        text
    }

    /// Rules for the host, replacing earlier ones in one transaction. They concern this VM's link
    /// alone; what they let pass is still subject to the host's other tables.
    pub(crate) fn outside(&self, table: &str) -> String {
        let mut text = replace(table);
        let Self { link, own, host, .. } = self;
        let _ = writeln!(
            text,
            "add chain inet {table} input {{ type filter hook input priority filter - 5; policy accept; }}
             add rule inet {table} input iifname != {link} return"
        );
        if let Some(ports) = &self.ports {
            let _ = writeln!(
                text,
                "add rule inet {table} input ip saddr {own} ip daddr {host} tcp dport {{ {ports} }} accept"
            );
        }
        let _ = writeln!(
            text,
            "add rule inet {table} input drop
             add chain inet {table} forward {{ type filter hook forward priority filter - 5; policy accept; }}
             add chain inet {table} leave"
        );
        self.leave(&mut text, table, self.own);
        let _ = writeln!(
            text,
            "add rule inet {table} forward iifname {link} tcp flags syn / syn,rst tcp option maxseg size set rt mtu
             add rule inet {table} forward iifname {link} jump leave
             add rule inet {table} forward oifname {link} ip daddr {own} ct state established,related accept
             add rule inet {table} forward oifname {link} drop
             add chain inet {table} hide {{ type nat hook postrouting priority srcnat; }}
             add rule inet {table} hide ip saddr {own} oifname != {link} masquerade"
        );
        text
    }

    /// What may leave, whose packets come from `source`.
    fn leave(&self, text: &mut String, table: &str, source: Ipv4Addr) {
        let Self { host, never, private, .. } = self;
        let mut rule = |rule: String| {
            let _ = writeln!(text, "add rule inet {table} leave {rule}");
        };
        rule(format!("ip saddr != {source} drop"));
        rule("meta nfproto != ipv4 drop".to_owned());
        rule("ct state invalid drop".to_owned());
        // The host's table of connections is shared by all VMs and the host itself.
        rule(format!("ct state new ct count over {CONNECTIONS} drop"));
        if let Some(ports) = &self.ports {
            rule(format!("ip daddr {host} tcp dport {{ {ports} }} accept"));
        }
        rule(format!("ip daddr {{ {never} }} drop"));
        if let Some(allowed) = &self.allowed {
            rule(format!("ip daddr {{ {allowed} }} accept"));
        }
        rule(format!("ip daddr {{ {private} }} drop"));
        rule(if self.internet { "accept" } else { "drop" }.to_owned());
    }
}

/// Adding first makes the removal succeed when there is none.
fn replace(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\nadd table inet {table}\n")
}
