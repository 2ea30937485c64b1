//! How the control plane knows this node: its id and metadata.
//!
//! Pure, made once at start. Specification: section 1.3 of the control-plane contract.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::messages::discovery::Node;
use crate::config;

/// The node as it is announced in the first requests of every stream.
pub fn node(config: &config::Node) -> Node {
    let pod = config.pod_name.as_deref().unwrap_or_default();
    let namespace = config.pod_namespace.as_deref().unwrap_or_default();
    let address = &config.instance_ip;
    let own = [
        ("NAME", pod),
        ("NAMESPACE", namespace),
        ("INSTANCE_IPS", address),
        ("NODE_NAME", config.name.as_deref().unwrap_or_default()),
    ];
    let own = own.into_iter().map(|(key, value)| (key.to_owned(), text(value)));
    let configured = config
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), text(value)));
    let structured = config.metadata_json.iter().filter_map(|(key, json)| {
        match serde_json::from_str::<serde_json::Value>(json) {
            Ok(value) => Some((key.clone(), value_of(value))),
            Err(error) => {
                tracing::error!("ISTIO_METAJSON_{key} is not sent to the control plane: {error}");
                None
            }
        }
    });
    Node {
        // The suffix is upstream's, whatever the cluster's domain is.
        id: format!("ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct {
            fields: own.chain(configured).chain(structured).collect(),
        }),
    }
}

fn text(value: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    }
}

/// The recursion is as deep as serde_json lets a document be: 128.
fn value_of(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(ListValue {
            values: values.into_iter().map(value_of).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(key, value)| (key, value_of(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Environment};

    use super::*;

    fn node_of(variables: &[(&str, &str)]) -> Node {
        let base = [("FAKE_CA", "true"), ("XDS_ADDRESS", "")];
        let environment = Environment::new(base.into_iter().chain(variables.iter().copied()));
        node(&Config::from_env(&environment).expect("a configuration").node)
    }

    fn string<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
        match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn the_node_says_where_it_is_and_what_it_was_told() {
        let node = node_of(&[
            ("POD_NAME", "ztunnel-abc"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "10.0.0.7"),
            ("NODE_NAME", "node1"),
            ("ISTIO_META_CLUSTER_ID", "c1"),
            ("ISTIO_META_NAME", "another"),
            ("ISTIO_METAJSON_LABELS", r#"{"a": [1, null, true, "x"]}"#),
            ("ISTIO_METAJSON_BROKEN", "{"),
        ]);
        assert_eq!(
            node.id,
            "ztunnel~10.0.0.7~ztunnel-abc.istio-system~istio-system.svc.cluster.local"
        );
        assert_eq!(string(&node, "NODE_NAME"), Some("node1"));
        assert_eq!(string(&node, "NAMESPACE"), Some("istio-system"));
        assert_eq!(string(&node, "INSTANCE_IPS"), Some("10.0.0.7"));
        assert_eq!(string(&node, "CLUSTER_ID"), Some("c1"));
        assert_eq!(string(&node, "NAME"), Some("another"), "what was configured wins");
        let fields = node.metadata.expect("metadata").fields;
        assert!(!fields.contains_key("BROKEN"));
        let Some(Kind::StructValue(labels)) = fields["LABELS"].kind.clone() else {
            panic!("an object");
        };
        let Some(Kind::ListValue(list)) = labels.fields["a"].kind.clone() else {
            panic!("a list");
        };
        let kinds: Vec<Option<Kind>> = list.values.into_iter().map(|value| value.kind).collect();
        let expected = [
            Kind::NumberValue(1.0),
            Kind::NullValue(0),
            Kind::BoolValue(true),
            Kind::StringValue("x".to_owned()),
        ];
        assert_eq!(kinds, expected.map(Some));
    }

    #[test]
    fn a_node_that_knows_nothing_of_itself_has_an_id_all_the_same() {
        assert_eq!(node_of(&[]).id, "ztunnel~1.1.1.1~.~.svc.cluster.local");
    }
}
