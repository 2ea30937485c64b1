//! How many workers there are.

use super::ConfigError;
use super::env::Environment;
use super::values;
use crate::limits;

/// In this order: `ZTUNNEL_WORKER_THREADS`, the mesh configuration's `concurrency`, the pod's CPU limit, a
/// quarter of the CPUs. Every variable is checked, also those that others overrule.
pub(super) fn worker_threads(env: &Environment, concurrency: Option<u16>) -> Result<usize, ConfigError> {
    let limit = env.parse("ZTUNNEL_RESOURCE_CPU_LIMIT", values::cpu_quantity)?;
    let request = env
        .parse("ZTUNNEL_RESOURCE_CPU_REQUEST", values::cpu_quantity)?
        .unwrap_or(0);
    let node_cpus = env.parse("ZTUNNEL_CPU_LIMIT", values::number(0..=CPUS_MAX))?;
    let cpus = limit.or(node_cpus).unwrap_or(env.cpus);
    let default = match (concurrency, limit) {
        (Some(0), _) => cpus,
        (Some(count), _) => usize::from(count),
        (None, Some(limit)) => limit.max(request),
        (None, None) => cpus.div_ceil(4).max(request).max(2),
    };
    let threads = env
        .parse_or("ZTUNNEL_WORKER_THREADS", default, |text| worker_count(text, cpus))?
        .max(1);
    if threads > limits::WORKERS_MAX {
        return Err(ConfigError::Invalid(format!(
            "{threads} worker threads are more than the {} this program supports: set \
             ZTUNNEL_WORKER_THREADS to a lower number",
            limits::WORKERS_MAX
        )));
    }
    Ok(threads)
}

/// More than any machine has; keeps the arithmetic far from its limits.
const CPUS_MAX: usize = 1 << 20;

fn worker_count(text: &str, cpus: usize) -> Result<usize, String> {
    if let Some(percentage) = text.strip_suffix('%') {
        let percentage: f64 = percentage
            .parse()
            .map_err(|_| format!("invalid percentage: {percentage:?}, expected one such as 50%"))?;
        if !(percentage > 0.0 && percentage <= 100.0) {
            return Err("percentage must be between 0 and 100".to_owned());
        }
        return Ok(((cpus as f64 * percentage / 100.0).ceil() as usize).max(1));
    }
    match values::number(0..=CPUS_MAX)(text) {
        Ok(0) => Ok(cpus),
        Ok(count) => Ok(count),
        Err(reason) => Err(format!(
            "invalid number: {reason}, or a percentage of the CPUs such as 50%"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(cpus: usize, concurrency: Option<u16>, variables: &[(&str, &str)]) -> usize {
        let env = Environment::new(variables.iter().copied()).with_cpus(cpus);
        worker_threads(&env, concurrency).expect("valid")
    }

    #[test]
    fn a_cpu_limit_of_the_pod_is_the_number_of_workers() {
        for (limit, count) in [("16", 16), ("1", 1), ("500m", 1), ("2500m", 3), ("1.5", 2)] {
            assert_eq!(
                threads(64, None, &[("ZTUNNEL_RESOURCE_CPU_LIMIT", limit)]),
                count,
                "{limit}"
            );
        }
    }

    #[test]
    fn a_request_above_the_limit_counts() {
        let variables = [
            ("ZTUNNEL_RESOURCE_CPU_LIMIT", "4"),
            ("ZTUNNEL_RESOURCE_CPU_REQUEST", "8"),
        ];
        assert_eq!(threads(64, None, &variables), 8);
    }

    #[test]
    fn without_a_limit_it_is_a_quarter_of_the_cpus_and_at_least_two() {
        assert_eq!(threads(4, None, &[("ZTUNNEL_CPU_LIMIT", "32")]), 8);
        assert_eq!(threads(32, None, &[]), 8);
        assert_eq!(threads(33, None, &[]), 9);
        assert_eq!(threads(1, None, &[]), 2);
        assert_eq!(threads(8, None, &[("ZTUNNEL_RESOURCE_CPU_REQUEST", "3500m")]), 4);
    }

    #[test]
    fn a_percentage_is_of_the_cpus_and_rounded_up() {
        for (percentage, cpus, count) in [("50%", 8, 4), ("30%", 16, 5), ("10%", 4, 1), ("100%", 3, 3)] {
            assert_eq!(
                threads(cpus, None, &[("ZTUNNEL_WORKER_THREADS", percentage)]),
                count
            );
        }
        let limited = [
            ("ZTUNNEL_WORKER_THREADS", "50%"),
            ("ZTUNNEL_RESOURCE_CPU_LIMIT", "4"),
        ];
        assert_eq!(threads(64, None, &limited), 2);
    }

    #[test]
    fn the_variable_goes_before_the_mesh_configuration() {
        assert_eq!(threads(8, Some(3), &[]), 3);
        assert_eq!(threads(8, Some(0), &[]), 8);
        assert_eq!(threads(8, Some(3), &[("ZTUNNEL_WORKER_THREADS", "5")]), 5);
        assert_eq!(threads(8, Some(3), &[("ZTUNNEL_WORKER_THREADS", "0")]), 8);
    }

    #[test]
    fn bad_values_are_named_even_when_another_variable_overrules_them() {
        for (variables, text) in [
            (
                &[("ZTUNNEL_WORKER_THREADS", "0%")][..],
                "percentage must be between 0 and 100",
            ),
            (
                &[("ZTUNNEL_WORKER_THREADS", "101%")],
                "percentage must be between 0 and 100",
            ),
            (&[("ZTUNNEL_WORKER_THREADS", "x%")], "invalid percentage: "),
            (&[("ZTUNNEL_WORKER_THREADS", "x")], "invalid number: "),
            (&[("ZTUNNEL_WORKER_THREADS", "")], "invalid number: "),
            (
                &[
                    ("ZTUNNEL_WORKER_THREADS", "2"),
                    ("ZTUNNEL_RESOURCE_CPU_LIMIT", "0"),
                ],
                "invalid env var ZTUNNEL_RESOURCE_CPU_LIMIT=0 (must be a positive CPU quantity",
            ),
            (
                &[("ZTUNNEL_WORKER_THREADS", "2"), ("ZTUNNEL_CPU_LIMIT", "1.5")],
                "invalid env var ZTUNNEL_CPU_LIMIT=1.5",
            ),
            (
                &[("ZTUNNEL_WORKER_THREADS", "5000")],
                "5000 worker threads are more than",
            ),
        ] {
            let env = Environment::new(variables.iter().copied()).with_cpus(8);
            let error = worker_threads(&env, None).expect_err(text).to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
