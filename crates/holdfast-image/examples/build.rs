//! Builds an image: `build CACHE_DIR AGENT_BINARY [--thin] [--keep-current]`.

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use holdfast_image::{BuildRequest, Progress, Stage, build};

struct Print(Instant);

impl Progress for Print {
    fn stage(&self, stage: Stage) {
        println!("[{:6.1} s] {stage}", self.0.elapsed().as_secs_f64());
    }

    fn fraction(&self, _: f64) {}

    fn line(&self, line: &str) {
        println!("    {line}");
    }
}

fn main() -> anyhow::Result<()> {
    let (options, paths): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let [cache, agent] = <[String; 2]>::try_from(paths)
        .ok()
        .context("usage: build CACHE_DIR AGENT_BINARY [--thin] [--keep-current]")?;
    let mut request = BuildRequest::new(PathBuf::from(cache), PathBuf::from(agent));
    request.tools = !options.iter().any(|option| option == "--thin");
    request.make_current = !options.iter().any(|option| option == "--keep-current");
    let start = Instant::now();
    let built = build(&request, &Print(start))?;
    println!("{}", serde_json::to_string_pretty(&built.manifest)?);
    println!(
        "{} {} in {:.2} s",
        built.path.display(),
        if built.reused { "found" } else { "built" },
        start.elapsed().as_secs_f64()
    );
    Ok(())
}
