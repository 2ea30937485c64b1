//! The grammars of values: booleans, numbers, durations, CPU quantities, URIs. Pure functions from text; an
//! error is the reason, and says what would be right.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

pub fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// A plain decimal number within `range`.
pub fn number<T>(range: RangeInclusive<T>) -> impl FnOnce(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let expected = || {
            format!(
                "expected a whole number from {} to {}",
                range.start(),
                range.end()
            )
        };
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(value) if plain && range.contains(&value) => Ok(value),
            Ok(_) | Err(_) => Err(expected()),
        }
    }
}

/// One of a few words.
pub fn choice<T: Copy>(choices: &[(&str, T)]) -> impl FnOnce(&str) -> Result<T, String> {
    move |text| {
        let found = choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        found.ok_or_else(|| format!("expected one of {}", words.join(", ")))
    }
}

/// Terms of a whole number and a unit, written one after the other (`1m30s`) or joined with `+` or `*`. A
/// term without a unit is in seconds, and stands at the end or before an operator.
pub fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| {
        "expected a duration such as 30s, 5m, 1m30s or 500ms; units are y, mon, w, d, h, m, s, ms, us, ns"
            .to_owned()
    })
}

/// Nanoseconds are exact, and u128 holds more than any sum of the terms that fit a `Duration`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut nanos_total = None;
    for product in text.split('+') {
        let mut nanos_product = None;
        for operand in product.split('*') {
            let nanos = juxtaposed_nanos(operand.trim())?;
            nanos_product = Some(match nanos_product {
                None => nanos,
                // The right operand is a number of seconds, as in `2m*3`.
                Some(so_far) => nanos.checked_mul(so_far)? / NANOS_PER_SECOND,
            });
        }
        nanos_total = Some(nanos_total.unwrap_or(0u128).checked_add(nanos_product?)?);
    }
    let nanos = nanos_total?;
    let seconds = u64::try_from(nanos / NANOS_PER_SECOND).ok()?;
    let duration = Duration::new(seconds, (nanos % NANOS_PER_SECOND) as u32);
    Some(duration.min(DURATION_MAX))
}

/// A hundred years stand for ever: sums and multiples with points in time do not overflow, as they would panic.
pub const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

const NANOS_PER_SECOND: u128 = 1_000_000_000;

fn juxtaposed_nanos(text: &str) -> Option<u128> {
    let mut rest = text;
    let mut total = 0u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let tail = tail.trim_start();
        let letters = tail.find(|it: char| !it.is_alphabetic()).unwrap_or(tail.len());
        let (unit, after) = tail.split_at(letters);
        // Without a unit nothing may follow: what could is the next number, and they were one.
        if unit.is_empty() && !after.is_empty() {
            return None;
        }
        total = total.checked_add(u128::from(number).checked_mul(unit_nanos(unit)?)?)?;
        rest = after.trim_start();
    }
    Some(total)
}

fn unit_nanos(unit: &str) -> Option<u128> {
    const MINUTE: u128 = 60 * NANOS_PER_SECOND;
    const DAY: u128 = 24 * 60 * MINUTE;
    Some(match unit.to_lowercase().as_str() {
        "y" | "year" | "years" => 365 * DAY,
        "mon" | "month" | "months" => 30 * DAY,
        "w" | "week" | "weeks" => 7 * DAY,
        "d" | "day" | "days" => DAY,
        "h" | "hr" | "hour" | "hours" => 60 * MINUTE,
        "m" | "min" | "minute" | "minutes" => MINUTE,
        "" | "s" | "sec" | "second" | "seconds" => NANOS_PER_SECOND,
        "ms" | "msec" | "millisecond" | "milliseconds" => 1_000_000,
        // Both code points that are written as a micro sign, in lower case.
        "us" | "usec" | "µs" | "μs" | "microsecond" | "microseconds" => 1_000,
        "ns" | "nsec" | "nanosecond" | "nanoseconds" => 1,
        _ => return None,
    })
}

/// A Kubernetes CPU quantity (`2`, `1.5`, `500m`), rounded up to whole CPUs.
pub fn cpu_quantity(text: &str) -> Result<usize, String> {
    let (number, per_unit) = match text.strip_suffix('m') {
        Some(millis) => (millis, 1000.0),
        None => (text, 1.0),
    };
    let cpus: f64 = number
        .parse()
        .map_err(|_| "must be a CPU quantity such as 2, 1.5 or 500m".to_owned())?;
    let cpus = cpus / per_unit;
    if !cpus.is_finite() || cpus <= 0.0 {
        return Err("must be a positive CPU quantity, such as 2, 1.5 or 500m".to_owned());
    }
    Ok(cpus.ceil() as usize)
}

