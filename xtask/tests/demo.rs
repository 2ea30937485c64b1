//! The demo as somebody runs it: to its end, and interrupted at several moments. Nothing of it may be left.
//!
//! Needs root. `UZTUNNEL_BIN` names the proxy; without it the demo builds its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uztunnel_rig::{sys, wait_until};

/// From the end of a demo to that of its guardian.
const GUARDIAN_LIMIT: Duration = Duration::from_secs(10);

const SIGINT: i32 = 2;
/// Of a program that Ctrl-C ended, as shells count.
const INTERRUPTED: i32 = 130;
const REMOVED: &str = "Everything is removed again: processes, namespaces, files.";
/// The whole demo takes about 40 s.
const LIMIT: Duration = Duration::from_secs(300);

struct Demo {
    child: Child,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    rules_before: String,
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("demo").args(arguments);
        if let Some(binary) = std::env::var_os("UZTUNNEL_BIN") {
            command.arg("--binary").arg(binary);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let rules_before = own_rules();
        let mut child = command.spawn().expect("the demo starts");
        let said = Arc::<Mutex<String>>::default();
        let stdout = read(child.stdout.take().expect("invariant: piped"), &said);
        let stderr = read(child.stderr.take().expect("invariant: piped"), &said);
        Self {
            child,
            said,
            readers: vec![stdout, stderr],
            rules_before,
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In the names of all that it makes.
    fn prefix(&self) -> String {
        format!("uzt-{}-", self.child.id())
    }

    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.said().contains(text) {
            let ended = self.child.try_wait().expect("a child of ours");
            let late = Instant::now() > deadline;
            assert!(
                ended.is_none() && !late,
                "the demo never said {text:?}:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn interrupt(&self) {
        sys::send_signal(self.child.id(), SIGINT).expect("sent");
    }

    /// Waits for its end, after which nothing of it is left.
    fn end(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        };
        for reader in self.readers.drain(..) {
            reader.join().expect("no panic");
        }
        let prefix = self.prefix();
        assert_eq!(names_in("/run/netns", &prefix), [""; 0], "namespaces are left");
        assert_eq!(names_in(std::env::temp_dir(), &prefix), [""; 0], "files are left");
        // The guardian ends when it has seen that the demo has.
        let soon = Instant::now() + GUARDIAN_LIMIT;
        while !processes_of(&prefix).is_empty() && Instant::now() < soon {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(processes_of(&prefix), [""; 0], "processes are left");
        assert_eq!(own_rules(), self.rules_before, "rules are left");
        (status, self.said())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Fails when it has ended, as it should; otherwise its guardian takes its world away.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(stream: impl Read + Send + 'static, said: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    })
}

fn names_in(folder: impl AsRef<Path>, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Processes that were told of something in its scratch folder, as its proxies and its guardian are.
fn processes_of(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        if !entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit())
        {
            continue;
        }
        let holds = |file: &str| {
            // A process that ends meanwhile is none that is left.
            let text = std::fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(prefix)
        };
        if holds("environ") || holds("cmdline") {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

/// The rules of the machine's own network, which the demo has no business with.
fn own_rules() -> String {
    let listed = Command::new("nft").args(["list", "ruleset"]).output();
    let listed = listed.expect("nft runs");
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8_lossy(&listed.stdout).into_owned()
}

fn assert_interrupted(demo: Demo) {
    demo.interrupt();
    let (status, said) = demo.end();
    assert_eq!(status.code(), Some(INTERRUPTED), "{said}");
    assert!(said.trim_end().ends_with(REMOVED), "{said}");
    assert!(!said.contains("xtask:") && !said.contains("rig:"), "{said}");
}

#[test]
fn it_tells_its_story_to_the_end_and_leaves_nothing() {
    let demo = Demo::start(&["--control-plane"]);
    let (status, said) = demo.end();
    assert!(status.success(), "{said}");
    for text in [
        "Inside the mesh, while the wire is captured:",
        "spiffe://cluster.local/ns/shop/sa/web -> spiffe://cluster.local/ns/shop/sa/shop",
        "policy shop/nobody pushed: web -> shop is refused",
        "policy shop/nobody taken back: web -> shop is served again",
        "away: 10 of 10 requests are served with what is known",
        "say what they hold; 0 resources had to be sent",
        "What it costs",
    ] {
        assert!(said.contains(text), "{text:?} is missing:\n{said}");
    }
    assert!(said.trim_end().ends_with(REMOVED), "{said}");
}

#[test]
fn an_interrupt_while_it_builds_leaves_nothing() {
    let demo = Demo::start(&[]);
    let prefix = demo.prefix();
    wait_until("the first namespace", || {
        (!names_in("/run/netns", &prefix).is_empty()).then_some(())
    });
    assert_interrupted(demo);
}

#[test]
fn an_interrupt_amid_its_story_leaves_nothing() {
    let mut demo = Demo::start(&["--iptables"]);
    demo.wait_for("Inside the mesh, while the wire is captured:");
    assert!(
        Path::new("/run/netns")
            .join(format!("{}0-demo-node0", demo.prefix()))
            .exists()
    );
    assert_interrupted(demo);
}

#[test]
fn an_interrupt_of_a_demo_that_was_kept_leaves_nothing() {
    let mut demo = Demo::start(&["--keep", "--control-plane"]);
    demo.wait_for("Ctrl-C removes everything.");
    assert!(!processes_of(&demo.prefix()).is_empty(), "its proxies run");
    assert_interrupted(demo);
}
