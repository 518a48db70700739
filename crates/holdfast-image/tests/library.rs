//! Listing, inspecting, checking and removing images.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use holdfast_image::{FileEntry, ImageError, Inputs, Library, Manifest, Silent};
use tempfile::TempDir;

/// Puts an image of three small files into a library.
fn add(cache: &Path, agent: &str, created_at: &str) -> String {
    let inputs = Inputs {
        format: 1,
        revision: "1".to_owned(),
        base: "b".repeat(64),
        tools: None,
        config: "c".repeat(64),
        modules: vec!["virtio_blk".to_owned()],
        agent: agent.to_owned(),
        resolvers: vec!["8.8.8.8".parse().unwrap()],
    };
    let digest = inputs.digest();
    let directory = cache.join("images").join(&digest);
    fs::create_dir_all(&directory).unwrap();
    let mut files = BTreeMap::new();
    for name in ["rootfs.img", "vmlinux", "initramfs.img"] {
        fs::write(directory.join(name), b"abc").unwrap();
        let entry = FileEntry {
            bytes: 3,
            disk_bytes: 4096,
            // Of "abc", from FIPS 180-2.
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
        };
        files.insert(name.to_owned(), entry);
    }
    let manifest = Manifest {
        digest: digest.clone(),
        created_at: created_at.parse().unwrap(),
        builder: "0.0.0".to_owned(),
        inputs,
        kernel: "6.1".to_owned(),
        packages: BTreeMap::new(),
        tools: Vec::new(),
        files,
    };
    fs::write(directory.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    digest
}

fn library() -> (TempDir, Library) {
    let cache = tempfile::tempdir().unwrap();
    let library = Library::new(cache.path());
    (cache, library)
}

#[test]
fn an_empty_library_lists_nothing() {
    let (_cache, library) = library();
    assert!(library.list().unwrap().is_empty());
    assert_eq!(library.current(), None);
    assert!(matches!(library.inspect("current"), Err(ImageError::NoCurrent { .. })));
    assert!(matches!(library.inspect(""), Err(ImageError::NotFound { .. })));
}

#[test]
fn images_are_listed_newest_first_and_a_broken_one_hides_none() {
    let (cache, library) = library();
    let old = add(cache.path(), "old", "2026-01-01T00:00:00Z");
    let new = add(cache.path(), "new", "2026-02-01T00:00:00Z");
    let broken = cache.path().join("images").join("f".repeat(64));
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("manifest.json"), "{").unwrap();
    fs::create_dir_all(cache.path().join("images/not-an-image")).unwrap();
    let listed = library.list().unwrap();
    let digests: Vec<_> = listed.iter().flatten().map(|image| image.digest.clone()).collect();
    assert_eq!(digests, [new, old]);
    assert_eq!(listed.iter().filter(|image| image.is_err()).count(), 1);
}

#[test]
fn a_digest_may_be_cut_short_while_it_names_one_image() {
    let (cache, library) = library();
    let digests: Vec<_> =
        (0..17).map(|n| add(cache.path(), &n.to_string(), "2026-01-01T00:00:00Z")).collect();
    assert_eq!(library.inspect(&digests[0]).unwrap().digest, digests[0]);
    assert_eq!(library.inspect(&digests[0][..20]).unwrap().digest, digests[0]);
    // Of 17 digests, two start with the same of 16 digits.
    let ambiguous = digests.iter().map(|digest| library.inspect(&digest[..1]));
    assert!(ambiguous.filter_map(Result::err).any(|e| matches!(e, ImageError::Ambiguous { .. })));
    library.set_current(&digests[3]).unwrap();
    assert_eq!(library.inspect("current").unwrap().digest, digests[3]);
    library.set_current(&digests[4]).unwrap();
    assert_eq!(library.current().as_ref(), Some(&digests[4]));
}

#[test]
fn a_link_to_a_removed_image_is_no_current_one() {
    let (cache, library) = library();
    fs::create_dir_all(cache.path().join("images")).unwrap();
    symlink("0".repeat(64), cache.path().join("images/current")).unwrap();
    assert_eq!(library.current(), None);
}

#[test]
fn the_current_image_and_one_in_use_stay_unless_forced() {
    let (cache, library) = library();
    let current = add(cache.path(), "current", "2026-01-01T00:00:00Z");
    let used = add(cache.path(), "used", "2026-01-01T00:00:00Z");
    library.set_current(&current).unwrap();
    let by_vm = |digest: &str| (digest == used).then(|| "VM 1".to_owned());

    let refused = library.remove(&current, false, by_vm).unwrap_err();
    assert!(matches!(refused, ImageError::Current { .. }), "{refused}");
    let refused = library.remove(&used, false, by_vm).unwrap_err();
    assert!(refused.to_string().contains("in use by VM 1"), "{refused}");
    assert_eq!(library.list().unwrap().len(), 2);

    library.remove(&used, true, by_vm).unwrap();
    assert!(!library.path(&used).exists());
    library.remove(&current, true, |_| None).unwrap();
    assert!(library.list().unwrap().is_empty());
    assert!(fs::symlink_metadata(cache.path().join("images/current")).is_err());
    assert!(matches!(library.remove(&used, false, |_| None), Err(ImageError::NotFound { .. })));
}

#[test]
fn a_changed_cut_or_missing_file_is_found() {
    let (cache, library) = library();
    let digest = add(cache.path(), "agent", "2026-01-01T00:00:00Z");
    let sound = library.verify(&digest, &Silent).unwrap();
    assert_eq!((sound.bytes, sound.problems), (9, Vec::new()));
    let directory = library.path(&digest);
    fs::write(directory.join("vmlinux"), b"abd").unwrap();
    fs::write(directory.join("rootfs.img"), b"ab").unwrap();
    fs::remove_file(directory.join("initramfs.img")).unwrap();
    let problems = library.verify(&digest, &Silent).unwrap().problems.join("; ");
    for expected in [
        "vmlinux was changed",
        "rootfs.img has 2 bytes instead of 3",
        "initramfs.img cannot be read",
    ] {
        assert!(problems.contains(expected), "{problems}");
    }
}
