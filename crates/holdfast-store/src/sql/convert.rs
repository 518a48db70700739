//! Rows to records. What cannot be understood is `Corrupt`, never skipped: a VM that is missing
//! from a list would look like one that nobody owns.

use std::{fmt::Display, str::FromStr};

use holdfast_core::{
    Actor, EndReason, Event, EventBody, Generation, OwnerId, Session, SessionId, SessionState,
    SignIn, SignInOutcome, SignInStep, Timestamp, Vm, VmId, VmState,
    provider::Flow,
    signin::{SealedInfo, Webhook},
};

use super::Row;
use crate::{Delivery, HostRecord, Result, ShareLink, StoreError, TokenRecord};

/// Reads the columns of one kind of record.
struct Columns<'a, R> {
    row: &'a R,
    what: &'static str,
}

impl<R: Row> Columns<'_, R> {
    fn corrupt(&self, column: &str, why: impl Display) -> StoreError {
        StoreError::Corrupt { what: self.what, why: format!("{column}: {why}") }
    }

    fn required<T>(&self, column: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.corrupt(column, "it is empty"))
    }

    fn text(&self, column: &str) -> Result<String> {
        self.required(column, self.row.text(self.what, column)?)
    }

    fn optional_text(&self, column: &str) -> Result<Option<String>> {
        self.row.text(self.what, column)
    }

    /// A number in the range of `T`.
    fn number<T: TryFrom<i64, Error: Display>>(&self, column: &str) -> Result<T> {
        let wide = self.required(column, self.row.int(self.what, column)?)?;
        T::try_from(wide).map_err(|error| self.corrupt(column, error))
    }

    fn time(&self, column: &str) -> Result<Timestamp> {
        self.required(column, self.optional_time(column)?)
    }

    fn optional_time(&self, column: &str) -> Result<Option<Timestamp>> {
        let nanoseconds = self.row.int(self.what, column)?;
        nanoseconds
            .map(|n| Timestamp::from_nanosecond(n.into()).map_err(|e| self.corrupt(column, e)))
            .transpose()
    }

    /// An id or an address.
    fn parsed<T: FromStr<Err: Display>>(&self, column: &str) -> Result<T> {
        self.required(column, self.optional_parsed(column)?)
    }

    fn optional_parsed<T: FromStr<Err: Display>>(&self, column: &str) -> Result<Option<T>> {
        let text = self.optional_text(column)?;
        text.map(|text| text.parse().map_err(|error| self.corrupt(column, error))).transpose()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, column: &str) -> Result<T> {
        self.required(column, self.optional_json(column)?)
    }

    fn optional_json<T: serde::de::DeserializeOwned>(&self, column: &str) -> Result<Option<T>> {
        let text = self.optional_text(column)?;
        text.map(|text| serde_json::from_str(&text).map_err(|error| self.corrupt(column, error)))
            .transpose()
    }

    /// A name that core knows.
    fn named<T>(&self, column: &str, from_name: impl Fn(&str) -> Option<T>) -> Result<T> {
        self.required(column, self.optional_named(column, from_name)?)
    }

    fn optional_named<T>(
        &self,
        column: &str,
        from_name: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let name = self.optional_text(column)?;
        name.map(|name| {
            from_name(&name)
                .ok_or_else(|| self.corrupt(column, format_args!("`{name}` is not known")))
        })
        .transpose()
    }
}

pub(super) fn session(row: &impl Row) -> Result<Session> {
    let c = Columns { row, what: "session" };
    Ok(Session {
        id: c.parsed("id")?,
        owner: c.parsed("owner_id")?,
        spec: c.json("spec")?,
        state: c.named("state", SessionState::from_name)?,
        vm: c.optional_parsed("vm_id")?,
        end_reason: c.optional_named("end_reason", EndReason::from_name)?,
        detail: c.optional_text("detail")?,
        attempts: c.number("attempts")?,
        lease_expires_at: c.time("lease_expires_at")?,
        last_heartbeat_at: c.time("last_heartbeat_at")?,
        checkpoint: c.optional_json("checkpoint")?,
        created_at: c.time("created_at")?,
        state_since: c.time("state_since")?,
        ready_at: c.optional_time("ready_at")?,
        ended_at: c.optional_time("ended_at")?,
        generation: Generation(c.number("generation")?),
    })
}

pub(super) fn vm(row: &impl Row) -> Result<Vm> {
    let c = Columns { row, what: "vm" };
    Ok(Vm {
        id: c.parsed("id")?,
        session: c.optional_parsed("session_id")?,
        host: c.parsed("host_id")?,
        state: c.named("state", VmState::from_name)?,
        driver: c.text("driver")?,
        image: c.text("image")?,
        address: c.optional_parsed("address")?,
        incarnation: c.number("incarnation")?,
        secret: c.optional_text("secret")?,
        created_at: c.time("created_at")?,
        state_since: c.time("state_since")?,
        generation: Generation(c.number("generation")?),
    })
}

