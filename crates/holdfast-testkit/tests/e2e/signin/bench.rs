//! What sign-ins are tried with: a certified OpenID provider on the host, the tools that sign in with
//! it, a person who types in the live desktop, and a search for what should be nowhere.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use age::x25519::Identity;
use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_api::{CreateSession, Session, SignIn};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    wait,
};
use uuid::Uuid;

use crate::fixture::{self, BOOT, Desktop};

/// How long a page may take in a machine without hardware virtualisation.
pub(super) const PAGE: Duration = Duration::from_mins(8);
/// Time between looks at the desktop.
const LOOK: Duration = Duration::from_secs(3);
// Colours of the provider's pages, see server.mjs.
const LOGIN: u32 = 0x002a_9d8f;
const CONSENT: u32 = 0x00e9_a03b;

/// The provider's process; it ends with its standard input.
pub(super) struct Provider {
    child: Child,
    _stdin: ChildStdin,
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Provider {
    /// With a clock that is off by so many seconds.
    fn start(clock: i64) -> Result<Self> {
        let dir = tools();
        if !dir.join("node_modules/oidc-provider").is_dir() {
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(&dir);
            ensure!(npm.status()?.success(), "npm ci failed in {}", dir.display());
        }
        let mut child = Command::new("node")
            .args(["server.mjs", &clock.to_string()])
            .current_dir(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("node is needed")?;
        let stdin = child.stdin.take().context("its input is a pipe")?;
        let mut lines =
            BufReader::new(child.stdout.take().context("its output is a pipe")?).lines();
        let first = lines.next().context("the provider ended")??;
        let port = first.strip_prefix("port ").context("no port")?.parse()?;
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, _stdin: stdin, port, requests })
    }

    pub(super) fn issuer(&self) -> String {
        format!("http://host.holdfast.internal:{}", self.port)
    }

    pub(super) fn log(&self) -> String {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).join("\n  ")
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        // It ends by itself, too; not waiting for that leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc")
}

/// The tools that ship with the provider: name, flow, and what else their `[link]` says.
const TOOLS: [(&str, &str, &str); 3] = [
    ("loopback", "loopback", ""),
    ("paste", "paste_code", ""),
    ("device", "device_code", "user_code = 'one-time code: ([A-Z-]+)'\n"),
];

/// A server that knows the tools, and the provider that they sign in with.
pub(super) struct Bench {
    pub(super) provider: Provider,
    pub(super) server: ServerProcess,
    pub(super) api: Api,
    _files: tempfile::TempDir,
}

impl Bench {
    pub(super) async fn start() -> Result<Self> {
        Self::start_with(0, BTreeMap::new()).await
    }

    /// With a provider whose clock is off by so many seconds, and with other tools besides: provider
    /// files by their names.
    pub(super) async fn start_with(clock: i64, more: BTreeMap<&str, String>) -> Result<Self> {
        let provider = Provider::start(clock)?;
        let files = tempfile::tempdir()?;
        let issuer = provider.issuer();
        for (name, flow, link) in TOOLS {
            let script = std::fs::read_to_string(tools().join(format!("{name}.mjs")))?;
            // A string of JSON is one of TOML.
            let command = ["node", "--input-type=module", "-e", &script, &issuer];
            let command = serde_json::to_string(&command)?;
            let text = format!(
                "name = \"{name}\"\ntitle = \"Tool with {name}\"\n\
                 description = \"Signs in with the provider of the tests.\"\n\
                 [tool]\ncommand = {command}\nflow = \"{flow}\"\n\
                 [link]\nallow = [\"{issuer}\"]\n{link}\
                 [success]\nexit_code = 0\nfiles = [\".tool/auth.json\"]\nrefused = 'access_denied'\n\
                 [[credential]]\npath = \".tool/auth.json\"\n\
                 [deadlines]\nlink = \"3m\"\nsign_in = \"20m\"\n"
            );
            std::fs::write(files.path().join(format!("{name}.toml")), text)?;
        }
        for (name, text) in more {
            std::fs::write(files.path().join(format!("{name}.toml")), text)?;
        }
        let config = format!(
            "providers_dir = \"{}\"\n[session]\ncheckpoint_interval = \"5s\"\n[egress]\nhost_ports = [{}]",
            files.path().display(),
            provider.port
        );
        // Where a secret could be, if it were handled badly: in a checkpoint or in the fullest log.
        let env = vec![("HOLDFAST_LOG".to_owned(), "debug".to_owned())];
        let server = ServerProcess::start(Options { config, env, ..Options::default() }).await?;
        let api = server.api()?;
        Ok(Self { provider, server, api, _files: files })
    }

    /// A session for a sign-in.
    pub(super) async fn create(&self, provider: &str, key: &Identity) -> Result<Session> {
        let mut request: CreateSession = fixture::named(provider);
        request.provider = Some(provider.to_owned());
        request.recipient = Some(key.to_public().to_string());
        request.memory_mib = Some(2048);
        self.api.create(&request).await
    }

