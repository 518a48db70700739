//! Clones of one warm image share no randomness, and the check of it finds a clone that does.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_agent_api::{ClaimRequest, ScreenSize};
use holdfast_core::{Screen, VmId};
use holdfast_host::{
    driver::{Driver, EgressPolicy, StartFrom, VmSpec},
    drivers::{
        firecracker::{FirecrackerConfig, FirecrackerDriver},
        qemu::QemuDriver,
    },
    guest::AgentClient,
    host::HostConfig,
};
use holdfast_server::ImageLibrary;
use holdfast_testkit::{
    api::Api,
    page::Page,
    process::{Options, ServerProcess, real_driver},
    tls::Hellos,
    wait,
};
use uuid::Uuid;

use crate::fixture::{self, BOOT, SOON};

/// Number of clones, where the test shall make another number than its own.
const CLONES: &str = "HOLDFAST_TEST_CLONES";
/// Clones that are alive at once. What they made is compared with what all others made.
const WAVE: usize = 4;
/// Making the warm image, where it is not there yet.
const BAKE: Duration = Duration::from_mins(6);

/// A page that reports randomness again and again, or as often as it is told, and makes TLS connections.
const PAGE: &str = r"<body><script>
const told = new URLSearchParams(location.search);
let left = told.get('times') ?? Infinity;
const hex = bytes => [...bytes].map(b => b.toString(16).padStart(2, '0')).join('');
const report = () => {
  if (left-- <= 0) return;
  const values = hex(crypto.getRandomValues(new Uint8Array(16)));
  const blob = URL.createObjectURL(new Blob(['x'])).slice(-36);
  fetch(`/report?values=${values}&blob=${blob}&math=${Math.random()}`);
  const tls = told.get('tls');
  if (tls) new Image().src = `https://host.holdfast.internal:${tls}/${values}`;
};
report();
setInterval(report, 1000);
</script>";

/// Something random that a clone made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Made {
    what: String,
    value: String,
    clone: String,
}

fn made(what: &str, value: &str, clone: impl ToString) -> Made {
    Made { what: what.to_owned(), value: value.trim().to_owned(), clone: clone.to_string() }
}

/// What two clones made alike.
fn shared(mut all: Vec<Made>) -> Vec<Made> {
    all.sort();
    all.dedup();
    let same = |a: &Made, b: &Made| a.what == b.what && a.value == b.value;
    let pairs = all.windows(2).filter(|pair| same(&pair[0], &pair[1]));
    pairs.map(|pair| pair[1].clone()).collect()
}

/// What the pages of all clones reported, but for the first requests.
fn reported_since(page: &Page, first: usize) -> Vec<Made> {
    let mut all = Vec::new();
    for seen in page.seen().into_iter().skip(first) {
        let Some(query) = seen.path.strip_prefix("/report?") else { continue };
        for pair in query.split('&') {
            let Some((name, value)) = pair.split_once('=') else { continue };
            all.push(made(name, value, seen.peer.ip()));
        }
    }
    all
}

async fn warm_image_is_there(api: &Api) -> Result<()> {
    wait::until("the warm image is there", BAKE, async || {
        let text = api.get("/readyz").await?.body;
        Ok(String::from_utf8_lossy(&text).contains("ready: new sessions are cloned").then_some(()))
    })
    .await
}

/// What programs in a clone made, each kind by name.
async fn from_inside(api: &Api, session: Uuid) -> Result<Vec<Made>> {
    let script = "echo urandom $(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \\n'); \
        echo uuid $(cat /proc/sys/kernel/random/uuid); \
        echo machine-id $(cat /etc/machine-id); \
        echo boot-id $(cat /proc/sys/kernel/random/boot_id); \
        echo hostname $(hostname); \
        echo bash $RANDOM$RANDOM$RANDOM$RANDOM; \
        echo mktemp $(mktemp -u XXXXXXXXXXXXXXXX); \
        echo devtools $(curl -s http://127.0.0.1:9222/json/version | grep -o 'browser/[-0-9a-f]*')";
    let ran = api.exec(session, &["bash", "-c", script]).await?;
    ensure!(ran.code == 0, "{ran:?}");
    let lines = ran.stdout.lines().filter_map(|line| line.split_once(' '));
    let mut all: Vec<Made> = lines.map(|(what, value)| made(what, value, session)).collect();
    for file in ["Local State", "Default/Preferences"] {
        let path = format!("/home/user/.config/holdfast-chromium/{file}");
        let ran = api.exec(session, &["cat", &path]).await?;
        let kept = serde_json::from_str(&ran.stdout).with_context(|| format!("{file}: {ran:?}"))?;
        ids(&kept, &mut |what, id| all.push(made(&format!("chromium: {what}"), id, session)));
    }
    Ok(all)
}

