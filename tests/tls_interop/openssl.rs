//! Against the `openssl` program, over loopback. It must be installed: a missing one fails the tests.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use rustls::NamedGroup;
use rustls_pki_types::PrivateKeyDer;
use tempfile::TempDir;

use super::chunking::chunking;
use super::{MODES, Ours, ROLES, Role, cart, count_records, till};
use uztunnel::clock;
use uztunnel::config::Compliance;
use uztunnel::identity::Identity;
use uztunnel::tls::{FakeCa, Output, Rules};
use uztunnel_rig::sys;

/// Longer than anything here takes on a busy machine; reached only when a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// `openssl s_client` or `s_server`, with a certificate of ours; killed when it goes out of scope.
struct Openssl {
    child: Child,
    stdin: ChildStdin,
    /// Lines of its standard output.
    lines: Receiver<Vec<u8>>,
    _files: TempDir,
}

impl Openssl {
    fn start(identity: &Identity, arguments: &[&str]) -> Self {
        let ca = FakeCa::new();
        let now = clock::wall();
        let issued = ca.sign(
            identity,
            now - Duration::from_secs(3600),
            now + Duration::from_secs(3600),
        );
        let issued = issued.expect("issued");
        let PrivateKeyDer::Pkcs8(key) = &issued.key else {
            panic!("the fake CA makes PKCS#8 keys");
        };
        let key = KeyPair::try_from(key.secret_pkcs8_der()).expect("its own key");
        let files = tempfile::tempdir().expect("a directory");
        let path = |name: &str| {
            files
                .path()
                .join(name)
                .into_os_string()
                .into_string()
                .expect("UTF-8")
        };
        fs::write(path("key.pem"), key.serialize_pem()).expect("written");
        fs::write(path("leaf.der"), &issued.chain[0]).expect("written");
        fs::write(path("root.der"), ca.root()).expect("written");
        // s_client reads its roots as PEM only.
        for name in ["leaf", "root"] {
            let (from, to) = (path(&format!("{name}.der")), path(&format!("{name}.pem")));
            let arguments = ["x509", "-inform", "DER", "-in", &from, "-out", &to];
            let converted = Command::new("openssl").args(arguments).status();
            assert!(converted.expect("openssl is installed").success());
        }
        let mut child = Command::new("openssl")
            .args(arguments)
            .args([
                "-cert",
                &path("leaf.pem"),
                "-key",
                &path("key.pem"),
                "-CAfile",
                &path("root.pem"),
            ])
            .args(["-verify_return_error", "-alpn", "h2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        let stdin = child.stdin.take().expect("piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            while stdout.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            _files: files,
        }
    }

    /// A single write: openssl takes a letter for a command only at the front of what it reads at once.
    fn type_in(&mut self, text: &[u8]) {
        self.stdin.write_all(text).expect("openssl reads");
    }

    /// A command, which openssl has read by itself when this returns: behind what was typed before, and before what is
    /// typed next.
    fn command(&mut self, letter: &[u8]) {
        self.wait_until_read();
        self.type_in(&[letter, b"\n"].concat());
        self.wait_until_read();
    }

    fn wait_until_read(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut unread: libc::c_int = 0;
            // SAFETY: an open pipe; the kernel writes one int.
            let asked = unsafe { libc::ioctl(self.stdin.as_raw_fd(), libc::FIONREAD, &raw mut unread) };
            assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
            if unread == 0 {
                return;
            }
            assert!(Instant::now() < end, "openssl leaves {unread} bytes unread");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its output up to the first line that starts with `start`.
    fn line_starting_with(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("openssl never printed {start:?}: {error}"));
            if line.starts_with(start.as_bytes()) {
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
        }
    }

    /// The next `count` bytes that it printed, without what it says about commands, in the middle of them.
    fn printed(&self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let line = self.lines.recv_timeout(PATIENCE);
            let line =
                line.unwrap_or_else(|error| panic!("{} of {count} bytes were printed: {error}", bytes.len()));
            let mut said = &line[..];
            for remark in [&b"SSL_do_handshake -> 1\n"[..], b"Read BLOCK\n"] {
                said = said.strip_suffix(remark).unwrap_or(said);
            }
            bytes.extend_from_slice(said);
        }
        bytes
    }
}