    /// Waits until the link of a run has come.
    pub(super) async fn link(&self, id: Uuid, run: u32) -> Result<SignIn> {
        self.until(id, "its link", BOOT * 2, |s| s.run == run && s.url.is_some()).await
    }

    pub(super) async fn sign_in(&self, id: Uuid) -> Result<SignIn> {
        self.api.get(&format!("/api/sessions/{id}/sign-in")).await?.json(200)
    }

    pub(super) async fn until(
        &self,
        id: Uuid,
        what: &str,
        deadline: Duration,
        is: impl Fn(&SignIn) -> bool,
    ) -> Result<SignIn> {
        let waited = wait::until(what, deadline, async || {
            let now = self.sign_in(id).await?;
            if is(&now) {
                return Ok(Some(now));
            }
            if now.step == "done" {
                bail!("{what}: it ended before: {now:?}");
            }
            Ok(None)
        });
        let asked = || format!("the provider was asked:\n  {}", self.provider.log());
        self.api.explained(id, waited.await.with_context(asked)).await
    }

    /// Waits until the desktop shows a page of this colour, or no such page any more.
    async fn sees(&self, desktop: &mut Desktop, page: &str, colour: u32, is: bool) -> Result<()> {
        let waited = wait::until(page, PAGE, async || {
            if (desktop.frame().await?.share(colour) > 0.2) == is {
                return Ok(Some(()));
            }
            // Whole pictures one after the other leave a translated machine no time for its browser.
            tokio::time::sleep(LOOK).await;
            Ok(None)
        });
        let waited = waited.await;
        waited.with_context(|| format!("the provider was asked:\n  {}", self.provider.log()))
    }

    pub(super) async fn sees_login(&self, desktop: &mut Desktop) -> Result<()> {
        self.sees(desktop, "the page that asks who it is", LOGIN, true).await
    }

    pub(super) async fn loses_login(&self, desktop: &mut Desktop) -> Result<()> {
        self.sees(desktop, "no page that asks who it is", LOGIN, false).await
    }

    /// The person's part: name, password and consent, typed in the live desktop. The pages put the
    /// focus where it is needed.
    pub(super) async fn consent(&self, desktop: &mut Desktop) -> Result<()> {
        self.sees_login(desktop).await?;
        desktop.type_text("ada\tlovelace\n").await?;
        self.sees(desktop, "the page that asks for consent", CONSENT, true).await?;
        desktop.type_text("\n").await
    }

    /// After the hand-over nothing of a machine is left, and no byte of what it handed over: not in
    /// the store, the logs, the timeline, checkpoints or disks.
    pub(super) async fn finish(mut self, session: Uuid, secrets: &[String]) -> Result<()> {
        self.server.clean().await?;
        let answer = self.api.get(&format!("/api/sessions/{session}/events")).await?;
        let timeline = String::from_utf8_lossy(&answer.body).into_owned();
        ensure!(timeline.contains("signin.succeeded"), "{timeline}");
        // It was the guest's all the time, however often others are saved.
        ensure!(!timeline.contains("\"checkpoint."), "{timeline}");
        let now = self.sign_in(session).await?;
        ensure!(now.output.is_empty(), "the output of a tool that succeeded is kept: {now:?}");
        let (state, log) = (self.server.state_dir(), self.server.log_file());
        // The session's own id is found, so the places are really read.
        let id = [session.as_bytes().to_vec(), session.to_string().into_bytes()];
        ensure!(id.iter().map(|id| holds(&state, id)).collect::<Result<Vec<_>>>()?.contains(&true));
        for secret in secrets {
            ensure!(secret.len() > 20, "this is no token: {secret}");
            // Any piece of it, plain or in base64, whatever it is embedded in.
            let mut needles = vec![secret.as_bytes().to_vec()];
            needles.extend(secret.as_bytes().chunks_exact(12).map(<[u8]>::to_vec));
            needles.extend((0..3).map(|shift| {
                let encoded = STANDARD.encode(&secret.as_bytes()[shift..]);
                encoded.as_bytes()[..encoded.len() - 4].to_vec()
            }));
            for needle in needles {
                ensure!(!timeline.as_bytes().windows(needle.len()).any(|at| at == needle));
                for place in [&state, &log] {
                    ensure!(!holds(place, &needle)?, "a secret is in {}", place.display());
                }
            }
        }
        self.server.finish().await
    }
}

/// The access token in the credentials of these tools.
pub(super) fn access_token(auth: &[u8]) -> Result<String> {
    let token: serde_json::Value = serde_json::from_slice(auth)?;
    Ok(token["access_token"].as_str().context("no token")?.to_owned())
}

/// Whether a file, or one below a directory, holds these bytes.
pub(super) fn holds(place: &Path, needle: &[u8]) -> Result<bool> {
    if place.is_dir() {
        for entry in std::fs::read_dir(place)? {
            if holds(&entry?.path(), needle)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    // Sockets and the like hold nothing.
    if !place.is_file() {
        return Ok(false);
    }
    let bytes = std::fs::read(place)?;
    Ok(bytes.windows(needle.len()).any(|window| window == needle))
}