/// Ids and salts that Chromium drew for an installation.
fn ids(kept: &serde_json::Value, found: &mut impl FnMut(&str, &str)) {
    for (name, value) in kept.as_object().into_iter().flatten() {
        match value.as_str() {
            Some(id)
                if id.len() >= 8
                    && [
                        "client_id",
                        "device_id",
                        "guid",
                        "salt",
                        "seed",
                        "randomization_source",
                    ]
                    .iter()
                    .any(|part| name.contains(part)) =>
            {
                found(name, id);
            }
            // Checksums of settings: of those that were never changed all installations have the same.
            _ if name != "protection" => ids(value, found),
            _ => {}
        }
    }
}

/// Every pair of clones differs in all that is random, with the browser of the warm image.
#[tokio::test(flavor = "multi_thread")]
async fn clones_share_no_randomness() -> Result<()> {
    let count = std::env::var(CLONES).ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    compare(count, false).await
}

/// Whether the browser started before the session was made: the warm image's does.
async fn is_of_the_warm_image(api: &Api, session: Uuid) -> Result<bool> {
    let script = "ps -o etimes= -p $(pgrep -o -x chromium)";
    let ran = api.exec(session, &["sh", "-c", script]).await?;
    let age: i64 = ran.stdout.trim().parse().with_context(|| format!("{ran:?}"))?;
    let made = api.session(session).await?.created_at;
    Ok(age > jiff::Timestamp::now().duration_since(made).as_secs() + 1)
}

/// Compares clones, with the browser of the warm image or with `fresh` ones.
pub(crate) async fn compare(count: usize, fresh: bool) -> Result<()> {
    let page = Page::serve(PAGE).await?;
    let tls = Hellos::listen().await?;
    let config = format!(
        "[egress]\nhost_ports = [{}, {}]\n[vm]\nmemory_budget_mib = 262144\nmax_starting = 2\n\
         fresh_browser = {fresh}",
        page.port, tls.port
    );
    let server = ServerProcess::start(Options { config, ..Options::default() }).await?;
    let api = server.api()?;
    warm_image_is_there(&api).await?;
    let mut all = Vec::new();
    for first in (0..count).step_by(WAVE) {
        let clones = first..count.min(first + WAVE);
        all.extend(wave(&api, clones, fresh, &page, &tls).await?);
    }
    const OF_ALL: &[&str] = &[
        "urandom",
        "uuid",
        "machine-id",
        "boot-id",
        "bash",
        "mktemp",
        "devtools",
        "values",
        "blob",
        "math",
        "chromium: enterprise_profile_guid",
    ];
    for &what in OF_ALL {
        ensure!(makers(&all, what) == count, "{what} was not made by every clone: {all:?}");
    }
    let kinds: BTreeSet<_> = all.iter().map(|made| made.what.clone()).collect();
    eprintln!("{count} clones, {} values of {kinds:?}", all.len());
    let shared = shared(all);
    ensure!(shared.is_empty(), "clones made the same: {shared:?}");
    server.finish().await
}

/// How many clones made something of a kind.
fn makers(all: &[Made], what: &str) -> usize {
    let of_kind = all.iter().filter(|made| made.what == what);
    of_kind.map(|made| &made.clone).collect::<BTreeSet<_>>().len()
}

