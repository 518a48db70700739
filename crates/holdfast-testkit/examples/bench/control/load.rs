//! Requests over HTTP/1.1 at a fixed rate, or as fast as they are answered.
//!
//! At a fixed rate the loop is open: when each request is due is settled before it begins, and a
//! time counts from then. A server that stalls is charged for every request that was due meanwhile,
//! not only for the one that it kept waiting. Each connection is a thread of its own, since a
//! runtime's timers are a millisecond wide.

use std::{
    net::SocketAddr,
    num::NonZero,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{http::Http, report::Samples};

/// Connections that are kept open, each with one request under way at most.
const CONNECTIONS: usize = 16;
/// Until all threads have a connection.
const WARM_UP: Duration = Duration::from_millis(200);

/// How fast.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many requests a second, whether they are answered or not.
    PerSecond(u32),
    /// Each connection asks again as soon as it was answered.
    Saturated,
}

/// What came of it.
pub(crate) struct Outcome {
    /// Times in ms.
    pub(crate) times: Samples,
    pub(crate) per_second: f64,
}

/// Sends these requests in turn for this long; each has to be answered with 200.
pub(crate) fn run(
    server: SocketAddr,
    requests: &[Vec<u8>],
    pace: Pace,
    duration: Duration,
) -> Result<Outcome> {
    let begin = Instant::now() + WARM_UP;
    let results: Vec<Result<Vec<f64>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| scope.spawn(move || one(server, requests, pace, begin, duration, number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked")))
            .collect()
    });
    let took = begin.elapsed();
    let mut times = Vec::new();
    for result in results {
        times.extend(result?);
    }
    let per_second = times.len() as f64 / took.as_secs_f64();
    Ok(Outcome { times: times.into(), per_second })
}

fn one(
    server: SocketAddr,
    requests: &[Vec<u8>],
    pace: Pace,
    begin: Instant,
    duration: Duration,
    number: usize,
) -> Result<Vec<f64>> {
    // A sleep of this thread ends when it should, not up to 50 us later.
    rustix::thread::set_current_timer_slack(NonZero::new(1))?;
    let mut http = Http::connect(server)?;
    let mut times = Vec::new();
    let sleep_until = |at: Instant| thread::sleep(at.saturating_duration_since(Instant::now()));
    sleep_until(begin);
    for turn in 0_u32.. {
        let sequence = turn as usize * CONNECTIONS + number;
        let due = match pace {
            Pace::PerSecond(rate) => {
                begin + Duration::from_secs_f64(sequence as f64 / f64::from(rate))
            }
            Pace::Saturated => Instant::now(),
        };
        if due >= begin + duration {
            break;
        }
        sleep_until(due);
        let (status, body) = http.call(&requests[sequence % requests.len()])?;
        ensure!(status == 200, "answered with {status}: {}", String::from_utf8_lossy(body));
        times.push(due.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}
