//! The whole data path under a seeded scheduler: worlds of proxies and applications in virtual time, with faults.
//!
//! `cargo xtask sim` runs it; docs/testing.md says what it covers and what not. Without options it does what CI
//! does: replays the seeds that found a bug once, checks that a seed always gives the same run, that every bug that
//! can be planted is found, and tries new seeds for a while.

mod actor;
mod authority;
mod campaign;
mod mesh;
mod options;
mod oracle;
mod pattern;
mod plan;
mod proxy;
mod shrink;
mod world;

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use uztunnel::planted::Bug;

use options::{Lesser, Options, What};
use plan::Plan;

/// Worlds that a planted bug may take to be found.
const HUNT_WORLDS_MAX: u64 = 2_000;
/// Worlds that are run twice here and once in another process.
const SAME_WORLDS: Range<u64> = 0..60;
/// New seeds of a run of everything.
const NEW_SEEDS_TIME: Duration = Duration::from_secs(100);
const SEEDS: &str = include_str!("seeds.txt");

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    campaign::catch_panics();
    let is_fine = match options.what {
        What::Everything => everything(),
        What::Seed(seed) => one(seed, &options),
        What::Seeds(seeds) => campaign(seeds, None, options.plant),
        What::For(time) => campaign(new_seeds(), Some(Instant::now() + time), options.plant),
        What::Hunt => hunt(),
        What::Hash(seeds) => {
            println!("{:016x}", hash(seeds));
            true
        }
    };
    match is_fine {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Every check by name, and the closing line that CI reads.
fn everything() -> bool {
    let mut checks = vec![
        ("known seeds", known_seeds()),
        ("a seed always gives the same run", same_seed_same_run()),
        ("planted bugs", hunt()),
    ];
    let new = campaign(new_seeds(), Some(Instant::now() + NEW_SEEDS_TIME), None);
    checks.push(("new seeds", new));
    let failed = checks.iter().filter(|(_, is_fine)| !is_fine).count();
    for (name, is_fine) in &checks {
        println!("test {name} ... {}", if *is_fine { "ok" } else { "FAILED" });
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    let passed = checks.len() - failed;
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished"
    );
    failed == 0
}

fn one(seed: u64, options: &Options) -> bool {
    let plan = options.lesser.of(Plan::draw(seed));
    let report = campaign::run(&plan, options.plant, options.trace);
    for line in &report.trace {
        println!("{}", line.words);
    }
    println!(
        "seed {seed}: hash {:016x}, {} events, {} connections, {:.3} s of virtual time",
        report.hash,
        report.events,
        report.connections,
        report.virtual_time.as_secs_f64()
    );
    let Some(finding) = &report.finding else {
        return true;
    };
    if options.trace || options.lesser != Lesser::default() {
        println!("{}: {}", finding.oracle, finding.what);
    } else {
        campaign::tell_finding(seed, finding, options.plant);
    }
    false
}

fn campaign(seeds: Range<u64>, until: Option<Instant>, plant: Option<Bug>) -> bool {
    println!("worlds from seed {} on", seeds.start);
    let cpu = campaign::cpu_time();
    let tally = campaign::many(seeds, until, plant);
    tally.tell(campaign::cpu_time() - cpu, plant);
    tally.is_clean()
}

/// Where new seeds begin: elsewhere each day. Whoever runs them on the same day tries the same worlds, so that what one
/// run finds, another one finds as well.
fn new_seeds() -> Range<u64> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let day = now.as_secs() / 86_400;
    day * 1_000_000_000..u64::MAX
}

fn known_seeds() -> bool {
    let mut is_fine = true;
    let mut count = 0;
    for line in SEEDS
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (seed, name) = line.split_once(' ').unwrap_or((line, ""));
        let Ok(seed) = seed.parse() else {
            println!("seeds.txt: not a seed: {line}");
            is_fine = false;
            continue;
        };
        count += 1;
        if let Some(finding) = campaign::run(&Plan::draw(seed), None, false).finding {
            println!("{name} is back:");
            campaign::tell_finding(seed, &finding, None);
            is_fine = false;
        }
    }
    println!("{count} known seeds replayed");
    is_fine
}

fn hash(seeds: Range<u64>) -> u64 {
    seeds.fold(0, |hash, seed| {
        hash.rotate_left(5) ^ campaign::run(&Plan::draw(seed), None, false).hash
    })
}

fn same_seed_same_run() -> bool {
    let (first, second) = (hash(SAME_WORLDS), hash(SAME_WORLDS));
    let elsewhere = std::env::current_exe().and_then(|program| {
        std::process::Command::new(program)
            .args(["--hash", &format!("{}..{}", SAME_WORLDS.start, SAME_WORLDS.end)])
            .output()
    });
    let elsewhere = elsewhere.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let third = elsewhere.as_deref().unwrap_or("nothing");
    println!(
        "{} worlds, hashes: {first:016x} {second:016x}, in another process {third}",
        SAME_WORLDS.end
    );
    first == second && third == format!("{first:016x}")
}

/// How many worlds it takes to find each planted bug.
fn hunt() -> bool {
    let mut is_fine = true;
    for bug in Bug::ALL {
        let tally = campaign::many(0..HUNT_WORLDS_MAX, None, Some(bug));
        match tally.findings.first() {
            Some((seed, finding)) => println!(
                "{bug:?}: found after {} worlds (seed {seed}: {}: {:.100})",
                tally.worlds, finding.oracle, finding.what
            ),
            None => {
                println!("{bug:?}: not found in {} worlds", tally.worlds);
                is_fine = false;
            }
        }
    }
    is_fine
}
