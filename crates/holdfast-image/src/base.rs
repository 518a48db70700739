//! The base layer: Debian's packages as an archive, and the kernel's package beside it.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    ImageError, Progress, Result,
    command::{self, Run},
    digest,
    error::IoContext as _,
    layer::{ARCHIVE, Description, Layer},
    recipe::{Base, Recipe},
};

/// Name of the layer.
pub(crate) const NAME: &str = "base";
/// What building it takes at most, in MiB: the packages, their installation, the archive.
pub(crate) const SPACE_MIB: u64 = 2600;
const KERNEL: &str = "kernel.deb";
const SIZE: &str = "size";
const VERSIONS: &str = "versions";

#[derive(Serialize)]
struct Key<'a> {
    format: u32,
    revision: &'a str,
    base: &'a Base,
}

/// The layer's key.
pub(crate) fn key(recipe: &Recipe, revision: &str) -> String {
    digest::of_value(&Key { format: recipe.format, revision, base: &recipe.base })
}

/// The kernel's package in the layer.
pub(crate) fn kernel_package(layer: &Layer) -> PathBuf {
    layer.path.join(KERNEL)
}

/// Builds the layer in the empty directory `building`, and puts it into the cache.
pub(crate) fn build(
    cache: &Path,
    building: &Path,
    recipe: &Recipe,
    key: &str,
    progress: &dyn Progress,
) -> Result<Layer> {
    command::require(&[&command::MMDEBSTRAP, &command::DPKG_DEB, &command::ZSTD])?;
    let base = &recipe.base;
    let scratch = building.join("scratch");
    let result = building.join("layer");
    for directory in [&scratch, &result] {
        fs::create_dir_all(directory).doing(|| format!("making {}", directory.display()))?;
    }
    let stubs = scratch.join("stubs.deb");
    build_stubs(&scratch, &stubs, &base.provided, progress)?;
    let early = scratch.join("early");
    write_script(&early, &early_hook(&stubs))?;
    let late = scratch.join("late");
    write_script(&late, &late_hook(base, &result))?;

    let options = |name: &str, prefix: &str, paths: &[String]| -> Vec<String> {
        paths.iter().map(|path| format!("--{name}={prefix}{path}")).collect()
    };
    Run::new(
        &command::MMDEBSTRAP,
        "the Debian packages",
        "see the output below for the package at fault",
    )?
    .args(["--variant=apt", "--architectures=amd64", "--mode=root"])
    .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
    .args(["--aptopt=Acquire::Retries \"2\"", "--dpkgopt=force-unsafe-io"])
    // Later options win, so what is included comes after what is excluded.
    .args(options("dpkgopt", "path-exclude=", &base.exclude))
    .args(options("dpkgopt", "path-include=", &base.include))
    .arg(format!("--include={}", base.packages.join(",")))
    .arg(format!("--essential-hook={}", early.display()))
    .arg(format!("--customize-hook={}", late.display()))
    .arg(&base.suite)
    .arg(result.join(ARCHIVE))
    .args(&base.sources)
    .env("TMPDIR", &scratch)
    // Times in the archive are never later than this, so that they do not tell when it was made.
    .env("SOURCE_DATE_EPOCH", "1700000000")
    .env("DEBIAN_FRONTEND", "noninteractive")
    .env("KERNEL_PACKAGE", &base.kernel)
    .downloads_from("deb.debian.org")
    .run(progress)?;

    let description = describe(&scratch, &result, base)?;
    Layer::publish(cache, NAME, key, &result, description)
}

/// An empty package that provides names, so that dependencies which the guest does not need are met.
fn build_stubs(
    scratch: &Path,
    package: &Path,
    provided: &[String],
    progress: &dyn Progress,
) -> Result<()> {
    let root = scratch.join("stubs");
    let control = root.join("DEBIAN/control");
    let text = format!(
        "Package: holdfast-stubs\nVersion: 1\nArchitecture: all\nMaintainer: Holdfast <root@localhost>\n\
         Provides: {}\nDescription: Provides what the guest does not need\n",
        provided.join(", ")
    );
    let what = || format!("writing {}", control.display());
    fs::create_dir_all(root.join("DEBIAN")).doing(what)?;
    fs::write(&control, text).doing(what)?;
    Run::new(&command::DPKG_DEB, "packing an empty package", "see the output below")?
        .args(["--build", "--root-owner-group"])
        .arg(&root)
        .arg(package)
        .run(progress)
}

fn write_script(path: &Path, script: &str) -> Result<()> {
    let what = || format!("writing {}", path.display());
    fs::write(path, script).doing(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).doing(what)
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Run with the new root as `$1` once the essential packages are there.
fn early_hook(stubs: &Path) -> String {
    format!(
        "#!/bin/sh -eu\n\
         cp -- {} \"$1/stubs.deb\"\n\
         chroot \"$1\" dpkg --install /stubs.deb\n\
         rm -- \"$1/stubs.deb\"\n",
        quote(&stubs.to_string_lossy())
    )
}

/// Run with the new root as `$1` once all packages are there: locales, the kernel's package, and what
/// is known of the whole.
fn late_hook(base: &Base, result: &Path) -> String {
    let result = quote(&result.to_string_lossy());
    let mut script = "#!/bin/sh -eu\n: > \"$1/etc/locale.gen\"\n".to_owned();
    for locale in &base.locales {
        writeln!(script, "echo '{locale}.UTF-8 UTF-8' >> \"$1/etc/locale.gen\"")
            .expect("writing to a string cannot fail");
    }
    script.push_str("chroot \"$1\" locale-gen\n");
    // The package names the release that it depends on; that one holds the kernel.
    write!(
        script,
        "export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\"\n\
         cd -- {result}\n\
         release=$(apt-cache depends \"$KERNEL_PACKAGE\" | grep -o 'linux-image-[0-9].*' | head -n 1)\n\
         apt-get download \"$release\"\n\
         mv -- linux-image-*.deb {KERNEL}\n\
         (cd -- \"$1\" && rm -rf -- {})\n\
         chroot \"$1\" dpkg-query --show --showformat='${{Package}} ${{Version}}\\n' > ../scratch/{VERSIONS}\n\
         du --summarize --block-size=1 --one-file-system -- \"$1\" | cut -f 1 > ../scratch/{SIZE}\n",
        base.remove.join(" ")
    )
    .expect("writing to a string cannot fail");
    script
}

fn describe(scratch: &Path, result: &Path, base: &Base) -> Result<Description> {
    let read = |name: &str| {
        let path = scratch.join(name);
        fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))
    };
    let incomplete = |why: &str| ImageError::Incomplete { what: "base layer", why: why.to_owned() };
    for name in [ARCHIVE, KERNEL] {
        if !result.join(name).is_file() {
            return Err(incomplete(&format!("{name} is missing")));
        }
    }
    let versions = read(VERSIONS)?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(package, _)| base.notable.iter().any(|notable| notable == package))
        .map(|(package, version)| (package.to_owned(), version.to_owned()))
        .collect();
    let size = read(SIZE)?.trim().parse().map_err(|_| incomplete("its size is not known"))?;
    Ok(Description { unpacked_bytes: size, versions, ..Description::default() })
}
