//! The sign-in tool of a simulated guest: it speaks the agent's protocol and does what it is told.
//!
//! Left alone, a tool shows its link (and its code) at once, takes any text for the provider's code
//! and is then signed in, except that `refuse`, `expire` and `crash` are taken for what they say.
//! [`super::SimDriver::hold_tools`] leaves everything to the test.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_agent_api::tool::{
    Bundle, BundleFile, CollectRequest, Collected, CollectedFile, Flow, Link, LinkSource, Outcome,
    ToolInput, ToolRequest, ToolState, ToolStatus,
};
use holdfast_core::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Why a call is refused: a status of HTTP and a sentence.
pub(super) type Refusal = (u16, String);

/// A run as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    request: ToolRequest,
    status: ToolStatus,
    /// What was typed, one line each.
    typed: Vec<String>,
    /// How often the link was opened.
    opened: u32,
    /// Answer to whoever collects the credentials, instead of them.
    lost: Option<String>,
}

/// The tool of one guest. Clones are one tool.
#[derive(Clone)]
pub struct SimTool {
    run: Arc<Mutex<Option<Run>>>,
    /// Revision of the run, to wait for.
    revision: watch::Sender<u64>,
    /// Told of every change.
    keep: Arc<dyn Fn(Option<Run>) + Send + Sync>,
    held: bool,
}

impl SimTool {
    pub(super) fn new(
        run: Option<Run>,
        held: bool,
        keep: impl Fn(Option<Run>) + Send + Sync + 'static,
    ) -> Self {
        let revision = watch::Sender::new(run.as_ref().map_or(0, |run| run.status.revision));
        Self { run: Arc::new(Mutex::new(run)), revision, keep: Arc::new(keep), held }
    }

