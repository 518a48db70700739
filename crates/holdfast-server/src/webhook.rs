//! Delivers announcements (webhooks), signed as Standard Webhooks describes.
//!
//! A delivery is a row of the store: it survives a crash and is repeated until the receiver takes it
//! or every attempt is used up. Private addresses are refused unless the configuration admits the
//! host, so that nobody can make this server talk to its own network.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use holdfast_core::Timestamp;
use holdfast_store::{Delivery, Store};
use http::{Request, Uri, header};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, dns::Name},
    },
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::state::AppState;

/// Pauses before the second and later attempts; after the last one the delivery is given up.
const PAUSES: [u64; 8] = [5, 30, 120, 600, 1800, 3600, 10_800, 36_000];
/// Deadline of one attempt.
const DEADLINE: Duration = Duration::from_secs(15);
/// Time between looks at what is due.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where webhooks may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookConfig {
    /// Host names and addresses that are admitted although they are private.
    pub allowed_hosts: Vec<String>,
}

/// Whether a webhook may go to this address; otherwise why not.
pub fn check(url: &str, config: &WebhookConfig) -> Result<(), String> {
    let uri: Uri =
        url.parse().map_err(|_| "A webhook needs an http or https address.".to_owned())?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let web = matches!(uri.scheme_str(), Some("http" | "https"));
    if url.len() > 2048
        || !web
        || host.is_empty()
        || uri.authority().is_some_and(|a| a.as_str().contains('@'))
    {
        return Err(
            "A webhook needs an http or https address of at most 2,048 characters.".to_owned()
        );
    }
    let private = host.parse::<IpAddr>().is_ok_and(|ip| !is_public(ip)) || host == "localhost";
    if private && !config.allowed_hosts.iter().any(|known| known == host) {
        return Err("Private addresses are refused unless webhooks.allowed_hosts in the configuration names them.".to_owned());
    }
    Ok(())
}

/// Whether an address is one of the public internet.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_public(IpAddr::V4(v4)),
            None => (v6.segments()[0] & 0xe000) == 0x2000,
        },
    }
}

/// Resolves names, and refuses those that lead to private addresses.
#[derive(Clone)]
struct Resolver {
    config: WebhookConfig,
}

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let admitted = self.config.allowed_hosts.iter().any(|known| known == name.as_str());
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<_> = found.filter(|at| admitted || is_public(at.ip())).collect();
            if usable.is_empty() {
                return Err(std::io::Error::other("its name leads to no public address"));
            }
            Ok(usable.into_iter())
        })
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>;

/// Delivers what is due until the server stops.
pub(crate) async fn deliver_loop(state: AppState) {
    let config = state.config.webhooks.clone();
    let mut http = HttpConnector::new_with_resolver(Resolver { config: config.clone() });
    http.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let client: HttpClient = Client::builder(TokioExecutor::new()).build(connector);
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = state.stop.cancelled() => return,
        }
        let store = state.control.store();
        // While the store cannot be read, others say so; here it is only tried again.
        let Ok(due) = store.due_deliveries(Timestamp::now(), 16).await else { continue };
        futures::future::join_all(
            due.into_iter().map(|d| attempt(&client, store.as_ref(), &config, d)),
        )
        .await;
    }
}

async fn attempt(
    client: &HttpClient,
    store: &dyn Store,
    config: &WebhookConfig,
    mut delivery: Delivery,
) {
    let sent = match check(&delivery.url, config) {
        Ok(()) => tokio::time::timeout(DEADLINE, send(client, &delivery))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs()))),
        Err(why) => Err(why),
    };
    let pause = PAUSES.get(delivery.attempts as usize);
    delivery.attempts += 1;
    match sent {
        Ok(()) => {
            delivery.delivered_at = Some(Timestamp::now());
            delivery.next_at = None;
            delivery.last_error = None;
        }
        Err(why) => {
            tracing::warn!(delivery = %delivery.id, session = %delivery.session, attempts = delivery.attempts, why, "a webhook was not taken");
            delivery.next_at = pause.map(|s| Timestamp::now() + Duration::from_secs(*s));
            delivery.last_error = Some(why);
        }
    }
    metrics::counter!("holdfast_webhook_attempts_total", "taken" => delivery.delivered_at.is_some().to_string()).increment(1);
    if let Err(error) = store.update_delivery(delivery).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "a delivery's progress could not be written; it may be repeated"
        );
    }
}

async fn send(client: &HttpClient, delivery: &Delivery) -> Result<(), String> {
    let seconds = Timestamp::now().as_second();
    let request = Request::post(&delivery.url)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("holdfast/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", delivery.id.to_string())
        .header("webhook-timestamp", seconds)
        .header("webhook-signature", signature(delivery, seconds))
        .body(Full::new(Bytes::from(delivery.body.clone())))
        .map_err(|error| error.to_string())?;
    let response = client.request(request).await.map_err(|error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        text
    })?;
    let status = response.status();
    if status.is_success() { Ok(()) } else { Err(format!("the receiver answered {status}")) }
}

/// `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
fn signature(delivery: &Delivery, seconds: i64) -> String {
    let base64 = base64::engine::general_purpose::STANDARD;
    let key = delivery
        .secret
        .strip_prefix("whsec_")
        .and_then(|text| base64.decode(text).ok())
        .unwrap_or_else(|| delivery.secret.clone().into_bytes());
    // HMAC takes keys of every length.
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of every length");
    mac.update(format!("{}.{seconds}.{}", delivery.id, delivery.body).as_bytes());
    format!("v1,{}", base64.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_standard_says() {
        // The example of https://github.com/standard-webhooks/standard-webhooks (libraries' tests).
        let delivery = Delivery {
            id: uuid::Uuid::nil(),
            session: holdfast_core::SessionId::from_uuid(uuid::Uuid::nil()),
            url: String::new(),
            secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
            body: "{\"test\": 2432232314}".to_owned(),
            attempts: 0,
            next_at: None,
            delivered_at: None,
            last_error: None,
        };
        let key = base64::engine::general_purpose::STANDARD
            .decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
            .expect("base64");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any length");
        mac.update(b"00000000-0000-0000-0000-000000000000.1614265330.{\"test\": 2432232314}");
        let expected =
            base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes());
        assert_eq!(signature(&delivery, 1_614_265_330), format!("v1,{expected}"));
    }

    #[test]
    fn private_addresses_are_refused_unless_admitted() {
        let none = WebhookConfig::default();
        for bad in [
            "http://127.0.0.1/",
            "http://localhost:1/",
            "http://10.0.0.1/",
            "http://[::1]/",
            "http://169.254.169.254/",
            "http://[::ffff:10.0.0.1]/",
            "http://0.0.0.0/",
            "ftp://example.org/",
            "http://user@example.org/",
            "x",
        ] {
            assert!(check(bad, &none).is_err(), "{bad}");
        }
        assert!(check("https://hooks.example.org/x", &none).is_ok());
        let some = WebhookConfig { allowed_hosts: vec!["127.0.0.1".to_owned()] };
        assert!(check("http://127.0.0.1:9000/", &some).is_ok());
    }
}
