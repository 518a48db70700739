//! The gateway's own cost: the same bytes through raw TCP, through the gateway, and through
//! websockify, read by the same client. Gateway and websockify are processes of their own.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use holdfast_testkit::{ports, server::TestServer, wait, ws};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    report::{Report, Samples, Table},
    usage,
};

mod wired;

/// What a viewer says first (RFC 6143): the gateway reads along.
const HELLO: &[u8; 13] = b"RFB 003.008\n\x01";
/// What it says then, in the place of its choice to share the desktop: send without end, or echo.
const SEND: u8 = b'S';
const ECHO: u8 = b'E';
/// What is echoed: a key, pressed and released twice.
const MESSAGE: [u8; 32] = {
    let mut message = [0; 32];
    let mut at = 0;
    while at < 32 {
        message[at] = 4;
        message[at + 1] = (at / 8 % 2 == 0) as u8;
        message[at + 7] = b'w';
        at += 8;
    }
    message
};
/// What is sent before a throughput is measured, so that buffers and windows have grown.
const WARM_UP: u64 = 16 << 20;
/// Longest time for one way.
const LONGEST: Duration = Duration::from_mins(2);
const ENDED: &str = "the stream ended";

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Times that each way is measured; they take turns.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of each throughput.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Messages that are echoed in each run.
    #[arg(long, default_value_t = 5000)]
    echoes: usize,
}

/// What the server's process says once it is there.
#[derive(Debug, Serialize, Deserialize)]
struct Wired {
    address: SocketAddr,
    token: String,
    path: String,
}

/// Runs a server whose machines' desktop is `source`, until its standard input ends.
pub(crate) async fn serve(source: SocketAddr) -> Result<()> {
    let replaced = holdfast_server::Replaced {
        driver: Some(Arc::new(wired::Wired::new(source))),
        ..Default::default()
    };
    let server = TestServer::start_with(|_| {}, replaced).await?;
    let session = server.api.create(&holdfast_api::CreateSession::default()).await?;
    server.api.ready(session.id, Duration::from_mins(1)).await?;
    let wired = Wired {
        address: server.api.address,
        token: server.api.token.clone(),
        path: format!("/api/sessions/{}/desktop", session.id),
    };
    println!("{}", serde_json::to_string(&wired)?);
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    server.api.end(session.id).await?;
    server.stop().await.map(drop)
}

/// A process between client and source.
struct Between {
    child: Child,
    wired: Wired,
}

