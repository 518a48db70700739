//! `holdfast image ...`

mod removal;

use std::{
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, bail};
use holdfast_host::{
    bake::{BakeError, Stage as BakeStage},
    warm::{WarmImage, WarmLibrary},
};
use holdfast_image::{BuildRequest, Built, Library, Progress, Stage};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{Global, ImageCommand},
    output, programs,
};

pub async fn run(global: &Global, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Build { cache_dir, agent, fresh } => {
            let built = build(&cache(cache_dir)?, agent, fresh).await?;
            if global.json {
                return output::json(&built.manifest);
            }
            println!("{}", built.manifest.digest);
            let what = if built.reused { "It was there already" } else { "It was built" };
            eprintln!(
                "{what}: {} in {}. New sessions boot it.",
                output::bytes(built.manifest.disk_bytes()),
                built.path.display()
            );
            Ok(())
        }
        ImageCommand::Bake { cache_dir, memory, vcpus } => {
            bake(global, cache_dir, memory, vcpus).await
        }
        ImageCommand::Ls { cache_dir } => ls(global, &cache(cache_dir)?),
        ImageCommand::Inspect { image, cache_dir, verify } => {
            inspect(global, &cache(cache_dir)?, image.as_deref().unwrap_or("current"), verify).await
        }
        ImageCommand::Rm { image, cache_dir } => {
            removal::rm(global, &cache(cache_dir)?, image).await
        }
        ImageCommand::Prune { cache_dir, dry_run } => {
            removal::prune(global, cache(cache_dir)?, dry_run).await
        }
    }
}

fn cache(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match named {
        Some(dir) => std::path::absolute(&dir)
            .with_context(|| format!("the directory {} cannot be used", dir.display())),
        None => Ok(crate::settings::local()?.cache_dir),
    }
}

/// Builds the image, or finds it; shows what goes on.
pub async fn build(cache: &Path, agent: Option<PathBuf>, fresh: bool) -> anyhow::Result<Built> {
    let agent = programs::find_agent(agent)?;
    let mut request = BuildRequest::new(cache, agent);
    if fresh {
        // Another name for the state of the archive: packages are installed anew.
        request.revision = Some(jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S").to_string());
    }
    blocking(move |bar| holdfast_image::build(&request, bar)).await
}

async fn bake(
    global: &Global,
    cache_dir: Option<PathBuf>,
    memory: Option<u32>,
    vcpus: Option<u8>,
) -> anyhow::Result<()> {
    let mut config = crate::settings::local()?;
    config.cache_dir = cache(cache_dir)?;
    let size = (memory.unwrap_or(config.vm.memory_mib), vcpus.unwrap_or(config.vm.vcpus));
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        // Its VM is removed before the command ends.
        let _ = tokio::signal::ctrl_c().await;
        stopper.cancel();
    });
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let began = std::time::Instant::now();
    let progress = |stage: BakeStage| {
        let text = format!("{stage} ({} s)", began.elapsed().as_secs());
        if bar.is_hidden() && bar.message() != stage.to_string() {
            eprintln!("{text}");
        }
        bar.set_message(stage.to_string());
    };
    let baked = holdfast_server::bake_now(&config, size, &progress, &stop).await;
    bar.finish_and_clear();
    let baked = match baked {
        // Not an error of this command: nothing is missing that could be there.
        Err(holdfast_server::ServerError::Bake(error @ BakeError::Unsupported(_))) => {
            eprintln!("warning: {error}");
            return Ok(());
        }
        baked => baked?,
    };
    if global.json {
        return output::json(&json!({ "image": baked.image, "reused": baked.reused }));
    }
    println!("{}", baked.image.path.display());
    let what = if baked.reused { "It was there already" } else { "It was made" };
    eprintln!(
        "{what}: {}, for sessions with {} MiB and {} processors. New ones are cloned from it.",
        output::bytes(baked.image.bytes),
        size.0,
        size.1
    );
    Ok(())
}

/// Runs something long beside the runtime, with its progress on standard error.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Bar) -> holdfast_image::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = tokio::task::spawn_blocking(move || {
        let bar = Bar::new();
        let result = work(&bar);
        bar.finish();
        result
    });
    Ok(done.await??)
}

