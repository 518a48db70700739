//! The server without VMs: how fast it answers, what a heartbeat costs, how fast it is back.
//!
//! The server is a process of its own on the simulated driver, with a real store.

mod load;
mod reconcile;

use std::{
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::{
    TempPostgres,
    process::{Options, ServerProcess},
};

use self::load::{Outcome, Pace};
use crate::{
    http::{Http, request},
    report::{Report, Samples, Table},
    usage,
};

/// Requests a second that are answered within the aim.
const RATE: u32 = 5000;
/// Heartbeats a second whose cost is looked at.
const BEATS: u32 = 2000;
/// No session may end or wait for room meanwhile.
const CONFIG: &str = "[session]\nlease = \"1h\"\n[vm]\nwarm = false\nmax_vms = 100000\n\
                      memory_budget_mib = 1000000000\nmax_starting = 64\nmax_waiting = 100000\n";
const SOON: Duration = Duration::from_mins(3);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sessions that exist while requests are answered, and when the server is killed.
    #[arg(long, default_value_t = 1000)]
    sessions: usize,
    /// Sessions that exist when machine and records are compared.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    reconcile: Vec<usize>,
    /// Seconds of each load.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Times that the server is killed; half as often on PostgreSQL.
    #[arg(long, default_value_t = 6)]
    runs: usize,
}

pub(crate) async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    report.note(
        "The client shares the processors with the server; PostgreSQL runs without fsync, SQLite with.",
    );
    with_store("SQLite", String::new(), None, args.runs, args, report).await?;
    let postgres = TempPostgres::new();
    let (url, home) = (postgres.database(), postgres.socket().to_owned());
    let config = format!("store = \"{url}\"\n");
    with_store("PostgreSQL", config, Some(&home), args.runs.div_ceil(2), args, report).await?;
    drop(postgres);
    reconcile::measure(&args.reconcile, report).await
}

/// One server with sessions, as the load sees it.
struct Target<'a> {
    server: &'a ServerProcess,
    lookups: Vec<Vec<u8>>,
    beats: Vec<Vec<u8>>,
    seconds: Duration,
    postgres: Option<&'a Path>,
}

async fn with_store(
    store: &str,
    config: String,
    postgres: Option<&Path>,
    runs: usize,
    args: &Args,
    report: &mut Report,
) -> Result<()> {
    let options =
        Options { driver: "sim".to_owned(), config: config + CONFIG, ..Options::default() };
    let mut server = ServerProcess::start(options).await?;
    let token = server.token()?;
    let began = Instant::now();
    let ids = make(server.address(), &token, args.sessions)?;
    until_ready(server.address(), &token, args.sessions)?;
    let made = args.sessions as f64 / began.elapsed().as_secs_f64();

    let address = server.address();
    let each = |method: &str, what: &str| -> Vec<Vec<u8>> {
        let path = |id: &String| format!("/api/sessions/{id}/{what}");
        ids.iter().map(|id| request(method, &path(id), address, &token, "")).collect()
    };
    let target = Target {
        server: &server,
        lookups: each("GET", "vm"),
        beats: each("POST", "heartbeat"),
        seconds: Duration::from_secs(args.seconds),
        postgres,
    };
    let mut table = Table::new(
        format!("Requests on {store}"),
        format!(
            "{} sessions, 16 connections. At a fixed rate a time counts from when the request was due. \
             The cost of heartbeats is the processor time of server and database at {BEATS} a second, each for another session \
             than the one before, less that at as many lookups.",
            args.sessions
        ),
    );
    target.measure(&mut table)?;
    table.add("sessions made and ready, 16 clients", "/s", made);
    report.add(table);
    drop(target);

    let mut table = Table::new(
        format!("Back after kill -9 on {store}"),
        format!(
            "{} sessions. From starting the process again until it answered a lookup.",
            args.sessions
        ),
    );
    let mut back = Samples::default();
    let probe = request("GET", &format!("/api/sessions/{}/vm", ids[0]), address, &token, "");
    for _ in 0..runs {
        server.kill()?;
        let began = Instant::now();
        server.spawn()?;
        until_answered(address, &probe)?;
        back.time(began.elapsed());
        until_ready(address, &token, args.sessions)?;
    }
    table.add("first lookup answered", "ms", back).aim(0.5, 2000.0);
    report.add(table);
    Ok(())
}