pub(super) fn event(row: &impl Row) -> Result<Event> {
    let c = Columns { row, what: "event" };
    Ok(Event {
        seq: c.number("seq")?,
        session: c.parsed("session_id")?,
        body: EventBody {
            vm: c.optional_parsed("vm_id")?,
            at: c.time("at")?,
            kind: c.text("kind")?,
            from: c.optional_text("from_state")?,
            to: c.optional_text("to_state")?,
            why: c.text("why")?,
            by: c.named("actor", Actor::from_name)?,
        },
    })
}

pub(super) fn token(row: &impl Row) -> Result<TokenRecord> {
    let c = Columns { row, what: "token" };
    Ok(TokenRecord {
        id: c.parsed("id")?,
        owner: c.parsed("owner_id")?,
        name: c.text("name")?,
        admin: row.flag("token", "admin")?,
        created_at: c.time("created_at")?,
        expires_at: c.optional_time("expires_at")?,
        revoked_at: c.optional_time("revoked_at")?,
    })
}

pub(super) fn host(row: &impl Row) -> Result<HostRecord> {
    let c = Columns { row, what: "host" };
    Ok(HostRecord {
        id: c.parsed("id")?,
        name: c.text("name")?,
        driver: c.text("driver")?,
        driver_reason: c.text("driver_reason")?,
        cpus: c.number("cpus")?,
        memory_mib: c.number("memory_mib")?,
        version: c.text("version")?,
        address: c.optional_parsed("address")?,
        seen_at: c.time("seen_at")?,
        draining_since: c.optional_time("draining_since")?,
    })
}

pub(super) fn sign_in(row: &impl Row) -> Result<SignIn> {
    let c = Columns { row, what: "sign-in" };
    let webhook = match (c.optional_text("webhook_url")?, c.optional_text("webhook_secret")?) {
        (Some(url), Some(secret)) => Some(Webhook { url, secret }),
        _ => None,
    };
    Ok(SignIn {
        session: c.parsed("session_id")?,
        provider: c.text("provider")?,
        flow: c.named("flow", Flow::from_name)?,
        run: c.number("run")?,
        step: c.named("step", SignInStep::from_name)?,
        step_since: c.time("step_since")?,
        url: c.optional_text("url")?,
        user_code: c.optional_text("user_code")?,
        wants_input: row.flag("sign-in", "wants_input")?,
        outcome: c.optional_named("outcome", SignInOutcome::from_name)?,
        why: c.optional_text("why")?,
        output: c.text("output")?,
        recipients: c.json("recipients")?,
        webhook,
        expires_at: c.optional_time("expires_at")?,
        generation: Generation(c.number("generation")?),
    })
}

pub(super) fn sealed_info(row: &impl Row) -> Result<SealedInfo> {
    let c = Columns { row, what: "sealed credentials" };
    Ok(SealedInfo {
        files: c.json("files")?,
        sealed_at: c.time("sealed_at")?,
        expires_at: c.time("expires_at")?,
        fetched_at: c.optional_time("fetched_at")?,
    })
}

pub(super) fn ciphertext(row: &impl Row) -> Result<Option<String>> {
    Columns { row, what: "sealed credentials" }.optional_text("ciphertext")
}

pub(super) fn delivery(row: &impl Row) -> Result<Delivery> {
    let c = Columns { row, what: "delivery" };
    Ok(Delivery {
        id: c.parsed("id")?,
        session: c.parsed("session_id")?,
        url: c.text("url")?,
        secret: c.text("secret")?,
        body: c.text("body")?,
        attempts: c.number("attempts")?,
        next_at: c.optional_time("next_at")?,
        delivered_at: c.optional_time("delivered_at")?,
        last_error: c.optional_text("last_error")?,
    })
}

pub(super) fn share(row: &impl Row) -> Result<ShareLink> {
    let c = Columns { row, what: "share link" };
    Ok(ShareLink {
        id: c.parsed("id")?,
        session: c.parsed("session_id")?,
        sha256: c.text("sha256")?,
        view_only: row.flag("share link", "view_only")?,
        created_at: c.time("created_at")?,
        expires_at: c.time("expires_at")?,
        revoked_at: c.optional_time("revoked_at")?,
    })
}

pub(super) fn owner_key(row: &impl Row) -> Result<Option<String>> {
    Columns { row, what: "owner" }.optional_text("recipient")
}

pub(super) fn owner_id(row: &impl Row) -> Result<OwnerId> {
    Columns { row, what: "owner" }.parsed("id")
}

pub(super) fn owner_name(row: &impl Row) -> Result<String> {
    Columns { row, what: "owner" }.text("name")
}

pub(super) fn session_id(row: &impl Row) -> Result<SessionId> {
    Columns { row, what: "session" }.parsed("id")
}

/// What an idempotency key stands for.
pub(super) struct StoredKey {
    pub request_sha256: String,
    pub session: SessionId,
    pub vm: VmId,
}

pub(super) fn key(row: &impl Row) -> Result<StoredKey> {
    let c = Columns { row, what: "idempotency key" };
    Ok(StoredKey {
        request_sha256: c.text("request_sha256")?,
        session: c.parsed("session_id")?,
        vm: c.parsed("vm_id")?,
    })
}
