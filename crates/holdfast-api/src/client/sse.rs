//! Server-Sent Events: reading a timeline as it goes on.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{ClientError, Result};
use crate::{Event, Session};

/// Longest message that is taken; a timeline's are far smaller.
const LONGEST: usize = 1 << 20;

/// Something that happened to a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// An entry of its timeline.
    Event(Event),
    /// The session, as it is now.
    Session(Box<Session>),
}

/// A timeline that goes on. When it breaks, follow again from [`EventStream::last`].
pub struct EventStream {
    body: Incoming,
    buffer: BytesMut,
    last: i64,
}

impl EventStream {
    pub(super) fn new(body: Incoming, after: i64) -> Self {
        Self { body, buffer: BytesMut::new(), last: after }
    }

    /// Number of the last event that was read.
    pub fn last(&self) -> i64 {
        self.last
    }

    /// The next update; `None` when the server ended the stream.
    pub async fn next(&mut self) -> Result<Option<Update>> {
        loop {
            while let Some(block) = take_block(&mut self.buffer) {
                if let Some(update) = parse(&block)? {
                    if let Update::Event(event) = &update {
                        self.last = event.seq;
                    }
                    return Ok(Some(update));
                }
            }
            if self.buffer.len() > LONGEST {
                return Err(ClientError::Protocol { why: "an event does not end".to_owned() });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::Broken { source: Box::new(error) }),
            }
        }
    }
}

/// Takes one message off the buffer, up to and without its empty line.
fn take_block(buffer: &mut BytesMut) -> Option<Bytes> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block = buffer.split_to(end).freeze();
    buffer.advance(2);
    Some(block)
}

/// `None`: a comment, or an event that this version does not know.
fn parse(block: &[u8]) -> Result<Option<Update>> {
    let text = std::str::from_utf8(block)
        .map_err(|_| ClientError::Protocol { why: "an event is not UTF-8".to_owned() })?;
    let (mut kind, mut data) = ("", String::new());
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => kind = value,
            "data" => {
                if !data.is_empty() {
                    data.push('\n');
                }
                data.push_str(value);
            }
            _ => {}
        }
    }
    if data.is_empty() {
        return Ok(None);
    }
    if kind == "session" {
        return super::parse(data.as_bytes()).map(|session| Some(Update::Session(session)));
    }
    Ok(serde_json::from_str(&data).ok().map(Update::Event))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: &str =
        r#"{"seq":7,"at":"2026-01-01T00:00:00Z","kind":"step.disk","why":"w","by":"host"}"#;

    #[test]
    fn messages_come_out_whole_whatever_the_pieces_were() {
        let wire =
            format!(":\n\nid: 7\nevent: step.disk\ndata: {EVENT}\n\nevent: resync\ndata: {{}}\n\n");
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in wire.bytes() {
            buffer.extend_from_slice(&[byte]);
            while let Some(block) = take_block(&mut buffer) {
                found.extend(parse(&block).expect("well formed"));
            }
        }
        assert_eq!(found.len(), 1, "comments and unknown events are passed over: {found:?}");
        assert!(matches!(&found[0], Update::Event(event) if event.seq == 7), "{found:?}");
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_session_that_cannot_be_read_is_an_error() {
        assert!(parse(b"event: session\ndata: {}").is_err());
    }
}