impl Between {
    fn gateway(source: SocketAddr) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["wired-server", &source.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the gateway could not be started")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let wired = serde_json::from_str(&line).context("the gateway did not come up");
        match wired {
            Ok(wired) => Ok(Self { child, wired }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Debian's websockify, as it is installed.
    async fn websockify(source: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?));
        let child = Command::new("websockify")
            .args([address.to_string(), source.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("websockify could not be started: install Debian's package of that name")?;
        let wired = Wired { address, token: "none".into(), path: "/websockify".into() };
        let between = Self { child, wired };
        wait::until("websockify listens", Duration::from_secs(20), async || {
            Ok(TcpStream::connect(address).await.ok())
        })
        .await?;
        Ok(between)
    }

    async fn connect(&self, first: u8) -> Result<Stream> {
        let Wired { address, token, path } = &self.wired;
        let mut socket = ws::connect(*address, path, token).await?;
        socket.send(Message::Binary(Bytes::from(hello(first)))).await?;
        Ok(Stream::Socket(Box::new(socket)))
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        // The end of its input ends the gateway; websockify does not read any, and what is already
        // gone cannot be killed.
        if self.child.stdin.take().is_none() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn hello(first: u8) -> Vec<u8> {
    [&HELLO[..], &[first]].concat()
}

/// One connection, whichever way it goes.
enum Stream {
    Raw(TcpStream, Vec<u8>),
    Socket(Box<ws::Socket>),
}

impl Stream {
    async fn raw(source: SocketAddr, first: u8) -> Result<Self> {
        let mut stream = TcpStream::connect(source).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&hello(first)).await?;
        Ok(Self::Raw(stream, vec![0; 64 * 1024]))
    }

    async fn send(&mut self, data: &'static [u8]) -> Result<()> {
        match self {
            Self::Raw(stream, _) => stream.write_all(data).await?,
            Self::Socket(socket) => socket.send(Message::Binary(Bytes::from_static(data))).await?,
        }
        Ok(())
    }

    /// Reads something; answers how many bytes.
    async fn read(&mut self) -> Result<usize> {
        match self {
            Self::Raw(stream, buffer) => match stream.read(buffer).await? {
                0 => bail!(ENDED),
                read => Ok(read),
            },
            Self::Socket(socket) => loop {
                if let Message::Binary(data) = socket.next().await.context(ENDED)?? {
                    return Ok(data.len());
                }
            },
        }
    }

    /// Gigabits a second.
    async fn throughput(&mut self, time: Duration) -> Result<f64> {
        let mut bytes = 0;
        while bytes < WARM_UP {
            bytes += self.read().await? as u64;
        }
        let (mut bytes, began) = (0, Instant::now());
        while began.elapsed() < time {
            bytes += self.read().await? as u64;
        }
        Ok(bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9)
    }

    /// Microseconds of each round trip.
    async fn echoes(&mut self, count: usize, trips: &mut Samples) -> Result<()> {
        // The first ones find everything cold.
        for turn in 0..count + count / 10 {
            let began = Instant::now();
            self.send(&MESSAGE).await?;
            let mut read = 0;
            while read < MESSAGE.len() {
                read += self.read().await?;
            }
            if turn >= count / 10 {
                trips.value(began.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Way {
    gigabits: Samples,
    /// Percent of a core that the process between took.
    busy: Samples,
    trips: Samples,
}

impl Way {
    async fn measure(
        &mut self,
        args: &Args,
        source: SocketAddr,
        between: Option<&Between>,
    ) -> Result<()> {
        let connect = async |first| match between {
            Some(between) => between.connect(first).await,
            None => Stream::raw(source, first).await,
        };
        let mut stream = connect(SEND).await?;
        // websockify serves each connection with a child of its own.
        let cpu = || between.map(|between| usage::cpu_ms_of_family(between.child.id() as i32));
        let (before, began) = (cpu(), Instant::now());
        self.gigabits.value(stream.throughput(Duration::from_secs(args.seconds)).await?);
        if let Some((before, after)) = before.zip(cpu()) {
            self.busy.value((after - before) / began.elapsed().as_secs_f64() / 10.0);
        }
        drop(stream);
        connect(ECHO).await?.echoes(args.echoes, &mut self.trips).await
    }
}

pub(crate) async fn measure(args: &Args, report: &mut Report) -> Result<()> {
    let source = source().await?;
    let gateway = Between::gateway(source)?;
    let websockify = Between::websockify(source).await?;
    let ways = [("raw TCP", None), ("gateway", Some(&gateway)), ("websockify", Some(&websockify))];
    let mut found: [Way; 3] = Default::default();
    for _ in 0..args.runs {
        for ((name, between), way) in ways.iter().zip(&mut found) {
            let measured = way.measure(args, source, *between);
            tokio::time::timeout(LONGEST, measured)
                .await
                .with_context(|| format!("{name} hangs"))??;
        }
    }
    let mut table = Table::new(
        "One stream through the gateway",
        format!(
            "Bytes from one TCP server on this machine, read by the same client: directly, through the \
             gateway's desktop WebSocket, and through websockify. Throughput over {} s, round trips of \
             {} bytes; the three took turns {} times. All share this machine's processors.",
            args.seconds,
            MESSAGE.len(),
            args.runs
        ),
    );
    for ((name, _), way) in ways.iter().zip(&found) {
        table.add(format!("{name}: throughput"), "Gbit/s", way.gigabits.clone());
        table.add(format!("{name}: processor meanwhile"), "% of a core", way.busy.clone());
        table.add(format!("{name}: round trip"), "us", way.trips.clone());
    }
    let [raw, gateway, websockify] = &found;
    table
        .add(
            "gateway : websockify, throughput",
            "times",
            gateway.gigabits.median() / websockify.gigabits.median(),
        )
        .add(
            "gateway : raw TCP, throughput",
            "times",
            gateway.gigabits.median() / raw.gigabits.median(),
        )
        .add(
            "websockify : gateway, round trip",
            "times",
            websockify.trips.median() / gateway.trips.median(),
        )
        .add("gateway - raw TCP, round trip", "us", gateway.trips.median() - raw.trips.median());
    report.add(table);
    Ok(())
}

/// A server that sends or echoes, as the end of its client's hello says.
async fn source() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let mut buffer = vec![0; 64 * 1024];
                let mut hello = [0; HELLO.len() + 1];
                stream.read_exact(&mut hello).await?;
                if hello[HELLO.len()] == SEND {
                    loop {
                        stream.write_all(&buffer).await?;
                    }
                }
                loop {
                    let read = stream.read(&mut buffer).await?;
                    if read == 0 {
                        return std::io::Result::Ok(());
                    }
                    stream.write_all(&buffer[..read]).await?;
                }
            });
        }
    });
    Ok(address)
}