fn ls(global: &Global, cache: &Path) -> anyhow::Result<()> {
    let library = Library::new(cache);
    let current = library.current();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for found in library.list()? {
        match found {
            Ok(manifest) => good.push(manifest),
            Err(error) => bad.push(anyhow::Error::from(error)),
        }
    }
    let warm = WarmLibrary::new(cache).list()?;
    if global.json {
        let damaged: Vec<_> = bad.iter().map(|error| format!("{error:#}")).collect();
        return output::json(
            &json!({ "current": current, "images": good, "damaged": damaged, "warm": warm }),
        );
    }
    let mut table = output::table(&["DIGEST", "USED", "AGE", "SIZE", "KERNEL", "PACKAGES", "WARM"]);
    for manifest in &good {
        let is_current = current.as_ref() == Some(&manifest.digest);
        table.add_row([
            manifest.digest[..manifest.digest.len().min(16)].to_owned(),
            if is_current { "for new sessions" } else { "" }.to_owned(),
            output::ago(manifest.created_at),
            output::bytes(manifest.disk_bytes()),
            manifest.kernel.clone(),
            manifest.packages.len().to_string(),
            warm_of(&warm, &manifest.digest),
        ]);
    }
    for error in &bad {
        eprintln!("warning: {error:#}");
    }
    output::print_table(&table, "There are no images. Build one with `holdfast image build`.");
    Ok(())
}

/// Warm images of an image, as in `QEMU 7.2.22 (tcg), 2048 MiB, 2 processors`.
fn warm_of(warm: &[WarmImage], digest: &str) -> String {
    let of_image = warm.iter().map(|warm| &warm.fits).filter(|fits| fits.image == digest);
    let texts: Vec<_> = of_image
        .map(|fits| format!("{}, {} MiB, {} processors", fits.vmm, fits.memory_mib, fits.vcpus))
        .collect();
    texts.join("; ")
}

async fn inspect(global: &Global, cache: &Path, image: &str, verify: bool) -> anyhow::Result<()> {
    let library = Library::new(cache);
    let manifest = library.inspect(image)?;
    let verified = if verify {
        let (library, digest) = (library.clone(), manifest.digest.clone());
        Some(blocking(move |bar| library.verify(&digest, bar)).await?)
    } else {
        None
    };
    if global.json {
        let problems = verified.as_ref().map(|verified| &verified.problems);
        output::json(&json!({ "manifest": manifest, "problems": problems }))?;
    } else {
        let tools: Vec<_> =
            manifest.tools.iter().map(|tool| format!("{} {}", tool.name, tool.version)).collect();
        output::fields(&[
            ("Digest", manifest.digest.clone()),
            ("Directory", library.path(&manifest.digest).display().to_string()),
            ("Built", output::time(manifest.created_at)),
            ("Builder", manifest.builder.clone()),
            ("Kernel", manifest.kernel.clone()),
            ("Packages", manifest.packages.len().to_string()),
            ("Tools", tools.join(", ")),
            ("On disk", output::bytes(manifest.disk_bytes())),
        ]);
        for (name, file) in &manifest.files {
            println!("  {name}  {}  sha256 {}", output::bytes(file.bytes), file.sha256);
        }
    }
    match verified {
        Some(verified) if !verified.problems.is_empty() => bail!(
            "the image is damaged: {}. Remove it with `holdfast image rm` and build it again",
            verified.problems.join("; ")
        ),
        Some(verified) if !global.json => {
            eprintln!("Verified: {} are as they were built.", output::bytes(verified.bytes));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A build's progress on standard error.
struct Bar {
    bar: ProgressBar,
    stage: Mutex<Option<Stage>>,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(1000);
        let style =
            ProgressStyle::with_template("{spinner} {prefix} {wide_bar} {percent}% {elapsed}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, stage: Mutex::new(None) }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn stage(&self, stage: Stage) {
        let mut now = self.stage.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *now == Some(stage) {
            return;
        }
        *now = Some(stage);
        self.bar.set_prefix(stage.to_string());
        self.bar.set_position(0);
        // A spinner that is no terminal draws nothing: there the steps are lines.
        if self.bar.is_hidden() {
            eprintln!("{stage}");
        }
    }

    fn fraction(&self, share: f64) {
        self.bar.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
    }

    fn line(&self, line: &str) {
        tracing::debug!(line, "building the image");
    }
}
