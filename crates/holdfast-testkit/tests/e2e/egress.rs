//! What a guest reaches, and what it does not.
//!
//! Every address that is tried here leads to this machine or to a namespace that the test made, so
//! no packet leaves the machine even if a rule were missing.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::{page::Page, process::Options, process::ServerProcess};
use uuid::Uuid;

use crate::fixture;

/// A private network, the cloud's metadata service, and a private address that the policy opens.
const PRIVATE: &str = "192.168.213.1";
const METADATA: &str = "169.254.169.254";
const OPENED: &str = "198.51.100.7";
/// A public address by its number (RFC 7535: it answers nobody); here it leads to the namespace.
const PUBLIC: &str = "192.31.196.7";

/// A namespace with a web server at the addresses above, reached over a veth pair.
struct Outside {
    namespace: String,
    server: std::process::Child,
}

impl Outside {
    const PORT: u16 = 8099;

    fn make() -> Result<Self> {
        let id = std::process::id();
        let namespace = format!("hft-{id}");
        let (near, far) = (format!("hftn{id}"), format!("hftf{id}"));
        ip(&["netns", "add", &namespace])?;
        // From here on, dropping it cleans up.
        let server = Command::new("ip")
            .args(["netns", "exec", &namespace, "python3", "-m", "http.server"])
            .args([&Self::PORT.to_string(), "--directory", "/nonexistent"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let outside = Self { namespace: namespace.clone(), server };
        let within = |args: &[&str]| {
            let netns = ["-n", namespace.as_str()];
            ip(&[&netns[..], args].concat())
        };
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &namespace])?;
        ip(&["address", "add", "198.51.100.1/24", "dev", &near])?;
        ip(&["link", "set", &near, "up"])?;
        within(&["address", "add", &format!("{OPENED}/24"), "dev", &far])?;
        within(&["link", "set", &far, "up"])?;
        within(&["link", "set", "lo", "up"])?;
        within(&["route", "add", "default", "via", "198.51.100.1"])?;
        for address in [PRIVATE, METADATA, PUBLIC] {
            within(&["address", "add", &format!("{address}/32"), "dev", "lo"])?;
            ip(&["route", "add", &format!("{address}/32"), "via", OPENED])?;
        }
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
        // The veth pair and its routes go with the namespace.
        if let Err(error) = ip(&["netns", "delete", &self.namespace]) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(args).status().context("ip could not be started")?;
    ensure!(status.success(), "ip {} failed", args.join(" "));
    Ok(())
}

/// Whether a shell here, or in a guest, can open a TCP connection.
const CONNECT: &str = "timeout 3 bash -c 'exec 3<>/dev/tcp/$0/$1'";

fn here(address: &str, port: u16) -> Result<bool> {
    let script = CONNECT.replace("$0", address).replace("$1", &port.to_string());
    Ok(Command::new("sh").args(["-c", &format!("{script} 2>/dev/null")]).status()?.success())
}

async fn guest(
    api: &holdfast_testkit::api::Api,
    session: Uuid,
    address: &str,
    port: u16,
) -> Result<bool> {
    let script = CONNECT.replace("$0", address).replace("$1", &port.to_string());
    // As root: no rule in the guest could be what holds it back.
    Ok(api.exec_as(session, &["sh", "-c", &script], true).await?.code == 0)
}

/// The internet and what was opened can be reached; the host, other guests, private networks and
/// the cloud's metadata cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_what_its_policy_says() -> Result<()> {
    let outside = Outside::make()?;
    let opened = Page::serve("opened").await?;
    let closed = Page::serve("closed").await?;
    let config =
        format!("[egress]\nhost_ports = [{}]\nprivate_networks = [\"{OPENED}/32\"]", opened.port);
    let server = ServerProcess::start(Options { config, ..Default::default() }).await?;
    let api = server.api()?;
    let (first, second) =
        tokio::try_join!(fixture::ready(&api, "one"), fixture::ready(&api, "two"))?;
    let own = api.vm(first.id).await?.vm_ip.context("no address")?.to_string();
    let other = api.vm(second.id).await?.vm_ip.context("no address")?.to_string();

    // From here all of them can be reached: what follows is the rules' doing.
    for address in [PRIVATE, METADATA, OPENED, PUBLIC] {
        ensure!(here(address, Outside::PORT)?, "{address} cannot even be reached from the host");
    }
    let reached = [("172.30.0.1", opened.port), (OPENED, Outside::PORT), (PUBLIC, Outside::PORT)];
    for (address, port) in reached {
        ensure!(guest(&api, first.id, address, port).await?, "{address}:{port} is not reached");
    }
    let server_port = api.address.port();
    let refused = [
        ("172.30.0.1", closed.port),
        ("172.30.0.1", server_port),
        ("198.51.100.1", closed.port),
        ("198.51.100.1", opened.port),
        (PRIVATE, Outside::PORT),
        (METADATA, Outside::PORT),
        (other.as_str(), 5901),
        (other.as_str(), 8080),
        (own.as_str(), closed.port),
    ];
    for (address, port) in refused {
        let reached = guest(&api, first.id, address, port).await?;
        ensure!(!reached, "a guest reaches {address}:{port}");
    }
    drop(outside);
    server.finish().await
}
