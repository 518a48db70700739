//! The store in a SQLite file.

use holdfast_store::conformance::{self, Pair};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = std::cell::Cell::new(0);
    conformance::run(async || {
        made.set(made.get() + 1);
        let url = format!("sqlite:{}/{}.db", dir.path().display(), made.get());
        let (first, second) = tokio::join!(holdfast_store::open(&url), holdfast_store::open(&url));
        Pair { first: first.expect("opened"), second: second.expect("opened") }
    })
    .await;
}
