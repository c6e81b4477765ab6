//! `%START_TIME(format)%`: prints a moment in UTC by `strftime` conversions and Envoy's fractions.

use std::{
    cell::RefCell,
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use time::{Month, OffsetDateTime};

use crate::config::access_log::time_conversion;

/// Prints `at` as `2026-01-31T23:59:59.123Z` (Envoy's default) or by `format`, whose conversions were checked before.
pub(super) fn print(out: &mut String, at: SystemTime, format: Option<&str>) {
    let Some(format) = format else { return default(out, at) };
    let at = OffsetDateTime::from(at);
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        out.push_str(&rest[..percent]);
        rest = &rest[percent + 1..];
        let length = time_conversion(rest).unwrap_or(0);
        convert(out, at, &rest.as_bytes()[..length]);
        rest = &rest[length..];
    }
    out.push_str(rest);
}

/// ISO 8601 with milliseconds. The second is printed once per thread: this stands in every line.
fn default(out: &mut String, at: SystemTime) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    // A clock before 1970 is no clock.
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            text.clear();
            let at = OffsetDateTime::from(at);
            date(text, at);
            text.push('T');
            clock(text, at);
            text.push('.');
        }
        out.push_str(text);
    });
    padded(out, since.subsec_millis(), 3);
    out.push('Z');
}

fn convert(out: &mut String, at: OffsetDateTime, conversion: &[u8]) {
    let hour12 = (at.hour() + 11) % 12 + 1;
    let _ = match conversion {
        b"Y" => write!(out, "{}", at.year()),
        b"y" => write!(out, "{:02}", at.year().rem_euclid(100)),
        b"C" => write!(out, "{:02}", at.year().div_euclid(100)),
        b"G" => write!(out, "{}", at.to_iso_week_date().0),
        b"m" => write!(out, "{:02}", u8::from(at.month())),
        b"d" => write!(out, "{:02}", at.day()),
        b"e" => write!(out, "{:2}", at.day()),
        b"j" => write!(out, "{:03}", at.ordinal()),
        b"H" => write!(out, "{:02}", at.hour()),
        b"k" => write!(out, "{:2}", at.hour()),
        b"I" => write!(out, "{hour12:02}"),
        b"l" => write!(out, "{hour12:2}"),
        b"M" => write!(out, "{:02}", at.minute()),
        b"S" => write!(out, "{:02}", at.second()),
        b"s" => write!(out, "{}", at.unix_timestamp()),
        b"p" => write!(out, "{}", if at.hour() < 12 { "AM" } else { "PM" }),
        b"a" => write!(out, "{}", &at.weekday().to_string()[..3]),
        b"A" => write!(out, "{}", at.weekday()),
        b"u" => write!(out, "{}", at.weekday().number_from_monday()),
        b"w" => write!(out, "{}", at.weekday().number_days_from_sunday()),
        b"b" | b"h" => write!(out, "{}", &month(at.month())[..3]),
        b"B" => write!(out, "{}", month(at.month())),
        b"z" => write!(out, "+0000"),
        b"Ez" => write!(out, "+00:00"),
        b"Z" => write!(out, "UTC"),
        b"F" => return date(out, at),
        b"T" => return clock(out, at),
        b"R" => write!(out, "{:02}:{:02}", at.hour(), at.minute()),
        b"D" => write!(out, "{:02}/{:02}/{:02}", u8::from(at.month()), at.day(), at.year().rem_euclid(100)),
        b"n" => write!(out, " "),
        b"t" => write!(out, "\t"),
        b"%" => write!(out, "%"),
        b"f" => write!(out, "{:09}", at.nanosecond()),
        [digits @ b'1'..=b'9', b'f'] | [b'E', digits @ b'1'..=b'9', b'f'] => return fraction(out, at, *digits),
        [b'E', digits @ b'1'..=b'9', b'S'] => {
            let _ = write!(out, "{:02}.", at.second());
            return fraction(out, at, *digits);
        }
        _ => Ok(()),
    };
}

fn date(out: &mut String, at: OffsetDateTime) {
    padded(out, u32::try_from(at.year()).unwrap_or(0), 4);
    out.push('-');
    padded(out, u8::from(at.month()).into(), 2);
    out.push('-');
    padded(out, at.day().into(), 2);
}

fn clock(out: &mut String, at: OffsetDateTime) {
    padded(out, at.hour().into(), 2);
    out.push(':');
    padded(out, at.minute().into(), 2);
    out.push(':');
    padded(out, at.second().into(), 2);
}

/// The last `width` digits of `n`, with zeros in front. By hand: the default time stands in every line.
fn padded(out: &mut String, n: u32, width: u32) {
    for at in (0..width).rev() {
        let digit = n / 10_u32.pow(at) % 10;
        out.push(char::from_digit(digit, 10).unwrap_or('0'));
    }
}

/// The first digits of the second's fraction.
fn fraction(out: &mut String, at: OffsetDateTime, digits: u8) {
    let all = format!("{:09}", at.nanosecond());
    out.push_str(&all[..usize::from(digits - b'0').min(all.len())]);
}

fn month(month: Month) -> &'static str {
    const NAMES: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    NAMES[usize::from(u8::from(month)) - 1]
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn moments_are_printed_by_strftime_and_envoys_fractions() {
        // 2026-03-07 09:08:05.012345678 UTC, a Saturday.
        let at = UNIX_EPOCH + Duration::new(1_772_874_485, 12_345_678);
        for (format, expected) in [
            (None, "2026-03-07T09:08:05.012Z"),
            (Some("%Y-%m-%dT%H:%M:%S.%3fZ"), "2026-03-07T09:08:05.012Z"),
            (Some("%F %T %z %Z"), "2026-03-07 09:08:05 +0000 UTC"),
            (Some("%E3S|%E6S|%9f|%f|%1f"), "05.012|05.012345|012345678|012345678|0"),
            (Some("%s.%3f"), "1772874485.012"),
            (Some("%d/%b/%Y:%H:%M:%S %z"), "07/Mar/2026:09:08:05 +0000"),
            (Some("%a %A %e %j %I%p %y 100%%"), "Sat Saturday  7 066 09AM 26 100%"),
        ] {
            let mut out = String::new();
            print(&mut out, at, format);
            assert_eq!(out, expected, "{format:?}");
        }
        let mut out = String::new();
        for millis in [0, 999, 1_000, 2_001] {
            print(&mut out, UNIX_EPOCH + Duration::from_millis(millis), None);
        }
        assert_eq!(
            out,
            "1970-01-01T00:00:00.000Z1970-01-01T00:00:00.999Z1970-01-01T00:00:01.000Z1970-01-01T00:00:02.001Z"
        );
    }
}
