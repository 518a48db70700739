//! Rows of sign-ins: one a session, changed by compare-and-set.

use holdfast_core::{SessionId, SignIn, SignInStep};

use super::{Backend, Link, Value, args, convert};
use crate::{Result, StoreError};

const INSERT: &str = "\
    INSERT INTO holdfast.sign_ins
        (session_id, generation, provider, flow, run, step, step_since, url, user_code, wants_input,
         outcome, why, output, recipients, webhook_url, webhook_secret, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)";

const UPDATE: &str = "\
    UPDATE holdfast.sign_ins
    SET provider = $3, flow = $4, run = $5, step = $6, step_since = $7, url = $8, user_code = $9,
        wants_input = $10, outcome = $11, why = $12, output = $13, recipients = $14,
        webhook_url = $15, webhook_secret = $16, expires_at = $17, generation = generation + 1
    WHERE session_id = $1 AND generation = $2";

pub(super) async fn get<B: Backend>(backend: &B, session: SessionId) -> Result<Option<SignIn>> {
    find(&mut backend.read().await?, session, "").await
}

pub(super) async fn open<B: Backend>(backend: &B) -> Result<Vec<SignIn>> {
    let sql = "SELECT * FROM holdfast.sign_ins WHERE step <> $1 ORDER BY session_id";
    let rows = backend.read().await?.fetch(sql, args![SignInStep::Done.as_str()]).await?;
    rows.iter().map(convert::sign_in).collect()
}

pub(super) async fn insert<L: Link>(tx: &mut L, sign_in: &SignIn) -> Result<()> {
    tx.execute(INSERT, values(sign_in)?).await?;
    Ok(())
}

/// Writes a sign-in if it still has the generation that `sign_in` carries.
pub(super) async fn write<B: Backend>(tx: &mut B::Link, mut sign_in: SignIn) -> Result<SignIn> {
    let stored = find(tx, sign_in.session, B::LOCK_ROWS)
        .await?
        .ok_or_else(|| StoreError::NotFound { what: "sign-in", id: sign_in.session.to_string() })?;
    if stored.generation != sign_in.generation {
        return Err(StoreError::Stale { what: "sign-in" });
    }
    if stored.step != sign_in.step && !stored.step.can_become(sign_in.step) {
        return Err(StoreError::Transition {
            what: "sign-in",
            from: stored.step.to_string(),
            to: sign_in.step.to_string(),
        });
    }
    if tx.execute(UPDATE, values(&sign_in)?).await? != 1 {
        return Err(StoreError::Stale { what: "sign-in" });
    }
    sign_in.generation = sign_in.generation.next();
    Ok(sign_in)
}

async fn find<L: Link>(link: &mut L, session: SessionId, lock: &str) -> Result<Option<SignIn>> {
    let sql = format!("SELECT * FROM holdfast.sign_ins WHERE session_id = $1{lock}");
    link.fetch_optional(&sql, args![session]).await?.as_ref().map(convert::sign_in).transpose()
}

fn values(sign_in: &SignIn) -> Result<Vec<Value>> {
    let recipients = serde_json::to_string(&sign_in.recipients)
        .map_err(|error| StoreError::Corrupt { what: "sign-in", why: error.to_string() })?;
    Ok(args![
        sign_in.session,
        sign_in.generation.0,
        sign_in.provider.as_str(),
        sign_in.flow.as_str(),
        sign_in.run,
        sign_in.step.as_str(),
        sign_in.step_since,
        sign_in.url.as_deref(),
        sign_in.user_code.as_deref(),
        sign_in.wants_input,
        sign_in.outcome.map(holdfast_core::SignInOutcome::as_str),
        sign_in.why.as_deref(),
        sign_in.output.as_str(),
        recipients,
        sign_in.webhook.as_ref().map(|hook| hook.url.clone()),
        sign_in.webhook.as_ref().map(|hook| hook.secret.clone()),
        sign_in.expires_at,
    ])
}
