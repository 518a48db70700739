//! Making a session: its records, written with its VM in one transaction, or tied to a VM of the pool.

use std::sync::atomic::Ordering;

use holdfast_core::{
    Actor, Checkpoint, Generation, OwnerId, Session, SessionId, SessionSpec, SessionState, SignIn,
    SignInStep, Timestamp, Vm, VmId, VmState, signin::Webhook,
};
use holdfast_host::driver::ImageRef;
use holdfast_store::{IdempotencyKey, NewSession};
use uuid::Uuid;

use crate::{
    Control, ControlError, Live, admission,
    control::{Inner, random_hex},
    records::event,
};

/// A session to be made.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Whose.
    pub owner: OwnerId,
    /// What for; already checked.
    pub spec: SessionSpec,
    /// For a provider with a tool.
    pub sign_in: Option<NewSignIn>,
    /// Makes a repeated request harmless.
    pub key: Option<IdempotencyKey>,
}

/// A sign-in to be made with its session; already checked.
#[derive(Debug, Clone)]
pub struct NewSignIn {
    /// age public keys that the credentials are sealed to; at least one.
    pub recipients: Vec<String>,
    /// Where its end is announced.
    pub webhook: Option<Webhook>,
}

impl Control {
    /// Writes a session with its VM and begins to work on it. The answer's id is readable from now
    /// on. The flag says that an earlier request with the same key made it.
    pub async fn create(&self, request: CreateRequest) -> Result<(Live, bool), ControlError> {
        self.create_from(request, None).await
    }

    /// Writes a session that starts from somebody's checkpoint, or afresh. Once begun it is done to
    /// its end, also when nobody waits for its answer any more: a session that is half made in memory
    /// would have nobody who works on it.
    pub(crate) async fn create_from(
        &self,
        request: CreateRequest,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(Live, bool), ControlError> {
        let control = self.clone();
        let made = tokio::spawn(async move { control.create_now(request, checkpoint).await });
        match made.await {
            Ok(made) => made,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(ControlError::Draining("the server is stopping")),
            },
        }
    }

    async fn create_now(
        &self,
        request: CreateRequest,
        checkpoint: Option<Checkpoint>,
    ) -> Result<(Live, bool), ControlError> {
        let inner = self.inner();
        if inner.stop.is_cancelled() {
            return Err(ControlError::Draining("the server is stopping"));
        }
        if inner.draining.load(Ordering::Acquire) {
            return Err(ControlError::Draining("it is being drained"));
        }
        inner.admission.could_fit(request.spec.memory_mib).map_err(ControlError::TooLarge)?;
        let image = match &checkpoint {
            Some(checkpoint) => inner.images.by_digest(&checkpoint.image),
            None => inner.images.current(),
        };
        let image = image.map_err(ControlError::NoImage)?;
        let now = inner.clock.now();
        let (mut session, mut vm) = new_records(inner, &request, &image, now)?;
        let pooled = match &checkpoint {
            Some(_) => None,
            None => inner.pool.take(inner, &request.spec, &image.digest),
        };
        if pooled.is_none() {
            let spec = &session.spec;
            let is_clone = checkpoint.is_none()
                && inner.images.warm(&image.digest, spec.memory_mib, spec.vcpus).is_some();
            let needs_mib = admission::needs(spec.memory_mib, is_clone);
            if let Err(why) = inner.admission.enter(&session, needs_mib) {
                return made_before(inner, &request).await?.ok_or(ControlError::Full(why));
            }
        }
        let id = session.id;
        session.checkpoint = checkpoint;
        if let Some(pooled) = &pooled {
            fail::fail_point!("pool.tie");
            session.vm = Some(pooled.id);
            session.state = SessionState::Starting;
            vm = Vm { session: Some(session.id), ..pooled.clone() };
        }
        let first = event("session.state", "The session was asked for.", Actor::User, now);
        let session_state = session.state;
        let sign_in = new_sign_in(inner, &request, session.id, now);
        let new = NewSession {
            session,
            vm,
            sign_in: sign_in.clone(),
            events: vec![holdfast_core::EventBody {
                to: Some(session_state.as_str().into()),
                ..first
            }],
            key: request.key,
        };
        fail::fail_point!("create.before");
        let created = match inner.store.create_session(new).await {
            Ok(created) => created,
            Err(error) => {
                inner.admission.release(id);
                if let Some(pooled) = pooled {
                    inner.pool.put_back(inner, pooled);
                }
                return Err(error.into());
            }
        };
        fail::fail_point!("create.after");
        if let Some(pooled) = pooled {
            if created.replayed {
                inner.pool.put_back(inner, pooled);
            } else {
                metrics::counter!("holdfast_pool_claims_total").increment(1);
                inner.admission.adopt(&created.session, true);
            }
        }
        let live = Live { session: created.session, vm: created.vm };
        if created.replayed {
            inner.admission.release(id);
        } else {
            metrics::counter!("holdfast_sessions_created_total").increment(1);
            tracing::info!(session = %live.session.id, vm = %live.vm.id, "session created");
            let (entry, new) = inner.board.insert(live.session.clone(), live.vm.clone());
            if new {
                entry.set_sign_in(sign_in);
                self.spawn_actor(entry);
            }
        }
        Ok((live, created.replayed))
    }
}

