//! Many at once, with everything failing around them: nobody gets another's session, nothing is left, and
//! nothing stands still. The machines are simulated; the server and the database are real.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::try_join_all;
use holdfast_api::Session;
use holdfast_testkit::{
    TempPostgres,
    api::{Answer, Api},
    process::{Options, ServerProcess},
    wait,
};
use http::Method;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fixture::{self, BOOT};

const CLIENTS: usize = 8;
const SESSIONS: usize = 25;
/// Every how many changes of a machine one fails.
const FAULT_EVERY: u32 = 15;

/// 200 sessions of 8 clients, while machines fail, the database is killed and stopped, and the server is
/// killed.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_among_faults() -> Result<()> {
    let mut postgres = TempPostgres::new();
    let mut server = ServerProcess::start(Options {
        driver: "sim".to_owned(),
        config: format!("store = \"{}\"", postgres.database()),
        env: vec![("HOLDFAST_SIM_FAULT_EVERY".to_owned(), FAULT_EVERY.to_string())],
    })
    .await?;
    let api = server.api()?;
    let over = CancellationToken::new();
    let done = Arc::new(Mutex::new(Vec::new()));
    let clients = try_join_all((0..CLIENTS).map(|client| {
        let (api, done) = (api.clone(), Arc::clone(&done));
        async move {
            for number in 0..SESSIONS {
                let name = format!("client {client} session {number}");
                let session = life(&api, &name, number).await.with_context(|| name.clone())?;
                done.lock().expect("no panic").push(session);
            }
            anyhow::Ok(())
        }
    }));
    let clients = async {
        let outcome = clients.await;
        over.cancel();
        outcome
    };
    let faults = async {
        // Spread over the work, whatever it takes.
        for (at, fault) in [(20, 'k'), (60, 'p'), (100, 'k'), (130, 's'), (165, 'k')] {
            while done.lock().expect("no panic").len() < at {
                if over.is_cancelled() {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            match fault {
                'k' => {
                    server.kill()?;
                    server.spawn()?;
                }
                'p' => {
                    postgres.kill();
                    postgres.start();
                }
                _ => {
                    postgres.stop();
                    postgres.start();
                }
            }
        }
        Ok(())
    };
    let (lived, faulted) = tokio::join!(clients, faults);
    lived?;
    faulted?;

    server.ready().await?;
    let done = std::mem::take(&mut *done.lock().expect("no panic"));
    ensure!(done.len() == CLIENTS * SESSIONS, "{} sessions", done.len());
    let ids: BTreeSet<Uuid> = done.iter().map(|session| session.id).collect();
    let vms: BTreeSet<Uuid> = done.iter().filter_map(|session| session.vm_id).collect();
    ensure!((ids.len(), vms.len()) == (done.len(), done.len()), "an id was given twice");
    // Every one is over, and says why.
    for id in ids {
        let problem = api.gone(id, fixture::SOON).await?;
        ensure!(problem.reason.as_deref() == Some("user_request"), "{id}: {problem:?}");
    }
    let list: holdfast_api::SessionList = api.get("/api/sessions").await?.json(200)?;
    let stuck: Vec<_> = list.sessions.iter().filter(|session| session.state != "ended").collect();
    ensure!(stuck.is_empty(), "{stuck:?}");
    ensure!(api.vms().await?.is_empty(), "{:?}", api.vms().await?);
    let machines = std::fs::read_dir(server.state_dir().join("sim"))?;
    let left: Vec<_> = machines.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.is_empty(), "left on the machine: {left:?}");
    server.finish().await
}

/// One session from its creation to its end, as a client that does not give up has it.
async fn life(api: &Api, name: &str, number: usize) -> Result<Session> {
    let key = Uuid::new_v4().to_string();
    let body = serde_json::to_vec(&fixture::named(name))?;
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    let made = insist(|| api.send(Method::POST, "/api/sessions", &headers, body.clone())).await?;
    let made: Session = serde_json::from_slice(&made.body)?;
    ensure!(made.name == name, "it got {:?}", made.name);
    let path = format!("/api/sessions/{}", made.id);
    // Some change their mind before it is there.
    if number % 5 != 4 {
        wait::until("ready, or failed for good", BOOT, async || {
            let session: Session = insist(|| api.get(&path)).await?.json(200)?;
            ensure!(session.name == name && session.id == made.id, "{session:?}");
            Ok(["ready", "failed"].contains(&session.state.as_str()).then_some(()))
        })
        .await?;
        let vm_path = format!("{path}/vm");
        let vm: holdfast_api::SessionVm = match insist(|| api.get(&vm_path)).await? {
            // One that failed for good has none any more.
            gone if gone.status == 410 => return end(api, &path, made).await,
            there => there.json(200)?,
        };
        ensure!(Some(vm.vm_id) == made.vm_id, "{vm:?} instead of {:?}", made.vm_id);
    }
    end(api, &path, made).await
}

async fn end(api: &Api, path: &str, made: Session) -> Result<Session> {
    insist(|| api.send(Method::DELETE, path, &[], Vec::new())).await?;
    wait::until("it is over", BOOT, async || {
        Ok((insist(|| api.get(path)).await?.status == 410).then_some(()))
    })
    .await?;
    Ok(made)
}

/// Asks until there is an answer other than "not now".
async fn insist<F: Future<Output = Result<Answer>>>(ask: impl Fn() -> F) -> Result<Answer> {
    wait::until("an answer", BOOT, async || match ask().await {
        // Nobody listens, or whoever did was killed before it answered.
        Err(_) => Ok(None),
        Ok(answer) if answer.status == 503 => {
            ensure!(answer.headers.contains_key("retry-after"), "{answer:?}");
            Ok(None)
        }
        Ok(answer) if answer.status >= 500 => bail!("{answer:?}"),
        Ok(answer) => Ok(Some(answer)),
    })
    .await
}
