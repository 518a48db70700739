//! The store in a SQLite file.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::Arc,
};

use holdfast_core::SessionId;
use holdfast_store::{
    SessionFilter, Store, StoreError, check_url,
    conformance::{self, Pair, sample},
    open,
};
use sqlx::{ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

/// A file in a directory of its own.
struct File {
    dir: TempDir,
}

impl File {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.path("test.db").display())
    }

    async fn open(&self) -> Arc<dyn Store> {
        open(&self.url()).await.expect("opened")
    }

    /// Runs statements past the store.
    async fn sql(&self, statements: &'static str) {
        let options = SqliteConnectOptions::new().filename(self.path("test.db"));
        let mut connection: SqliteConnection = options.connect().await.expect("opened");
        sqlx::raw_sql(statements).execute(&mut connection).await.expect("run");
    }

    async fn code(&self) -> &'static str {
        check_url(&self.url()).await.code
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let file = File::new();
    let made = std::cell::Cell::new(0);
    conformance::run(async || {
        made.set(made.get() + 1);
        let url = format!("sqlite:{}", file.path(&format!("{}.db", made.get())).display());
        let (first, second) = tokio::join!(open(&url), open(&url));
        Pair { first: first.expect("opened"), second: second.expect("opened") }
    })
    .await;
}

#[tokio::test]
async fn an_in_memory_store_works_alone() {
    let store = open("sqlite::memory:").await.expect("opened");
    let made = sample::create(&*store).await;
    assert_eq!(store.session(made.session.id).await.expect("read"), Some(made.session));
    let check = store.check().await;
    assert!(check.ok, "{check:?}");
}

