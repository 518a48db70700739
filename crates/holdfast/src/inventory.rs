//! `holdfast vm ls`, `holdfast host ls`, `holdfast drain`, `holdfast undrain`, `holdfast version`.

use std::time::Duration;

use holdfast_api::DrainSessions;
use serde_json::json;

use crate::{cli::Global, connect, output};

pub async fn vms(global: &Global) -> anyhow::Result<()> {
    let list = connect::client(global)?.vms().await?;
    if global.json {
        return output::json(&list);
    }
    let header =
        ["ID", "SESSION", "STATE", "DRIVER", "ADDRESS", "BOOTS", "AGE", "MEMORY", "CPU", "DISK"];
    let mut table = output::table(&header);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for vm in &list.vms {
        table.add_row([
            vm.id.to_string(),
            or_dash(vm.session_id.map(|id| id.to_string())),
            vm.state.clone(),
            vm.driver.clone(),
            or_dash(vm.vm_ip.map(|ip| ip.to_string())),
            vm.incarnation.to_string(),
            output::ago(vm.created_at),
            or_dash(vm.memory_mib.map(|mib| format!("{mib} MiB"))),
            or_dash(vm.cpu_ms.map(|ms| output::span(Duration::from_millis(ms)))),
            or_dash(vm.disk_mib.map(|mib| format!("{mib} MiB"))),
        ]);
    }
    output::print_table(&table, "There are no virtual machines.");
    Ok(())
}

pub async fn hosts(global: &Global) -> anyhow::Result<()> {
    let list = connect::client(global)?.hosts().await?;
    if global.json {
        return output::json(&list);
    }
    let mut table =
        output::table(&["ID", "NAME", "DRIVER", "CPUS", "MEMORY", "VERSION", "SEEN", "WHY"]);
    for host in &list.hosts {
        table.add_row([
            host.id.to_string(),
            host.name.clone(),
            host.driver.clone(),
            host.cpus.to_string(),
            format!("{} MiB", host.memory_mib),
            host.version.clone(),
            format!("{} ago", output::ago(host.seen_at)),
            host.driver_reason.clone(),
        ]);
    }
    output::print_table(&table, "No host has reported yet.");
    Ok(())
}

/// Takes the server's host out of use, and says how many sessions still use it.
pub async fn drain(global: &Global, hibernate: bool, end: bool) -> anyhow::Result<()> {
    let sessions = match (hibernate, end) {
        (true, _) => DrainSessions::Hibernate,
        (_, true) => DrainSessions::End,
        _ => DrainSessions::Keep,
    };
    let drain = connect::client(global)?.drain(sessions).await?;
    if global.json {
        return output::json(&drain);
    }
    eprintln!("New sessions are refused until `holdfast undrain`.");
    match drain.left.len() {
        0 => eprintln!("No session uses this host."),
        left => {
            eprintln!("{left} session(s) still use this host; repeat the command to look again.");
        }
    }
    Ok(())
}

/// Lets the server's host take sessions again.
pub async fn undrain(global: &Global) -> anyhow::Result<()> {
    connect::client(global)?.undrain().await?;
    eprintln!("New sessions are taken.");
    Ok(())
}

/// Versions of the command, which is always known, and of the server, where one answers.
pub async fn version(global: &Global) -> anyhow::Result<()> {
    let command = env!("CARGO_PKG_VERSION");
    let server = match connect::client(global) {
        Ok(client) => client.version().await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    if global.json {
        return output::json(&json!({ "version": command, "server": server.ok() }));
    }
    println!("holdfast {command}");
    match server {
        Ok(server) => output::fields(&[
            ("Server", server.version),
            ("Driver", server.driver),
            ("Store", server.store),
            ("Image", server.image.unwrap_or_else(|| "none".to_owned())),
            (
                "You are",
                if server.admin {
                    format!("{} (administrator)", server.owner)
                } else {
                    server.owner
                },
            ),
        ]),
        Err(error) => eprintln!("Server: {error:#}."),
    }
    Ok(())
}
