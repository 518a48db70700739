//! What may be taken for a sign-in link. The guest's agent asks before it opens one, and the host before
//! it shows one: a link comes from a tool, and a guest may be somebody else's.

/// Longest link, in bytes.
const LONGEST: usize = 8 << 10;

/// Why a link must not be opened, if so, as the end of a sentence: it has to be `https` to a public name,
/// or to have an origin of `allow`, such as `http://host.holdfast.internal:9000`.
pub fn acceptable(url: &str, allow: &[String]) -> Result<(), &'static str> {
    if url.len() > LONGEST {
        return Err("it is longer than 8 KiB");
    }
    if url.chars().any(char::is_control) {
        return Err("it contains control characters");
    }
    if !url.is_ascii() || url.contains([' ', '\\', '"', '<', '>', '`']) {
        return Err("it contains characters that no link has");
    }
    let Some((scheme, rest)) = url.split_once(':') else { return Err("it is not a link") };
    let scheme = scheme.to_ascii_lowercase();
    if scheme != "https" && scheme != "http" {
        return Err("it is not a web link");
    }
    let Some(rest) = rest.strip_prefix("//") else { return Err("it names no host") };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    if authority.contains('@') {
        return Err("it hides its host behind a user name");
    }
    let authority = authority.to_ascii_lowercase();
    let origin = format!("{scheme}://{authority}");
    if allow.iter().any(|known| known.trim_end_matches('/').eq_ignore_ascii_case(&origin)) {
        return Ok(());
    }
    if scheme != "https" {
        return Err("it is not https");
    }
    let host = match authority.split_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => host,
        None => &authority,
        Some(_) => return Err("its host is not a name"),
    };
    public_name(host.strip_suffix('.').unwrap_or(host))
}

fn public_name(host: &str) -> Result<(), &'static str> {
    let is_label = |label: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(is_part)
    };
    let labels: Vec<&str> = host.split('.').collect();
    if host.len() > 253 || !labels.iter().all(|label| is_label(label)) {
        return Err("its host is not a name");
    }
    let Some((last, others)) = labels.split_last() else { return Err("it names no host") };
    // No top-level domain starts with a digit; addresses do in all their notations.
    if last.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("its host is an address");
    }
    let private =
        ["localhost", "local", "internal", "lan", "home", "corp", "intranet", "arpa", "test"];
    if others.is_empty() || private.contains(last) {
        return Err("its host is not a public name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_links_are_refused() {
        let long = format!("https://a.example/{}", "x".repeat(LONGEST));
        for url in [
            "javascript:alert(1)",
            "JavaScript://a.example/%0aalert(1)",
            "file:///etc/passwd",
            "data:text/html,<script>",
            "chrome://settings",
            "ftp://a.example/",
            "http://a.example/",
            "https://localhost/",
            "https://localhost:8080/",
            "https://a.localhost/",
            "https://LOCALHOST./",
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0x7f000001/",
            "https://017700000001/",
            "https://10.0.0.1/",
            "https://172.30.0.1/",
            "https://192.168.1.1/",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/",
            "https://[fd00::1]/",
            "https://router/",
            "https://printer.local/",
            "https://metadata.google.internal/",
            "https://host.holdfast.internal:9000/",
            "https://accounts.google.com@evil.example/",
            "https://accounts.google.com:443@evil.example/",
            "https://good.example\\@evil.example/",
            "https://good.example\n/",
            "https://a.example/\u{1b}[31m",
            "https://a.example/\u{202e}x",
            "https://a.example:0/",
            "https://a.example:99999/",
            "https://a.example:/",
            "https://.example/",
            "https:///path",
            "https:a.example",
            "https://%6c%6f%63alhost/",
            "a.example",
            "",
            long.as_str(),
        ] {
            assert!(acceptable(url, &[]).is_err(), "{url} was accepted");
        }
    }

    #[test]
    fn real_links_are_accepted() {
        for url in [
            "https://auth.openai.com/oauth/authorize?response_type=code&client_id=app_EMoamEEZ73f0CkXaXp7hrann&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fauth%2Fcallback",
            "https://claude.ai/oauth/authorize?code=true&scope=user%3Ainference",
            "https://github.com/login/device",
            "HTTPS://GitHub.com/login/device",
            "https://a.example:8443/x?mail=a@b.example#@",
            "https://xn--bcher-kva.example/",
        ] {
            assert_eq!(acceptable(url, &[]), Ok(()), "{url}");
        }
    }

    #[test]
    fn an_allowed_origin_is_nothing_else() {
        let allow = ["http://Host.holdfast.internal:9000/".to_owned()];
        assert_eq!(acceptable("http://host.holdfast.internal:9000/auth?x=1", &allow), Ok(()));
        for url in [
            "http://host.holdfast.internal:9001/",
            "https://host.holdfast.internal:9000/",
            "http://host.holdfast.internal:9000@evil.example/",
            "javascript:http://host.holdfast.internal:9000/",
        ] {
            assert!(acceptable(url, &allow).is_err(), "{url}");
        }
    }
}
