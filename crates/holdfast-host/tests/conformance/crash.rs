//! A server that is killed with VMs and trials of its own: the VMs go on and are taken over, the trials are
//! ended. The server is this very program, which the tests start again.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use holdfast_host::driver::{Process, StartFrom, VmSpec};

use crate::{
    bed::{RealBed, open},
    orphans::has_groups,
    promises::{obeys_to_its_end, pid, started, until},
};

/// The driver, and what to do with it.
const TASK: &str = "HOLDFAST_TEST_SERVER";
/// The bed, and the VM.
const BED: &str = "HOLDFAST_TEST_BED";
const SPEC: &str = "HOLDFAST_TEST_SPEC";
/// It is said in a line of its own that the VM runs.
const RUNS: &str = "it runs";

/// Another process with a driver on the bed's state directory.
struct Server(Child);

impl Server {
    fn start(bed: &impl RealBed, task: &str, spec: &VmSpec) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "crash::act_as_server", "--ignored", "--nocapture"])
            .env(TASK, format!("{} {task}", bed.driver().name()))
            .env(BED, bed.dir())
            .env(SPEC, serde_json::to_string(spec).unwrap())
            .stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn says(&mut self, what: &str) {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == what), "never said: {what}");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        assert_eq!(self.0.wait().unwrap().signal(), Some(9), "it ended before it was killed");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the server that the tests of killed ones start"]
#[allow(clippy::print_stdout, reason = "this is how it answers")]
async fn act_as_server() {
    let Ok(task) = env::var(TASK) else { return };
    let (driver, task) = task.split_once(' ').unwrap();
    let bed = env::var(BED).unwrap();
    let spec: VmSpec = serde_json::from_str(&env::var(SPEC).unwrap()).unwrap();
    let driver = open(driver, Path::new(&bed), Some(spec.image.clone()));
    match task {
        "run" => {
            started(&driver, &spec).await;
            println!("\n{RUNS}");
            std::future::pending::<()>().await;
        }
        // The image's kernel is no Linux, so it is waited for its banner until the deadline.
        "try" => loop {
            driver.probe().await;
        },
        other => panic!("{other}"),
    }
}

pub async fn a_killed_server_s_vm_is_taken_over(bed: &impl RealBed) {
    let spec = bed.spec();
    let mut server = Server::start(bed, "run", &spec);
    server.says(RUNS);
    let before = bed.another().inspect(spec.vm).await.unwrap();
    server.kill();
    let driver = bed.another();
    assert_eq!(driver.list().await.unwrap(), [before]);
    let first = pid(&driver, spec.vm).await;
    let said = async || driver.console(spec.vm, 1 << 20).await.unwrap().len();
    let length = said().await;
    until("the guest goes on", async || said().await > length).await;
    driver.start(spec.vm, &StartFrom::Boot).await.unwrap();
    assert_eq!(pid(&driver, spec.vm).await, first, "it was started again");
    obeys_to_its_end(&driver, spec.vm).await;

    // Server and VMM at once, as when a machine is short of memory.
    let spec = bed.spec();
    let mut server = Server::start(bed, "run", &spec);
    server.says(RUNS);
    let driver = bed.another();
    let vmm = rustix::process::Pid::from_raw(pid(&driver, spec.vm).await).unwrap();
    server.kill();
    rustix::process::kill_process(vmm, rustix::process::Signal::KILL).unwrap();
    let why = driver.wait_exit(spec.vm).await.unwrap();
    assert!(why.contains("the VMM ended"), "{why}");
    let seen = bed.another().inspect(spec.vm).await.unwrap();
    assert!(matches!(seen.process, Process::Exited { .. }), "{seen:?}");
    bed.another().destroy(spec.vm).await.unwrap();
}

/// What there is of the trials of a process: processes, control groups and directories.
fn trials_of(runner: u32, bed: &impl RealBed) -> [Vec<String>; 3] {
    let mark = format!("trial-{runner}-");
    let marked = |dir: &Path| {
        ["environ", "cmdline"].iter().any(|file| {
            let text = fs::read(dir.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text)
                .split('\0')
                .any(|word| word.trim_start_matches("HOLDFAST_VM=").starts_with(&mark))
        })
    };
    let names = |dir: &Path, ours: &dyn Fn(&Path) -> bool| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let ours = entries.filter(|path| ours(path)).map(|path| path.display().to_string());
        ours.collect::<Vec<_>>()
    };
    let called = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(&format!("holdfast-{mark}"))
    };
    let mut groups = names(Path::new("/sys/fs/cgroup"), &called);
    for hierarchy in ["memory", "pids", "cpu"] {
        groups.extend(names(&Path::new("/sys/fs/cgroup").join(hierarchy), &called));
    }
    [names(Path::new("/proc"), &marked), groups, names(bed.host().state().root(), &called)]
}

const NOTHING: [Vec<String>; 3] = [Vec::new(), Vec::new(), Vec::new()];

pub async fn what_a_killed_server_tried_is_ended(bed: &impl RealBed) {
    let spec = bed.spec();
    let (runner, left) = loop {
        let server = Server::start(bed, "try", &spec);
        let runner = server.0.id();
        until("something is tried", async || !trials_of(runner, bed)[0].is_empty()).await;
        server.kill();
        let left = trials_of(runner, bed);
        // It may have been killed between two trials.
        if !left[0].is_empty() {
            break (runner, left);
        }
    };
    assert!(!left[1].is_empty() || !has_groups(), "{left:?}");
    assert!(!left[2].is_empty(), "{left:?}");
    drop(bed.another());
    assert_eq!(trials_of(runner, bed), NOTHING);
}

pub async fn a_trial_that_is_given_up_is_ended(bed: &impl RealBed) {
    let image = bed.spec().image;
    let driver = open(bed.driver().name(), bed.dir(), Some(image));
    // Again and again: one trial may be over before a busy machine has looked for it.
    let probe = tokio::spawn(async move {
        loop {
            driver.probe().await;
        }
    });
    let runner = std::process::id();
    until("something is tried", async || !trials_of(runner, bed)[0].is_empty()).await;
    // Another driver leaves it alone: whoever runs it lives.
    drop(bed.another());
    probe.abort();
    assert!(probe.await.unwrap_err().is_cancelled());
    let began = std::time::Instant::now();
    while trials_of(runner, bed) != NOTHING {
        assert!(began.elapsed().as_secs() < 60, "left: {:#?}", trials_of(runner, bed));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
