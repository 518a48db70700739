//! Encrypts what a run left as credentials. Neither the clear text nor the files leave the guest.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use age::x25519::Recipient;
use base64::{Engine, engine::general_purpose::STANDARD};
use holdfast_agent_api::tool::{Bundle, BundleFile, Collected, CollectedFile, CredentialFile};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// Largest credential file, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// Why credentials were not handed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("`{0}` is not an age public key (age1...)")]
    Recipient(String),
    #[error("at least one age public key is needed")]
    NoRecipient,
    #[error("`{path}` cannot be read")]
    File { path: String, source: io::Error },
    #[error("the credentials cannot be encrypted")]
    Encrypt(#[source] io::Error),
}

impl Error {
    /// Whether the caller has to ask in another way.
    pub(super) fn is_the_callers(&self) -> bool {
        matches!(self, Self::Recipient(_) | Self::NoRecipient)
    }
}

/// Reads `credentials` below `home`, or from `found` for those in the output, and encrypts them.
pub(super) fn collect(
    home: &Path,
    credentials: &[CredentialFile],
    found: &std::collections::HashMap<String, String>,
    recipients: &[String],
) -> Result<Collected, Error> {
    if recipients.is_empty() {
        return Err(Error::NoRecipient);
    }
    let parse =
        |text: &String| text.parse::<Recipient>().map_err(|_| Error::Recipient(text.clone()));
    let recipients: Vec<Recipient> = recipients.iter().map(parse).collect::<Result<_, _>>()?;
    let (mut files, mut listed) = (Vec::new(), Vec::new());
    for credential in credentials {
        let content = match &credential.output {
            Some(_) => found.get(&credential.path).map(|text| text.clone().into_bytes()),
            None => read_below(home, &credential.path)
                .map_err(|source| Error::File { path: credential.path.clone(), source })?,
        };
        let Some(content) = content else {
            if credential.optional {
                continue;
            }
            let source = io::ErrorKind::NotFound.into();
            return Err(Error::File { path: credential.path.clone(), source });
        };
        let (path, mode) = (credential.path.clone(), credential.mode);
        listed.push(CollectedFile { path: path.clone(), size: content.len() as u64, mode });
        files.push(BundleFile { path, mode, content: STANDARD.encode(content) });
    }
    let clear = serde_json::to_vec(&Bundle { files }).map_err(|e| Error::Encrypt(e.into()))?;
    let ciphertext = encrypt(&recipients, &clear).map_err(Error::Encrypt)?;
    Ok(Collected { ciphertext: STANDARD.encode(ciphertext), files: listed })
}

fn encrypt(recipients: &[Recipient], clear: &[u8]) -> io::Result<Vec<u8>> {
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let mut ciphertext = Vec::new();
    let mut writer = encryptor.wrap_output(&mut ciphertext)?;
    writer.write_all(clear)?;
    writer.finish()?;
    Ok(ciphertext)
}

/// Reads a file below `home`; no link leads out of it. `None`: it is not there.
pub(super) fn read_below(home: &Path, path: &str) -> io::Result<Option<Vec<u8>>> {
    let root = File::open(home)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file = match openat2(&root, path, flags, Mode::empty(), resolve) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut content = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, fs, os::unix::fs::symlink};

    use super::*;

    fn credential(path: &str, output: Option<&str>, optional: bool) -> CredentialFile {
        CredentialFile {
            path: path.to_owned(),
            mode: 0o600,
            optional,
            output: output.map(str::to_owned),
        }
    }

    fn decrypt(identity: &age::x25519::Identity, collected: &Collected) -> Bundle {
        let bytes = STANDARD.decode(&collected.ciphertext).expect("base64");
        let clear = age::decrypt(identity, &bytes).expect("it is for this key");
        serde_json::from_slice(&clear).expect("a bundle")
    }

    #[test]
    fn only_the_recipients_can_read_it() {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join(".tool")).expect("a folder");
        fs::write(home.path().join(".tool/auth.json"), "{\"token\":\"hush\"}").expect("a file");
        let identities = [age::x25519::Identity::generate(), age::x25519::Identity::generate()];
        let recipients = identities.iter().map(|i| i.to_public().to_string()).collect::<Vec<_>>();
        let credentials = [
            credential(".tool/auth.json", None, false),
            credential(".tool/token", Some("x"), false),
            credential(".tool/none", None, true),
        ];
        let found = HashMap::from([(".tool/token".to_owned(), "sk-1".to_owned())]);
        let collected = collect(home.path(), &credentials, &found, &recipients).expect("collected");
        assert!(
            !STANDARD
                .decode(&collected.ciphertext)
                .expect("base64")
                .windows(4)
                .any(|w| w == b"hush")
        );
        assert_eq!(collected.files.iter().map(|f| f.size).collect::<Vec<_>>(), [16, 4]);
        for identity in &identities {
            let bundle = decrypt(identity, &collected);
            assert_eq!(
                STANDARD.decode(&bundle.files[0].content).expect("base64"),
                b"{\"token\":\"hush\"}"
            );
            assert_eq!(bundle.files[1].path, ".tool/token");
        }
        let stranger = age::x25519::Identity::generate();
        let bytes = STANDARD.decode(&collected.ciphertext).expect("base64");
        assert!(age::decrypt(&stranger, &bytes).is_err());
    }

    #[test]
    fn no_link_leads_out_of_the_home() {
        let home = tempfile::tempdir().expect("a directory");
        symlink("/etc/passwd", home.path().join("auth.json")).expect("a link");
        assert!(read_below(home.path(), "auth.json").is_err());
        assert!(read_below(home.path(), "../etc/passwd").is_err());
        assert!(read_below(home.path(), ".").is_err());
        assert!(matches!(read_below(home.path(), "none"), Ok(None)));
    }

    #[test]
    fn wrong_keys_and_missing_files_are_said() {
        let home = tempfile::tempdir().expect("a directory");
        let none = HashMap::new();
        let error =
            collect(home.path(), &[], &none, &["age1nonsense".to_owned()]).expect_err("no key");
        assert!(error.is_the_callers(), "{error}");
        assert!(collect(home.path(), &[], &none, &[]).is_err());
        let key = age::x25519::Identity::generate().to_public().to_string();
        let missing = [credential("auth.json", None, false)];
        let error = collect(home.path(), &missing, &none, &[key]).expect_err("no file");
        assert!(error.to_string().contains("auth.json") && !error.is_the_callers());
    }
}
