//! How long until a tool's sign-in link is there: from the request, in a clone and in a machine of the pool,
//! and from the desktop on after a cold boot. The tools are those of the image, without a network.

use std::time::{Duration, Instant};

use age::x25519::Identity;
use anyhow::{Result, bail};
use holdfast_api::CreateSession;
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
};

use crate::{
    report::{Report, Samples, Table},
    start::{ROOM, at_rest, empty_pool, until_pooled, until_warm},
    visit::BOOT,
};

/// Time between questions.
const ASK: Duration = Duration::from_millis(20);
const TOOLS: [&str; 2] = ["codex", "claude"];

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sessions of each kind and tool.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// From the request to the link, and to the desktop on the way.
struct Took {
    ready: Duration,
    link: Duration,
}

async fn one(api: &Api, tool: &str) -> Result<Took> {
    let request = CreateSession {
        provider: Some(tool.to_owned()),
        recipient: Some(Identity::generate().to_public().to_string()),
        ..CreateSession::default()
    };
    let began = Instant::now();
    let session = api.create(&request).await?;
    let path = format!("/api/sessions/{}/oauth-url", session.id);
    let link = loop {
        let answer = api.get(&path).await?;
        match answer.status {
            200 => break began.elapsed(),
            202 if began.elapsed() < BOOT * 2 => tokio::time::sleep(ASK).await,
            _ => bail!("{answer:?}; {}", api.timeline(session.id).await),
        }
    };
    let now = api.session(session.id).await?;
    let ready = now.ready_at.map_or(Duration::ZERO, |at| {
        Duration::try_from(at.duration_since(now.created_at)).unwrap_or_default()
    });
    eprintln!("  {tool}: desktop after {ready:?}, link after {link:?}");
    api.end(session.id).await?;
    api.gone(session.id, BOOT).await?;
    Ok(Took { ready, link })
}

pub(crate) async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let server = async |vm: &str| {
        let config = format!("[vm]\n{vm}\n{ROOM}[egress]\ninternet = false\n");
        ServerProcess::start(Options { driver: "auto".into(), config, ..Options::default() }).await
    };
    let clones = server("warm = true").await?;
    until_warm(&clones.api()?).await?;
    let pool = server("warm = true\npool_min = 1\npool_max = 1").await?;
    until_warm(&pool.api()?).await?;
    let cold = server("warm = false").await?;
    let mut table = Table::new(
        "Until a tool's link is there",
        "From POST /api/sessions to the first 200 of oauth-url, which is asked for every 20 ms; after a cold \
         boot from the moment on at which the session was ready. Clones, pooled machines and cold boots took turns.",
    );
    for tool in TOOLS {
        let (mut cloned, mut pooled, mut booted) =
            (Samples::default(), Samples::default(), Samples::default());
        for run in 0..args.runs {
            eprintln!("{tool}, run {} of {}", run + 1, args.runs);
            at_rest().await?;
            cloned.time(one(&clones.api()?, tool).await?.link);
            until_pooled(&pool.api()?).await?;
            at_rest().await?;
            pooled.time(one(&pool.api()?, tool).await?.link);
            until_pooled(&pool.api()?).await?;
            at_rest().await?;
            let took = one(&cold.api()?, tool).await?;
            booted.time(took.link.saturating_sub(took.ready));
        }
        table.add(format!("{tool}: clone"), "ms", cloned).aim(0.5, 5000.0);
        table.add(format!("{tool}: pool"), "ms", pooled).aim(0.5, 5000.0);
        table.add(format!("{tool}: cold, after the desktop"), "ms", booted).aim(0.5, 10_000.0);
    }
    report.add(table);
    empty_pool(&pool.api()?).await?;
    for server in [clones, pool, cold] {
        server.finish().await?;
    }
    Ok(())
}
