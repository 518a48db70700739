//! The store in PostgreSQL.

use std::time::{Duration, Instant};

use holdfast_store::{
    StoreError, check_url,
    conformance::{self, Pair, sample},
    open,
};
use holdfast_testkit::TempPostgres;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, raw_sql};

/// A call during an outage is answered within this time.
const QUICK: Duration = Duration::from_secs(6);

async fn open_twice(url: &str) -> Pair {
    let (first, second) = tokio::join!(open(url), open(url));
    Pair { first: first.expect("opened"), second: second.expect("opened") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let server = TempPostgres::new();
    conformance::run(async || open_twice(&server.database()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_as_behind_a_transaction_pooler() {
    let server = TempPostgres::new();
    conformance::run(async || open_twice(&format!("{}&pgbouncer=true", server.database())).await)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_behind_pgbouncer() {
    let server = TempPostgres::new();
    let pooler = server.pooler();
    let made = std::cell::Cell::new(0);
    conformance::run(async || {
        server.database();
        made.set(made.get() + 1);
        open_twice(&pooler.url(&format!("test_{}", made.get() - 1))).await
    })
    .await;
}

/// A pooler hands the connection to others between transactions: nothing may be left on it.
#[tokio::test]
async fn behind_a_pooler_nothing_stays_prepared() {
    let server = TempPostgres::new();
    // Sees every statement that any connection prepares by name.
    server.sql("postgres", "ALTER SYSTEM SET log_statement = 'all'");
    server.sql("postgres", "SELECT pg_reload_conf()");
    let url = server.database();
    for (flag, expected) in [("&pgbouncer=true", false), ("", true)] {
        let before = server.log().len();
        let store = open(&format!("{url}{flag}")).await.expect("opened");
        let made = sample::create(&*store).await;
        store.session(made.session.id).await.expect("read");
        let log = server.log().split_off(before);
        assert!(log.contains("holdfast.sessions"), "statements are logged");
        assert_eq!(log.contains("execute sqlx_s_"), expected, "{log}");
    }
}

/// The number of an event is drawn before the transaction commits: a second one must wait for the
/// first, or a reader that saw the higher number never asks for the lower.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_become_visible_in_the_order_of_their_numbers() {
    let server = TempPostgres::new();
    let url = server.database();
    let store = open(&url).await.expect("opened");
    let session = sample::create(&*store).await.session;

    let mut slow = PgConnection::connect(&url).await.expect("connected");
    let begin = format!(
        "BEGIN; SELECT 1 FROM holdfast.sessions WHERE id = '{0}' FOR NO KEY UPDATE;
         INSERT INTO holdfast.events (session_id, at, kind, why, actor)
         VALUES ('{0}', 0, 'slow', '', 'host')",
        session.id
    );
    raw_sql(AssertSqlSafe(begin)).execute(&mut slow).await.expect("run");
    let fast = tokio::spawn({
        let (store, id) = (store.clone(), session.id);
        async move { store.append_events(id, vec![sample::event("fast")]).await }
    });
    let waiting = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted";
    let deadline = Instant::now() + QUICK;
    while server.sql(&url, waiting) == "0" {
        assert!(!fast.is_finished(), "the second writer overtook the first");
        assert!(Instant::now() < deadline, "the second writer neither waits nor ends");
    }
    raw_sql("COMMIT").execute(&mut slow).await.expect("committed");
    fast.await.expect("no panic").expect("appended");
    let events = store.events(session.id, 0, 10).await.expect("read");
    let kinds: Vec<_> = events.iter().map(|e| e.body.kind.as_str()).collect();
    assert_eq!(kinds, ["session.created", "slow", "fast"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_outage_is_unavailable_and_passes_by_itself() {
    let mut server = TempPostgres::new();
    let url = server.database();
    let store = open(&url).await.expect("opened");
    let made = sample::create(&*store).await;
    // Several connections that all break.
    for _ in 0..5 {
        let (a, b, c) = tokio::join!(store.ping(), store.live_vms(), store.tokens());
        assert!(a.is_ok() && b.is_ok() && c.is_ok());
    }

    server.stop();
    let begun = Instant::now();
    let answer = store.session(made.session.id).await;
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    let answer = store.create_session(sample::new_session(sample::owner())).await;
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    assert!(begun.elapsed() < 2 * QUICK, "{:?}", begun.elapsed());
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable { .. })));
    assert_eq!(store.check().await.code, "cannot_connect");
    let refused = open(&url).await.err().expect("no server");
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");

    server.start();
    let found = store.session(made.session.id).await.expect("reconnected by itself");
    assert_eq!(found, Some(made.session));
    sample::create(&*store).await;
    assert_eq!(store.check().await.code, "ok");
}

/// A connection that is accepted and never answered, as behind a broken firewall.
#[tokio::test]
async fn a_server_that_says_nothing_is_unavailable_soon() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let url = format!("postgres://user:secret@127.0.0.1:{port}/db?sslmode=disable");
    let begun = Instant::now();
    let refused = open(&url).await.err().expect("no answer");
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");
    let check = check_url(&url).await;
    assert_eq!(check.code, "cannot_connect");
    assert!(!format!("{refused:?}{check:?}").contains("secret"));
    assert!(begun.elapsed() < 2 * QUICK, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn servers_that_start_at_once_migrate_once() {
    let server = TempPostgres::new();
    let url = server.database();
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        starts.spawn(async move { open(&url).await.expect("opened") });
    }
    let stores = starts.join_all().await;
    assert_eq!(server.sql(&url, "SELECT COUNT(*) FROM holdfast.migrations WHERE version = 1"), "1");
    let made = sample::create(&*stores[0]).await;
    for store in stores {
        assert_eq!(store.vm(made.vm.id).await.expect("read"), Some(made.vm.clone()));
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let server = TempPostgres::new();
    let url = server.database();
    drop(open(&url).await.expect("opened"));
    server.sql(&url, "INSERT INTO holdfast.migrations VALUES (1000, 'later')");
    let error = open(&url).await.err().expect("refused");
    assert!(matches!(&error, StoreError::Schema { why } if why.contains("1000")), "{error:?}");
    assert_eq!(check_url(&url).await.code, "newer_schema");
}

/// The default of the schema that Supabase serves to everybody.
#[tokio::test]
async fn nothing_is_made_in_the_public_schema() {
    let server = TempPostgres::new();
    let url = server.database();
    open(&url).await.expect("opened");
    let tables = "SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.sql(&url, tables), "0");
}

#[tokio::test]
async fn check_tells_findings_apart_and_changes_nothing() {
    let mut server = TempPostgres::new();
    let url = server.database();
    let code = async |url: &str| {
        let check = check_url(url).await;
        assert_eq!(check.ok, check.code == "ok");
        assert!(!check.detail.is_empty());
        check.code
    };

    assert_eq!(code(&url).await, "missing_table");
    let schemas = "SELECT COUNT(*) FROM pg_namespace WHERE nspname = 'holdfast'";
    assert_eq!(server.sql(&url, schemas), "0", "a check makes nothing");
    open(&url).await.expect("opened");
    assert_eq!(code(&url).await, "ok");

    assert_eq!(code(&server.url("postgres", "no_such_database")).await, "cannot_connect");
    server.sql(&url, "CREATE ROLE guarded LOGIN PASSWORD 'right'");
    server.require("local all guarded scram-sha-256");
    let guarded = server.url("guarded", "test_0");
    let with = |password| guarded.replace("guarded@", &format!("guarded:{password}@"));
    assert_eq!(code(&with("wrong")).await, "wrong_credentials");
    let refused = open(&with("wrong")).await.err().expect("refused");
    assert!(matches!(refused, StoreError::Config { .. }), "{refused:?}");
    assert_eq!(code(&with("right")).await, "wrong_credentials", "it may not touch the tables");
    server.sql(
        &url,
        "GRANT USAGE ON SCHEMA holdfast TO guarded;
         GRANT ALL ON ALL TABLES IN SCHEMA holdfast TO guarded",
    );
    assert_eq!(code(&with("right")).await, "ok");

    server.sql(&url, "ALTER TABLE holdfast.vms ENABLE ROW LEVEL SECURITY");
    assert_eq!(code(&with("right")).await, "rows_hidden");
    assert_eq!(code(&url).await, "ok", "the owner sees every row");
    server.sql(&url, "ALTER TABLE holdfast.vms DISABLE ROW LEVEL SECURITY");

    server.sql(&url, "ALTER DATABASE test_0 SET default_transaction_read_only = on");
    assert_eq!(code(&url).await, "read_only");
    server.sql("postgres", "ALTER DATABASE test_0 RESET default_transaction_read_only");
    assert_eq!(code(&url).await, "ok");

    server.sql(&url, "DROP TABLE holdfast.idempotency_keys");
    assert_eq!(code(&url).await, "missing_table");
    server.sql(&url, "UPDATE holdfast.migrations SET version = -version");
    assert_eq!(code(&url).await, "old_schema");
    server.stop();
    assert_eq!(code(&url).await, "cannot_connect");
}

/// Hidden rows would look like sessions that never existed, and their VMs like nobody's.
#[tokio::test]
async fn rows_hidden_by_row_level_security_are_never_no_rows() {
    let server = TempPostgres::new();
    let url = server.database();
    server.sql(&url, "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE test_0 TO app");
    let app = server.url("app", "test_0");
    let store = open(&app).await.expect("opened");
    let pooled = open(&format!("{app}&pgbouncer=true")).await.expect("opened");
    let made = sample::create(&*store).await;
    // Somebody turns it on in a console, while the servers run.
    server.sql(
        &url,
        "ALTER TABLE holdfast.sessions ENABLE ROW LEVEL SECURITY;
         ALTER TABLE holdfast.sessions FORCE ROW LEVEL SECURITY;
         ALTER TABLE holdfast.vms ENABLE ROW LEVEL SECURITY;
         ALTER TABLE holdfast.vms FORCE ROW LEVEL SECURITY",
    );
    for store in [&store, &pooled] {
        let answer = store.session(made.session.id).await;
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
        let answer = store.live_vms().await;
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
        assert!(store.ping().await.is_err());
        assert_eq!(store.check().await.code, "rows_hidden");
    }
    let refused = open(&app).await.err().expect("refused");
    assert!(matches!(refused, StoreError::Config { .. }), "{refused:?}");
    server.sql(
        &url,
        "ALTER TABLE holdfast.sessions DISABLE ROW LEVEL SECURITY;
         ALTER TABLE holdfast.vms DISABLE ROW LEVEL SECURITY",
    );
    assert_eq!(store.session(made.session.id).await.expect("read"), Some(made.session));
}

#[tokio::test]
async fn a_role_that_may_not_make_the_schema_is_told_so() {
    let server = TempPostgres::new();
    let url = server.database();
    server.sql(&url, "CREATE ROLE app LOGIN");
    let app = server.url("app", "test_0");
    let refused = open(&app).await.err().expect("refused");
    let StoreError::Config { why } = refused else { panic!("{refused:?}") };
    assert!(why.contains("CREATE SCHEMA holdfast AUTHORIZATION"), "{why}");
    server.sql(&url, "CREATE SCHEMA holdfast AUTHORIZATION app");
    open(&app).await.expect("opened");
}
