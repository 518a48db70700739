//! Orphans of any kind: whatever single thing of a VM is left, of whatever age, it is found and goes, and
//! what belongs to a server that may come back stays.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use holdfast_core::VmId;
use holdfast_host::driver::{Driver, Process, StartFrom, VmSpec};

use crate::{bed::RealBed, census};

const KINDS: [&str; 7] = ["process", "group", "directory", "address", "namespace", "link", "table"];

/// One VM for each kind of thing, of which that alone is left.
pub async fn whatever_is_left_is_found(bed: &impl RealBed) {
    let driver = bed.driver();
    let (instance, root) =
        (bed.host().state().instance().to_owned(), bed.host().state().root().to_owned());
    let mut left = Vec::new();
    for kept in KINDS {
        let spec = bed.spec();
        let kept_pid = whole(driver.as_ref(), &spec, kept == "process" || kept == "group").await;
        for kind in KINDS.into_iter().filter(|kind| *kind != kept) {
            // A group cannot go before its process, nor a process that is wanted with its group.
            if !(kept == "process" && kind == "group") {
                lose(&root, &instance, spec.vm, kind);
            }
        }
        if kept == "link" {
            // It goes with its namespace, so another one with its mark stands for it.
            let name = format!("hfv{}", 1_000_000 + std::process::id() % 1_000_000);
            run("ip", &["tuntap", "add", "dev", &name, "mode", "tap"]);
            let mark = format!("holdfast {instance} {}", spec.vm);
            run("ip", &["link", "set", &name, "alias", &mark]);
        }
        left.push((kept, spec.vm, kept_pid));
    }
    // Nobody remembers them, as after a restart.
    drop(driver);
    let driver = bed.another();
    let found: Vec<VmId> = driver.list().await.unwrap().into_iter().map(|seen| seen.vm).collect();
    for (kept, vm, _) in &left {
        let groups = has_groups();
        assert!(found.contains(vm) || *kept == "group" && !groups, "{vm}: a {kept} is not found");
        driver.destroy(*vm).await.unwrap();
    }
    for (kept, vm, _) in left {
        assert!(traces(&root, vm).is_empty(), "of a {kept}: {:?}", traces(&root, vm));
    }
}

