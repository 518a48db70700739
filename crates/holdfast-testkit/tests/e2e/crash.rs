//! The server is disposable: killed at any moment, it loses no session and no VM.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::{api::Api, wait};
use uuid::Uuid;

use crate::{
    fixture::{self, BOOT, SOON},
    watch::{PageWatcher, Typist, Watcher},
};

/// How often the server is killed.
const KILLS: u32 = 12;
/// How often it is killed under a session in use.
const IN_USE_KILLS: u32 = 10;
/// How soon after the server's return everybody is back.
const BACK: Duration = Duration::from_secs(5);
/// Longest time that it may run before the next kill.
const LONGEST: Duration = Duration::from_secs(4);

/// A small generator (xorshift64*): the run can be repeated from its seed.
struct Random(u64);

impl Random {
    /// Seeded from `HOLDFAST_TEST_SEED`, else from the time; the seed is printed.
    fn new() -> Result<Self> {
        let seed = match std::env::var("HOLDFAST_TEST_SEED") {
            Ok(text) => text.parse().context("HOLDFAST_TEST_SEED is a number")?,
            Err(_) => jiff::Timestamp::now().as_nanosecond() as u64,
        };
        eprintln!("HOLDFAST_TEST_SEED={seed}");
        Ok(Self(seed | 1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// A session in use keeps its machine over ten kills of the server at random moments: a page in a
/// browser and a viewer come back by themselves, and whoever types goes on in the same shell.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_loses_a_machine_to_ten_kills() -> Result<()> {
    let mut random = Random::new()?;
    let mut server = fixture::server().await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "kept").await?;
    let boot = fixture::boot_id(&api, session.id).await?;
    let vm = api.vm(session.id).await?;
    let vmm = fixture::vmm(&mut server)?;
    let began = (Instant::now(), uptime(&api, session.id).await?);
    let mut viewer = Watcher::start(&api, session.id);
    let mut page = PageWatcher::start(&api, session.id)?;
    let typist = Typist::start(&api, session.id);
    for kill in 0..IN_USE_KILLS {
        // Everybody is there before the next one.
        viewer.sees(Instant::now(), SOON).await?;
        page.sees(None, SOON).await?;
        tokio::time::sleep(Duration::from_millis(random.below(3_000))).await;
        let killed = Instant::now();
        server.kill()?;
        ensure!(fixture::vmm(&mut server)? == vmm, "the VMM did not outlive its server");
        server.spawn()?;
        server.ready().await?;
        let back = Instant::now();
        viewer.sees(killed, BACK).await?;
        let viewed = back.elapsed();
        page.sees(Some(killed), BACK.saturating_sub(viewed)).await?;
        let seen = back.elapsed();
        typist.types(back, BACK).await?;
        eprintln!(
            "kill {kill}: away {:?}, viewer after {viewed:?}, page after {seen:?}",
            back - killed
        );
    }
    let typed = typist.stop().await?;
    let after = api.ready(session.id, SOON).await?;
    ensure!(after.ready_at == session.ready_at, "it was started again");
    ensure!(api.vm(session.id).await?.vm_id == vm.vm_id, "another VM");
    ensure!(fixture::boot_id(&api, session.id).await? == boot, "another boot");
    ensure!(fixture::vmm(&mut server)? == vmm, "another VMM");
    let (passed, up) = (began.0.elapsed().as_secs_f64(), uptime(&api, session.id).await?);
    ensure!((up - began.1 - passed).abs() < 5.0, "up {} s more in {passed} s", up - began.1);
    // One shell wrote all of it, in order; what was under way at a kill may be missing.
    let ran = api.exec(session.id, &["cat", "typed"]).await?;
    let lines: Vec<(&str, u32)> = ran
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(shell, number)| Some((shell, number.parse().ok()?)))
        .collect();
    ensure!(lines.len() as u32 >= typed, "{} of {typed} lines: {ran:?}", lines.len());
    ensure!(lines.windows(2).all(|two| two[0].0 == two[1].0), "more than one shell: {ran:?}");
    ensure!(lines.windows(2).all(|two| two[0].1 < two[1].1), "out of order: {ran:?}");
    page.stop().await?;
    let mut terminal = fixture::terminal(&api, session.id, "history").await?;
    terminal.type_text("history | grep -q 'echo ... 1 >>' && echo in-$((6*7))-history\n").await?;
    terminal.expect("in-42-history", SOON).await?;
    server.finish().await
}

/// Seconds since a guest's kernel started.
async fn uptime(api: &Api, session: Uuid) -> Result<f64> {
    let ran = api.exec(session, &["cat", "/proc/uptime"]).await?;
    let seconds = ran.stdout.split(' ').next().context("no uptime")?;
    Ok(seconds.parse()?)
}

/// Kills at random moments of creating, using and ending: every id that was answered stays known,
/// what was ended is gone, what was not comes up, and nothing is left behind.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments() -> Result<()> {
    let mut random = Random::new()?;
    let mut server = fixture::server().await?;
    let api = server.api()?;
    // Whether each session was asked to end.
    let mut sessions: BTreeMap<Uuid, bool> = BTreeMap::new();
    for round in 0..KILLS {
        let live: Vec<Uuid> =
            sessions.iter().filter(|(_, ended)| !**ended).map(|(id, _)| *id).collect();
        let act = async {
            if live.len() < 2 {
                let session = api.create(&fixture::named(&format!("round {round}"))).await?;
                return anyhow::Ok(Some((session.id, false)));
            }
            let id = live[(round as usize) % live.len()];
            if round % 3 == 0 {
                api.end(id).await?;
                return Ok(Some((id, true)));
            }
            // Used while it is killed: any answer but "never existed" is right.
            let answer = api.get(&format!("/api/sessions/{id}/vm")).await?;
            ensure!(answer.status != 404, "session {id} is not known any more");
            Ok(None)
        };
        if let Some((id, ended)) = act.await? {
            sessions.insert(id, ended);
        }
        let run_for = Duration::from_millis(random.below(LONGEST.as_millis() as u64));
        tokio::time::sleep(run_for).await;
        server.kill()?;
        server.spawn()?;
        server.ready().await?;
        for (id, ended) in &sessions {
            let status = api.get(&format!("/api/sessions/{id}")).await?.status;
            let expected: &[u16] = if *ended { &[200, 410] } else { &[200] };
            ensure!(expected.contains(&status), "round {round}: session {id} answers {status}");
        }
    }
    for (id, ended) in &sessions {
        if *ended {
            api.gone(*id, SOON).await?;
        } else {
            api.ready(*id, BOOT).await?;
            let ran = api.exec(*id, &["true"]).await?;
            ensure!(ran.code == 0, "{ran:?}");
        }
    }
    let running = sessions.values().filter(|ended| !**ended).count();
    wait::until("as many VMs as sessions", SOON, async || {
        Ok((api.vms().await?.len() == running).then_some(()))
    })
    .await?;
    server.finish().await
}
