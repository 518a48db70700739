//! Whole sign-ins: a real tool in a real VM, a certified OpenID provider on the host, a person who
//! types in the live desktop, and credentials that come out sealed, once.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use age::x25519::Identity;
use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_api::{CreateSession, CreateToken, Credentials, NewToken, OauthUrl, Session, SignIn};
use holdfast_testkit::{
    api::Api,
    process::{Options, ServerProcess},
    wait,
};
use http::Method;
use uuid::Uuid;

use crate::fixture::{self, BOOT, Desktop, SOON};

/// How long a page may take in a machine without hardware virtualisation.
const PAGE: Duration = Duration::from_mins(8);
/// Time between looks at the desktop.
const LOOK: Duration = Duration::from_secs(3);
// Colours of the provider's pages, see server.mjs.
const LOGIN: u32 = 0x002a_9d8f;
const CONSENT: u32 = 0x00e9_a03b;
const CONFIRM: u32 = 0x005b_5bd6;
const USER_CODE: u32 = 0x00b2_3a8e;
const CODE: u32 = 0x003a_7d44;

/// The provider's process; it ends with its standard input.
struct Provider {
    child: Child,
    _stdin: ChildStdin,
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Provider {
    fn start() -> Result<Self> {
        let dir = tools();
        if !dir.join("node_modules/oidc-provider").is_dir() {
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--silent"]).current_dir(&dir);
            ensure!(npm.status()?.success(), "npm ci failed in {}", dir.display());
        }
        let mut child = Command::new("node")
            .arg("server.mjs")
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

    fn issuer(&self) -> String {
        format!("http://host.holdfast.internal:{}", self.port)
    }

    fn log(&self) -> String {
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

/// A server that knows the three tools, and the provider that they sign in with.
struct Bench {
    provider: Provider,
    server: ServerProcess,
    api: Api,
    _files: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Result<Self> {
        let provider = Provider::start()?;
        let files = tempfile::tempdir()?;
        let issuer = provider.issuer();
        for (name, flow, link) in [
            ("loopback", "loopback", ""),
            ("paste", "paste_code", ""),
            ("device", "device_code", "user_code = 'one-time code: ([A-Z-]+)'\n"),
        ] {
            let script = std::fs::read_to_string(tools().join(format!("{name}.mjs")))?;
            // A string of JSON is one of TOML.
            let command = ["node", "--input-type=module", "-e", &script, &issuer];
            let command = serde_json::to_string(&command)?;
            let text = format!(
                "name = \"{name}\"\ntitle = \"{name}\"\n[tool]\ncommand = {command}\nflow = \"{flow}\"\n\
                 [link]\nallow = [\"{issuer}\"]\n{link}\
                 [success]\nexit_code = 0\nfiles = [\".tool/auth.json\"]\nrefused = 'access_denied'\n\
                 [[credential]]\npath = \".tool/auth.json\"\n\
                 [deadlines]\nlink = \"3m\"\nsign_in = \"20m\"\n"
            );
            std::fs::write(files.path().join(format!("{name}.toml")), text)?;
        }
        let config = format!(
            "providers_dir = \"{}\"\n[egress]\nhost_ports = [{}]",
            files.path().display(),
            provider.port
        );
        let server = ServerProcess::start(Options { config, ..Options::default() }).await?;
        let api = server.api()?;
        Ok(Self { provider, server, api, _files: files })
    }

    /// A sign-in whose link or code has come.
    async fn begin(&self, provider: &str, key: &Identity) -> Result<(Session, SignIn, Desktop)> {
        let mut request: CreateSession = fixture::named(provider);
        request.provider = Some(provider.to_owned());
        request.recipient = Some(key.to_public().to_string());
        request.memory_mib = Some(2048);
        let session = self.api.create(&request).await?;
        let sign_in = self.until(session.id, "its link", BOOT * 2, |s| s.url.is_some()).await?;
        let (desktop, _closed) = fixture::desktop(&self.api, session.id).await?;
        Ok((session, sign_in, desktop))
    }

    async fn sign_in(&self, id: Uuid) -> Result<SignIn> {
        self.api.get(&format!("/api/sessions/{id}/sign-in")).await?.json(200)
    }

    async fn until(
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
        match waited.await {
            Ok(found) => Ok(found),
            Err(error) => Err(error
                .context(format!("the provider was asked:\n  {}", self.provider.log()))
                .context(self.api.timeline(id).await)),
        }
    }

    /// Waits until the desktop shows a page of this colour.
    async fn sees(&self, desktop: &mut Desktop, page: &str, colour: u32) -> Result<()> {
        let waited = wait::until(page, PAGE, async || {
            if desktop.frame().await?.share(colour) > 0.2 {
                return Ok(Some(()));
            }
            // Whole pictures one after the other leave a translated machine no time for its browser.
            tokio::time::sleep(LOOK).await;
            Ok(None)
        });
        let waited = waited.await;
        waited.with_context(|| format!("the provider was asked:\n  {}", self.provider.log()))
    }

    /// The person's part: name, password and consent, typed in the live desktop. The pages put the
    /// focus where it is needed.
    async fn consent(&self, desktop: &mut Desktop) -> Result<()> {
        self.sees(desktop, "the page that asks who it is", LOGIN).await?;
        desktop.type_text("ada\tlovelace\n").await?;
        self.sees(desktop, "the page that asks for consent", CONSENT).await?;
        desktop.type_text("\n").await
    }

    /// Takes what was handed over: once, by nobody else, for this key alone.
    async fn take(&self, session: &Session, key: &Identity) -> Result<String> {
        let path = format!("/api/sessions/{}/credentials", session.id);
        let body = CreateToken { owner: "mallory".to_owned(), ..CreateToken::default() };
        let other: NewToken = self.api.post("/api/tokens", &body).await?.json(201)?;
        let mallory = Api { address: self.api.address, token: other.secret };
        let stolen = mallory.send(Method::POST, &path, &[], Vec::new()).await?;
        ensure!(stolen.status == 404, "another owner got {}", stolen.status);
        let sealed = self.api.send(Method::POST, &path, &[], Vec::new()).await?;
        ensure!(sealed.status == 200, "{sealed:?}");
        let again = self.api.send(Method::POST, &path, &[], Vec::new()).await?;
        ensure!(again.status == 410, "a second time was answered {}", again.status);
        ensure!(age::decrypt(&Identity::generate(), &sealed.body).is_err(), "open to anybody");
        let credentials: Credentials = serde_json::from_slice(&age::decrypt(key, &sealed.body)?)?;
        ensure!(credentials.files.len() == 1 && credentials.files[0].path == ".tool/auth.json");
        let content = STANDARD.decode(&credentials.files[0].content)?;
        let token: serde_json::Value = serde_json::from_slice(&content)?;
        Ok(token["access_token"].as_str().context("no token")?.to_owned())
    }

    async fn finish(mut self, session: &Session, key: &Identity) -> Result<()> {
        let done = self.until(session.id, "success", PAGE, |s| s.step == "done").await?;
        ensure!(done.outcome.as_deref() == Some("succeeded"), "{done:?}");
        // The machine that holds them in clear has no further use.
        let gone = self.api.gone(session.id, SOON).await?;
        ensure!(gone.reason.as_deref() == Some("completed"), "{gone:?}");
        let token = self.take(session, key).await?;
        ensure!(token.len() > 20, "no token: {token}");
        // Neither records, logs nor disks hold a byte of it; the session's id shows that they are read.
        self.server.clean().await?;
        let (state, log) = (self.server.state_dir(), self.server.log_file());
        ensure!(
            holds(&state, session.id.as_bytes())?
                || holds(&state, session.id.to_string().as_bytes())?
        );
        for place in [state, log] {
            ensure!(!holds(&place, token.as_bytes())?, "the token is in {}", place.display());
        }
        self.server.finish().await
    }
}

/// Whether a file, or one below a directory, holds these bytes.
fn holds(place: &Path, needle: &[u8]) -> Result<bool> {
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

/// The browser brings consent back to a port of the tool.
#[tokio::test(flavor = "multi_thread")]
async fn through_a_loopback_callback() -> Result<()> {
    let bench = Bench::start().await?;
    let key = Identity::generate();
    let (session, sign_in, mut desktop) = bench.begin("loopback", &key).await?;
    let url = sign_in.url.context("a link")?;
    let path = format!("/api/sessions/{}/oauth-url", session.id);
    let answer: OauthUrl = bench.api.get(&path).await?.json(200)?;
    ensure!(answer.url == url && url.starts_with(&bench.provider.issuer()), "{url}");
    bench.consent(&mut desktop).await?;
    bench.finish(&session, &key).await
}

/// The provider shows a code, and the person hands it to the tool through the API.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_pasted_code() -> Result<()> {
    let bench = Bench::start().await?;
    let key = Identity::generate();
    let (session, _, mut desktop) = bench.begin("paste", &key).await?;
    bench.consent(&mut desktop).await?;
    bench.sees(&mut desktop, "the page with the code", CODE).await?;
    // What the person reads there.
    let log = bench.provider.log();
    let code = log.lines().find_map(|line| line.trim().strip_prefix("code ")).context("no code")?;
    let body = serde_json::json!({ "text": code });
    let path = format!("/api/sessions/{}/sign-in/code", session.id);
    let handed = bench.api.post(&path, &body).await?;
    ensure!(handed.status == 204, "{handed:?}");
    bench.finish(&session, &key).await
}

/// The tool shows a code, and the person types it on the provider's page.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_device_code() -> Result<()> {
    let bench = Bench::start().await?;
    let key = Identity::generate();
    let (session, _, mut desktop) = bench.begin("device", &key).await?;
    let shown = bench.until(session.id, "its code", SOON, |s| s.user_code.is_some()).await?;
    let code = shown.user_code.context("a code")?;
    bench.sees(&mut desktop, "the page that asks for the code", USER_CODE).await?;
    desktop.type_text(&format!("{code}\n")).await?;
    bench.sees(&mut desktop, "the page that repeats the code", CONFIRM).await?;
    desktop.type_text("\n").await?;
    bench.consent(&mut desktop).await?;
    bench.finish(&session, &key).await
}
