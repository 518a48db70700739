//! The server is disposable: killed at any moment, it loses no session and no VM.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::wait;
use uuid::Uuid;

use crate::fixture::{self, BOOT, SOON};

/// How often the server is killed.
const KILLS: u32 = 12;
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

/// A session in use keeps its machine over a kill of the server, and its viewer comes back.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_a_killed_server() -> Result<()> {
    let mut server = fixture::server().await?;
    let api = server.api()?;
    let session = fixture::ready(&api, "kept").await?;
    let boot = fixture::boot_id(&api, session.id).await?;
    let vm = api.vm(session.id).await?;
    let mut terminal = fixture::terminal(&api, session.id, "before").await?;
    let vmm = fixture::vmm(&mut server)?;

    server.kill()?;
    ensure!(terminal.expect("never", SOON).await.is_err(), "the terminal outlived its server");
    ensure!(fixture::vmm(&mut server)? == vmm, "the VMM did not outlive its server");
    server.spawn()?;
    server.ready().await?;

    let after = api.ready(session.id, SOON).await?;
    ensure!(after.ready_at == session.ready_at, "it was started again");
    ensure!(api.vm(session.id).await?.vm_id == vm.vm_id, "another VM");
    ensure!(fixture::boot_id(&api, session.id).await? == boot, "another boot");
    ensure!(fixture::vmm(&mut server)? == vmm, "another VMM");
    // The same shell, with what was on its screen.
    let mut terminal = fixture::terminal(&api, session.id, "after").await?;
    ensure!(terminal.seen.contains("before-42"), "no scrollback: {:?}", terminal.seen);
    terminal.type_text("exit 0\n").await?;
    fixture::shows(&api, session.id, "a picture", SOON, |f| !f.is_blank()).await?;
    server.finish().await
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