impl Target<'_> {
    fn measure(&self, table: &mut Table) -> Result<()> {
        for (what, requests, aim) in
            [("lookup", &self.lookups, true), ("heartbeat", &self.beats, false)]
        {
            let (outcome, cpu) = self.load(requests, Pace::PerSecond(RATE))?;
            table.add(format!("{what} at {RATE}/s"), "ms", outcome.times);
            if aim {
                table.aim(0.99, 1.0);
            }
            table.add(
                format!("{what} at {RATE}/s: server's processor"),
                "% of a core",
                cpu.total(),
            );
        }
        for (what, requests) in [("lookup", &self.lookups), ("heartbeat", &self.beats)] {
            let (outcome, _) = self.load(requests, Pace::Saturated)?;
            table.add(format!("{what}, saturated"), "/s", outcome.per_second);
            table.add(format!("{what}, saturated"), "ms", outcome.times);
        }
        let (_, without) = self.load(&self.lookups, Pace::PerSecond(BEATS))?;
        let (_, with) = self.load(&self.beats, Pace::PerSecond(BEATS))?;
        table
            .add(format!("{BEATS} lookups/s: processor"), "% of a core", without.total())
            .add(format!("{BEATS} heartbeats/s: processor"), "% of a core", with.total())
            .add("what heartbeats cost more", "% of a core", with.total() - without.total())
            .aim(0.5, 10.0)
            .add("what heartbeats write", "KiB/s", with.written_kib);
        Ok(())
    }

    /// Puts a load on it, and says what that cost.
    fn load(&self, requests: &[Vec<u8>], pace: Pace) -> Result<(Outcome, Cost)> {
        let address = self.server.address();
        // What is asked for the first time is not what is measured.
        load::run(address, requests, pace, Duration::from_secs(1))?;
        let pid = self.server.pid().context("the server is not running")? as i32;
        let look = || -> Result<(f64, f64, u64)> {
            let database = self.postgres.map_or(0.0, usage::cpu_ms_within);
            Ok((usage::cpu_ms(pid)?, database, usage::written(pid)?))
        };
        let before = look()?;
        let began = Instant::now();
        let outcome = load::run(address, requests, pace, self.seconds)?;
        let took = began.elapsed().as_secs_f64();
        let after = look()?;
        let share = |ms: f64| ms / 10.0 / took;
        let cost = Cost {
            server: share(after.0 - before.0),
            database: share(after.1 - before.1),
            written_kib: (after.2 - before.2) as f64 / 1024.0 / took,
        };
        Ok((outcome, cost))
    }
}

/// Percent of one core, and what the server wrote.
struct Cost {
    server: f64,
    database: f64,
    written_kib: f64,
}

impl Cost {
    fn total(&self) -> f64 {
        self.server + self.database
    }
}

/// Makes sessions, 16 at a time; answers their ids.
fn make(server: SocketAddr, token: &str, count: usize) -> Result<Vec<String>> {
    const CLIENTS: usize = 16;
    let create = request("POST", "/api/sessions", server, token, "{}");
    let made: Vec<Result<Vec<String>>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let create = &create;
                scope.spawn(move || {
                    let mut http = Http::connect(server)?;
                    let share = count / CLIENTS + usize::from(client < count % CLIENTS);
                    (0..share)
                        .map(|_| {
                            let (status, body) = http.call(create)?;
                            ensure!(status == 201, "{status}: {}", String::from_utf8_lossy(body));
                            let session: holdfast_api::Session = serde_json::from_slice(body)?;
                            Ok(session.id.to_string())
                        })
                        .collect()
                })
            })
            .collect();
        clients.into_iter().filter_map(|client| client.join().ok()).collect()
    });
    let mut ids = Vec::with_capacity(count);
    for some in made {
        ids.extend(some?);
    }
    ensure!(ids.len() == count, "{} of {count} sessions were made", ids.len());
    Ok(ids)
}

/// Waits until so many sessions are ready.
fn until_ready(server: SocketAddr, token: &str, count: usize) -> Result<()> {
    let metrics = request("GET", "/metrics", server, token, "");
    let line = format!("holdfast_sessions{{state=\"ready\"}} {count}");
    until("all sessions are ready", Duration::from_millis(100), || {
        let mut http = Http::connect(server)?;
        let (status, body) = http.call(&metrics)?;
        Ok(status == 200 && String::from_utf8_lossy(body).lines().any(|found| found == line))
    })
}

fn until_answered(server: SocketAddr, request: &[u8]) -> Result<()> {
    until("a lookup is answered", Duration::from_millis(2), || {
        // Nobody listens yet, or the server says that it is starting.
        let Ok(mut http) = Http::connect(server) else { return Ok(false) };
        Ok(http.call(request).is_ok_and(|(status, _)| status == 200))
    })
}

fn until(what: &str, interval: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is()? {
        ensure!(began.elapsed() < SOON, "{what}: not within {SOON:?}");
        thread::sleep(interval);
    }
    Ok(())
}

/// A directory in memory where there is one: thousands of records are made in it first.
fn scratch() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    Ok(tempfile::Builder::new().prefix("holdfast-test-").tempdir_in(parent)?)
}
