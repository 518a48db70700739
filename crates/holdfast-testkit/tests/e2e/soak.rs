//! A long time in which nothing happens: nobody is dropped, no machine is repaired, and the server does not
//! grow.
//!
//! `HOLDFAST_SOAK_MINUTES=60 cargo nextest run --profile slow -p holdfast-testkit -E 'test(soak)'`

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use holdfast_testkit::{api::Api, terminal::Terminal};
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
    let mut people = Vec::new();
    for session in &sessions {
        people.push(Person {
            session: session.id,
            boot: fixture::boot_id(&api, session.id).await?,
            events: events(&api, session.id).await?,
            viewer: Watcher::start(&api, session.id),
            terminal: fixture::terminal(&api, session.id, "soak").await?,
        });
    }
    let (began, until) = (Instant::now(), Duration::from_secs(60 * minutes));
    let mut memory = None;
    for round in 1_u32.. {
        for person in &mut people {
            person.is_undisturbed(&api, round).await?;
        }
        // Buffers of the first pictures belong to it.
        let first = *memory.get_or_insert(resident_kib(pid)?);
        let now = resident_kib(pid)?;
        ensure!(now < first + GROWTH_KIB, "the server grew from {first} to {now} KiB");
        if began.elapsed() >= until {
            let pictures: u64 = people.iter().map(|person| person.viewer.seen().pictures).sum();
            eprintln!(
                "{:?}: {pictures} pictures, {round} rounds, server {first} to {now} KiB",
                began.elapsed()
            );
            break;
        }
        try_join_all(people.iter_mut().map(|person| person.terminal.stay(LOOK))).await?;
    }
    drop(people);
    server.finish().await
}

struct Person {
    session: Uuid,
    boot: String,
    events: Vec<String>,
    viewer: Watcher,
    terminal: Terminal,
}

impl Person {
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
