//! The `baggage` header (W3C Baggage) by the mesh's contract: what a peer tells about its workload.
//!
//! Labels only: nothing is routed or permitted by it. Members are written in a fixed order, without escaping; a
//! value that would need escaping is left out. Unknown keys and members of another form are passed over.

use crate::limits::BAGGAGE_VALUE_BYTES_MAX;

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const SERVICE_NAME: &str = "service.name";
const SERVICE_VERSION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";

/// A workload as its own proxy describes it. Nothing here is ever an empty text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage<T = String> {
    pub cluster: Option<T>,
    pub namespace: Option<T>,
    pub workload_name: Option<T>,
    /// `deployment`, `cronjob`, `pod` or `job`; the key of the workload's name.
    pub workload_type: Option<T>,
    /// The canonical service.
    pub service_name: Option<T>,
    /// The canonical revision.
    pub revision: Option<T>,
    pub region: Option<T>,
    pub zone: Option<T>,
}

/// A baggage of which nothing is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBaggage {
    #[error("baggage is not ASCII text")]
    NotAscii,
}

impl<T: AsRef<str>> Baggage<T> {
    /// The header's value; empty when nothing is known. A workload without a type is written as a deployment.
    pub fn encode(&self) -> String {
        let workload_key = workload_key(self.workload_type.as_ref().map_or("deployment", T::as_ref));
        let members = [
            (Some(CLUSTER), &self.cluster),
            (Some(NAMESPACE), &self.namespace),
            (workload_key, &self.workload_name),
            (Some(SERVICE_NAME), &self.service_name),
            (Some(SERVICE_VERSION), &self.revision),
            (Some(REGION), &self.region),
            (Some(ZONE), &self.zone),
        ];
        let mut out = String::with_capacity(256);
        for (key, value) in members {
            let (Some(key), Some(value)) = (key, value) else {
                continue;
            };
            let value = value.as_ref();
            if !is_plain(value) {
                continue;
            }
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(key);
            out.push('=');
            out.push_str(value);
        }
        out
    }
}

impl Baggage {
    /// Reads all lines of the header; no line at all is an empty baggage. A key that comes again replaces.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidBaggage> {
        let mut baggage = Self::default();
        for line in lines {
            if !line.bytes().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
                return Err(InvalidBaggage::NotAscii);
            }
            for member in line.split(',') {
                // The second field only, by contract; `;` begins properties, which nobody here reads.
                let mut fields = member.split('=');
                let (Some(key), Some(value)) = (fields.next(), fields.next()) else {
                    continue;
                };
                let value = value.split(';').next().unwrap_or_default();
                baggage.set(key.trim(), value.trim());
            }
        }
        Ok(baggage)
    }

    fn set(&mut self, key: &str, value: &str) {
        let usable = !value.is_empty() && value.len() <= BAGGAGE_VALUE_BYTES_MAX;
        let value = usable.then(|| value.to_owned());
        match key {
            CLUSTER => self.cluster = value,
            NAMESPACE => self.namespace = value,
            SERVICE_NAME => self.service_name = value,
            SERVICE_VERSION => self.revision = value,
            REGION => self.region = value,
            ZONE => self.zone = value,
            _ => {
                if let Some(kind) = workload_type(key) {
                    self.workload_type = value.is_some().then(|| kind.to_owned());
                    self.workload_name = value;
                }
            }
        }
    }
}

/// What can stand between `=` and `,` as it is (W3C Baggage 3.3.1.3, baggage-octet, and no `=`, which the contract
/// reads as an end).
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b';' | b'=' | b'"' | b'\\'))
}

const WORKLOAD_KEYS: [(&str, &str); 4] = [
    ("deployment", "k8s.deployment.name"),
    ("cronjob", "k8s.cronjob.name"),
    ("pod", "k8s.pod.name"),
    ("job", "k8s.job.name"),
];

