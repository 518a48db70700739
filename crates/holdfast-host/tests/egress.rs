//! What a guest may reach, tried with a whole world in namespaces: a host, an internet, two VMs and
//! something in their guests' places. No VM runs, and no packet leaves the machine.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::Command,
    thread,
    time::Duration,
};

use holdfast_core::{Screen, VmId};
use holdfast_host::{
    driver::{EgressPolicy, ImageRef, VmSpec},
    host::{Host, HostConfig},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Set in the process that runs inside the host's namespace.
const INSIDE: &str = "HOLDFAST_TEST_INSIDE";
/// Long enough for a SYN and its answer on one machine, however busy.
const PATIENCE: Duration = Duration::from_millis(900);
const SERVICE: u16 = 9000;
const OTHER_SERVICE: u16 = 9001;

fn ip(args: &str) {
    let done = Command::new("ip").args(args.split_whitespace()).output().unwrap();
    assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
}

fn nft(namespace: Option<&str>, rules: &str) {
    let mut command = match namespace {
        Some(name) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", name, "nft"]);
            command
        }
        None => Command::new("nft"),
    };
    let done = command.arg(rules).output().unwrap();
    assert!(done.status.success(), "nft {rules}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Removes a namespace at the end, however the test ends.
struct Namespace(String);

impl Namespace {
    fn new(role: &str) -> Self {
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("hftest-{role}-{}", &unique[..12]);
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// Runs on a thread inside a namespace.
fn inside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    })
}

/// Listens on all addresses of a namespace and greets whoever connects.
fn serve(name: Option<&str>, port: u16) {
    let listen = move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.unwrap().write_all(b"hello");
            }
        });
    };
    match name {
        Some(name) => inside(name, listen).join().unwrap(),
        None => listen(),
    }
}

