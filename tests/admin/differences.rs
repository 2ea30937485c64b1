//! Two JSON values compared, with every difference named by its path (RFC 6901).

use std::collections::BTreeSet;

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub path: String,
    /// As JSON; `nothing` where there is none.
    pub theirs: String,
    pub ours: String,
}

pub fn differences(theirs: &Value, ours: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(String::new(), Some(theirs), Some(ours), &mut found);
    found
}

/// `expected`: paths, and what stands there on our side.
#[track_caller]
pub fn assert_differences(theirs: &Value, ours: &Value, expected: &[(&str, &str)], what: &str) {
    let found = differences(theirs, ours);
    let short: Vec<(&str, &str)> = found.iter().map(|it| (&*it.path, &*it.ours)).collect();
    assert_eq!(short, expected, "{what}: {found:#?}");
}

fn compare(path: String, theirs: Option<&Value>, ours: Option<&Value>, found: &mut Vec<Difference>) {
    match (theirs, ours) {
        (Some(Value::Object(theirs)), Some(Value::Object(ours))) => {
            let keys: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
            for key in keys {
                let step = key.replace('~', "~0").replace('/', "~1");
                compare(format!("{path}/{step}"), theirs.get(key), ours.get(key), found);
            }
        }
        (Some(Value::Array(theirs)), Some(Value::Array(ours))) => {
            for index in 0..theirs.len().max(ours.len()) {
                compare(
                    format!("{path}/{index}"),
                    theirs.get(index),
                    ours.get(index),
                    found,
                );
            }
        }
        (theirs, ours) if theirs == ours => {}
        (theirs, ours) => {
            let text = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            found.push(Difference {
                path,
                theirs: text(theirs),
                ours: text(ours),
            });
        }
    }
}
