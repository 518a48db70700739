//! Calls of sign-ins.

use bytes::Bytes;
use http::Method;
use uuid::Uuid;

use super::{Client, DEADLINE, Result};
use crate::{OwnerKey, SignIn, SignInCode};

impl Client {
    /// The sign-in of a session, also of one that ended.
    pub async fn sign_in(&self, id: Uuid) -> Result<SignIn> {
        self.get(&format!("/api/sessions/{id}/sign-in")).await
    }

    /// Types the code that the provider showed.
    pub async fn sign_in_code(&self, id: Uuid, text: &str) -> Result<()> {
        let body = SignInCode { text: text.to_owned() };
        self.do_sign_in(id, "code", Some(&body)).await
    }

    /// Opens the current link in the machine's browser again.
    pub async fn sign_in_open(&self, id: Uuid) -> Result<()> {
        self.do_sign_in(id, "open", None).await
    }

    /// Starts the tool again, as a new run.
    pub async fn sign_in_retry(&self, id: Uuid) -> Result<SignIn> {
        self.post(&format!("/api/sessions/{id}/sign-in/retry"), None::<&()>).await
    }

    /// Fetches the sealed credentials, an age file. They are handed over once.
    pub async fn credentials(&self, id: Uuid) -> Result<Bytes> {
        let path = format!("/api/sessions/{id}/credentials");
        let (_, body) = self.exchange(Method::POST, &path, None::<&()>, &[], DEADLINE).await?;
        Ok(body)
    }

    /// The age public key that the caller's credentials are sealed to by default.
    pub async fn owner_key(&self) -> Result<OwnerKey> {
        self.get("/api/owner/key").await
    }

    /// Sets or removes that key.
    pub async fn set_owner_key(&self, key: &OwnerKey) -> Result<OwnerKey> {
        self.call(Method::PUT, "/api/owner/key", Some(key), &[], DEADLINE).await
    }

    async fn do_sign_in(&self, id: Uuid, what: &str, body: Option<&SignInCode>) -> Result<()> {
        let path = format!("/api/sessions/{id}/sign-in/{what}");
        self.exchange(Method::POST, &path, body, &[], DEADLINE).await.map(|_| ())
    }
}
