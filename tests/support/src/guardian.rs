//! The guardian: a small child process that cleans up after its owner, however the owner ends.
//!
//! It waits on a pipe that only the owner holds. When the owner returns, panics, is interrupted or is killed,
//! the kernel closes the pipe and the guardian kills what still runs in the owner's namespaces, deletes them and
//! the scratch files. When the owner outlives its time limit, the guardian ends it first. So no signal handler
//! has to do real work, and nothing is left behind by `kill -9` either.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use crate::lock;
use crate::{Result, RigError};

/// First part of every name that the rig gives to a namespace or scratch folder.
pub const PREFIX: &str = "uzt-";

/// No test program needs longer; the demo with `--keep` asks for no limit.
const LIMIT_DEFAULT: Duration = Duration::from_secs(45 * 60);

static GUARDIAN: Mutex<Option<Child>> = Mutex::new(None);
/// False once everything is being taken away.
static OPEN: RwLock<bool> = RwLock::new(true);
static LIMIT: Mutex<Duration> = Mutex::new(LIMIT_DEFAULT);

/// $1 owner, $2 name prefix, $3 scratch folder, $4 limit in seconds.
const SCRIPT: &str = r#"
trap '' INT TERM HUP
IFS= read -r -t "$4" _
[ $? -gt 128 ] && kill -9 "$1"
for path in /run/netns/"$2"*; do
    [ -e "$path" ] || continue
    name=${path##*/}
    pids=$(ip netns pids "$name" 2>/dev/null)
    [ -n "$pids" ] && kill -9 $pids
    ip netns del "$name"
done
rm -rf "$3/$2"*
"#;

/// The prefix of everything that this process makes.
pub fn own_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Changes the time limit; has to be called before the first world is built.
pub fn set_limit(limit: Duration) {
    *lock(&LIMIT) = limit;
}

/// Starts the guardian of this process unless it runs already, and clears what dead processes left.
pub fn ensure() -> Result<()> {
    let mut guardian = lock(&GUARDIAN);
    if guardian.is_some() {
        return Ok(());
    }
    clear_leftovers()?;
    let limit = *lock(&LIMIT);
    let child = Command::new("bash")
        .args(["-c", SCRIPT, "guardian"])
        .arg(std::process::id().to_string())
        .arg(own_prefix())
        .arg(std::env::temp_dir())
        .arg(limit.as_secs().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| RigError::new("starting the guardian (bash)", error))?;
    *guardian = Some(child);
    Ok(())
}

/// To be held while something is made that the guardian would have to take away: what is made after it has looked
/// would stay. Fails when this program is on its way out.
pub fn hold_open() -> Result<RwLockReadGuard<'static, bool>> {
    let open = OPEN.read().unwrap_or_else(PoisonError::into_inner);
    if *open {
        Ok(open)
    } else {
        Err(RigError::new("building", "everything is being taken away"))
    }
}

/// Lets the guardian clean up now and waits until it is done; nothing more can be made. For a program that ends
/// without dropping its worlds.
pub fn clean_up_now() {
    *OPEN.write().unwrap_or_else(PoisonError::into_inner) = false;
    let child = lock(&GUARDIAN).take();
    if let Some(mut child) = child {
        drop(child.stdin.take());
        // Fails only when the guardian was killed; `clear_leftovers` of the next run does its work then.
        let _ = child.wait();
    }
}

/// Deletes namespaces whose owner is gone: the second line of defence, for a guardian that was killed too.
pub fn clear_leftovers() -> Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = owner_of(&name) else { continue };
        if crate::sys::process_exists(owner) {
            continue;
        }
        for pid in processes_in(&name) {
            // The process may have ended by itself meanwhile: nothing left to do then.
            let _ = crate::sys::send_signal(pid, libc::SIGKILL);
        }
        crate::namespace::run_ip(&["netns", "del", &name])?;
    }
    Ok(())
}

/// The process id in `uzt-<pid>-...`.
fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn processes_in(name: &str) -> Vec<u32> {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_from_a_name() {
        assert_eq!(owner_of("uzt-4711-0-node0"), Some(4711));
        assert_eq!(owner_of("uzt-demo-node0"), None);
        assert_eq!(owner_of("other-4711-0"), None);
    }
}
