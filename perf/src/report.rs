//! Tables: medians with their spread, and ratios that were taken round by round.

use std::fmt::Write;

use crate::bench::Sample;
use crate::scenario::Scenario;

/// The middle one; the mean of the two middle ones of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// The least and the most of them, with so many digits behind the point.
pub fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:.digits$}..{most:.digits$}")
}

/// A Markdown table of one scenario. `base` is the variant that ratios refer to.
pub fn table(scenario: &Scenario, names: &[&str], samples: &[Vec<Sample>], base: Option<usize>) -> String {
    let mut out = String::new();
    write_table(&mut out, scenario, names, samples, base)
        .expect("invariant: writing to a string cannot fail");
    out
}

fn write_table(
    out: &mut String,
    scenario: &Scenario,
    names: &[&str],
    samples: &[Vec<Sample>],
    base: Option<usize>,
) -> std::fmt::Result {
    let rounds = samples.first().map_or(0, Vec::len);
    writeln!(
        out,
        "### {}: {} ({rounds} rounds)\n",
        scenario.name, scenario.what
    )?;
    let (rate, cost) = if scenario.is_bulk() {
        ("Gbit/s", "s/GB")
    } else {
        ("units/s", "us/unit")
    };
    let against = base.map_or("", |index| names[index]);
    writeln!(
        out,
        "| variant | {rate} (spread) | p50 ms | p99 ms | proxies' CPU {cost} (spread) | whole machine {cost} | \
         CPU against {against} | rate against {against} | errors |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for (name, own) in names.iter().zip(samples) {
        let reference = base.map(|index| samples[index].as_slice());
        writeln!(out, "{}", row(scenario, name, own, reference))?;
    }
    Ok(())
}

fn row(scenario: &Scenario, name: &str, own: &[Sample], reference: Option<&[Sample]>) -> String {
    // Bytes per second to gigabits per second; nanoseconds per byte are seconds per gigabyte.
    let rate_scale = if scenario.is_bulk() { 8e-9 } else { 1.0 };
    let cost_scale = if scenario.is_bulk() { 1.0 } else { 1e-3 };
    let rates = column(own, |sample| sample.rate * rate_scale);
    let costs = column(own, |sample| sample.proxies_ns * cost_scale);
    let machine = column(own, |sample| sample.machine_ns * cost_scale);
    let latency = |pick: fn(&Sample) -> f64| {
        if scenario.is_bulk() {
            "-".to_owned()
        } else {
            format!("{:.3}", median(&column(own, pick)) / 1e3)
        }
    };
    let ratio = |pick: fn(&Sample) -> f64| match reference {
        Some(reference) => {
            let pairs = own
                .iter()
                .zip(reference)
                .map(|(own, other)| pick(own) / pick(other));
            let ratios: Vec<f64> = pairs.filter(|ratio| ratio.is_finite() && *ratio > 0.0).collect();
            if ratios.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.2}x", median(&ratios))
            }
        }
        None => "-".to_owned(),
    };
    let cost = if costs.iter().all(|cost| *cost == 0.0) {
        "-".to_owned()
    } else {
        with_spread(&costs)
    };
    format!(
        "| {name} | {} | {} | {} | {cost} | {} | {} | {} | {} |",
        with_spread(&rates),
        latency(|sample| sample.p50_us),
        latency(|sample| sample.p99_us),
        number(median(&machine)),
        ratio(|sample| sample.proxies_ns),
        ratio(|sample| sample.rate),
        own.iter().map(|sample| sample.errors).sum::<u64>(),
    )
}

fn column(samples: &[Sample], pick: impl Fn(&Sample) -> f64) -> Vec<f64> {
    samples.iter().map(pick).collect()
}

fn with_spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{} ({}..{})", number(median(values)), number(low), number(high))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario;

    fn sample(rate: f64, proxies_ns: f64) -> Sample {
        Sample {
            rate,
            p50_us: 100.0,
            p99_us: 900.0,
            proxies_ns,
            machine_ns: 2.0 * proxies_ns,
            errors: 0,
        }
    }

    #[test]
    fn ratios_are_taken_within_rounds_before_the_median() {
        let ours = vec![
            sample(200.0, 5_000.0),
            sample(100.0, 10_000.0),
            sample(150.0, 30_000.0),
        ];
        let theirs = vec![
            sample(100.0, 10_000.0),
            sample(50.0, 20_000.0),
            sample(75.0, 60_000.0),
        ];
        let text = table(&scenario::ALL[0], &["ours", "theirs"], &[ours, theirs], Some(1));
        let line = text
            .lines()
            .find(|line| line.starts_with("| ours"))
            .expect("a row");
        assert!(line.contains("| 0.50x | 2.00x |"), "{text}");
        assert!(
            line.contains("| 150 (100..200) |") && line.contains("| 0.100 | 0.900 |"),
            "{text}"
        );
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
