//! Finds the server and the token that a command talks to it with.

use anyhow::Context as _;
use holdfast_api::client::Client;

use crate::{cli::Global, settings};

/// A client of the server that was named, or of the local one.
pub fn client(global: &Global) -> anyhow::Result<Client> {
    let (url, token) = target(global)?;
    Ok(Client::new(&url, token.as_deref())?)
}

/// Address and token: what was said, else what the local state directory holds.
pub fn target(global: &Global) -> anyhow::Result<(String, Option<String>)> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    let (url, token) = (given(&global.url), given(&global.token));
    if let (Some(url), Some(token)) = (&url, &token) {
        return Ok((url.clone(), Some(token.clone())));
    }
    let config = settings::local()?;
    let is_local = url.is_none();
    let url = url.unwrap_or_else(|| {
        let running = std::fs::read_to_string(config.address_file()).ok();
        let running = running.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        running.unwrap_or_else(|| format!("http://{}", config.listen))
    });
    // The local administrator's token is never sent to a server that was named: it may be
    // somebody else's.
    if token.is_some() || !is_local && !names_loopback(&url) {
        return Ok((url, token));
    }
    let file = config.token_file();
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok((url, Some(text.trim().to_owned()))),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(error)
            .with_context(|| {
                format!(
                    "{} cannot be read: set HOLDFAST_TOKEN, or run this as the user that runs the server",
                    file.display()
                )
            }),
        Err(_) => Ok((url, None)),
    }
}

fn names_loopback(url: &str) -> bool {
    let host = url.strip_prefix("http://").unwrap_or(url);
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|known| {
        host.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

#[cfg(test)]
mod tests {
    use super::names_loopback;

    #[test]
    fn the_local_token_stays_on_this_machine() {
        for local in ["http://127.0.0.1:7070", "http://localhost", "http://[::1]:1/"] {
            assert!(names_loopback(local), "{local}");
        }
        for other in ["http://127.0.0.1.example", "http://localhost@example", "http://example:7070"]
        {
            assert!(!names_loopback(other), "{other}");
        }
    }
}
