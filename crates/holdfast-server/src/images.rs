//! The image library on disk, as far as a server needs it: `<cache>/images/<digest>/`.

use std::path::{Path, PathBuf};

use holdfast_control::ImageSource;
use holdfast_host::driver::ImageRef;

/// Images in a cache directory. `images/current` is a symbolic link to the one that new VMs boot.
#[derive(Debug, Clone)]
pub struct ImageLibrary {
    images: PathBuf,
}

impl ImageLibrary {
    /// The library in this cache directory.
    pub fn new(cache_dir: &Path) -> Self {
        Self { images: cache_dir.join("images") }
    }
}

impl ImageSource for ImageLibrary {
    fn current(&self) -> Result<ImageRef, String> {
        let link = self.images.join("current");
        let path = link
            .canonicalize()
            .map_err(|_| format!("there is none in {}", self.images.display()))?;
        holdfast_host::image::check(&path)
            .map_err(|why| format!("{} is of no use: {why}", path.display()))?;
        let digest = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| format!("{} leads to no image", link.display()))?
            .to_owned();
        Ok(ImageRef { path, digest })
    }

    fn by_digest(&self, digest: &str) -> Result<ImageRef, String> {
        let is_digest = !digest.is_empty() && digest.bytes().all(|b| b.is_ascii_hexdigit());
        let path = self.images.join(digest);
        if is_digest && path.join("manifest.json").is_file() {
            Ok(ImageRef { path, digest: digest.to_owned() })
        } else {
            Err(format!("image {digest} is not in {}", self.images.display()))
        }
    }
}

/// The image of the simulated driver, whose guests boot nothing.
#[derive(Debug, Clone)]
pub struct SimulatedImages {
    image: ImageRef,
}

impl SimulatedImages {
    /// Names the image in this cache directory, where nothing has to be.
    pub fn new(cache_dir: &Path) -> Self {
        let digest = "0".repeat(64);
        Self { image: ImageRef { path: cache_dir.join("images").join(&digest), digest } }
    }
}

impl ImageSource for SimulatedImages {
    fn current(&self) -> Result<ImageRef, String> {
        Ok(self.image.clone())
    }

    fn by_digest(&self, digest: &str) -> Result<ImageRef, String> {
        if digest == self.image.digest {
            Ok(self.image.clone())
        } else {
            Err(format!("image {digest} is not simulated"))
        }
    }
}