/// What another version wrote, or half of what this one did, stands in nobody's way.
pub async fn what_cannot_be_read_goes_too(bed: &impl RealBed) {
    let (driver, spec) = (bed.driver(), bed.spec());
    whole(driver.as_ref(), &spec, true).await;
    let dir = bed.host().dir(spec.vm);
    for file in ["intent.json", "process.json", "lease.json"] {
        fs::write(dir.file(file), br#"{"version": 0}"#).unwrap();
    }
    fs::write(dir.file("exit.json"), b"").unwrap();
    let lease = Path::new("/run/holdfast").join(format!("{}.json", spec.vm));
    let instance = bed.host().state().instance();
    fs::write(&lease, format!(r#"{{"instance": "{instance}", "number": 1}}"#)).unwrap();
    // Somebody else's, of which nothing is known.
    let unknown = VmId::from_uuid(uuid::Uuid::now_v7());
    let unknown = Path::new("/run/holdfast").join(format!("{unknown}.json"));
    fs::write(&unknown, b"what").unwrap();
    // A creation that was cut short.
    let half = VmId::from_uuid(uuid::Uuid::now_v7());
    fs::create_dir(bed.host().state().root().join("vms").join(format!("new-{half}"))).unwrap();

    let driver = bed.another();
    let found = driver.list().await.unwrap();
    let seen = found.iter().find(|seen| seen.vm == spec.vm).expect("the VM is found");
    assert!(matches!(seen.process, Process::Running { .. }), "{seen:?}");
    assert!(found.iter().any(|seen| seen.vm == half), "what was begun is found");
    // Neither stops another VM.
    let other = bed.spec();
    driver.create(&other).await.unwrap();
    driver.connect(other.vm).await.unwrap();
    for vm in [spec.vm, half, other.vm] {
        driver.destroy(vm).await.unwrap();
    }
    assert!(unknown.exists(), "it says nothing of its owner, so it is nobody's to remove");
    fs::remove_file(unknown).unwrap();
}

/// What the disk does not give back hides one VM at most, and is no proof of anything.
pub async fn what_cannot_be_read_at_all_hides_no_other(bed: &impl RealBed) {
    let (driver, spec, other) = (bed.driver(), bed.spec(), bed.spec());
    whole(driver.as_ref(), &spec, true).await;
    whole(driver.as_ref(), &other, true).await;
    let broken = BrokenLease::of(spec.vm);
    let driver = bed.another();
    let found = driver.list().await.unwrap();
    let of = |vm: VmId| found.iter().find(|seen| seen.vm == vm).expect("it is found");
    assert!(matches!(&of(spec.vm).process, Process::Unknown { why } if why.contains("lease")));
    assert!(of(spec.vm).directory, "what can be read of it is said");
    assert!(matches!(of(other.vm).process, Process::Running { .. }), "{found:?}");
    // Neither does it stop a new one, nor the end of another.
    let new = bed.spec();
    whole(driver.as_ref(), &new, false).await;
    driver.destroy(new.vm).await.unwrap();
    driver.destroy(other.vm).await.unwrap();
    assert!(driver.destroy(spec.vm).await.is_err(), "what it holds is not known");
    drop(broken);
    driver.destroy(spec.vm).await.unwrap();
}

/// A directory cannot be read as a file, as one on a broken disk cannot. Whole again in the end.
struct BrokenLease {
    path: PathBuf,
    kept: Vec<u8>,
}

impl BrokenLease {
    fn of(vm: VmId) -> Self {
        let path = Path::new("/run/holdfast").join(format!("{vm}.json"));
        let kept = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        Self { path, kept }
    }
}

impl Drop for BrokenLease {
    fn drop(&mut self) {
        fs::remove_dir(&self.path).and_then(|()| fs::write(&self.path, &self.kept)).unwrap();
    }
}

/// A test that crashed, or a server whose state was deleted: nobody can come back to its VMs. Those of
/// a server that was only stopped, or lives, are left alone.
pub async fn what_nobody_can_come_back_to_goes(bed: &impl RealBed) {
    let (gone, stopped) = (bed.dir().join("gone"), bed.dir().join("stopped"));
    let (of_gone, of_stopped) = (bed.spec(), bed.spec());
    let mut instances = Vec::new();
    for (state, spec) in [(&gone, &of_gone), (&stopped, &of_stopped)] {
        let other = bed.driver_at(state);
        whole(other.as_ref(), spec, true).await;
        instances.push(fs::read_to_string(state.join("instance")).unwrap());
    }
    // Moved, as by somebody who makes room: it is still somewhere.
    let (moved, to) = (bed.dir().join("moved"), bed.dir().join("to"));
    let of_moved = bed.spec();
    whole(bed.driver_at(&moved).as_ref(), &of_moved, true).await;
    fs::rename(&moved, &to).unwrap();
    let live = bed.dir().join("live");
    let of_live = bed.spec();
    let living = bed.driver_at(&live);
    whole(living.as_ref(), &of_live, false).await;
    fs::remove_dir_all(&gone).unwrap();

    let driver = bed.driver();
    // A driver that was dropped lets go in a moment.
    let began = std::time::Instant::now();
    let found = loop {
        let found = driver.list().await.unwrap();
        if !found.is_empty() || began.elapsed().as_secs() > 10 {
            break found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(found.iter().map(|seen| seen.vm).collect::<Vec<_>>(), [of_gone.vm]);
    driver.destroy(of_gone.vm).await.unwrap();
    assert!(traces(&gone, of_gone.vm).is_empty(), "{:?}", traces(&gone, of_gone.vm));
    assert_eq!(driver.list().await.unwrap(), []);
    let announced =
        |instance: &str| bed.dir().join("instances").join(format!("{instance}.json")).exists();
    assert!(!announced(&instances[0]) && announced(&instances[1]), "what is over is forgotten");
    for vm in [of_stopped.vm, of_moved.vm, of_live.vm] {
        assert!(driver.destroy(vm).await.is_err(), "another server's VM was removed");
    }
    // Its own server finds everything as it was.
    let again = bed.driver_at(&stopped);
    let seen = again.inspect(of_stopped.vm).await.unwrap();
    assert!(seen.network && matches!(seen.process, Process::Running { .. }), "{seen:?}");
    again.destroy(of_stopped.vm).await.unwrap();
    bed.driver_at(&to).destroy(of_moved.vm).await.unwrap();
    let seen = living.inspect(of_live.vm).await.unwrap();
    assert!(seen.network && seen.directory, "{seen:?}");
    living.destroy(of_live.vm).await.unwrap();
    for state in [&stopped, &to, &live] {
        let state = holdfast_host::statedir::StateDir::open(state).unwrap();
        census::nothing_of(&state);
    }
}

/// A VM with everything that one can have; its process, where it has one.
async fn whole(driver: &dyn Driver, spec: &VmSpec, runs: bool) -> Option<i32> {
    driver.create(spec).await.unwrap();
    driver.connect(spec.vm).await.unwrap();
    if !runs {
        return None;
    }
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    match driver.inspect(spec.vm).await.unwrap().process {
        Process::Running { pid, .. } => Some(pid),
        other => panic!("{other:?}"),
    }
}

pub fn has_groups() -> bool {
    fs::metadata("/sys/fs/cgroup/memory").is_ok_and(|meta| !meta.permissions().readonly())
}

/// Makes one kind of thing of a VM vanish.
fn lose(root: &Path, instance: &str, vm: VmId, kind: &str) {
    let id = vm.to_string();
    match kind {
        "process" => {
            for pid in processes(vm) {
                // It goes at once, and with it whatever it holds.
                run("kill", &["-9", &pid.to_string()]);
                while Path::new("/proc").join(pid.to_string()).join("exe").exists() {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        "group" => {
            for group in groups(vm) {
                let began = std::time::Instant::now();
                while let Err(error) = fs::remove_dir(&group) {
                    assert!(began.elapsed().as_secs() < 10, "{}: {error}", group.display());
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        // The end of a process that was killed may be written into it meanwhile.
        "directory" => while fs::remove_dir_all(root.join("vms").join(&id)).is_err() {},
        "address" => fs::remove_file(format!("/run/holdfast/{id}.json")).unwrap(),
        "namespace" => drop(run("ip", &["netns", "delete", &format!("hf-{id}")])),
        "link" => {
            let links = run("ip", &["-d", "-o", "link", "show"]);
            // With its namespace it went, or goes in a moment.
            if let Some(line) = links.lines().find(|line| line.contains(&id)) {
                let name = line.split(": ").nth(1).unwrap().split('@').next().unwrap();
                let _ = Command::new("ip").args(["link", "delete", name]).output().unwrap();
            }
        }
        "table" => {
            run("nft", &["delete", "table", "inet", &format!("hf-{instance}-{id}")]);
        }
        other => panic!("{other}"),
    }
}

/// Whatever on the machine names a VM.
fn traces(root: &Path, vm: VmId) -> Vec<String> {
    let id = vm.to_string();
    let mut found: Vec<String> = processes(vm).iter().map(|pid| format!("process {pid}")).collect();
    found.extend(groups(vm).iter().map(|group| group.display().to_string()));
    for path in [
        root.join("vms").join(&id),
        Path::new("/run/holdfast").join(format!("{id}.json")),
        Path::new("/run/netns").join(format!("hf-{id}")),
    ] {
        found.extend(path.exists().then(|| path.display().to_string()));
    }
    for text in [run("ip", &["-d", "-o", "link", "show"]), run("nft", &["list", "tables"])] {
        found.extend(text.lines().filter(|line| line.contains(&id)).map(str::to_owned));
    }
    found
}

fn processes(vm: VmId) -> Vec<i32> {
    let id = vm.to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let marked = ["environ", "cmdline"].iter().any(|file| {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&id)
        });
        found.extend(marked.then_some(pid));
    }
    found
}

fn groups(vm: VmId) -> Vec<std::path::PathBuf> {
    let id = vm.to_string();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let parents = hierarchies.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
    let ours = |dir: std::path::PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("holdfast-"))
            .map(|entry| entry.path())
    };
    parents.flat_map(ours).map(|parent| parent.join(&id)).filter(|group| group.exists()).collect()
}

fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap();
    assert!(output.status.success(), "{tool} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
