//! `holdfast login`: signs a tool in on a machine of its own and brings the credentials here.
//!
//! The key that opens the credentials is made here and never leaves this process's memory.

mod files;

use std::{
    io::{BufRead as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_api::{Code, CreateSession, Credentials, Session, SignIn, client::Client};
use holdfast_core::printable;
use tokio::{sync::oneshot, time::Instant};
use uuid::Uuid;

use crate::{
    cli::{Global, LoginArgs},
    connect,
    output::{self, Steps},
    session,
};

/// Time between looks at the sign-in.
const LOOK: Duration = Duration::from_millis(500);
/// Time between heartbeats.
const BEAT: Duration = Duration::from_secs(10);
/// How long the server may be away.
const PATIENCE: Duration = Duration::from_mins(1);
/// Most of a line that a guest wrote, in bytes: its longest link.
const LINE: usize = 8 << 10;
/// Exit code of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

pub async fn run(global: &Global, args: LoginArgs) -> anyhow::Result<ExitCode> {
    let home = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::var_os("HOME")
            .map(PathBuf::from)
            .context("HOME is not set: say with --dir where the credentials go")?,
    };
    let client = connect::client(global)?;
    let identity = age::x25519::Identity::generate();
    let body = CreateSession {
        provider: Some(args.provider.clone()),
        name: Some(format!("Sign in: {}", args.provider)),
        recipient: Some(identity.to_public().to_string()),
        ..CreateSession::default()
    };
    let session = client.create_session(&body, &Uuid::new_v4().to_string()).await?;
    let work = async {
        eprintln!("Page: {}{}", client.base(), session.url);
        if args.open {
            session::open(global, &session, false)?;
        }
        let sign_in = follow(&client, &session).await?;
        // Whatever can go wrong here goes wrong before the credentials are handed over, for they
        // are handed over once.
        let sealed = sign_in.credentials.clone();
        if !args.print {
            for file in sealed.iter().flat_map(|sealed| &sealed.files) {
                files::place(&home, &file.path)?;
            }
        }
        if sealed.is_none() {
            bail!("{} is signed in, but has no credentials to hand over", args.provider);
        }
        let ciphertext = client.credentials(session.id).await?;
        let clear = age::decrypt(&identity, &ciphertext)
            .context("the credentials cannot be opened with this command's key")?;
        let credentials: Credentials =
            serde_json::from_slice(&clear).context("the credentials are not in the known form")?;
        // The guest sealed them, and nobody has looked inside since.
        let declared = sealed.as_ref().map(|sealed| sealed.files.as_slice()).unwrap_or_default();
        files::check(declared, &credentials.files)?;
        if args.print {
            return output::json(&credentials);
        }
        let mut written = Vec::new();
        for file in &credentials.files {
            let content = BASE64.decode(&file.content).context("a credential is not base64")?;
            let target = files::place(&home, &file.path)?;
            written.push(files::write(&target, file.mode, &content, args.force)?);
        }
        if global.json {
            return output::json(&serde_json::json!({
                "sessionId": session.id, "provider": session.provider, "files": written,
            }));
        }
        for file in &written {
            println!("{}  {}", file.mode, file.path.display());
            if let Some(backup) = &file.backup {
                println!("      what was there before is in {}", backup.display());
            }
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = work => outcome.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\nThe session is being ended.");
            Ok(ExitCode::from(INTERRUPTED))
        }
    };
    if !matches!(outcome, Ok(code) if code == ExitCode::SUCCESS)
        && let Err(error) = client.end_session(session.id).await
        && error.code() != Some(Code::Gone)
    {
        eprintln!("warning: the session {} could not be ended: {error}", session.id);
    }
    outcome
}

/// Shows how the sign-in goes on, asks for what it needs, and answers its success.
async fn follow(client: &Client, session: &Session) -> anyhow::Result<SignIn> {
    let mut view = View { steps: Steps::new("Making a machine"), shown: Shown::default() };
    let mut beat = Instant::now();
    let mut away: Option<Instant> = None;
    let mut asked: Option<oneshot::Receiver<Option<String>>> = None;
    loop {
        if beat.elapsed() > BEAT {
            beat = Instant::now();
            // A session that is over says so by its sign-in.
            let _ = client.heartbeat(session.id).await;
        }
        let now = match client.sign_in(session.id).await {
            Ok(now) => now,
            Err(error) if error.is_temporary() => {
                if away.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(error.into());
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        away = None;
        view.show(session, &now);
        match now.outcome.as_deref() {
            Some("succeeded") => {
                view.steps.finish();
                return Ok(now);
            }
            Some(outcome) => {
                view.steps.finish();
                let why = now.why.unwrap_or_else(|| "The tool gave no reason.".to_owned());
                let output = now.output.trim();
                let said = if output.is_empty() {
                    String::new()
                } else {
                    format!("\nIt printed:\n{output}")
                };
                bail!("the sign-in {outcome}: {why}{said}");
            }
            None => {}
        }
        if now.wants_input && asked.is_none() {
            asked = Some(ask());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            text = async { asked.as_mut().expect("the branch is taken only with one").await }, if asked.is_some() => {
                asked = None;
                match text {
                    Ok(Some(text)) => match client.sign_in_code(session.id, &text).await {
                        Ok(()) => view.steps.now("The code was handed to the tool"),
                        Err(error) => eprintln!("{error}"),
                    },
                    _ => bail!("standard input ended before a code was given"),
                }
            }
        }
    }
}

/// Asks for a code in the terminal; the thread that reads is left behind when the command ends.
fn ask() -> oneshot::Receiver<Option<String>> {
    let (answer, asked) = oneshot::channel();
    std::thread::spawn(move || {
        eprint!("Code from the provider's page: ");
        let _ = std::io::stderr().flush();
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let text = line.trim().to_owned();
        let _ = answer.send((read.is_ok() && !text.is_empty()).then_some(text));
    });
    asked
}

struct View {
    steps: Steps,
    shown: Shown,
}

/// What was said last.
#[derive(Default)]
struct Shown {
    step: String,
    run: u32,
    url: Option<String>,
    user_code: Option<String>,
}

impl View {
    fn show(&mut self, session: &Session, now: &SignIn) {
        let after = now.step_since.duration_since(session.created_at).as_secs_f64();
        if now.run > 1 && now.run != self.shown.run {
            self.steps.done("! The tool was started again; a link shown before is void.");
        }
        if now.step != self.shown.step || now.run != self.shown.run {
            self.steps.done(&format!("- {after:6.2} s  {}", sentence(now)));
            self.steps.now(sentence(now));
        }
        if now.url.is_some() && now.url != self.shown.url {
            let url = printable::line(now.url.as_deref().unwrap_or_default(), LINE);
            self.steps.done(&format!("\n  {url}\n"));
        }
        if now.user_code.is_some() && now.user_code != self.shown.user_code {
            let code = printable::line(now.user_code.as_deref().unwrap_or_default(), LINE);
            self.steps.done(&format!("  Code for the provider's page:  {code}\n"));
        }
        self.shown = Shown {
            step: now.step.clone(),
            run: now.run,
            url: now.url.clone(),
            user_code: now.user_code.clone(),
        };
    }
}

fn sentence(now: &SignIn) -> &'static str {
    match (now.step.as_str(), now.flow.as_str()) {
        ("machine", _) => "Making a machine",
        ("tool", _) => "Starting the tool",
        ("link", _) => "Waiting for the tool's link",
        ("sign_in", "paste_code") => "Sign in on the page, then give the code here",
        ("sign_in", "device_code") => "Sign in on the page with the code",
        ("sign_in", _) => "Sign in on the page: its browser shows the link",
        ("credentials", _) => "Sealing the credentials",
        _ if now.outcome.as_deref() == Some("succeeded") => "Signed in",
        _ => "The tool ended",
    }
}
