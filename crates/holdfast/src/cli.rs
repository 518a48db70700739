//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

/// Disposable desktops in virtual machines, shown live in your browser.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "First time? `holdfast up` checks this machine, builds the image, starts the server and prints its address."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Address of the server; found in the local state directory when absent.
    #[arg(long, global = true, env = "HOLDFAST_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Access token; the local administrator's when absent.
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub token: Option<String>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check this machine, build the image if there is none, and serve.
    Up(UpArgs),
    /// Run the server.
    Serve(ServeArgs),
    /// Check this machine, one thing after the other, and say what to do.
    Doctor(DoctorArgs),
    /// Build and manage images of the guest.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Make, list, use and end sessions.
    #[command(subcommand, visible_alias = "s")]
    Session(SessionCommand),
    /// Sign a tool in on a machine of its own, and bring its credentials here.
    Login(LoginArgs),
    /// Tools that can be signed in.
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Virtual machines.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Machines that run virtual machines.
    #[command(subcommand)]
    Host(HostCommand),
    /// Take no new sessions on the server's host, also after a restart of the server.
    Drain {
        /// Put away what runs.
        #[arg(long, conflicts_with = "end")]
        hibernate: bool,
        /// End what runs.
        #[arg(long)]
        end: bool,
    },
    /// Take sessions again.
    Undrain,
    /// Access tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a completion script: `holdfast completions bash > /etc/bash_completion.d/holdfast`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Versions of this command and of the server.
    Version,
}

/// Where a server's configuration comes from: defaults, then the file, then these.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Configuration file; /etc/holdfast/holdfast.toml when it exists.
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; port 0 picks a free one [default: 127.0.0.1:7070].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// `sqlite:` or `postgres:` URL [default: a SQLite file in the state directory].
    #[arg(long, env = "HOLDFAST_STORE", hide_env_values = true, value_name = "URL")]
    pub store: Option<String>,
    /// What runs the virtual machines [default: auto].
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<Driver>,
    /// Where virtual machines and records live [default: /var/lib/holdfast].
    #[arg(long, env = "HOLDFAST_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where images live [default: ~/.cache/holdfast].
    #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Driver {
    /// The best one that proves itself by booting something.
    Auto,
    /// Firecracker; needs KVM.
    Firecracker,
    /// QEMU; with KVM where that works, slower without.
    Qemu,
    /// Simulated: nothing runs; to try the API.
    Sim,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Args)]
