//! The protobuf wire format, read without copying and without a schema, and written field by field.
//!
//! Owns no meaning: `schema` says what a field is. Lengths and varints are checked, so no input can make it panic.

use smallvec::SmallVec;

/// A value as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Raw<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

impl<'a> Raw<'a> {
    /// The bytes of wire type 2, else none.
    pub(super) fn bytes(self) -> Option<&'a [u8]> {
        if let Raw::Bytes(b) = self { Some(b) } else { None }
    }

    /// The value of wire type 0, else none.
    pub(super) fn varint(self) -> Option<u64> {
        if let Raw::Varint(v) = self { Some(v) } else { None }
    }

    /// True for zero and for no bytes: what a field without presence has when it isn't set.
    pub(super) fn is_default(self) -> bool {
        matches!(self, Raw::Varint(0) | Raw::Fixed32(0) | Raw::Fixed64(0) | Raw::Bytes(&[]))
    }

    /// The text of wire type 2 if it is UTF-8, else none.
    pub(super) fn text(self) -> Option<&'a str> {
        self.bytes().and_then(|b| std::str::from_utf8(b).ok())
    }
}

/// The bytes are not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid protobuf encoding")]
pub(super) struct Malformed;

/// Fields of a message in the order of the bytes.
pub(super) struct Fields<'a>(&'a [u8]);

/// Reads the fields of an encoded message.
pub(super) fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields(bytes)
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Raw<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = field(&mut self.0);
        if item.is_err() {
            self.0 = &[];
        }
        Some(item)
    }
}

fn field<'a>(rest: &mut &'a [u8]) -> Result<(u32, Raw<'a>), Malformed> {
    let tag = varint(rest)?;
    let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n)).ok_or(Malformed)?;
    let value = match tag & 7 {
        0 => Raw::Varint(varint(rest)?),
        1 => Raw::Fixed64(u64::from_le_bytes(take(rest, 8)?.try_into().map_err(|_| Malformed)?)),
        2 => {
            let length = usize::try_from(varint(rest)?).map_err(|_| Malformed)?;
            Raw::Bytes(take(rest, length)?)
        }
        5 => Raw::Fixed32(u32::from_le_bytes(take(rest, 4)?.try_into().map_err(|_| Malformed)?)),
        // Groups don't occur in proto3.
        _ => return Err(Malformed),
    };
    Ok((number, value))
}

/// Takes a varint off the front.
pub(super) fn varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (first, tail) = rest.split_first().ok_or(Malformed)?;
        *rest = tail;
        value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = tail;
    Ok(head)
}

/// Values of one field number, in order.
pub(super) type Values<'a> = SmallVec<[Raw<'a>; 2]>;

/// The fields of a message, grouped by number, in the order of the first occurrence.
pub(super) fn grouped(bytes: &[u8]) -> Result<Vec<(u32, Values<'_>)>, Malformed> {
    let mut groups: Vec<(u32, Values<'_>)> = Vec::new();
    for item in fields(bytes) {
        let (number, value) = item?;
        match groups.iter_mut().find(|(n, _)| *n == number) {
            Some((_, values)) => values.push(value),
            None => groups.push((number, SmallVec::from_iter([value]))),
        }
    }
    Ok(groups)
}

/// Writes a varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a field.
pub(super) fn put(out: &mut Vec<u8>, number: u32, value: Raw<'_>) {
    let wire = match value {
        Raw::Varint(_) => 0,
        Raw::Fixed64(_) => 1,
        Raw::Bytes(_) => 2,
        Raw::Fixed32(_) => 5,
    };
    put_varint(out, u64::from(number) << 3 | wire);
    match value {
        Raw::Varint(v) => put_varint(out, v),
        Raw::Fixed64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Raw::Fixed32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Raw::Bytes(b) => {
            put_varint(out, b.len() as u64);
            out.extend_from_slice(b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let written =
            [(1, Raw::Varint(u64::MAX)), (300, Raw::Bytes(b"xy")), (7, Raw::Fixed32(9)), (8, Raw::Fixed64(1 << 60))];
        let mut bytes = Vec::new();
        for (number, value) in written {
            put(&mut bytes, number, value);
        }
        let read: Result<Vec<_>, _> = fields(&bytes).collect();
        assert_eq!(read, Ok(written.to_vec()));
    }

    #[test]
    fn every_truncation_is_malformed_or_shorter() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, Raw::Bytes(&[7; 20]));
        for end in 1..bytes.len() {
            assert_eq!(fields(&bytes[..end]).collect::<Result<Vec<_>, _>>(), Err(Malformed), "cut at {end}");
        }
    }

    #[test]
    fn groups_field_zero_and_endless_varints_are_malformed() {
        for bytes in [&[0x0b][..], &[0x00, 0x00], &[0xff; 12]] {
            assert!(fields(bytes).any(|f| f.is_err()), "{bytes:?}");
        }
    }
}
