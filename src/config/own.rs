//! The variables that only this program has, and the check that nobody misspelt one.
//!
//! Unknown variables in general are none of our business: the pod's environment is full of them. Those with
//! our prefix can only be meant for us.

use super::ConfigError;
use super::env::Environment;
use super::sections::{IoChoice, RecordLayer, RingFeatures};
use super::values;

const PREFIX: &str = "UZTUNNEL_";
const IO: &str = "UZTUNNEL_IO";
const RING_FEATURES: &str = "UZTUNNEL_RING_FEATURES";
const TLS: &str = "UZTUNNEL_TLS";
const TLS_RECORDS_MAX: &str = "UZTUNNEL_TLS_RECORDS_MAX";
const KNOWN: [&str; 4] = [IO, RING_FEATURES, TLS, TLS_RECORDS_MAX];

/// The limit of AES-GCM (RFC 8446, 5.5) rounded down to a power of two.
const RECORDS_MAX: u64 = 1 << 24;
const RECORDS_MIN: u64 = 16;

pub(super) struct OwnVariables {
    pub io: IoChoice,
    pub ring_features: RingFeatures,
    pub records: RecordLayer,
    pub records_per_key_max: Option<u64>,
}

impl OwnVariables {
    pub fn read(env: &Environment) -> Result<Self, ConfigError> {
        check_names(env)?;
        let io = [
            ("auto", IoChoice::Auto),
            ("uring", IoChoice::Uring),
            ("epoll", IoChoice::Epoll),
        ];
        let ring_features = [
            ("auto", RingFeatures::Auto),
            ("5.15", RingFeatures::Kernel5_15),
            ("5.19", RingFeatures::Kernel5_19),
            ("6.0", RingFeatures::Kernel6_0),
            ("6.1", RingFeatures::Kernel6_1),
        ];
        let records = [("own", RecordLayer::Own), ("buffered", RecordLayer::Buffered)];
        Ok(Self {
            io: env.parse_or(IO, IoChoice::Auto, values::choice(&io))?,
            ring_features: env.parse_or(RING_FEATURES, RingFeatures::Auto, values::choice(&ring_features))?,
            records: env.parse_or(TLS, RecordLayer::Own, values::choice(&records))?,
            records_per_key_max: env.parse(TLS_RECORDS_MAX, values::number(RECORDS_MIN..=RECORDS_MAX))?,
        })
    }
}

fn check_names(env: &Environment) -> Result<(), ConfigError> {
    let unknown = env
        .variables()
        .map(|(name, _)| name)
        .find(|name| name.starts_with(PREFIX) && !KNOWN.contains(name));
    let Some(name) = unknown else { return Ok(()) };
    let nearest = KNOWN
        .iter()
        .min_by_key(|known| edit_distance(name, known))
        .expect("invariant: there are known variables");
    let hint = format!("did you mean {nearest}? known are {}", KNOWN.join(", "));
    Err(ConfigError::UnknownVariable {
        name: name.to_owned(),
        hint,
    })
}

/// How many bytes have to be inserted, removed or exchanged (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, byte_a) in (1..).zip(a.bytes()) {
        let mut diagonal = row[0];
        row[0] = above;
        for (at, byte_b) in (1..).zip(b.bytes()) {
            let exchanged = diagonal + usize::from(byte_a != byte_b);
            diagonal = row[at];
            row[at] = exchanged.min(row[at] + 1).min(row[at - 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_stops_the_start_and_names_the_nearest() {
        for (name, nearest) in [
            ("UZTUNNEL_OI", "UZTUNNEL_IO"),
            ("UZTUNNEL_TLS_RECORD_MAX", "UZTUNNEL_TLS_RECORDS_MAX"),
            ("UZTUNNEL_RINGFEATURES", "UZTUNNEL_RING_FEATURES"),
        ] {
            let error = OwnVariables::read(&Environment::new([(name, "x")]))
                .err()
                .expect(name);
            let text = error.to_string();
            let start = format!("invalid env var {name} (no such variable; did you mean {nearest}?");
            assert!(text.starts_with(&start), "{text}");
        }
    }

    #[test]
    fn own_variables_are_read() {
        let env = Environment::new([
            ("UZTUNNEL_IO", "epoll"),
            ("UZTUNNEL_RING_FEATURES", "5.19"),
            ("UZTUNNEL_TLS", "buffered"),
            ("UZTUNNEL_TLS_RECORDS_MAX", "16"),
        ]);
        let own = OwnVariables::read(&env).expect("valid");
        assert_eq!(own.io, IoChoice::Epoll);
        assert_eq!(own.ring_features, RingFeatures::Kernel5_19);
        assert_eq!(own.records, RecordLayer::Buffered);
        assert_eq!(own.records_per_key_max, Some(16));
    }

    #[test]
    fn bad_values_say_what_would_be_right() {
        for (name, value, reason) in [
            ("UZTUNNEL_IO", "iouring", "expected one of auto, uring, epoll"),
            (
                "UZTUNNEL_RING_FEATURES",
                "4.19",
                "expected one of auto, 5.15, 5.19, 6.0, 6.1",
            ),
            ("UZTUNNEL_TLS", "", "expected one of own, buffered"),
            (
                "UZTUNNEL_TLS_RECORDS_MAX",
                "15",
                "expected a whole number from 16 to 16777216",
            ),
        ] {
            let error = OwnVariables::read(&Environment::new([(name, value)]))
                .err()
                .expect(name);
            assert_eq!(
                error.to_string(),
                format!("invalid env var {name}={value} ({reason})")
            );
        }
    }
}