/// What an earlier request with the same key made: also a host that is full answers with that.
async fn made_before(
    inner: &Inner,
    request: &CreateRequest,
) -> Result<Option<(Live, bool)>, ControlError> {
    let Some(key) = &request.key else { return Ok(None) };
    let made = inner.store.made_with(request.owner, key.clone()).await?;
    Ok(made.map(|made| (Live { session: made.session, vm: made.vm }, true)))
}

/// The sign-in of a new session, when its provider has a tool.
fn new_sign_in(
    inner: &Inner,
    request: &CreateRequest,
    session: SessionId,
    now: Timestamp,
) -> Option<SignIn> {
    let asked = request.sign_in.as_ref()?;
    let provider = inner.providers.find(&request.spec.provider)?;
    let tool = provider.tool.as_ref()?;
    Some(SignIn {
        session,
        provider: provider.name.clone(),
        flow: tool.flow,
        run: 0,
        step: SignInStep::Machine,
        step_since: now,
        url: None,
        user_code: None,
        wants_input: false,
        outcome: None,
        why: None,
        output: String::new(),
        recipients: asked.recipients.clone(),
        webhook: asked.webhook.clone(),
        expires_at: None,
        generation: Generation::FIRST,
    })
}

fn new_records(
    inner: &Inner,
    request: &CreateRequest,
    image: &ImageRef,
    now: Timestamp,
) -> Result<(Session, Vm), ControlError> {
    let id = SessionId::from_uuid(Uuid::now_v7());
    let vm = new_vm(inner, id, &image.digest, now)?;
    let session = Session {
        id,
        owner: request.owner,
        spec: request.spec.clone(),
        state: SessionState::Requested,
        vm: Some(vm.id),
        end_reason: None,
        detail: None,
        attempts: 0,
        lease_expires_at: now + inner.config.lease,
        last_heartbeat_at: now,
        checkpoint: None,
        created_at: now,
        state_since: now,
        ready_at: None,
        ended_at: None,
        generation: Generation::FIRST,
    };
    Ok((session, vm))
}

/// A VM for a session: a row, and nothing on the machine yet.
pub(crate) fn new_vm(
    inner: &Inner,
    session: SessionId,
    image: &str,
    now: Timestamp,
) -> Result<Vm, ControlError> {
    Ok(Vm {
        id: VmId::from_uuid(Uuid::now_v7()),
        session: Some(session),
        host: inner.host,
        state: VmState::Planned,
        driver: inner.driver.name().to_owned(),
        image: image.to_owned(),
        address: None,
        incarnation: 0,
        secret: Some(random_hex::<32>()?),
        created_at: now,
        state_since: now,
        generation: Generation::FIRST,
    })
}
