//! HTTP/2 written by hand, so that it can be wrong.

/// Type of DATA frames (RFC 9113 section 6.1).
pub const DATA: u8 = 0;
/// Type of HEADERS frames.
pub const HEADERS: u8 = 1;
/// Type of PRIORITY frames.
pub const PRIORITY: u8 = 2;
/// Type of RST_STREAM frames.
pub const RST_STREAM: u8 = 3;
/// Type of SETTINGS frames.
pub const SETTINGS: u8 = 4;
/// Type of PUSH_PROMISE frames.
pub const PUSH_PROMISE: u8 = 5;
/// Type of PING frames.
pub const PING: u8 = 6;
/// Type of GOAWAY frames.
pub const GOAWAY: u8 = 7;
/// Type of WINDOW_UPDATE frames.
pub const WINDOW_UPDATE: u8 = 8;
/// Type of CONTINUATION frames.
pub const CONTINUATION: u8 = 9;
/// Flag: the stream's last frame; of SETTINGS and PING: an answer.
pub const END_STREAM: u8 = 1;
/// Flag: the head's last frame.
pub const END_HEADERS: u8 = 4;

/// A frame.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The client's preface with these SETTINGS.
#[must_use]
pub fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut payload = Vec::new();
    for (id, value) in settings {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    bytes.extend(frame(SETTINGS, 0, 0, &payload));
    bytes
}

/// HPACK of header fields: literal, never indexed, no Huffman code.
#[must_use]
pub fn fields(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0x10);
        string(&mut bytes, name.as_bytes());
        string(&mut bytes, value);
    }
    bytes
}

/// A literal that goes to the dynamic table, as its newest entry (index 62).
#[must_use]
pub fn indexed_field(name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40];
    string(&mut bytes, name.as_bytes());
    string(&mut bytes, value);
    bytes
}

fn string(bytes: &mut Vec<u8>, text: &[u8]) {
    // RFC 7541 section 5.1 with a prefix of seven bits.
    if text.len() < 127 {
        bytes.push(text.len() as u8);
    } else {
        bytes.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            bytes.push((rest % 128) as u8 | 0x80);
            rest /= 128;
        }
        bytes.push(rest as u8);
    }
    bytes.extend(text);
}

/// A GET's head.
#[must_use]
pub fn get(path: &str) -> Vec<u8> {
    request("GET", path, &[])
}

/// A request's head with more fields after the pseudo fields.
#[must_use]
pub fn request(method: &str, path: &str, more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all: Vec<(&str, &[u8])> =
        vec![(":method", method.as_bytes()), (":scheme", b"http"), (":path", path.as_bytes()), (":authority", b"h")];
    all.extend(more);
    fields(&all)
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Type.
    pub kind: u8,
    /// Flags.
    pub flags: u8,
    /// Stream, 0 for the connection.
    pub stream: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A response's head by its status: the first field, from the static table or with its name from there.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
        if self.kind != HEADERS {
            return None;
        }
        match *self.payload.as_slice() {
            [first @ 0x88..=0x8e, ..] => Some(STATIC[usize::from(first - 0x88)]),
            // A literal: Huffman code has five bits for 0 to 2, six for 3 to 9.
            [0x48 | 0x08, 0x82, a, b, ..] => huffman(u32::from_be_bytes([a, b, 0xff, 0xff])),
            [0x48 | 0x08, 0x83, a, b, c, ..] => huffman(u32::from_be_bytes([a, b, c, 0xff])),
            [0x48 | 0x08, 3, a, b, c, ..] => std::str::from_utf8(&[a, b, c]).ok()?.parse().ok(),
            _ => None,
        }
    }

    /// The error code of RST_STREAM or GOAWAY.
    #[must_use]
    pub fn error(&self) -> Option<u32> {
        let at = match self.kind {
            RST_STREAM => 0,
            GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }
}

/// Three digits in Huffman code, from the top bit on.
fn huffman(bits: u32) -> Option<u16> {
    let (mut number, mut used) = (0, 0);
    for _ in 0..3 {
        let rest = bits << used;
        // Codes 00000 to 00010 are 0 to 2; 011001 to 011111 are 3 to 9 (RFC 7541 appendix B).
        let (digit, length) = match (rest >> 27, rest >> 26) {
            (short @ 0..=2, _) => (short, 5),
            (_, long @ 0x19..=0x1f) => (long - 0x19 + 3, 6),
            _ => return None,
        };
        number = number * 10 + digit as u16;
        used += length;
    }
    Some(number)
}

/// The whole frames in `bytes`.
#[must_use]
pub fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(payload) = rest.get(..length) else { break };
        let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]) & 0x7fff_ffff;
        frames.push(Frame { kind: *kind, flags: *flags, stream, payload: payload.to_vec() });
        bytes = &rest[length..];
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_each_form() {
        let head = |payload: &[u8]| Frame { kind: HEADERS, flags: 0, stream: 1, payload: payload.to_vec() };
        assert_eq!(head(&[0x88, 1]).status(), Some(200));
        assert_eq!(head(&[0x8d]).status(), Some(404));
        assert_eq!(head(&[0x08, 3, b'4', b'0', b'3']).status(), Some(403));
        // RFC 7541 appendix C.6.1: 302 is 6402.
        assert_eq!(head(&[0x48, 0x82, 0x64, 0x02]).status(), Some(302));
        // 403 takes 17 bits: 011010 00000 011001.
        assert_eq!(head(&[0x48, 0x83, 0x68, 0x0c, 0xff]).status(), Some(403));
        assert_eq!(head(&[0xbf]).status(), None);
    }

    #[test]
    fn frames_are_read_as_they_are_written() {
        let bytes = [frame(PING, 1, 0, &[7; 8]), frame(DATA, 0, 3, b"x")].concat();
        let frames = parse(&bytes[..bytes.len() - 1]);
        assert_eq!(frames, [Frame { kind: PING, flags: 1, stream: 0, payload: vec![7; 8] }]);
        assert_eq!(parse(&bytes).len(), 2);
    }
}
