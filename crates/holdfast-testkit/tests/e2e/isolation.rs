//! Three sessions at once are never mixed up.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use futures::future::try_join_all;

use crate::fixture::{self, BOOT, SOON};

/// Colours that no desktop has by itself, one per session.
const COLOURS: [u32; 3] = [0x00d1_2f9b, 0x002f_d14c, 0x00d1_a52f];

/// Each session's desktop, terminal and commands show its own marker and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn three_at_once_each_see_themselves() -> Result<()> {
    let server = fixture::server().await?;
    let api = server.api()?;
    let names = ["red", "green", "blue"];
    let sessions = try_join_all(names.map(async |name| fixture::ready(&api, name).await)).await?;

    let mut addresses = BTreeSet::new();
    let mut boots = BTreeSet::new();
    for ((session, name), colour) in sessions.iter().zip(names).zip(COLOURS) {
        let vm = api.vm(session.id).await?;
        ensure!(vm.vm_ip.is_some_and(|ip| addresses.insert(ip)), "{:?} again", vm.vm_ip);
        ensure!(boots.insert(fixture::boot_id(&api, session.id).await?), "a boot id came twice");
        // A window over the whole desktop in this session's colour.
        let xterm = format!(
            "echo {name} >marker; DISPLAY=:1 setsid xterm -geometry 400x200+0+0 \
             -bg '#{colour:06x}' -fg '#{colour:06x}' -e sleep 600 >/dev/null 2>&1 &"
        );
        let ran = api.exec(session.id, &["sh", "-c", &xterm]).await?;
        ensure!(ran.code == 0, "{ran:?}");
    }
    for ((session, name), colour) in sessions.iter().zip(names).zip(COLOURS) {
        let own = |f: &holdfast_testkit::rfb::Frame| f.share(colour) > 0.3;
        let frame = fixture::shows(&api, session.id, "its own colour", SOON, own).await?;
        for other in COLOURS.iter().filter(|other| **other != colour) {
            ensure!(frame.share(*other) < 0.01, "{name} shows {other:06x}");
        }
        let mut terminal = fixture::terminal(&api, session.id, name).await?;
        terminal.type_text("cat ~/marker; hostname\n").await?;
        terminal.expect(name, SOON).await?;
        let marker = api.exec(session.id, &["cat", "marker"]).await?;
        ensure!(marker.stdout.trim() == name, "{marker:?}");
    }

    // Ending one leaves the others alone.
    api.end(sessions[0].id).await?;
    api.gone(sessions[0].id, BOOT).await?;
    for (session, name) in sessions.iter().zip(names).skip(1) {
        let marker = api.exec(session.id, &["cat", "marker"]).await?;
        ensure!(marker.stdout.trim() == name, "{marker:?}");
    }
    server.finish().await
}
