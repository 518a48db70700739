//! The network of a VM.
//!
//! ```text
//!  guest 172.30.0.2 ── tap0 172.30.0.1 ─[ namespace hf-<vm-id> ]─ out0 ═ hfv<slot> ─[ host ]─ out
//! ```
//!
//! Every guest has the same address, so one snapshot serves all; outside its namespace a VM is known
//! by the unique address of `out0`. Rules in the namespace and rules on the host enforce the same
//! policy, each without the other (see [`egress`]).
//!
//! What exists is marked: namespace by the VM's id, link by slot and alias, table by instance and id.
//! Must never touch what carries another mark.

pub(crate) mod dial;
pub(crate) mod egress;
pub(crate) mod namespace;
mod range;

use std::{collections::HashSet, fs, io, net::Ipv4Addr, os::fd::OwnedFd, path::Path, sync::Arc};

use holdfast_core::VmId;
use serde_json::Value;

pub use self::range::Range;
use crate::{
    command::Tool,
    driver::{DriverError, EgressPolicy, Result},
    registry::Lease,
};

/// Address of the guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 2);
/// Address of its gateway, in its namespace.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Hardware address of every guest.
pub const GUEST_MAC: &str = "02:68:66:00:00:02";
/// Name of the tap device in the namespace.
pub const TAP: &str = "tap0";
/// Name of the way out of the namespace.
const OUT: &str = "out0";

/// What a link's alias says of its owner.
pub(crate) fn mark(instance: &str, vm: VmId) -> String {
    format!("holdfast {instance} {vm}")
}

/// The alias of a link on the host: empty when it has none, `None` when there is no such link.
pub(crate) fn link_owner(link: &str) -> Option<String> {
    let dir = Path::new("/sys/class/net").join(link);
    dir.exists()
        .then(|| fs::read_to_string(dir.join("ifalias")).unwrap_or_default().trim().to_owned())
}

fn table(instance: &str, vm: VmId) -> String {
    format!("hf-{instance}-{vm}")
}

/// Makes the network of a VM, or what is missing of it, and applies the policy anew. What does not
/// need the other is made at the same time: somebody waits for it.
pub async fn connect(lease: &Lease, uid: u32, range: Range, policy: &EgressPolicy) -> Result<()> {
    let (addresses, inside) = tokio::try_join!(host_addresses(), namespace_of(lease.vm))?;
    let rules = egress::Rules::new(lease, range, policy, &addresses)?;
    let table = table(&lease.instance, lease.vm);
    namespace::run(&inside, "closing the namespace", || {
        sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        sysctl("ipv4/conf/all/rp_filter", "1")?;
        sysctl("ipv4/conf/default/rp_filter", "1")?;
        sysctl("ipv4/conf/all/send_redirects", "0")?;
        sysctl("ipv4/conf/all/accept_redirects", "0")?;
        sysctl("ipv4/ip_forward", "1")
    })
    .await?;
    let (rules_inside, rules_outside) = (rules.inside(&table), rules.outside(&table));
    tokio::try_join!(
        Tool::new("nft", ["-f", "-"]).input(&rules_inside).inside(&inside).run(),
        Tool::new("nft", ["-f", "-"]).input(&rules_outside).run(),
        make_pair(lease),
        make_tap(uid, &inside),
    )?;
    // No link is up before there are rules.
    links_up(lease, &inside).await?;
    if policy.internet || !policy.private_networks.is_empty() {
        sysctl("ipv4/ip_forward", "1").map_err(|e| DriverError::io("allowing forwarding", e))?;
    }
    Ok(())
}

async fn namespace_of(vm: VmId) -> Result<Arc<OwnedFd>> {
    if namespace::open(vm).is_err() {
        // Also replaces one whose making was interrupted before it was mounted.
        let _ = fs::remove_file(namespace::path(vm));
        Tool::new("ip", ["netns", "add", &namespace::name(vm)]).run().await?;
    }
    Ok(Arc::new(namespace::open(vm)?))
}

async fn make_pair(lease: &Lease) -> Result<()> {
    let (link, name) = (lease.link(), namespace::name(lease.vm));
    let mark = mark(&lease.instance, lease.vm);
    match link_owner(&link) {
        None => {
            let pair = format!(
                "link add {link} type veth peer name {OUT} netns {name}\n\
                 link set {link} alias \"{mark}\"\n"
            );
            Tool::new("ip", ["-batch", "-"]).input(&pair).run().await?;
            Ok(())
        }
        Some(owner) if owner == mark || owner.is_empty() => Ok(()),
        Some(owner) => Err(DriverError::Refused {
            operation: format!("making the link {link}"),
            message: format!("it belongs to `{owner}`"),
        }),
    }
}

async fn make_tap(uid: u32, inside: &Arc<OwnedFd>) -> Result<()> {
    if !namespace::has_link(inside, TAP).await? {
        let made = format!("tuntap add dev {TAP} mode tap user {uid} group {uid} vnet_hdr\n");
        Tool::new("ip", ["-batch", "-"]).input(&made).inside(inside).run().await?;
    }
    Ok(())
}