fn workload_key(kind: &str) -> Option<&'static str> {
    WORKLOAD_KEYS
        .iter()
        .find(|(known, _)| *known == kind)
        .map(|(_, key)| *key)
}

fn workload_type(key: &str) -> Option<&'static str> {
    WORKLOAD_KEYS
        .iter()
        .find(|(_, known)| *known == key)
        .map(|(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn full() -> Baggage {
        Baggage {
            cluster: some("Kubernetes"),
            namespace: some("shop"),
            workload_name: some("cart"),
            workload_type: some("deployment"),
            service_name: some("cart"),
            revision: some("v1"),
            region: some("eu-1"),
            zone: some("eu-1a"),
        }
    }

    #[test]
    fn members_stand_in_the_order_of_the_contract() {
        assert_eq!(
            full().encode(),
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,\
             service.version=v1,cloud.region=eu-1,cloud.availability_zone=eu-1a"
        );
        assert_eq!(Baggage::<String>::default().encode(), "");
    }

    #[test]
    fn what_is_written_is_read_back() {
        for kind in ["deployment", "cronjob", "pod", "job"] {
            let baggage = Baggage {
                workload_type: some(kind),
                ..full()
            };
            assert_eq!(Baggage::parse([baggage.encode().as_str()]), Ok(baggage));
        }
    }

    #[test]
    fn values_that_need_escaping_are_left_out() {
        for value in [
            "", "a,b", "a=b", "a;b", "a b", "a\r\nb", "\u{e9}", "\"a\"", "a\\b",
        ] {
            let baggage = Baggage {
                cluster: some(value),
                zone: some("z"),
                ..Baggage::default()
            };
            assert_eq!(baggage.encode(), "cloud.availability_zone=z", "{value:?}");
        }
    }

    #[test]
    fn a_workload_of_an_unknown_type_is_left_out() {
        let baggage = Baggage {
            workload_type: some("statefulset"),
            workload_name: some("db"),
            zone: some("z"),
            ..Baggage::default()
        };
        assert_eq!(baggage.encode(), "cloud.availability_zone=z");
        let untyped = Baggage {
            workload_type: None,
            ..baggage
        };
        assert_eq!(
            untyped.encode(),
            "k8s.deployment.name=db,cloud.availability_zone=z"
        );
    }

    #[test]
    fn several_lines_blanks_properties_and_unknown_keys_are_understood() {
        let lines = [
            "k8s.cluster.name = c1 , unknown=1, novalue,, =, service.version=v1;ttl=3",
            "k8s.job.name=j=ignored,cloud.region=,service.version=v2",
        ];
        let expected = Baggage {
            cluster: some("c1"),
            workload_name: some("j"),
            workload_type: some("job"),
            revision: some("v2"),
            ..Baggage::default()
        };
        assert_eq!(Baggage::parse(lines), Ok(expected));
        assert_eq!(Baggage::parse([]), Ok(Baggage::default()));
    }

    #[test]
    fn an_empty_value_takes_an_earlier_one_back() {
        let baggage = Baggage::parse(["k8s.pod.name=p,k8s.pod.name="]).expect("valid");
        assert_eq!(baggage, Baggage::default());
    }

    #[test]
    fn text_that_is_not_ascii_spoils_the_whole_baggage() {
        for text in [
            "k8s.cluster.name=\u{e9}",
            "unknown=\u{fffd}",
            "a=\u{7f}",
            "a=\u{0}",
        ] {
            assert_eq!(
                Baggage::parse(["service.name=a", text]),
                Err(InvalidBaggage::NotAscii),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_value_no_kubernetes_name_can_have_is_unset() {
        let longest = "x".repeat(BAGGAGE_VALUE_BYTES_MAX);
        let fits = format!("service.name={longest}");
        assert_eq!(
            Baggage::parse([fits.as_str()]).expect("valid").service_name,
            Some(longest)
        );
        let too_long = format!("{fits}x");
        assert_eq!(
            Baggage::parse([too_long.as_str()]).expect("valid").service_name,
            None
        );
    }
}
