//! How often the host names of workloads were looked up for connections, by who made them.
//!
//! Series of one worker, as `kinds.rs` has them for connections. Invariant: there are so many and no more; a look-up for
//! which there is no room is counted under labels that say nothing.

use std::collections::HashMap;
use std::sync::Arc;

use super::kinds::of_workload;
use crate::bridge::traffic::{NameLabels, NameSeries, Shard};
use crate::identity::Identity;
use crate::limits;
use crate::mesh::Workload;

#[derive(Default)]
pub struct Names {
    series: HashMap<NameLabels, Arc<NameSeries>>,
    /// Whose they are.
    parts: limits::Parts<Identity, { limits::SERIES_NAMES_MAX }>,
}

impl Names {
    /// A connection of `source` needs the addresses of `hostname`.
    pub fn count(&mut self, shard: &Shard, source: &Workload, hostname: &Arc<str>) {
        let mut labels = NameLabels {
            source: of_workload(source),
            source_principal: Some(source.identity.clone()),
            hostname: hostname.clone(),
        };
        if !self.series.contains_key(&labels) && !self.parts.take(&source.identity) {
            labels = NameLabels::default();
        }
        let series = self.series.entry(labels);
        series
            .or_insert_with_key(|labels| shard.begin_name(labels.clone()))
            .count();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Traffic;

    fn workload(name: &str) -> Workload {
        let mut workload = Workload::new(name, name, Identity::new("cluster.local", "shop", name));
        workload.workload_name = name.into();
        workload
    }

    #[test]
    fn look_ups_of_all_workers_are_counted_by_source_and_name() {
        let traffic = Traffic::default();
        for _ in 0..2 {
            let (shard, mut names) = (traffic.shard(), Names::default());
            for source in ["web", "web", "cart"] {
                names.count(&shard, &workload(source), &"legacy.example".into());
            }
        }
        let counted: Vec<_> = traffic
            .names()
            .into_iter()
            .map(|(labels, count)| {
                (
                    labels.source.workload.to_string(),
                    labels.hostname.to_string(),
                    count,
                )
            })
            .collect();
        let expected = [("cart", 2), ("web", 4)];
        let expected =
            expected.map(|(source, count)| (source.to_owned(), "legacy.example".to_owned(), count));
        assert_eq!(counted, expected);
    }

    #[test]
    fn names_have_a_bound_and_those_beyond_it_are_counted_together() {
        let traffic = Traffic::default();
        let (shard, mut names) = (traffic.shard(), Names::default());
        let source = workload("web");
        let of_one = limits::SERIES_NAMES_MAX / 8 * 7;
        for index in 0..of_one + 10 {
            names.count(&shard, &source, &format!("h{index}").into());
        }
        names.count(&shard, &source, &"h0".into());
        // The rest is for others.
        names.count(&shard, &workload("cart"), &"h".into());
        let counted = traffic.names();
        assert_eq!(counted.len(), of_one + 2);
        assert_eq!(counted[&NameLabels::default()], 10);
        for index in 0..limits::SERIES_NAMES_MAX {
            names.count(&shard, &workload(&format!("w{index}")), &"h".into());
        }
        assert!((limits::SERIES_NAMES_MAX..=limits::SERIES_NAMES_MAX + 1).contains(&traffic.names().len()));
    }
}
