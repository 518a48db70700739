//! The guest's only interface, set by rtnetlink: no program of the image is needed and no name of an
//! interface is assumed.

use std::{fs, io, net::Ipv4Addr};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink,
    recv, send, socket_with,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const EEXIST: i32 = 17;

/// Address and gateway from the kernel's command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settings {
    address: Ipv4Addr,
    prefix: u8,
    pub(super) gateway: Ipv4Addr,
}

impl Settings {
    /// Parses `172.30.0.2/30,172.30.0.1`.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (network, gateway) = value.split_once(',')?;
        let (address, prefix) = network.split_once('/')?;
        let prefix = prefix.parse().ok().filter(|p| (1..=32).contains(p))?;
        Some(Self { address: address.parse().ok()?, prefix, gateway: gateway.parse().ok()? })
    }
}

/// Index of the first interface that is not the loopback.
pub(super) fn first_interface() -> io::Result<Option<u32>> {
    let mut indexes: Vec<u32> = fs::read_dir("/sys/class/net")?
        .flatten()
        .filter(|entry| entry.file_name() != "lo")
        .filter_map(|entry| index(&entry.path().join("ifindex")).ok())
        .collect();
    indexes.sort_unstable();
    Ok(indexes.first().copied())
}

fn index(path: &std::path::Path) -> io::Result<u32> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// Switches the loopback on.
pub(super) fn loopback_up() -> io::Result<()> {
    up(index(std::path::Path::new("/sys/class/net/lo/ifindex"))?)
}

/// Gives an interface its address, switches it on and sends everything else through the gateway.
pub(super) fn configure(interface: u32, settings: &Settings) -> io::Result<()> {
    up(interface)?;
    let address = settings.address.octets();
    let mut body = vec![AF_INET, settings.prefix, 0, 0];
    body.extend(interface.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &address);
    attribute(&mut body, IFA_ADDRESS, &address);
    request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body)?;
    // Family, lengths of destination and source, type of service; table main, protocol boot, scope
    // universe, type unicast; no flags.
    let mut body = vec![AF_INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    attribute(&mut body, RTA_GATEWAY, &settings.gateway.octets());
    attribute(&mut body, RTA_OIF, &interface.to_ne_bytes());
    request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body)
}

fn up(interface: u32) -> io::Result<()> {
    let mut body = vec![0u8; 4];
    body.extend(interface.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    request(RTM_NEWLINK, 0, &body)
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 512];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    acknowledged(&answer[..length])
}

fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) if -code == EEXIST => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("the kernel did not acknowledge the request")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernel_option() {
        let parsed = Settings::parse("172.30.0.2/30,172.30.0.1").expect("valid");
        assert_eq!(parsed.address, Ipv4Addr::new(172, 30, 0, 2));
        assert_eq!((parsed.prefix, parsed.gateway), (30, Ipv4Addr::new(172, 30, 0, 1)));
        for wrong in ["", "172.30.0.2,172.30.0.1", "172.30.0.2/30", "a/30,b", "1.2.3.4/33,1.2.3.1"]
        {
            assert_eq!(Settings::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sets_the_first_interface_of_a_namespace() {
        use std::process::Command;
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        // A thread with a network namespace of its own stands for the guest; /sys shows the
        // namespace that it was mounted in, so the index is read from `ip`.
        #[allow(unsafe_code, reason = "the namespace of one thread is changed")]
        let outcome = std::thread::spawn(|| {
            // SAFETY: only this thread moves, and it shares no file descriptors with others that
            // depend on the namespace.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("a namespace");
            let ip = |arguments: &str| {
                let out = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
                assert!(out.status.success(), "ip {arguments}: {out:?}");
                String::from_utf8(out.stdout).expect("text")
            };
            ip("link add odd77 type veth peer name odd78");
            let link = ip("-o link show odd77");
            let index = link.split(':').next().and_then(|n| n.parse().ok()).expect("an index");
            let settings = Settings::parse("172.30.0.2/30,172.30.0.1").expect("valid");
            configure(index, &settings).expect("configured");
            configure(index, &settings).expect("once more is harmless");
            up(1).expect("loopback up");
            (ip("-4 addr show odd77"), ip("route"), ip("link show lo"))
        })
        .join();
        let (address, route, lo) = outcome.expect("the thread ended");
        assert!(address.contains("172.30.0.2/30"), "{address}");
        assert!(route.contains("default via 172.30.0.1 dev odd77"), "{route}");
        assert!(lo.contains(",UP"), "{lo}");
    }
}