async fn links_up(lease: &Lease, inside: &Arc<OwnedFd>) -> Result<()> {
    let (own, host, link) = (lease.address, lease.host_end(), lease.link());
    let mtu = uplink_mtu();
    let inner = format!(
        "link set lo up\n\
         address replace {GATEWAY}/30 dev {TAP}\n\
         link set {TAP} up mtu {mtu}\n\
         address replace {own}/31 dev {OUT}\n\
         link set {OUT} up mtu {mtu}\n\
         route replace default via {host} dev {OUT}\n"
    );
    // The host's end has to be up before a route through the other end can be made.
    let _ = sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "1");
    let outer = format!("address replace {host}/31 dev {link}\nlink set {link} up mtu {mtu}\n");
    Tool::new("ip", ["-batch", "-"]).input(&outer).run().await?;
    sysctl(&format!("ipv4/conf/{link}/rp_filter"), "1")
        .map_err(|e| DriverError::io(format!("guarding {link}"), e))?;
    Tool::new("ip", ["-batch", "-"]).input(&inner).inside(inside).run().await?;
    Ok(())
}

/// Removes the network of a VM of this instance; there need not be one.
pub async fn disconnect(instance: &str, vm: VmId, lease: Option<&Lease>) -> Result<()> {
    let table = table(instance, vm);
    if tables(instance).await?.contains(&vm) {
        // Adding first makes the removal of one that vanished meanwhile succeed.
        let gone = format!("add table inet {table}\ndelete table inet {table}\n");
        Tool::new("nft", ["-f", "-"]).input(&gone).run().await?;
    }
    let mark = mark(instance, vm);
    let by_lease = lease.map(Lease::link);
    let ours = |link: &String| match link_owner(link) {
        // The alias is set just after the link is made.
        Some(owner) => owner == mark || owner.is_empty() && Some(link) == by_lease.as_ref(),
        None => false,
    };
    for link in
        links().map_err(|e| DriverError::io("listing the links", e))?.iter().filter(|l| ours(l))
    {
        // Removed explicitly: with the namespace alone it would go some time later.
        if let Err(error) = Tool::new("ip", ["link", "delete", link]).run().await
            && link_owner(link).is_some()
        {
            return Err(error);
        }
    }
    // A namespace is named by the VM alone; it is ours by the lease, or by a directory or process
    // that the caller knows of. Another instance's VM never gets here.
    let path = namespace::path(vm);
    if path.exists() {
        let name = namespace::name(vm);
        if let Err(error) = Tool::new("ip", ["netns", "delete", &name]).run().await {
            // One that was never mounted is a plain file.
            if fs::remove_file(&path).is_err() && path.exists() {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The instance whose rules are in the namespace of a VM; `None` where none are or there is none.
pub(crate) async fn owner_inside(vm: VmId) -> Option<String> {
    let inside = Arc::new(namespace::open(vm).ok()?);
    let text = Tool::new("nft", ["-j", "list", "tables"]).inside(&inside).run().await.ok()?;
    let suffix = format!("-{vm}");
    table_names(&text)
        .ok()?
        .iter()
        .find_map(|name| Some(name.strip_prefix("hf-")?.strip_suffix(&suffix)?.to_owned()))
}

/// VMs of this instance that have a link or a table on the host.
pub async fn list(instance: &str) -> Result<HashSet<VmId>> {
    let mut vms = tables(instance).await?;
    let prefix = format!("holdfast {instance} ");
    for link in links().map_err(|e| DriverError::io("listing the links", e))? {
        let owner = link_owner(&link).unwrap_or_default();
        vms.extend(owner.strip_prefix(&prefix).and_then(|id| id.parse::<VmId>().ok()));
    }
    Ok(vms)
}

fn links() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.starts_with("hfv"));
    Ok(names)
}

async fn tables(instance: &str) -> Result<HashSet<VmId>> {
    let prefix = format!("hf-{instance}-");
    let text = Tool::new("nft", ["-j", "list", "tables"]).run().await?;
    let names = table_names(&text).map_err(|e| DriverError::Refused {
        operation: "listing the tables".to_owned(),
        message: e.to_string(),
    })?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect())
}

fn table_names(json: &str) -> serde_json::Result<Vec<String>> {
    let found: Value = serde_json::from_str(json)?;
    let tables = found["nftables"].as_array().into_iter().flatten();
    Ok(tables.filter_map(|item| Some(item["table"]["name"].as_str()?.to_owned())).collect())
}

/// IPv4 addresses of the host itself, except loopback.
async fn host_addresses() -> Result<Vec<Ipv4Addr>> {
    let text = Tool::new("ip", ["-j", "-4", "address", "show"]).run().await?;
    let links: Value = serde_json::from_str(&text).unwrap_or_default();
    let addresses = links
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default());
    Ok(addresses
        .filter_map(|info| info["local"].as_str()?.parse::<Ipv4Addr>().ok())
        .filter(|address| !address.is_loopback())
        .collect())
}

/// Largest packet of the way out: that of the interface with the default route.
fn uplink_mtu() -> u32 {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let uplink = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then_some(name)
    });
    uplink
        .and_then(|name| fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok())
        .and_then(|text| text.trim().parse().ok())
        .map_or(1500, |mtu: u32| mtu.clamp(1280, 1500))
}

fn sysctl(key: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    match fs::read_to_string(&path) {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && key.starts_with("ipv6") => Ok(()),
        Ok(current) if current.trim() == value => Ok(()),
        _ => fs::write(&path, value),
    }
}
