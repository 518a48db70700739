//! The supervisor with small scripts for services.

use std::{fs, io, sync::Arc};

use futures::FutureExt;
use holdfast_agent::{
    census,
    guest::Guest,
    spawn::Launch,
    supervise::{Board, Entry, Order, Spec, Supervisor},
};
use holdfast_agent_api::ServiceState;
use rustix::process::Signal;

use crate::rig::{PATIENCE, Rig, is_alive};

fn script(text: &str) -> Launch {
    Launch { command: vec!["/bin/sh".into(), "-c".into(), text.into()], ..Launch::default() }
}

/// Marks that are unique to a test: processes of services are found by their names.
fn specs() -> Vec<Spec> {
    vec![
        Spec {
            name: "server",
            after: &[],
            prepare: |_| Ok(()),
            launch: |guest| {
                script(&format!("echo server >> {0}/order; exec sleep 300", guest.run.display()))
            },
            ready: |guest| async move { guest.run.join("server-ready").exists() }.boxed(),
        },
        Spec {
            name: "client",
            after: &["server"],
            prepare: |guest| {
                let broken = guest.run.join("client-broken").exists();
                if broken { Err(io::Error::other("it is broken")) } else { Ok(()) }
            },
            launch: |guest| {
                script(&format!(
                    "echo client >> {0}/order; trap '' TERM; setsid sleep 300 & echo $! > {0}/daemon; wait; wait",
                    guest.run.display()
                ))
            },
            ready: |guest| async move { guest.run.join("daemon").exists() }.boxed(),
        },
    ]
}

async fn wait_for(
    supervisor: &Arc<Supervisor>,
    what: &str,
    done: impl Fn(&Board) -> bool,
) -> Board {
    let mut board = supervisor.board();
    let reached = tokio::time::timeout(PATIENCE, board.wait_for(|board| done(board)));
    match reached.await {
        Ok(Ok(board)) => board.clone(),
        _ => panic!("waited in vain: {what}: {:?}", supervisor.board().borrow()),
    }
}

fn entry<'a>(board: &'a Board, name: &str) -> &'a Entry {
    board.services.iter().find(|entry| entry.name == name).expect("it is in the table")
}

fn kill(pid: Option<u32>) {
    census::signal(pid.expect("it runs"), Signal::KILL);
}

fn order(guest: &Guest) -> Vec<String> {
    let text = fs::read_to_string(guest.run.join("order")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_start_in_order_come_back_and_leave_nothing() {
    let rig = Rig::new().await;
    let supervisor = Supervisor::start(rig.guest.clone(), specs()).await;
    let is = |name: &'static str, state| move |board: &Board| entry(board, name).state == state;
    wait_for(&supervisor, "the server starts", is("server", ServiceState::Starting)).await;
    let board = supervisor.board().borrow().clone();
    assert_eq!(entry(&board, "client").state, ServiceState::Waiting, "its need is not ready");
    assert_eq!(entry(&board, "client").pid, None);
    fs::write(rig.guest.run.join("server-ready"), "").expect("written");
    let board = wait_for(&supervisor, "both run", is("client", ServiceState::Running)).await;
    assert_eq!(order(&rig.guest), ["server", "client"]);

    // Killed: back again, and what the old one started in a session of its own is gone.
    let daemon = fs::read_to_string(rig.guest.run.join("daemon")).expect("its daemon");
    kill(entry(&board, "client").pid);
    let board = wait_for(&supervisor, "the client is back", |board| {
        let client = entry(board, "client");
        client.restarts == 1 && client.state == ServiceState::Running
    })
    .await;
    assert_eq!(entry(&board, "client").last_error.as_deref(), Some("killed by signal 9"));
    assert!(!is_alive(&daemon), "the old daemon is still there");

    // It does not come back before its need.
    fs::remove_file(rig.guest.run.join("server-ready")).expect("removed");
    kill(entry(&board, "server").pid);
    kill(entry(&board, "client").pid);
    wait_for(&supervisor, "the server starts again", |board| {
        entry(board, "server").restarts == 1
            && entry(board, "server").state == ServiceState::Starting
    })
    .await;
    fs::write(rig.guest.run.join("server-ready"), "").expect("written");
    wait_for(&supervisor, "both run again", |board| {
        entry(board, "client").restarts == 2
            && entry(board, "client").state == ServiceState::Running
    })
    .await;

    supervisor.stop().await;
    assert_eq!(census::find(&rig.guest.mark("service-client"), None), Vec::<u32>::new());
    assert_eq!(census::find(&rig.guest.mark("service-server"), None), Vec::<u32>::new());
    let board = supervisor.board().borrow().clone();
    assert!(board.services.iter().all(|entry| entry.state == ServiceState::Stopped), "{board:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_services_stay_so_over_a_restart_of_the_supervisor() {
    let rig = Rig::new().await;
    fs::write(rig.guest.run.join("server-ready"), "").expect("written");
    let start = || Supervisor::start(rig.guest.clone(), specs());
    let client_is = |state| move |board: &Board| entry(board, "client").state == state;
    let supervisor = start().await;
    wait_for(&supervisor, "both run", client_is(ServiceState::Running)).await;
    assert!(supervisor.order("client", Order::Stop).await.expect("kept"));
    assert_eq!(census::find(&rig.guest.mark("service-client"), None), Vec::<u32>::new());
    assert!(!supervisor.order("nobody", Order::Stop).await.expect("answered"));

    // The next supervisor ends what is left of the first.
    let server = entry(&supervisor.board().borrow(), "server").pid;
    drop(supervisor);
    let supervisor = start().await;
    let board = wait_for(&supervisor, "the server runs", |board| {
        entry(board, "server").state == ServiceState::Running
    })
    .await;
    let leader = entry(&board, "server").pid;
    assert_ne!(leader, server);
    assert_eq!(entry(&board, "client").state, ServiceState::Stopped);
    // While it begins another program, its environment is empty for a moment.
    assert_eq!(census::find(&rig.guest.mark("service-server"), leader), Vec::from_iter(leader));

    assert!(supervisor.order("client", Order::Start).await.expect("kept"));
    wait_for(&supervisor, "the client runs", client_is(ServiceState::Running)).await;
    let before = entry(&supervisor.board().borrow(), "client").pid;
    assert!(supervisor.order("client", Order::Restart).await.expect("kept"));
    let board = wait_for(&supervisor, "it runs again", |board| {
        entry(board, "client").state == ServiceState::Running
            && entry(board, "client").pid != before
    })
    .await;
    assert_eq!(entry(&board, "client").restarts, 0, "a restart on order is none by itself");
    supervisor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_start_says_why_and_is_tried_again() {
    let rig = Rig::new().await;
    fs::write(rig.guest.run.join("server-ready"), "").expect("written");
    let broken = rig.guest.run.join("client-broken");
    fs::write(&broken, "").expect("written");
    let supervisor = Supervisor::start(rig.guest.clone(), specs()).await;
    wait_for(&supervisor, "it says why", |board| {
        entry(board, "client").last_error.as_deref() == Some("cannot be started: it is broken")
    })
    .await;
    fs::remove_file(&broken).expect("removed");
    wait_for(&supervisor, "it runs", |board| entry(board, "client").state == ServiceState::Running)
        .await;
    supervisor.stop().await;
}