impl Drop for Openssl {
    fn drop(&mut self) {
        // It may have ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our end, with a socket.
struct Wired {
    ours: Ours,
    socket: TcpStream,
    /// Records sent.
    records: usize,
}

impl Wired {
    fn flush(&mut self) {
        let wire = self.ours.take_outbox();
        self.records += count_records(&wire);
        self.socket.write_all(&wire).expect("openssl reads");
    }

    /// Receives until `done`.
    fn receive_until(&mut self, what: &str, done: impl Fn(&Ours) -> bool) {
        let mut buffer = [0; 5000];
        while !done(&self.ours) {
            let read = sys::uninterrupted(|| self.socket.read(&mut buffer));
            let read = read.unwrap_or_else(|error| panic!("waiting for {what}: {error}"));
            assert!(read > 0, "openssl closed while we waited for {what}");
            self.ours.receive(&buffer[..read]).expect(what);
            self.flush();
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.ours.send(bytes, false);
        self.flush();
    }
}

/// We as a server and s_client, or we as a client and s_server.
fn session(role: Role, rules: impl Into<Rules>, extra: &[&str]) -> (Wired, Openssl) {
    session_by(role, rules, extra, |target| target)
}

/// The same; who connects is sent to what `way` makes of the other's address.
fn session_by(
    role: Role,
    rules: impl Into<Rules>,
    extra: &[&str],
    way: impl Fn(SocketAddr) -> SocketAddr,
) -> (Wired, Openssl) {
    let mut ours = Ours::new(role, rules, 16);
    let (socket, openssl) = match role {
        Role::Server => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = way(listener.local_addr().expect("bound")).to_string();
            let arguments = [&["s_client", "-connect", &address][..], extra].concat();
            let openssl = Openssl::start(&cart(), &arguments);
            (listener.accept().expect("s_client connects").0, openssl)
        }
        Role::Client => {
            let arguments = [
                "s_server",
                "-accept",
                "127.0.0.1:0",
                "-Verify",
                "1",
                "-naccept",
                "1",
            ];
            let openssl = Openssl::start(&till(), &[&arguments[..], extra].concat());
            let accepting = openssl.line_starting_with("ACCEPT ");
            let address = accepting.trim_start_matches("ACCEPT ");
            let address = way(address.parse().expect("an address"));
            let socket = TcpStream::connect(address).expect("s_server listens");
            ours.receive(&[]).expect("hello");
            (socket, openssl)
        }
    };
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut wired = Wired {
        ours,
        socket,
        records: 0,
    };
    wired.flush();
    (wired, openssl)
}

#[test]
fn openssl_updates_its_key_and_asks_for_ours() {
    for role in [Role::Server, Role::Client] {
        for mode in MODES {
            let (mut wired, mut openssl) = session(role, mode, &["-tls1_3"]);
            wired.receive_until("the handshake", Ours::is_open);
            wired.flush();
            openssl.type_in(b"0 before\n");
            wired.receive_until("data", |ours| ours.received == b"0 before\n");

            // s_server has sent tickets, too.
            let before = wired.ours.controls;
            openssl.command(b"k");
            wired.receive_until("a key update", |ours| ours.controls > before);
            openssl.type_in(b"1 update\n");
            wired.receive_until("data under the new key", |ours| {
                ours.received.ends_with(b"1 update\n")
            });

            let before = wired.ours.controls;
            openssl.command(b"K");
            wired.receive_until("a request to update", |ours| ours.controls > before);
            wired.send(b"2 answered\n");
            assert_eq!(openssl.line_starting_with("2 "), "2 answered");
            openssl.type_in(b"3 asked\n");
            wired.receive_until("data after the request", |ours| {
                ours.received.ends_with(b"3 asked\n")
            });

            // s_server just closes its socket on the same command.
            if role == Role::Server {
                openssl.type_in(b"Q\n");
                wired.receive_until("close_notify", |ours| ours.closed);
            }
        }
    }
}

#[test]
fn openssl_follows_a_key_update_before_every_16th_record() {
    for role in [Role::Server, Role::Client] {
        let (mut wired, openssl) = session(role, uztunnel::tls::RecordMode::Own, &["-tls1_3"]);
        wired.receive_until("the handshake", Ours::is_open);
        wired.flush();
        for line in 0..400 {
            wired.send(format!("{line:04}-{}-\n", "x".repeat(line)).as_bytes());
        }
        for line in 0..400 {
            let expected = format!("{line:04}-{}-", "x".repeat(line));
            assert_eq!(openssl.line_starting_with(&expected[..5]), expected);
        }
    }
}

/// A line of random length. Digits only: openssl takes some letters for commands.
fn random_line(random: &mut fastrand::Rng, bytes_max: usize) -> Vec<u8> {
    let bytes = random.usize(1..bytes_max);
    let mut line: Vec<u8> = (0..bytes).map(|_| random.u8(b'0'..=b'9')).collect();
    line.push(b'\n');
    line
}

/// Some lines to openssl, each sealed for itself; added to `sent`.
fn say_lines(wired: &mut Wired, random: &mut fastrand::Rng, sent: &mut Vec<u8>) {
    for _ in 0..random.usize(4..12) {
        let bytes_max = [3, 300, 40_000][random.usize(..3)];
        let line = random_line(random, bytes_max);
        wired.ours.send(&line, random.bool());
        sent.extend_from_slice(&line);
        if random.bool() {
            wired.flush();
        }
    }
    wired.flush();
}

/// Both sides talk at once, we update our key before every 16th record, openssl its own or both on command, and
/// what is on the wire arrives cut at random.
#[test]
fn sessions_with_openssl_survive_key_updates_both_ways_under_random_chunking() {
    const ROUNDS: usize = 16;
    let combinations = ROLES
        .iter()
        .flat_map(|role| MODES.iter().map(move |mode| (*role, *mode)));
    for (seed, (role, mode)) in (1..).zip(combinations) {
        println!("seed {seed}: {role:?}, {mode:?}");
        let mut random = fastrand::Rng::with_seed(seed);
        let way = |target| chunking(target, seed);
        let (mut wired, mut openssl) = session_by(role, mode, &["-tls1_3"], way);
        wired.receive_until("the handshake", Ours::is_open);
        wired.flush();
        wired.send(b"start\n");
        openssl.line_starting_with("start");
        // Behind the tickets of s_server, which count as controls.
        openssl.type_in(b"0\n");
        wired.receive_until("the first line", |ours| ours.received == b"0\n");
        let (records, controls) = (wired.records, wired.ours.controls);
        let (mut to_openssl, mut to_us) = (Vec::new(), b"0\n".to_vec());
        for round in 0..ROUNDS {
            // Less than its pipe holds, so that typing never waits for us.
            let typed = random_line(&mut random, [10, 3_000, 50_000][round % 3]);
            openssl.type_in(&typed);
            to_us.extend_from_slice(&typed);
            say_lines(&mut wired, &mut random, &mut to_openssl);
            wired.receive_until("a line", |ours| ours.received.len() >= to_us.len());

            // Rustls asks for updates with its own, so a control is not yet the one that was typed here.
            let before = wired.ours.controls;
            openssl.command(if random.bool() { b"k" } else { b"K" });
            say_lines(&mut wired, &mut random, &mut to_openssl);
            wired.receive_until("a key update", |ours| ours.controls > before);
        }
        assert!(wired.ours.received == to_us, "every byte from openssl, in order");
        let printed = openssl.printed(to_openssl.len());
        let other = (printed.iter().zip(&to_openssl)).position(|(got, sent)| got != sent);
        assert_eq!(
            other,
            None,
            "{}",
            String::from_utf8_lossy(&printed[other.unwrap_or(0)..][..80])
        );
        assert_eq!(printed.len(), to_openssl.len());
        assert!(wired.ours.controls - controls >= ROUNDS);
        let sent = wired.records - records;
        assert!(sent > 10 * 16, "{sent} records: ten updates of ours at least");
    }
}

#[test]
fn padded_records_of_openssl_are_understood_in_bulk() {
    for role in [Role::Server, Role::Client] {
        for mode in MODES {
            let (mut wired, mut openssl) = session(role, mode, &["-tls1_3", "-record_padding", "700"]);
            wired.receive_until("the handshake", Ours::is_open);
            wired.flush();
            // Digits and line ends only: no letter may look like a command.
            let bulk: Vec<u8> = (0..30_000)
                .flat_map(|line| format!("{line:07}\n").into_bytes())
                .collect();
            let sent = bulk.clone();
            let writer = thread::spawn(move || {
                openssl.type_in(&sent);
                openssl
            });
            wired.receive_until("bulk", |ours| ours.received.len() >= bulk.len());
            assert!(wired.ours.received == bulk);
            drop(writer.join().expect("written"));
        }
    }
}

#[test]
fn both_suites_are_spoken_with_openssl() {
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"] {
        for role in [Role::Server, Role::Client] {
            let extra = ["-tls1_3", "-ciphersuites", suite];
            let (mut wired, mut openssl) = session(role, uztunnel::tls::RecordMode::Own, &extra);
            wired.receive_until("the handshake", Ours::is_open);
            wired.flush();
            openssl.type_in(b"0 hello\n");
            wired.receive_until("data", |ours| ours.received == b"0 hello\n");
            wired.send(b"1 hello\n");
            assert_eq!(openssl.line_starting_with("1 "), "1 hello");
        }
    }
}

#[test]
fn groups_are_agreed_with_openssl_and_a_policy_that_it_cannot_meet_ends_the_handshake() {
    for (name, group) in [
        ("X25519", NamedGroup::X25519),
        ("P-256", NamedGroup::secp256r1),
        ("P-384", NamedGroup::secp384r1),
    ] {
        for role in [Role::Server, Role::Client] {
            let extra = ["-tls1_3", "-groups", name];
            let (mut wired, _openssl) = session(role, uztunnel::tls::RecordMode::Own, &extra);
            wired.receive_until("the handshake", Ours::is_open);
            assert_eq!(wired.ours.group, Some(group), "{role:?}");
        }
    }
    // A group that both must have, and only we do.
    for role in [Role::Server, Role::Client] {
        let strict = Rules {
            compliance: Compliance::PostQuantum,
            ..uztunnel::tls::RecordMode::Own.into()
        };
        let (mut wired, _openssl) = session(role, strict, &["-tls1_3", "-groups", "X25519:P-256:P-384"]);
        let expected = match role {
            Role::Server => "tls handshake error: peer is incompatible: NoKxGroupsInCommon",
            Role::Client => {
                "tls handshake error: peer refused the handshake with the alert HandshakeFailure (40): no \
                 parameters in common"
            }
        };
        assert_eq!(error_of(&mut wired), expected);
    }
}

#[test]
fn tls_1_2_is_refused_in_both_roles() {
    for mode in MODES {
        let (mut wired, _openssl) = session(Role::Server, mode, &["-tls1_2"]);
        assert_eq!(
            error_of(&mut wired),
            "tls handshake error: peer does not offer TLS 1.3, the only version accepted"
        );
        assert_eq!(
            wired.ours.take_outbox(),
            [21, 3, 3, 0, 2, 2, 70],
            "protocol_version"
        );

        let (mut wired, _openssl) = session(Role::Client, mode, &["-tls1_2"]);
        assert_eq!(
            error_of(&mut wired),
            "tls handshake error: peer refused the handshake with the alert ProtocolVersion (70): \
             it does not speak TLS 1.3"
        );
    }
}

/// Receives until our side refuses.
fn error_of(wired: &mut Wired) -> String {
    let mut buffer = [0; 5000];
    loop {
        let read = sys::uninterrupted(|| wired.socket.read(&mut buffer)).expect("openssl answers");
        assert!(read > 0, "openssl closed before we refused");
        if let Err(error) = wired.ours.receive(&buffer[..read]) {
            return error.to_string();
        }
        wired.flush();
    }
}

#[test]
fn close_notify_from_us_ends_s_client() {
    let (mut wired, mut openssl) = session(Role::Server, uztunnel::tls::RecordMode::Own, &["-tls1_3"]);
    wired.receive_until("the handshake", Ours::is_open);
    let mut out = Output::default();
    wired.ours.channel().close_notify(&mut out);
    wired.flush();
    wired.socket.write_all(out.filled()).expect("s_client reads");
    assert!(
        openssl.child.wait().expect("it ends").success(),
        "a clean end for s_client"
    );
}
