//! What a viewer says to a VNC server (RFC 6143 and the extensions in use): which of it is input,
//! and what one who may only look is allowed to say.
//!
//! Reads along at the level of messages and keeps nothing but the head of the one under way. Must
//! never guess: a message that is not known here ends a view-only stream.

use std::cmp::min;

/// Why a view-only stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unknown;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Version,
    Security,
    Init,
    Messages,
    /// Of a viewer that may do anything: something unknown was said, and everything is input since.
    Lost,
}

/// What a message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Asks for pictures.
    View,
    /// Types, clicks or pastes.
    Input,
    /// Changes something else, such as the screen's size.
    Change,
}

/// Follows one viewer.
#[derive(Debug)]
pub(crate) struct Client {
    view_only: bool,
    phase: Phase,
    head: Vec<u8>,
    /// Bytes of the message that are still to come, and whether they are passed on.
    left: u64,
    passes: bool,
}

impl Client {
    pub(crate) fn new(view_only: bool) -> Self {
        Self { view_only, phase: Phase::Version, head: Vec::new(), left: 0, passes: true }
    }

    /// Takes in what the viewer sent. Appends what may be passed on to `out`; answers whether the
    /// viewer did something.
    pub(crate) fn take(&mut self, mut data: &[u8], out: &mut Vec<u8>) -> Result<bool, Unknown> {
        let mut used = false;
        while let Some((first, rest)) = data.split_first() {
            if self.phase == Phase::Lost {
                out.extend_from_slice(data);
                return Ok(true);
            }
            if self.left > 0 {
                let (body, rest) = data.split_at(min(self.left, data.len() as u64) as usize);
                if self.passes {
                    out.extend_from_slice(body);
                }
                self.left -= body.len() as u64;
                data = rest;
                continue;
            }
            self.head.push(*first);
            data = rest;
            match self.step(out) {
                Ok(input) => used |= input,
                Err(unknown) if self.view_only => return Err(unknown),
                Err(_) => {
                    self.phase = Phase::Lost;
                    out.append(&mut self.head);
                    used = true;
                }
            }
        }
        Ok(used)
    }

    /// Looks whether the head is complete. Answers whether it is input.
    fn step(&mut self, out: &mut Vec<u8>) -> Result<bool, Unknown> {
        match self.phase {
            Phase::Version => {
                if self.head.len() < 12 {
                    return Ok(false);
                }
                if !matches!(self.head.as_slice(), b"RFB 003.008\n" | b"RFB 003.007\n") {
                    return Err(Unknown);
                }
                self.phase = Phase::Security;
            }
            Phase::Security => {
                // Guests ask for no password; another scheme would say more here.
                if self.head != [1] {
                    return Err(Unknown);
                }
                self.phase = Phase::Init;
            }
            Phase::Init => {
                if self.view_only {
                    // Asking for the desktop alone would throw everybody else out.
                    self.head[0] = 1;
                }
                self.phase = Phase::Messages;
            }
            Phase::Messages => {
                let Some((kind, left)) = message(&self.head)? else { return Ok(false) };
                self.left = left;
                self.passes = kind == Kind::View || !self.view_only;
                if self.passes {
                    out.append(&mut self.head);
                }
                self.head.clear();
                return Ok(kind == Kind::Input);
            }
            Phase::Lost => {}
        }
        out.append(&mut self.head);
        Ok(false)
    }
}