    fn locked(&self) -> MutexGuard<'_, Option<Run>> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Run)) {
        let mut run = self.locked();
        let Some(it) = run.as_mut() else { return };
        change(it);
        it.status.revision += 1;
        let revision = it.status.revision;
        (self.keep)(run.clone());
        drop(run);
        self.revision.send_replace(revision);
    }

    /// What the host asked for, once it did.
    pub fn request(&self) -> Option<ToolRequest> {
        self.locked().as_ref().map(|run| run.request.clone())
    }

    /// What was typed in this run.
    pub fn typed(&self) -> Vec<String> {
        self.locked().as_ref().map(|run| run.typed.clone()).unwrap_or_default()
    }

    /// How often the host asked for the link to be opened in this run.
    pub fn opened(&self) -> u32 {
        self.locked().as_ref().map_or(0, |run| run.opened)
    }

    /// Shows a link, as if the tool had asked for a browser.
    pub fn show_link(&self, url: &str) {
        self.change(|run| {
            run.status.state = ToolState::Waiting;
            run.status.wants_input = run.request.flow == Flow::PasteCode;
            run.status.link = Some(Link {
                url: url.to_owned(),
                source: LinkSource::Browser,
                caught_at: Timestamp::now(),
                opened: true,
            });
        });
    }

    /// Shows a code for the provider's page.
    pub fn show_code(&self, code: &str) {
        self.change(|run| run.status.user_code = Some(code.to_owned()));
    }

    /// Prints, as the agent shows it: the last 4 KiB.
    pub fn print(&self, text: &str) {
        self.change(|run| {
            let output = &mut run.status.output;
            output.push_str(text);
            let start = output.len().saturating_sub(4 << 10);
            let start = (start..=output.len()).find(|at| output.is_char_boundary(*at));
            output.drain(..start.unwrap_or(0));
        });
    }

    /// Ends.
    pub fn end(&self, outcome: Outcome) {
        self.change(|run| {
            let ok = outcome == Outcome::Succeeded;
            run.status.state = ToolState::Ended;
            run.status.wants_input = false;
            run.status.exit_code = Some(i32::from(!ok));
            run.status.outcome = Some(outcome);
        });
    }

    /// Lets the credentials not be there when they are collected.
    pub fn lose_credentials(&self, why: &str) {
        self.change(|run| run.lost = Some(why.to_owned()));
    }

    /// `POST /v1/tool`.
    pub(super) fn start(&self, request: ToolRequest) -> Result<ToolStatus, Refusal> {
        let mut run = self.locked();
        let mut revision = 0;
        if let Some(before) = run.as_ref() {
            let number = before.status.run;
            if number == request.run {
                return Ok(before.status.clone());
            }
            if number > request.run {
                return Err((409, format!("run {number} is newer than run {}", request.run)));
            }
            revision = before.status.revision;
        }
        let status = ToolStatus {
            run: request.run,
            revision: revision + 1,
            state: ToolState::Starting,
            link: None,
            user_code: None,
            wants_input: false,
            outcome: None,
            exit_code: None,
            output: String::new(),
            refused_links: Vec::new(),
            started_at: Timestamp::now(),
        };
        let flow = request.flow;
        *run = Some(Run { request, status, typed: Vec::new(), opened: 0, lost: None });
        (self.keep)(run.clone());
        drop(run);
        self.revision.send_replace(revision + 1);
        if !self.held {
            if flow == Flow::DeviceCode {
                self.show_code("SIMU-LATE");
            }
            let state = uuid::Uuid::new_v4().simple();
            self.show_link(&format!("https://sign-in.invalid/authorize?state={state}"));
        }
        self.status()
    }

    fn status(&self) -> Result<ToolStatus, Refusal> {
        let run = self.locked();
        let run = run.as_ref().ok_or_else(|| (404, "there was no run yet".to_owned()))?;
        Ok(run.status.clone())
    }

    /// `GET /v1/tool`.
    pub(super) async fn newer_than(
        &self,
        revision: u64,
        wait: std::time::Duration,
    ) -> Result<ToolStatus, Refusal> {
        self.status()?;
        let mut seen = self.revision.subscribe();
        // Without news the state of before is the answer.
        let _ = tokio::time::timeout(wait, seen.wait_for(|now| *now > revision)).await;
        self.status()
    }

    fn current(&self, number: u32) -> Result<Run, Refusal> {
        match self.locked().clone() {
            None => Err((404, "there was no run yet".to_owned())),
            Some(run) if run.status.run == number => Ok(run),
            Some(run) => Err((409, format!("the current run is number {}", run.status.run))),
        }
    }

    /// `POST /v1/tool/input`.
    pub(super) fn input(&self, input: &ToolInput) -> Result<ToolStatus, Refusal> {
        let run = self.current(input.run)?;
        if run.status.state == ToolState::Ended {
            return Err((409, "the run has ended".to_owned()));
        }
        self.change(|run| {
            run.typed.push(input.text.clone());
            run.status.wants_input = false;
        });
        if !self.held {
            self.end(match input.text.as_str() {
                "refuse" => Outcome::Refused,
                "expire" => Outcome::Expired,
                "crash" => Outcome::Failed { why: "the simulated tool crashed".to_owned() },
                _ => Outcome::Succeeded,
            });
        }
        self.status()
    }

    /// `POST /v1/tool/open`.
    pub(super) fn open(&self, number: u32) -> Result<ToolStatus, Refusal> {
        if self.current(number)?.status.link.is_none() {
            return Err((409, "the run has no link yet".to_owned()));
        }
        self.change(|run| run.opened += 1);
        self.status()
    }

    /// `POST /v1/tool/collect`: every credential with a content that names it.
    pub(super) fn collect(&self, request: &CollectRequest) -> Result<Collected, Refusal> {
        let run = self.current(request.run)?;
        if run.status.outcome != Some(Outcome::Succeeded) {
            return Err((409, "the run did not succeed, it has no credentials".to_owned()));
        }
        if let Some(why) = run.lost {
            return Err((500, why));
        }
        let (mut files, mut listed) = (Vec::new(), Vec::new());
        for credential in &run.request.credentials {
            let content = secret(&credential.path, request.run);
            let (path, mode) = (credential.path.clone(), credential.mode);
            listed.push(CollectedFile { path: path.clone(), size: content.len() as u64, mode });
            files.push(BundleFile {
                path,
                mode,
                content: super::guest::base64(content.as_bytes()),
            });
        }
        let failed = |error: &dyn std::fmt::Display| (500, error.to_string());
        let clear = serde_json::to_vec(&Bundle { files }).map_err(|e| failed(&e))?;
        let recipients = request.recipients.iter().map(|key| key.parse::<age::x25519::Recipient>());
        let recipients: Vec<_> =
            recipients.collect::<Result<_, _>>().map_err(|why| (400, why.to_owned()))?;
        let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|e| failed(&e))?;
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).map_err(|e| failed(&e))?;
        std::io::Write::write_all(&mut writer, &clear).map_err(|e| failed(&e))?;
        writer.finish().map_err(|e| failed(&e))?;
        Ok(Collected { ciphertext: super::guest::base64(&sealed), files: listed })
    }
}

/// What a simulated tool writes to the credential `path` in run `run`.
pub fn secret(path: &str, run: u32) -> String {
    format!("simulated credential of {path}, run {run}, c0ffee5ec2e7\n")
}
