//! The dashboard in a real browser: runs `web/e2e` against servers of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_testkit::process::{Options, ServerProcess};

use crate::fixture;

/// Every test of `web/e2e` passes, with real VMs. Pictures of what it saw are left in `target/pictures`.
#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_works_in_a_browser() -> Result<()> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/pictures");
    if pictures.exists() {
        std::fs::remove_dir_all(&pictures)?;
    }
    std::fs::create_dir_all(&pictures)?;
    let server = fixture::server().await?;
    run(&server, "e2e", &pictures).await?;
    ensure!(pictures.join("session.png").is_file(), "the picture for the README was not taken");
    server.finish().await
}

/// A page warns before its session is idle for too long, and offers to keep it.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_warns_before_its_session_is_idle() -> Result<()> {
    let config = "[session]\nidle = \"1m\"\n".to_owned();
    let options = Options { driver: "sim".to_owned(), config, ..Options::default() };
    let server = ServerProcess::start(options).await?;
    let pictures = tempfile::tempdir()?;
    run(&server, "e2e/limits", pictures.path()).await?;
    server.finish().await
}

/// Runs the tests of a directory of `web` against this server.
async fn run(server: &ServerProcess, dir: &str, pictures: &Path) -> Result<()> {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../web");
    let mut tests: Vec<PathBuf> = std::fs::read_dir(web.join(dir))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().ends_with(".test.js"))
        .collect();
    tests.sort();
    ensure!(!tests.is_empty(), "there are no tests in {dir} of {}", web.display());
    ensure!(web.join("node_modules").is_dir(), "run `npm ci` in web/, or use `cargo xtask test`");

    let mut node = Command::new("node");
    node.args(["--test", "--test-concurrency=1", "--test-reporter=spec"])
        .args(&tests)
        .current_dir(&web)
        .env("HOLDFAST_URL", format!("http://{}", server.address()))
        .env("HOLDFAST_TOKEN", server.token()?)
        .env("HOLDFAST_E2E_PICTURES", pictures)
        .stdin(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || node.output());
    let output = ended.await?.context("node could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