/// An address of a control-plane server. Without a scheme it is `https`; the empty text stands for none.
pub fn server_uri(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let uri = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let invalid = || format!("invalid uri: {text:?}; expected https://HOST:PORT, or HOST:PORT");
    let (scheme, rest) = uri.split_once("://").ok_or_else(invalid)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        Some(_) | None => (authority, None),
    };
    let legal = |byte: u8| byte.is_ascii_graphic() && !br#""<>\^`{|}@"#.contains(&byte);
    let bracketed = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let host_is_valid = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '[', ']']),
    };
    let port_is_valid = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let scheme_is_valid = matches!(scheme, "http" | "https");
    if !(scheme_is_valid && host_is_valid && port_is_valid && rest.bytes().all(legal)) {
        return Err(invalid());
    }
    Ok(Some(uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_the_grammar_of_ztunnel() {
        for (text, millis) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1m30s", 90_000),
            ("1m30", 90_000),
            ("1m 30s", 90_000),
            ("1h+30m", 5_400_000),
            ("1h + 30", 3_630_000),
            ("2m*3", 360_000),
            ("2m*3+1s", 361_000),
            ("500ms", 500),
            ("250MSEC", 250),
            ("1000us", 1),
            ("1000µs", 1),
            ("1000000ns", 1),
            ("1D", 86_400_000),
            ("1w", 604_800_000),
            ("1mon", 2_592_000_000),
            ("1y", 31_536_000_000),
            // For ever, without an overflow where it is added to a point in time.
            ("18446744073709551615s", 100 * 31_536_000_000),
            ("2 hours", 7_200_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_durations_are_refused() {
        for text in [
            "",
            "s",
            "-5s",
            "1.5s",
            "5x",
            "5 5s",
            "+5s",
            "5s+",
            "5s**2",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_true_and_false_are_booleans() {
        assert_eq!(flag("true"), Ok(true));
        assert_eq!(flag("false"), Ok(false));
        for text in ["", "True", "1", "yes", " true"] {
            assert!(flag(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_plain_and_in_range() {
        assert_eq!(number(0..=u16::MAX)("100"), Ok(100));
        for text in ["", "-1", "+1", "1.0", "65536", "0x10", " 1"] {
            assert!(number(0..=u16::MAX)(text).is_err(), "{text:?}");
        }
        assert_eq!(
            number(16384..=16777215)("1"),
            Err("expected a whole number from 16384 to 16777215".to_owned())
        );
    }

    #[test]
    fn cpu_quantities_are_rounded_up() {
        for (text, cpus) in [
            ("2", 2),
            ("1.5", 2),
            ("500m", 1),
            ("2500m", 3),
            ("0.1", 1),
            ("16", 16),
        ] {
            assert_eq!(cpu_quantity(text), Ok(cpus), "{text}");
        }
        for text in ["0", "-1", "0m", "NaN", "inf"] {
            let reason = cpu_quantity(text).expect_err(text);
            assert!(
                reason.starts_with("must be a positive CPU quantity"),
                "{text}: {reason}"
            );
        }
        for text in ["", "two", "2 cores", "m"] {
            assert!(cpu_quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_server_without_a_scheme_is_https() {
        for (text, uri) in [
            (
                "istiod.istio-system.svc:15012",
                "https://istiod.istio-system.svc:15012",
            ),
            ("https://istiod:15012", "https://istiod:15012"),
            ("http://[fd00::1]:15010/x", "http://[fd00::1]:15010/x"),
            ("[fd00::1]", "https://[fd00::1]"),
        ] {
            assert_eq!(server_uri(text), Ok(Some(uri.to_owned())), "{text}");
        }
        assert_eq!(server_uri(""), Ok(None));
        for text in [
            "https://",
            "ftp://a:1",
            "a:b",
            "a:70000",
            "a b:1",
            "fd00::1:15012",
            "[fd00]:1",
        ] {
            let reason = server_uri(text).expect_err(text);
            assert!(reason.starts_with("invalid uri: "), "{reason}");
        }
    }
}
