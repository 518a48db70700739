//! `holdfast session ...`

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use holdfast_api::{
    Code, CreateSession, Event, Exec, HealthSeen, Session,
    client::{Client, Update},
};
use holdfast_core::printable;
use uuid::Uuid;

use crate::{
    cli::{CreateArgs, ExecArgs, Global, SessionCommand},
    connect, output, programs, terminal, wait,
};

pub async fn run(global: &Global, command: SessionCommand) -> anyhow::Result<ExitCode> {
    let client = connect::client(global)?;
    match command {
        SessionCommand::Create(args) => create(global, &client, args).await?,
        SessionCommand::Ls { all, state } => ls(global, &client, all, state).await?,
        SessionCommand::Show(arg) => {
            let id = resolve(&client, &arg.session).await?;
            let session = client.session(id).await?;
            if global.json { output::json(&session)? } else { show(&client, &session) }
        }
        SessionCommand::Logs { session, follow, console } => {
            let id = resolve(&client, &session.session).await?;
            if console {
                let console = client.console(id).await?;
                if global.json {
                    output::json(&console)?;
                } else {
                    print!("{}", printable::all(&console.text));
                }
            } else if follow {
                follow_events(global, &client, id).await?;
            } else {
                events(global, &client, id).await?;
            }
        }
        SessionCommand::Exec(args) => return exec(&client, args).await,
        SessionCommand::Attach(arg) => {
            let id = resolve(&client, &arg.session).await?;
            terminal::attach(&client, id, None).await?;
        }
        SessionCommand::End { sessions, wait } => end(&client, &sessions, wait).await?,
        SessionCommand::Open { session, print } => {
            let id = resolve(&client, &session.session).await?;
            let session = client.session(id).await?;
            open(global, &session, print)?;
        }
        SessionCommand::Explain(arg) => {
            let id = resolve(&client, &arg.session).await?;
            explain(global, &client, id).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(global: &Global, client: &Client, args: CreateArgs) -> anyhow::Result<()> {
    let body = CreateSession {
        provider: args.provider,
        name: args.name,
        screen: args.screen,
        start_url: args.start_url,
        locale: args.locale,
        timezone: args.timezone,
        memory_mib: args.memory,
        vcpus: args.vcpus,
        recipient: args.recipient,
        webhook: None,
    };
    let key = Uuid::new_v4().to_string();
    let mut session = match client.create_session(&body, &key).await {
        // Nobody knows whether it arrived; the key makes asking again harmless.
        Err(error) if error.is_temporary() && error.code().is_none() => {
            client.create_session(&body, &key).await?
        }
        answer => answer?,
    };
    if args.wait || args.open {
        session = wait::until_ready(client, session).await?;
    }
    if global.json {
        output::json(&session)?;
    } else {
        println!("{}", session.id);
        eprintln!("Page: {}{}", client.base(), session.url);
    }
    if args.open {
        open(global, &session, false)?;
    }
    Ok(())
}

async fn ls(
    global: &Global,
    client: &Client,
    all: bool,
    state: Option<String>,
) -> anyhow::Result<()> {
    let mut list = client.sessions(state.as_deref()).await?;
    if !all && state.is_none() {
        list.sessions.retain(|session| session.state != "ended");
    }
    if global.json {
        return output::json(&list);
    }
    let mut table = output::table(&["ID", "NAME", "STATE", "AGE", "OWNER", "SIZE", "NOTE"]);
    for session in &list.sessions {
        table.add_row([
            session.id.to_string(),
            session.name.clone(),
            session.state.clone(),
            output::ago(session.created_at),
            session.owner.clone(),
            format!("{} MiB, {} cpu", session.memory_mib, session.vcpus),
            session.detail.clone().unwrap_or_default(),
        ]);
    }
    output::print_table(&table, "There are no sessions. Make one with `holdfast session create`.");
    Ok(())
}

fn show(client: &Client, session: &Session) {
    let time = |at: Option<jiff::Timestamp>| at.map(output::time).unwrap_or_default();
    output::fields(&[
        ("Id", session.id.to_string()),
        ("Name", session.name.clone()),
        ("State", session.state.clone()),
        ("Why", session.detail.clone().unwrap_or_default()),
        ("Provider", session.provider.clone()),
        ("Owner", session.owner.clone()),
        ("Screen", format!("{} x {}", session.screen.width, session.screen.height)),
        ("Machine", format!("{} MiB, {} processors", session.memory_mib, session.vcpus)),
        ("VM", session.vm_id.map(|id| id.to_string()).unwrap_or_default()),
        ("Created", output::time(session.created_at)),
        ("Ready", time(session.ready_at)),
        ("Since", output::time(session.state_since)),
        ("Protected", format!("until {}", output::time(session.expires_at))),
        ("Page", format!("{}{}", client.base(), session.url)),
    ]);
}

async fn events(global: &Global, client: &Client, id: Uuid) -> anyhow::Result<()> {
    let mut all = Vec::new();
    loop {
        let after = all.last().map_or(0, |event: &Event| event.seq);
        let page = client.events(id, after).await?;
        if page.is_empty() {
            break;
        }
        all.extend(page);
    }
    if global.json {
        return output::json(&holdfast_api::EventList { events: all });
    }
    for event in &all {
        println!("{}", line(event));
    }
    Ok(())
}

async fn follow_events(global: &Global, client: &Client, id: Uuid) -> anyhow::Result<()> {
    let mut follower = wait::Follower::new(client, id);
    loop {
        match follower.next().await? {
            Update::Event(event) if global.json => println!("{}", serde_json::to_string(&event)?),
            Update::Event(event) => println!("{}", line(&event)),
            Update::Session(session) if session.state == "ended" => return Ok(()),
            Update::Session(_) => {}
        }
    }
}

/// An entry of a timeline as one line, or more for a console.
pub fn line(event: &Event) -> String {
    let change = match (&event.from, &event.to) {
        (Some(from), Some(to)) => format!("{from} -> {to}: "),
        (None, Some(to)) => format!("{to}: "),
        _ => String::new(),
    };
    let at = event.at.strftime("%Y-%m-%d %H:%M:%S%.3f");
    let why = printable::all(&event.why);
    format!("{at}  {:<14} {:<10}  {change}{why}", event.kind, event.by)
}

async fn exec(client: &Client, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let id = resolve(client, &args.session.session).await?;
    if args.tty {
        let typed = (!args.command.is_empty()).then(|| shell_line(&args.command));
        terminal::attach(client, id, typed).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut stdin = None;
    if args.interactive {
        if std::io::stdin().is_terminal() {
            bail!("-i passes a file or a pipe on; for a terminal use -t");
        }
        let mut input = Vec::new();
        std::io::stdin().read_to_end(&mut input).context("standard input cannot be read")?;
        stdin = Some(BASE64.encode(input));
    }
    let body = Exec {
        command: args.command,
        timeout_ms: Some(args.timeout * 1000),
        stdin,
        root: args.root,
    };
    let result = client.exec(id, &body).await.map_err(|error| match error.code() {
        Some(Code::TooLarge) => {
            anyhow::anyhow!("standard input is too large: at most 48 KiB can be passed on")
        }
        _ => error.into(),
    })?;
    let text = |text: &str| BASE64.decode(text).context("the output is not base64");
    std::io::stdout().write_all(&text(&result.stdout)?)?;
    std::io::stdout().flush()?;
    std::io::stderr().write_all(&text(&result.stderr)?)?;
    if result.truncated {
        eprintln!("warning: the output was cut after its first MiB");
    }
    if result.timed_out {
        eprintln!(
            "error: the command was killed after {} s; give it more with --timeout",
            args.timeout
        );
        return Ok(ExitCode::from(124));
    }
    Ok(ExitCode::from(u8::try_from(result.exit_code).unwrap_or(1)))
}

/// A command as a shell reads it.
fn shell_line(command: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    let quoted = command.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

async fn end(client: &Client, sessions: &[String], wait: bool) -> anyhow::Result<()> {
    let mut failed = None;
    for text in sessions {
        let ended = async {
            let id = resolve(client, text).await?;
            let session = client.end_session(id).await?;
            if session.is_some() && wait {
                wait::until_ended(client, id).await?;
            }
            anyhow::Ok(match session {
                None => "had ended before",
                Some(_) if wait => "ended",
                Some(_) => "is ending",
            })
        };
        match ended.await {
            Ok(what) => eprintln!("{text} {what}."),
            // One that cannot be ended does not keep the others.
            Err(error) => {
                if let Some(earlier) = failed.replace(error.context(text.clone())) {
                    output::print_error(&earlier);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Opens the page of a session in this machine's browser, or prints its address.
pub fn open(global: &Global, session: &Session, print: bool) -> anyhow::Result<()> {
    let (base, token) = connect::target(global)?;
    let base = base.trim_end_matches('/');
    let Some(token) = token else {
        let url = format!("{base}{}", session.url);
        if print {
            println!("{url}");
            return Ok(());
        }
        return programs::open_in_browser(&url);
    };
    // The first visit brings the token; the server keeps it as a cookie and removes it from the address.
    let url = format!("{base}/?token={token}&session={}", session.id);
    if print {
        println!("{url}");
        return Ok(());
    }
    programs::open_privately(&url)
}

/// Who protects it and until when; nothing of a session that is over.
fn lease(explanation: &holdfast_api::Explanation) -> String {
    if ["failed", "ended"].contains(&explanation.session.state.as_str()) {
        return String::new();
    }
    let lease = &explanation.lease;
    let until = output::time(lease.expires_at);
    let streams = match lease.streams {
        0 => "no open stream".to_owned(),
        1 => "one open stream".to_owned(),
        many => format!("{many} open streams"),
    };
    format!("{}, until {until}; {streams}", if lease.live { "live" } else { "over" })
}

async fn explain(global: &Global, client: &Client, id: Uuid) -> anyhow::Result<()> {
    let explanation = client.explain(id).await?;
    if global.json {
        return output::json(&explanation);
    }
    let machine = explanation.machine.as_ref();
    let yes = |known: Option<bool>| match known {
        Some(true) => "there",
        Some(false) => "not there",
        None => "unknown",
    };
    println!("{}\n", explanation.summary);
    output::fields(&[
        ("Session", format!("{} ({})", explanation.session.id, explanation.session.state)),
        ("Why", explanation.session.detail.clone().unwrap_or_default()),
        ("VM", format!("{} ({})", explanation.vm.id, explanation.vm.state)),
        ("Driver", explanation.vm.driver.clone()),
        ("Boots", explanation.vm.incarnation.to_string()),
        ("Attempts", explanation.attempts.to_string()),
        ("Process", machine.map(|m| m.process.clone()).unwrap_or_default()),
        ("Health", explanation.health.as_ref().map(health).unwrap_or_default()),
        ("Directory", machine.map(|m| yes(m.directory).to_owned()).unwrap_or_default()),
        ("Network", machine.map(|m| yes(m.network).to_owned()).unwrap_or_default()),
        ("Lease", lease(&explanation)),
    ]);
    println!();
    for event in &explanation.events {
        println!("{}", line(event));
    }
    Ok(())
}

/// Where a VM stands on the ladder of repairs, on one line.
fn health(seen: &HealthSeen) -> String {
    let Some(since) = seen.failing_since else {
        return format!("{}, probed {}", seen.rung, output::time(seen.probed_at));
    };
    format!(
        "{}: {}; wrong since {}, {} failed probe(s), {} service restart(s), {} resume(s), {} boot(s)",
        seen.rung,
        seen.finding,
        output::time(since),
        seen.failures,
        seen.service_restarts,
        seen.resumes,
        seen.boots,
    )
}

/// The session that is meant: an id, a name, or the beginning or end of an id.
pub async fn resolve(client: &Client, text: &str) -> anyhow::Result<Uuid> {
    if let Ok(id) = text.parse::<Uuid>() {
        return Ok(id);
    }
    let list = client.sessions(None).await?.sessions;
    let lower = text.to_ascii_lowercase();
    let named = |session: &&Session| session.name == text;
    let by_id = |session: &&Session| {
        let id = session.id.to_string();
        lower.len() >= 4 && (id.starts_with(&lower) || id.ends_with(&lower))
    };
    // One that lives is meant rather than one that ended; a name rather than a piece of an id.
    let live: Vec<_> = list.iter().filter(|session| session.state != "ended").collect();
    let ways: [Vec<&Session>; 4] = [
        live.iter().copied().filter(named).collect(),
        live.iter().copied().filter(by_id).collect(),
        list.iter().filter(named).collect(),
        list.iter().filter(by_id).collect(),
    ];
    let found = ways.iter().find(|found| !found.is_empty());
    match found.map(Vec::as_slice) {
        Some([session]) => Ok(session.id),
        Some(several) => {
            let ids: Vec<_> = several.iter().map(|s| s.id.to_string()).collect();
            bail!("`{text}` means several sessions; name one of: {}", ids.join(", "))
        }
        None => bail!("there is no session `{text}`; `holdfast session ls --all` lists them"),
    }
}

#[cfg(test)]
mod tests {
    use super::shell_line;

    #[test]
    fn commands_survive_the_shell() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(shell_line(&words(&["ls", "-l", "/tmp"])), "ls -l /tmp");
        assert_eq!(shell_line(&words(&["echo", "a b", "it's", ""])), r"echo 'a b' 'it'\''s' ''");
    }
}