/// What a message is, and how much of it follows its head; `None` while more of the head is needed.
fn message(head: &[u8]) -> Result<Option<(Kind, u64)>, Unknown> {
    let u16_at = |at: usize| u64::from(u16::from_be_bytes([head[at], head[at + 1]]));
    let i32_at =
        |at: usize| i32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (kind, length) = match head[0] {
        0 => (Kind::View, 20),
        2 => (Kind::View, 4),
        3 | 150 => (Kind::View, 10),
        248 => (Kind::View, 9),
        4 | 6 => (Kind::Input, 8),
        // With its highest bit set, the mask of buttons has a second byte.
        5 => match head.get(1) {
            None => return Ok(None),
            Some(mask) if mask & 0x80 != 0 => (Kind::Input, 7),
            Some(_) => (Kind::Input, 6),
        },
        250 => (Kind::Change, 4),
        251 => (Kind::Change, 8),
        255 => match head.get(1) {
            None => return Ok(None),
            Some(0) => (Kind::Input, 12),
            Some(_) => return Err(Unknown),
        },
        _ => return Err(Unknown),
    };
    if head.len() < length {
        return Ok(None);
    }
    let left = match head[0] {
        2 => u16_at(2) * 4,
        // Negative in the extended form.
        6 => u64::from(i32_at(4).unsigned_abs()),
        248 => u64::from(head[8]),
        251 => u64::from(head[6]) * 16,
        _ => 0,
    };
    Ok(Some((kind, left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = b"RFB 003.008\n\x01\x00";

    fn viewer(view_only: bool) -> Client {
        let mut client = Client::new(view_only);
        let mut out = Vec::new();
        assert_eq!(client.take(HELLO, &mut out), Ok(false));
        let shared = u8::from(view_only);
        assert_eq!(out, [b"RFB 003.008\n\x01".as_slice(), &[shared]].concat());
        client
    }

    fn looks() -> Vec<Vec<u8>> {
        let mut pixel_format = vec![0; 20];
        pixel_format[4] = 32;
        vec![
            pixel_format,
            [&[2, 0, 0, 2][..], &7_i32.to_be_bytes(), &(-308_i32).to_be_bytes()].concat(),
            vec![3, 1, 0, 0, 0, 0, 5, 0, 3, 32],
            vec![150, 1, 0, 0, 0, 0, 5, 0, 3, 32],
            vec![248, 0, 0, 0, 0, 0, 0, 1, 3, 4, 5, 6],
        ]
    }

    fn input() -> Vec<Vec<u8>> {
        vec![
            vec![4, 1, 0, 0, 0, 0, 0, 97],
            vec![5, 1, 0, 10, 0, 10],
            vec![5, 0x80, 0, 10, 0, 10, 1],
            [&[6, 0, 0, 0, 0, 0, 0, 5][..], b"paste"].concat(),
            [&[6, 0, 0, 0][..], &(-8_i32).to_be_bytes(), &[1, 0, 0, 1, 3, 3, 3, 3]].concat(),
            vec![255, 0, 0, 1, 0, 0, 0, 97, 0, 0, 0, 30],
        ]
    }

    fn changes() -> Vec<Vec<u8>> {
        vec![[&[251, 0, 4, 0, 3, 0, 1, 0][..], &[0; 16]].concat(), vec![250, 0, 1, 2]]
    }

    #[test]
    fn one_who_may_only_look_types_clicks_pastes_and_resizes_nothing() {
        // However the stream is cut into messages of the WebSocket.
        for cut in [1, 3, 7, 4096] {
            let mut client = viewer(true);
            let (mut said, mut allowed, mut out) = (Vec::new(), Vec::new(), Vec::new());
            for look in looks() {
                for other in input().into_iter().chain(changes()) {
                    said.extend_from_slice(&other);
                    said.extend_from_slice(&look);
                    allowed.extend_from_slice(&look);
                }
            }
            for part in said.chunks(cut) {
                client.take(part, &mut out).expect("it is allowed");
            }
            assert_eq!(out, allowed, "cut into {cut}");
        }
    }

    #[test]
    fn one_who_may_do_anything_does_and_is_seen_to() {
        let mut client = viewer(false);
        for (messages, used) in [(looks(), false), (changes(), false), (input(), true)] {
            for message in messages {
                let mut out = Vec::new();
                assert_eq!(client.take(&message, &mut out), Ok(used), "{message:?}");
                assert_eq!(out, message);
            }
        }
    }

    #[test]
    fn what_is_unknown_ends_a_view_only_stream_and_no_other() {
        for unknown in [&[252][..], &[255, 1], &[7], &[1], &[128]] {
            assert_eq!(viewer(true).take(unknown, &mut Vec::new()), Err(Unknown), "{unknown:?}");
            let mut out = Vec::new();
            let mut client = viewer(false);
            assert_eq!(client.take(unknown, &mut out), Ok(true), "{unknown:?}");
            client.take(&[9, 9], &mut out).expect("it is allowed");
            assert_eq!(out, [unknown, &[9, 9]].concat());
        }
        for hello in [&b"RFB 003.003\n"[..], b"GET / HTTP/1.1", b"RFB 003.008\n\x02"] {
            let mut client = Client::new(true);
            assert_eq!(client.take(hello, &mut Vec::new()), Err(Unknown));
        }
    }
}