/// Makes clones with these numbers, takes down what they make, and ends them.
async fn wave(
    api: &Api,
    numbers: Range<usize>,
    fresh: bool,
    page: &Page,
    tls: &Hellos,
) -> Result<Vec<Made>> {
    let (first_report, first_hello) = (page.seen().len(), tls.seen().len());
    let mut sessions = Vec::new();
    for number in numbers.clone() {
        let mut request = fixture::named(&format!("clone {number}"));
        // The size that warm images are made for.
        request.memory_mib = None;
        // A few reports tell the same as hundreds, and leave the processors to the other clones.
        let url = format!("http://host.holdfast.internal:{}/?times=5&tls={}", page.port, tls.port);
        request.start_url = Some(url);
        sessions.push(api.create(&request).await?.id);
    }
    for id in &sessions {
        api.ready(*id, BOOT).await?;
        let events = api.events(*id).await?;
        let is_clone = events.iter().any(|event| event.why.contains("cloned from the warm image"));
        ensure!(is_clone, "it was not cloned; {}", api.timeline(*id).await);
        fixture::clock_is_right(api, *id).await?;
    }
    // What clones of another wave said is left out: they may have had the same addresses.
    let from_outside = || {
        let mut all = reported_since(page, first_report);
        for hello in tls.seen().into_iter().skip(first_hello) {
            all.push(made("TLS random", &hello.random, hello.peer));
            all.push(made("TLS session", &hello.session, hello.peer));
            all.extend(hello.keys.iter().map(|key| made("TLS key share", key, hello.peer)));
        }
        for made in &mut all {
            made.clone = format!("{} of wave {}", made.clone, numbers.start / WAVE);
        }
        all
    };
    let deadline = BOOT * u32::try_from(numbers.len())?;
    wait::until("every clone's page and its TLS were seen", deadline, async || {
        let all = from_outside();
        let seen = ["values", "TLS random"].map(|what| makers(&all, what));
        Ok((seen == [numbers.len(); 2]).then_some(()))
    })
    .await?;
    let mut all = Vec::new();
    for id in &sessions {
        all.extend(from_inside(api, *id).await?);
        if is_of_the_warm_image(api, *id).await? == fresh {
            let console = api.get(&format!("/api/sessions/{id}/console")).await?.body;
            bail!("it is another browser: {}", String::from_utf8_lossy(&console));
        }
    }
    for id in &sessions {
        api.end(*id).await?;
    }
    for id in &sessions {
        api.gone(*id, SOON).await?;
    }
    all.extend(from_outside());
    Ok(all)
}

fn claim(vm: VmId, start_url: Option<String>, cloned: bool) -> Result<ClaimRequest> {
    let random = |bytes: usize| -> String {
        let uuids = (0..bytes.div_ceil(16)).map(|_| Uuid::new_v4().simple().to_string());
        uuids.collect()
    };
    let name = vm.to_string();
    Ok(ClaimRequest {
        hostname: format!("hf-{}", &name[name.len() - 12..]),
        vm_id: name,
        session_id: None,
        secret: random(32),
        time: jiff::Timestamp::now(),
        entropy: random(64),
        dns: Vec::new(),
        locale: "en-US".into(),
        timezone: "Etc/UTC".into(),
        screen: ScreenSize { width: 1280, height: 800 },
        start_url,
        cloned,
        fresh_browser: false,
        browser_after_ms: 0,
    })
}

