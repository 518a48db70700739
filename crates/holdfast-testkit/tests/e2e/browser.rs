//! The dashboard in a real browser: runs `web/e2e` against a server with real VMs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::fixture;

/// Every test of `web/e2e` passes.
#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_works_in_a_browser() -> Result<()> {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
    let mut tests: Vec<PathBuf> = std::fs::read_dir(web.join("e2e"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".test.js"))
        .collect();
    tests.sort();
    ensure!(!tests.is_empty(), "there are no tests in {}", web.display());
    ensure!(web.join("node_modules").is_dir(), "run `npm ci` in web/, or use `cargo xtask test`");

    let server = fixture::server().await?;
    let mut node = Command::new("node");
    node.args(["--test", "--test-concurrency=1", "--test-reporter=spec"])
        .args(&tests)
        .current_dir(&web)
        .env("HOLDFAST_URL", format!("http://{}", server.address()))
        .env("HOLDFAST_TOKEN", server.token()?)
        .stdin(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || node.output());
    let output = ended.await?.context("node could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    server.finish().await
}
