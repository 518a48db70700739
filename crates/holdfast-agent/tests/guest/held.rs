//! Links for a browser that is held still.

use std::{fs, io, time::Duration};

use holdfast_agent::browser;

use crate::rig::{PATIENCE, Rig};

const LINK: &str = "https://a.example/authorize?state=1";

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_waits_begins_with_the_link() {
    let rig = Rig::claimed().await;
    fs::write(browser::held_file(&rig.guest), "{}").expect("held");
    let refused =
        browser::open(&rig.guest, LINK).await.expect_err("its tabs are about to be closed");
    assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);

    let guest = rig.guest.clone();
    let shown = tokio::spawn(async move { browser::show(&guest, LINK, PATIENCE).await });
    rig.until("it is to begin with it", || {
        browser::first_page(&rig.guest).as_deref() == Some(LINK)
    })
    .await;
    // It begins: what shows the link waits for that, and opens no second tab.
    fs::rename(browser::held_file(&rig.guest), browser::waking_file(&rig.guest)).expect("renamed");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!shown.is_finished());
    fs::remove_file(browser::waking_file(&rig.guest)).expect("removed");
    shown.await.expect("no panic").expect("shown");
    assert_eq!(rig.opened(), Vec::<String>::new());
    assert_eq!(
        browser::first_page(&rig.guest),
        None,
        "a browser that is started again begins anew"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_runs_opens_the_link() {
    let rig = Rig::claimed().await;
    browser::show(&rig.guest, LINK, PATIENCE).await.expect("shown");
    assert_eq!(rig.opened(), [LINK]);
}
