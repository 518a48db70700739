//! A long time in which nothing happens: nobody is dropped, no machine is repaired, and the server does not
//! grow.
//!
//! `HOLDFAST_SOAK_MINUTES=60 cargo nextest run --profile slow -p holdfast-testkit -E 'test(soak)'`

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use holdfast_testkit::{api::Api, terminal::Terminal};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    fixture::{self, SOON},
    watch::Watcher,
};

const MACHINES: usize = 4;
const MINUTES: u64 = 15;
/// Time between looks at everything.
const LOOK: Duration = Duration::from_secs(10);
/// Most that the server's memory may grow by once everybody is there, in KiB.
const GROWTH_KIB: u64 = 64 * 1024;

/// Four machines, each with a viewer and a terminal, for as long as `HOLDFAST_SOAK_MINUTES` says.
#[tokio::test(flavor = "multi_thread")]
async fn four_machines_for_a_long_time() -> Result<()> {
    let minutes = match std::env::var("HOLDFAST_SOAK_MINUTES") {
        Ok(text) => text.parse().context("HOLDFAST_SOAK_MINUTES is a number")?,
        Err(_) => MINUTES,
    };
    let server = fixture::server().await?;
    let api = server.api()?;
    let pid = server.pid().context("the server runs")?;
    let names = (0..MACHINES).map(|number| format!("soak {number}"));
    let sessions = try_join_all(names.map(async |name| fixture::ready(&api, &name).await)).await?;
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let arrived = Semaphore::new(0);
    // Side by side: a terminal that nobody reads from is let go.
    let people = try_join_all(sessions.iter().map(async |session| {
        let mut person = Person::arrives(&api, session.id).await?;
        person.is_undisturbed(&api, 0).await?;
        arrived.add_permits(1);
        person.stays(&api, until).await?;
        Ok(person.viewer.seen().pictures)
    }));
    let server_stays = async {
        // Buffers of the first pictures belong to it.
        let _all = arrived.acquire_many(MACHINES as u32).await?;
        does_not_grow(pid, until).await
    };
    let (pictures, grown) = tokio::try_join!(people, server_stays)?;
    eprintln!("{minutes} min: {} pictures, server {grown}", pictures.iter().sum::<u64>());
    server.finish().await
}

/// The server's memory stays as it is now; answers what it was and became.
async fn does_not_grow(pid: u32, until: Instant) -> Result<String> {
    let first = resident_kib(pid)?;
    loop {
        let now = resident_kib(pid)?;
        ensure!(now < first + GROWTH_KIB, "the server grew from {first} to {now} KiB");
        if Instant::now() >= until {
            return Ok(format!("{first} to {now} KiB"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Person {
    session: Uuid,
    boot: String,
    events: Vec<String>,
    viewer: Watcher,
    terminal: Terminal,
}

impl Person {
    async fn arrives(api: &Api, session: Uuid) -> Result<Self> {
        Ok(Self {
            session,
            boot: fixture::boot_id(api, session).await?,
            events: events(api, session).await?,
            viewer: Watcher::start(api, session),
            terminal: fixture::terminal(api, session, "soak").await?,
        })
    }

    async fn stays(&mut self, api: &Api, until: Instant) -> Result<()> {
        for round in 1_u32.. {
            self.is_undisturbed(api, round).await?;
            if Instant::now() >= until {
                break;
            }
            self.terminal.stay(LOOK).await?;
        }
        Ok(())
    }

    async fn is_undisturbed(&mut self, api: &Api, round: u32) -> Result<()> {
        let id = self.session;
        self.viewer.sees(Instant::now(), SOON).await?;
        let drops = self.viewer.seen().drops;
        ensure!(drops.is_empty(), "{id}: {drops:?}: {}", api.timeline(id).await);
        self.terminal.type_text(&format!("echo round-$(({round}+0)).\n")).await?;
        self.terminal.expect(&format!("round-{round}."), SOON).await?;
        ensure!(api.session(id).await?.state == "ready", "{}", api.timeline(id).await);
        ensure!(fixture::boot_id(api, id).await? == self.boot, "{}", api.timeline(id).await);
        let now = events(api, id).await?;
        ensure!(now == self.events, "something happened: {}", api.timeline(id).await);
        Ok(())
    }
}

/// What happened so far, except that the browser's first page came, which takes its time.
async fn events(api: &Api, session: Uuid) -> Result<Vec<String>> {
    let events = api.events(session).await?;
    let told = events.into_iter().filter(|event| event.kind != "step.browser");
    Ok(told.map(|event| format!("{} {}", event.kind, event.why)).collect())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|text| text.split_whitespace().next()).context("no VmRSS")?.parse()?)
}
