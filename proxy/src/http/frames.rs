//! A budget of HTTP/2 frames that bring nothing: a client that sends SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM or
//! empty DATA without end costs work and gets none done, so its connection is cut.
//!
//! Pure: reads the bytes that hyper is given as well, frame by frame, and never changes them. Requests, data in either
//! direction and time earn the budget back, so that long downloads (WINDOW_UPDATE only) and keep-alives are safe.

use std::time::Duration;

/// Frames without use that a client may be ahead.
const BUDGET: u32 = 8_000;
/// Earned by each request and each DATA frame with data.
const PER_USEFUL_FRAME: u32 = 4;
/// Bytes written to the client that earn one frame.
const BYTES_PER_FRAME: u64 = 256;
/// Earned per second.
const PER_SECOND: u32 = 20;
/// RFC 9113 section 4.1.
const HEADER_BYTES: usize = 9;
const PREFACE_BYTES: u32 = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Frames {
    left: u32,
    /// Payload (at first: preface) still to be skipped.
    skip: u32,
    header: [u8; HEADER_BYTES],
    have: usize,
    written: u64,
    refilled: Duration,
}

/// The budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client sent more than {BUDGET} HTTP/2 frames that bring nothing")]
pub(super) struct Flood;

impl Frames {
    /// For a connection at its preface.
    pub(super) fn new() -> Self {
        Self {
            left: BUDGET,
            skip: PREFACE_BYTES,
            header: [0; HEADER_BYTES],
            have: 0,
            written: 0,
            refilled: Duration::ZERO,
        }
    }

    /// Sees bytes from the client. `now` is any clock that does not go back.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: impl FnOnce() -> Duration) -> Result<(), Flood> {
        if self.left < BUDGET / 2 {
            self.refill(now());
        }
        while !bytes.is_empty() {
            let skipped = bytes.len().min(self.skip as usize);
            self.skip -= skipped as u32;
            bytes = &bytes[skipped..];
            let part = bytes.len().min(HEADER_BYTES - self.have);
            self.header[self.have..self.have + part].copy_from_slice(&bytes[..part]);
            self.have += part;
            bytes = &bytes[part..];
            if self.have == HEADER_BYTES {
                self.have = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    /// Sees that bytes went to the client.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
        if self.written >= BYTES_PER_FRAME {
            let earned = u32::try_from(self.written / BYTES_PER_FRAME).unwrap_or(u32::MAX);
            self.written %= BYTES_PER_FRAME;
            self.earn(earned);
        }
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, flags, ..] = self.header;
        self.skip = u32::from_be_bytes([0, a, b, c]);
        let useful = match kind {
            HEADERS => true,
            DATA => self.skip > 0 || flags & END_STREAM != 0,
            // Bounded by the size of header lists.
            CONTINUATION => return Ok(()),
            _ => false,
        };
        if useful {
            self.earn(PER_USEFUL_FRAME);
            return Ok(());
        }
        self.left = self.left.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }

    fn refill(&mut self, now: Duration) {
        let seconds = now.saturating_sub(self.refilled).as_secs();
        if seconds > 0 {
            self.refilled = now;
            self.earn(u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND));
        }
    }

    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(BUDGET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER_BYTES + payload, 0);
        frame
    }

    fn opened() -> Frames {
        let mut frames = Frames::new();
        frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || Duration::ZERO).unwrap();
        frames
    }

    fn flooded(frames: &mut Frames, one: &[u8], seconds: u64) -> Option<usize> {
        (0..20_000).position(|_| frames.read(one, || Duration::from_secs(seconds)).is_err())
    }

    #[test]
    fn floods_end_before_ten_thousand_frames_however_they_are_cut() {
        for one in [frame(PING, 0, 8), frame(4, 0, 0), frame(2, 0, 5), frame(WINDOW_UPDATE, 0, 4), frame(DATA, 0, 0)] {
            assert_eq!(flooded(&mut opened(), &one, 0), Some(BUDGET as usize), "{one:?}");
        }
        let mut frames = opened();
        let stream = frame(PING, 0, 8).repeat(BUDGET as usize + 1);
        let fits = stream.chunks(7).try_for_each(|chunk| frames.read(chunk, || Duration::ZERO));
        assert_eq!(fits, Err(Flood));
    }

    #[test]
    fn requests_and_data_are_never_a_flood() {
        for one in [frame(HEADERS, 5, 40), frame(DATA, 0, 1), frame(DATA, END_STREAM, 0), frame(CONTINUATION, 4, 9)] {
            assert_eq!(flooded(&mut opened(), &one, 0), None, "{one:?}");
        }
    }

    #[test]
    fn downloads_and_keep_alives_earn_their_frames() {
        let mut frames = opened();
        for _ in 0..100_000 {
            frames.wrote(16 << 10);
            frames.read(&frame(WINDOW_UPDATE, 0, 4), || Duration::ZERO).unwrap();
        }
        let mut frames = opened();
        for second in 0..100_000 {
            frames.read(&frame(PING, 0, 8), || Duration::from_secs(second)).unwrap();
        }
    }
}