/// Which of the targets answer to something in the namespace.
fn reachable(from: &str, targets: &[(&'static str, Ipv4Addr, u16)]) -> Vec<&'static str> {
    let tries: Vec<_> = targets
        .iter()
        .map(|(what, address, port)| {
            let (what, target) = (*what, SocketAddrV4::new(*address, *port));
            inside(from, move || {
                let stream = TcpStream::connect_timeout(&target.into(), PATIENCE);
                let mut greeting = [0; 5];
                let greeted = stream.and_then(|mut stream| {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.read_exact(&mut greeting)
                });
                greeted.is_ok().then_some(what)
            })
        })
        .collect();
    tries.into_iter().filter_map(|one| one.join().unwrap()).collect()
}

#[test]
fn a_guest_reaches_what_its_policy_says_and_nothing_else() {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(inside_the_host());
        return;
    }
    assert!(rustix::process::geteuid().is_root(), "this test makes namespaces: run it as root");
    let (host, internet) = (Namespace::new("host"), Namespace::new("net"));
    ip(&format!("-n {} link add up0 type veth peer name down0 netns {}", host.0, internet.0));
    ip(&format!("-n {} address add 192.0.2.2/24 dev up0", host.0));
    ip(&format!("-n {} link set up0 up", host.0));
    ip(&format!("-n {} address add 192.0.2.1/24 dev down0", internet.0));
    ip(&format!("-n {} link set down0 up", internet.0));
    ip(&format!("-n {} route add default via 192.0.2.1", host.0));
    for address in
        ["8.8.8.8", "10.99.0.1", "192.168.7.1", "169.254.169.254", "100.64.0.9", "172.20.0.1"]
    {
        ip(&format!("-n {} address add {address}/32 dev lo", internet.0));
    }
    serve(Some(&internet.0), SERVICE);
    // `ip netns exec` also shows the namespace's own links in /sys.
    let this = std::env::current_exe().unwrap();
    let name = "a_guest_reaches_what_its_policy_says_and_nothing_else";
    let done = Command::new("ip")
        .args(["netns", "exec", &host.0])
        .arg(this)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let output =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{output}");
}

struct Vm {
    spec: VmSpec,
    address: Ipv4Addr,
    /// Namespace of what stands in the guest's place.
    guest: Namespace,
    table: String,
}

/// The namespaces of VMs are seen by the whole machine, also when the test fails.
impl Drop for Vm {
    fn drop(&mut self) {
        let name = format!("hf-{}", self.spec.vm);
        let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        let _ = std::fs::remove_file(format!("/run/netns/{name}"));
    }
}

async fn vm(host: &Host, policy: EgressPolicy) -> Vm {
    let id = VmId::from_uuid(uuid::Uuid::now_v7());
    let spec = VmSpec {
        vm: id,
        image: ImageRef { path: "/nonexistent".into(), digest: "none".to_owned() },
        memory_mib: 256,
        vcpus: 1,
        disk_mib: 64,
        egress: policy,
        screen: Screen { width: 800, height: 600 },
        eager: false,
    };
    host.create(&spec).await.unwrap();
    host.connect(id).await.unwrap();
    // The tap device gives way to a pair whose other end is the guest.
    let guest = Namespace::new("guest");
    ip(&format!("-n hf-{id} link delete tap0"));
    ip(&format!("-n hf-{id} link add tap0 type veth peer name eth0 netns {}", guest.0));
    ip(&format!("-n {} address add 172.30.0.2/30 dev eth0", guest.0));
    ip(&format!("-n {} link set eth0 up", guest.0));
    let address = host.connect(id).await.unwrap();
    ip(&format!("-n {} route add default via 172.30.0.1", guest.0));
    serve(Some(&guest.0), SERVICE);
    Vm { spec, address, guest, table: format!("hf-{}-{id}", host.state().instance()) }
}

async fn inside_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = HostConfig::new(dir.path().join("state"));
    config.run_dir = dir.path().join("run");
    let host = Host::open(config).unwrap();
    serve(None, SERVICE);
    serve(None, OTHER_SERVICE);
    let open = vm(&host, EgressPolicy::default()).await;
    let narrow = vm(
        &host,
        EgressPolicy {
            internet: false,
            host_ports: vec![SERVICE],
            private_networks: vec!["192.168.7.0/24".to_owned(), "169.254.0.0/16".to_owned()],
        },
    )
    .await;
    let below = |address: Ipv4Addr| Ipv4Addr::from_bits(address.to_bits() - 1);
    let targets = |own: &Vm, other: &Vm| {
        [
            ("public", Ipv4Addr::new(8, 8, 8, 8), SERVICE),
            ("10/8", Ipv4Addr::new(10, 99, 0, 1), SERVICE),
            ("192.168/16", Ipv4Addr::new(192, 168, 7, 1), SERVICE),
            ("metadata", Ipv4Addr::new(169, 254, 169, 254), SERVICE),
            ("carrier", Ipv4Addr::new(100, 64, 0, 9), SERVICE),
            ("172.16/12", Ipv4Addr::new(172, 20, 0, 1), SERVICE),
            ("gateway", Ipv4Addr::new(172, 30, 0, 1), SERVICE),
            ("gateway's other port", Ipv4Addr::new(172, 30, 0, 1), OTHER_SERVICE),
            ("host by its uplink", Ipv4Addr::new(192, 0, 2, 2), SERVICE),
            ("host by its other port", below(own.address), OTHER_SERVICE),
            ("host by the other VM's link", below(other.address), SERVICE),
            ("other VM", other.address, SERVICE),
            ("itself from outside", own.address, SERVICE),
        ]
    };
    assert_eq!(reachable(&open.guest.0, &targets(&open, &narrow)), ["public"]);
    assert_eq!(reachable(&narrow.guest.0, &targets(&narrow, &open)), ["192.168/16", "gateway"]);

    // The host reaches a guest from within its namespace, and nowhere else.
    let mut stream = host.dial(open.spec.vm, SERVICE).await.unwrap();
    let mut greeting = [0; 5];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    assert!(
        TcpStream::connect_timeout(&SocketAddrV4::new(open.address, SERVICE).into(), PATIENCE)
            .is_err()
    );
    let refused = host.dial(open.spec.vm, 81).await.err().unwrap();
    assert!(refused.to_string().contains("port 81"), "{refused}");

    // A guest that lies about its address says nothing at all.
    ip(&format!("-n {} address add 10.213.9.9/32 dev eth0", open.guest.0));
    ip(&format!("-n {} route replace default via 172.30.0.1 src 10.213.9.9", open.guest.0));
    assert_eq!(reachable(&open.guest.0, &targets(&open, &narrow)), [""; 0]);
    ip(&format!("-n {} route replace default via 172.30.0.1 src 172.30.0.2", open.guest.0));

    // Each set of rules holds without the other.
    let everything =
        |table: &str| format!("flush chain inet {table} leave; add rule inet {table} leave accept");
    nft(Some(&format!("hf-{}", open.spec.vm)), &everything(&open.table));
    assert_eq!(
        reachable(&open.guest.0, &targets(&open, &narrow)),
        ["public"],
        "without rules inside"
    );
    host.connect(open.spec.vm).await.unwrap();
    nft(None, &everything(&open.table));
    nft(None, &format!("flush chain inet {} input", open.table));
    assert_eq!(
        reachable(&open.guest.0, &targets(&open, &narrow)),
        ["public"],
        "without rules outside"
    );
    host.connect(open.spec.vm).await.unwrap();
    assert_eq!(reachable(&open.guest.0, &targets(&open, &narrow)), ["public"]);

    for one in [&open, &narrow] {
        host.destroy(one.spec.vm).await.unwrap();
    }
    assert_eq!(host.list().await.unwrap(), []);
    let links = Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&links.stdout).contains("hfv"), "a link is left");
}