pub struct LogArgs {
    /// How to write logs.
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// What to log, such as `debug` or `info,holdfast_control=debug`.
    #[arg(long, env = "HOLDFAST_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

#[derive(Debug, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// Open the dashboard in this machine's browser.
    #[arg(long)]
    pub open: bool,
    /// The guest's agent, for building the image.
    #[arg(long, env = "HOLDFAST_AGENT", value_name = "FILE")]
    pub agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub log: LogArgs,
    /// Print the dashboard's address with its access token also when standard output is no terminal.
    #[arg(long)]
    pub show_token: bool,
    /// Print the configuration that would be used, as holdfast.toml, and end.
    #[arg(long)]
    pub print_config: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Leave out what takes long: booting something with each driver.
    #[arg(long)]
    pub quick: bool,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build the image; what did not change is not built again.
    Build {
        /// Where images live [default: ~/.cache/holdfast].
        #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
        cache_dir: Option<PathBuf>,
        /// The guest's agent; looked for beside this program when absent.
        #[arg(long, env = "HOLDFAST_AGENT", value_name = "FILE")]
        agent: Option<PathBuf>,
        /// Build everything again, with today's packages.
        #[arg(long)]
        fresh: bool,
    },
    /// Make the warm image that new sessions are cloned from; what is there is not made again.
    Bake {
        /// Where images live [default: ~/.cache/holdfast].
        #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
        cache_dir: Option<PathBuf>,
        /// Memory of the sessions to be cloned, in MiB; the configured size when absent.
        #[arg(long, value_name = "MIB")]
        memory: Option<u32>,
        /// Processors of the sessions to be cloned; the configured number when absent.
        #[arg(long, value_name = "N")]
        vcpus: Option<u8>,
    },
    /// List images.
    Ls {
        /// Where images live [default: ~/.cache/holdfast].
        #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
        cache_dir: Option<PathBuf>,
    },
    /// Show what an image is made of, and verify its files.
    Inspect {
        /// Beginning of its digest; the current one when absent.
        image: Option<String>,
        /// Where images live [default: ~/.cache/holdfast].
        #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
        cache_dir: Option<PathBuf>,
        /// Hash the files and compare.
        #[arg(long)]
        verify: bool,
    },
    /// Remove an image that no session uses.
    Rm {
        /// Beginning of its digest.
        image: String,
        /// Where images live [default: ~/.cache/holdfast].
        #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
        cache_dir: Option<PathBuf>,
    },
    /// Remove all images that are neither for new sessions nor used by any, with their layers.
    Prune {
        /// Where images live [default: ~/.cache/holdfast].
        #[arg(long, env = "HOLDFAST_CACHE_DIR", value_name = "DIR")]
        cache_dir: Option<PathBuf>,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Make a session.
    Create(CreateArgs),
    /// List sessions.
    Ls {
        /// Also those that ended.
        #[arg(short, long)]
        all: bool,
        /// Only in these states, separated by commas.
        #[arg(long, conflicts_with = "all", value_name = "STATES")]
        state: Option<String>,
    },
    /// Show one session.
    Show(SessionArg),
    /// Show what happened to a session.
    Logs {
        #[command(flatten)]
        session: SessionArg,
        /// Go on as it happens.
        #[arg(short, long, conflicts_with = "console")]
        follow: bool,
        /// The machine's console instead of the timeline.
        #[arg(long)]
        console: bool,
    },
    /// Run a command in a session's machine; exits with that command's code.
    Exec(ExecArgs),
    /// Attach to a session's terminal; Ctrl-] detaches.
    Attach(SessionArg),
    /// End sessions.
    #[command(visible_alias = "rm")]
    End {
        /// Ids, or names.
        #[arg(required = true, value_name = "SESSION")]
        sessions: Vec<String>,
        /// Wait until nothing of them is left.
        #[arg(short, long)]
        wait: bool,
    },
    /// Open a session's page in this machine's browser.
    Open {
        #[command(flatten)]
        session: SessionArg,
        /// Only print the address.
        #[arg(long)]
        print: bool,
    },
    /// Tell why a session is alive or dead, with the evidence.
    Explain(SessionArg),
}

#[derive(Debug, Args)]
pub struct SessionArg {
    /// Id of the session, its name, or a unique beginning or end of its id.
    #[arg(value_name = "SESSION")]
    pub session: String,
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// A name for people.
    #[arg(long)]
    pub name: Option<String>,
    /// What it is for.
    #[arg(long)]
    pub provider: Option<String>,
    /// Size of the desktop, such as 1280x800.
    #[arg(long, value_parser = parse_screen, value_name = "WIDTHxHEIGHT")]
    pub screen: Option<holdfast_api::Screen>,
    /// Page that the browser opens first.
    #[arg(long, value_name = "URL")]
    pub start_url: Option<String>,
    /// Language, such as de-DE.
    #[arg(long)]
    pub locale: Option<String>,
    /// Time zone, such as Europe/Berlin.
    #[arg(long)]
    pub timezone: Option<String>,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u32>,
    /// Processors.
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u8>,
    /// For a sign-in: age public key that the credentials are sealed to.
    #[arg(long, value_name = "age1...")]
    pub recipient: Option<String>,
    /// Wait until the desktop can be used, and show every step.
    #[arg(short, long)]
    pub wait: bool,
    /// Open it in this machine's browser; implies --wait.
    #[arg(long)]
    pub open: bool,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Pass standard input on, to its end.
    #[arg(short, long)]
    pub interactive: bool,
    /// Use the session's own terminal: the command is typed there, and Ctrl-] detaches.
    #[arg(short, long)]
    pub tty: bool,
    /// Run as root instead of the desktop's user.
    #[arg(long, conflicts_with = "tty")]
    pub root: bool,
    /// Seconds until the command is killed, at most 600.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600), value_name = "SECONDS")]
    pub timeout: u64,
    #[command(flatten)]
    pub session: SessionArg,
    /// The command and its arguments.
    #[arg(last = true, required_unless_present = "tty", value_name = "COMMAND")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The tool, such as codex; `holdfast provider ls` lists them.
    pub provider: String,
    /// Home directory that the credentials are written below [default: yours].
    #[arg(long, value_name = "HOME", conflicts_with = "print")]
    pub dir: Option<PathBuf>,
    /// Print the credentials as JSON instead of writing them.
    #[arg(long)]
    pub print: bool,
    /// Replace files that are there, without keeping them as NAME.bak.
    #[arg(long, conflicts_with = "print")]
    pub force: bool,
    /// Open the session's page in this machine's browser.
    #[arg(long)]
    pub open: bool,
}

#[derive(Debug, Subcommand)]
pub enum ProviderCommand {
    /// List what the server can sign in.
    Ls,
    /// Check files of providers: each fault is named with its line and column.
    Check {
        /// TOML files.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List virtual machines.
    Ls,
}

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List hosts.
    Ls,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make an access token; it is shown once.
    Create {
        /// Whose: sessions belong to an owner, and owners do not see each other's.
        owner: String,
        /// A label for people.
        #[arg(long)]
        name: Option<String>,
        /// It may do everything for every owner.
        #[arg(long)]
        admin: bool,
        /// Days until it stops working.
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
    },
    /// List access tokens.
    Ls,
    /// Revoke an access token.
    Revoke {
        /// Its id.
        id: Uuid,
    },
}

fn parse_screen(text: &str) -> Result<holdfast_api::Screen, String> {
    let wrong = || "expected width x height in pixels, such as 1280x800".to_owned();
    let (width, height) = text.split_once(['x', 'X']).ok_or_else(wrong)?;
    Ok(holdfast_api::Screen {
        width: width.parse().map_err(|_| wrong())?,
        height: height.parse().map_err(|_| wrong())?,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_in_a_session_keeps_its_own_options() {
        let line = ["holdfast", "session", "exec", "work", "--", "ls", "--json", "-l"];
        let cli = Cli::try_parse_from(line).expect("accepted");
        let Command::Session(SessionCommand::Exec(args)) = cli.command else { panic!("exec") };
        assert_eq!(args.command, ["ls", "--json", "-l"]);
        assert!(!cli.global.json);
    }

    #[test]
    fn screens_are_read() {
        assert_eq!(parse_screen("800x600").map(|s| (s.width, s.height)), Ok((800, 600)));
        for bad in ["", "800", "x", "800x", "80000x1", "-1x5"] {
            assert!(parse_screen(bad).is_err(), "{bad}");
        }
    }
}