/// Restores two VMs from a snapshot with a page open, and answers what their pages report alike.
async fn twins(
    driver: &Arc<dyn Driver>,
    spec: &VmSpec,
    snapshot: &std::path::Path,
    secret: &str,
    page: &Page,
    cloned: bool,
) -> Result<Vec<Made>> {
    // VMs of before may have had the same addresses.
    let first = page.seen().len();
    let mut addresses = Vec::new();
    let mut vms = Vec::new();
    for _ in 0..2 {
        let spec = VmSpec { vm: VmId::from_uuid(Uuid::now_v7()), ..spec.clone() };
        driver.create(&spec).await?;
        vms.push(spec.vm);
        addresses.push(driver.connect(spec.vm).await?);
        driver.start(spec.vm, &StartFrom::Snapshot(snapshot.to_owned())).await?;
        let agent = AgentClient::new(Arc::clone(driver), spec.vm, secret.to_owned());
        agent.rebind(&claim(spec.vm, None, cloned)?, SOON).await?;
    }
    // Pages of before may have reported on the way to the new identity.
    let from = page.seen().len();
    let reports = || {
        let seen = page.seen();
        let of = |address: &std::net::Ipv4Addr| {
            let own = seen.iter().skip(from).filter(|seen| seen.peer.ip() == *address);
            own.filter(|seen| seen.path.starts_with("/report?")).count()
        };
        addresses.iter().all(|address| of(address) >= 3)
    };
    wait::until("both pages report", BOOT * 2, async || Ok(reports().then_some(()))).await?;
    // Those of a page that ran on before its new identity count too.
    let all = reported_since(page, first);
    for vm in vms {
        driver.destroy(vm).await?;
    }
    Ok(shared(all))
}

/// A restored VM whose browser goes on makes what its twin makes, and the check sees it; the way of a
/// fork does not.
#[tokio::test(flavor = "multi_thread")]
async fn twins_whose_browser_goes_on_are_found() -> Result<()> {
    let page = Page::serve(PAGE).await?;
    let dir = tempfile::Builder::new().prefix("holdfast-test-").tempdir()?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(dir.path(), mode)?;
    let cache = holdfast_server::config::default_cache_dir();
    let images = ImageLibrary::new(&cache);
    let image = holdfast_control::ImageSource::current(&images).map_err(anyhow::Error::msg)?;
    let host = HostConfig::new(dir.path().join("state"));
    let driver: Arc<dyn Driver> = match real_driver() {
        "firecracker" => Arc::new(FirecrackerDriver::open(host, FirecrackerConfig::find(&cache))?),
        _ => Arc::new(QemuDriver::open(host)?),
    };
    let spec = VmSpec {
        vm: VmId::from_uuid(Uuid::now_v7()),
        image,
        memory_mib: 1536,
        vcpus: 2,
        disk_mib: 2048,
        egress: EgressPolicy {
            internet: false,
            host_ports: vec![page.port],
            private_networks: Vec::new(),
        },
        screen: Screen::DEFAULT,
        eager: false,
    };
    let scope = holdfast_testkit::census::Scope::new(&dir.path().join("state"));
    let outcome = found(&driver, &spec, &page, dir.path()).await;
    for left in driver.list().await? {
        driver.destroy(left.vm).await?;
    }
    drop(scope);
    outcome
}

async fn found(
    driver: &Arc<dyn Driver>,
    spec: &VmSpec,
    page: &Page,
    dir: &std::path::Path,
) -> Result<()> {
    driver.create(spec).await?;
    driver.connect(spec.vm).await?;
    driver.start(spec.vm, &StartFrom::Boot).await?;
    let agent = AgentClient::new(Arc::clone(driver), spec.vm, String::new());
    let began = Instant::now();
    while agent.health(SOON).await.is_err() {
        ensure!(began.elapsed() < BOOT, "no agent");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let url = format!("http://host.holdfast.internal:{}/", page.port);
    let request = claim(spec.vm, Some(url), false)?;
    agent.claim(&request, SOON).await?;
    wait::until("the page reports", BOOT, async || {
        Ok((reported_since(page, 0).len() >= 3).then_some(()))
    })
    .await?;
    let claimed = AgentClient::new(Arc::clone(driver), spec.vm, request.secret.clone());
    let snapshot = dir.join("snapshot");
    claimed.freeze(SOON).await?;
    driver.snapshot(spec.vm, &snapshot).await?;
    driver.destroy(spec.vm).await?;
    let alike = twins(driver, spec, &snapshot, &request.secret, page, false).await?;
    ensure!(!alike.is_empty(), "the fault was not found");
    eprintln!("twins whose browser went on made {} values alike", alike.len());
    let alike = twins(driver, spec, &snapshot, &request.secret, page, true).await?;
    let after: Vec<_> = alike.iter().filter(|made| made.what != "math").collect();
    ensure!(after.is_empty(), "forks made the same: {after:?}");
    Ok(())
}
