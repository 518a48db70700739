//! The store in PostgreSQL.

use holdfast_store::conformance::{self, Pair};
use holdfast_testkit::TempPostgres;

async fn open_twice(url: &str) -> Pair {
    let (first, second) = tokio::join!(holdfast_store::open(url), holdfast_store::open(url));
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