#[tokio::test]
async fn only_the_owner_may_read_the_files() {
    let file = File::new();
    let store = file.open().await;
    sample::create(&*store).await;
    for name in ["test.db", "test.db-wal", "test.db-shm"] {
        let mode = file.path(name).metadata().expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn directories_are_made_and_unusable_places_explained() {
    let file = File::new();
    let inner = file.path("a/b/test.db");
    open(&format!("sqlite:{}", inner.display())).await.expect("opened");
    let refused = open(&format!("sqlite:{}/x.db", inner.display())).await.err().expect("a file");
    assert!(matches!(refused, StoreError::Config { .. }), "{refused:?}");
}

#[tokio::test]
async fn an_unknown_kind_of_store_says_what_is_accepted() {
    for url in ["mysql://user:secret@host/db", "", "/var/lib/holdfast.db"] {
        let error = open(url).await.err().expect("refused").to_string();
        assert!(error.contains("sqlite:") && error.contains("postgres:"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(check_url(url).await.code, "cannot_connect");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_that_start_at_once_migrate_once() {
    let file = File::new();
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = file.url();
        starts.spawn(async move { open(&url).await.expect("opened") });
    }
    let stores = starts.join_all().await;
    let made = sample::create(&*stores[0]).await;
    for store in stores {
        assert_eq!(store.vm(made.vm.id).await.expect("read"), Some(made.vm.clone()));
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let file = File::new();
    drop(file.open().await);
    file.sql("INSERT INTO migrations (version, name) VALUES (1000, 'later')").await;
    let error = open(&file.url()).await.err().expect("refused");
    assert!(matches!(&error, StoreError::Schema { why } if why.contains("1000")), "{error:?}");
    assert_eq!(file.code().await, "newer_schema");
}

#[tokio::test]
async fn check_tells_findings_apart_and_changes_nothing() {
    let file = File::new();
    assert_eq!(file.code().await, "missing_table");
    assert!(!file.path("test.db").exists(), "a check makes no file");

    let store = file.open().await;
    assert_eq!(file.code().await, "ok");
    let read_only = check_url(&format!("{}?mode=ro", file.url())).await;
    assert_eq!(read_only.code, "read_only", "{}", read_only.detail);

    file.sql("ALTER TABLE events RENAME TO elsewhere").await;
    assert_eq!(file.code().await, "missing_table");
    assert_eq!(store.check().await.code, "missing_table");

    file.sql("DELETE FROM migrations WHERE version > 1").await;
    file.sql("UPDATE migrations SET version = 0").await;
    assert_eq!(file.code().await, "missing_table");
    file.sql("UPDATE migrations SET version = -1").await;
    assert_eq!(file.code().await, "old_schema");
    drop(store);

    let garbage = File::new();
    std::fs::write(garbage.path("test.db"), [b'x'; 8192]).expect("written");
    assert_eq!(garbage.code().await, "cannot_connect");
    let error = open(&garbage.url()).await.err().expect("refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

/// The prototype took every failed query for "no rows".
#[tokio::test]
async fn a_failed_query_is_never_an_answer() {
    let file = File::new();
    let store = file.open().await;
    let made = sample::create(&*store).await;
    file.sql("ALTER TABLE sessions RENAME TO elsewhere").await;
    let answer = store.session(made.session.id).await;
    assert!(matches!(answer, Err(StoreError::Schema { .. })), "{answer:?}");
    let answer = store.sessions(SessionFilter::default()).await;
    assert!(matches!(answer, Err(StoreError::Schema { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_record_that_cannot_be_understood_is_an_error() {
    let breakages = [
        "UPDATE sessions SET state = 'cancelled'",
        "UPDATE sessions SET spec = '{}'",
        "UPDATE sessions SET lease_expires_at = 'soon'",
        "UPDATE sessions SET attempts = -1",
        "UPDATE sessions SET owner_id = 'x'",
    ];
    for breakage in breakages {
        let file = File::new();
        let store = file.open().await;
        let made = sample::create(&*store).await;
        sample::create(&*store).await;
        file.sql(breakage).await;
        let answer = store.session(made.session.id).await;
        assert!(
            matches!(answer, Err(StoreError::Corrupt { what: "session", .. })),
            "{breakage}: {answer:?}"
        );
        let answer = store.sessions(SessionFilter::default()).await;
        assert!(matches!(answer, Err(StoreError::Corrupt { .. })), "{breakage}: {answer:?}");
    }
    let file = File::new();
    let store = file.open().await;
    sample::create(&*store).await;
    file.sql("UPDATE vms SET state = 'lost'").await;
    let answer = store.live_vms().await;
    assert!(matches!(answer, Err(StoreError::Corrupt { what: "vm", .. })), "{answer:?}");
}

/// Set for the process that is killed: the URL of its store.
const CRASH_URL: &str = "HOLDFAST_TEST_CRASH_URL";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_survives_kill_9() {
    let file = File::new();
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "writes_until_killed", "--ignored", "--nocapture"])
        .env(CRASH_URL, file.url())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut answered = Vec::new();
    // To the end of the output, which comes soon after the kill.
    while let Some(line) = lines.next().transpose().expect("UTF-8") {
        // The first line has the name of the test before it.
        let word = line.rsplit(' ').next().unwrap_or_default();
        answered.extend(word.parse::<SessionId>().ok());
        if answered.len() == 25 {
            child.kill().expect("killed");
        }
    }
    let status = child.wait().expect("it is our child");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    assert!(answered.len() >= 25);

    let store = file.open().await;
    for id in &answered {
        let session = store.session(*id).await.expect("read").expect("it was answered");
        assert_eq!(session.attempts, 1);
    }
    // Whatever was on its way is there whole or not at all.
    for session in store.sessions(SessionFilter::default()).await.expect("read") {
        let vm = store.vm(session.vm.expect("tied")).await.expect("read").expect("there");
        assert_eq!(vm.session, Some(session.id));
        let events = store.events(session.id, 0, 10).await.expect("read");
        assert_eq!(events.len() as u32, 1 + session.attempts);
    }
}

#[tokio::test]
#[ignore = "the process that `what_was_answered_survives_kill_9` kills"]
async fn writes_until_killed() {
    let Ok(url) = std::env::var(CRASH_URL) else { return };
    let store = open(&url).await.expect("opened");
    loop {
        let mut session = sample::create(&*store).await.session;
        session.attempts = 1;
        let events = vec![(session.id, sample::event("attempt"))];
        let change =
            holdfast_store::Change { session: Some(session), events, ..Default::default() };
        println!("{}", store.apply(change).await.expect("applied").session.expect("written").id);
    }
}
