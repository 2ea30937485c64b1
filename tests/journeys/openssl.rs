//! Peers of our own making on port 15008: openssl as a TLS pipe, with whatever certificate a test wants.
//!
//! What is written to `Peer::send` becomes TLS records, what comes back is collected. So a test speaks HTTP/2 frame by
//! frame, rules broken as it likes, without sharing code with the program under test.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use uztunnel::identity::Identity;
use uztunnel::tls::fake_ca::{FakeCa, Issued};
use uztunnel_rig::lock;
use uztunnel_rig::{Namespace, World};

use crate::setup::authority;

pub const HOUR: Duration = Duration::from_secs(3600);

/// Files with a certificate, its key and the mesh's root.
pub struct Credentials {
    certificate: PathBuf,
    key: PathBuf,
    /// PEM, as openssl takes roots in no other form.
    root: PathBuf,
}

impl Credentials {
    /// Of this identity, signed by the authority that the world's proxies trust, valid now.
    pub fn valid(world: &World, identity: &str) -> Self {
        let now = SystemTime::now();
        Self::issue(world, &authority(world), identity, now - HOUR, now + HOUR)
    }

    pub fn issue(
        world: &World,
        authority: &FakeCa,
        identity: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Self {
        let identity: Identity = identity.parse().expect("an identity");
        let Issued { chain, key } = authority.sign(&identity, not_before, not_after).expect("signed");
        let name = |what: &str| {
            world
                .scratch()
                .join(format!("{}-{}.{what}", identity.service_account(), nonce()))
        };
        let files = Self {
            certificate: name("crt"),
            key: name("key"),
            root: name("root"),
        };
        write(&files.certificate, &chain[0]);
        write(&files.key, key.secret_der());
        write(&files.root, authority.root());
        convert_to_pem(&files.root);
        files
    }

    /// As arguments of `openssl s_client` and `s_server`.
    pub fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let certificate = [
            "-certform".into(),
            "DER".into(),
            "-cert".into(),
            path(&self.certificate),
        ];
        let key = ["-keyform".into(), "DER".into(), "-key".into(), path(&self.key)];
        let root = ["-CAfile".into(), path(&self.root)];
        [&certificate[..], &key[..], &root[..]].concat()
    }
}

fn nonce() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}

fn convert_to_pem(path: &Path) {
    let converted = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-in"])
        .arg(path)
        .output();
    let converted = converted.expect("openssl runs");
    assert!(
        converted.status.success(),
        "{}",
        String::from_utf8_lossy(&converted.stderr)
    );
    write(path, &converted.stdout);
}

/// A running `openssl`; killed when dropped.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    /// What it received, and what it says itself.
    received: Arc<Mutex<Vec<u8>>>,
}

impl Peer {
    /// `openssl s_client` in a namespace; it says nothing of its own.
    pub fn connect(from: &Namespace, target: SocketAddr, arguments: &[String]) -> Self {
        let target = target.to_string();
        let mut all: Vec<String> = vec!["s_client".into(), "-quiet".into(), "-connect".into(), target];
        all.extend(arguments.iter().cloned());
        Self::start(from, &all)
    }

    /// With a valid certificate and ALPN h2.
    pub fn connect_h2(from: &Namespace, target: SocketAddr, credentials: &Credentials) -> Self {
        let mut arguments = credentials.arguments();
        arguments.extend(["-alpn".into(), "h2".into()]);
        Self::connect(from, target, &arguments)
    }

    /// `openssl s_server` on port 15008 of a namespace, ready when this returns.
    pub fn listen(at: &Namespace, credentials: &Credentials, more: &[&str]) -> Self {
        let own = ["s_server", "-accept", "15008", "-Verify", "3"];
        let mut arguments: Vec<String> = own.iter().chain(more).map(|text| (*text).to_owned()).collect();
        arguments.extend(credentials.arguments());
        let peer = Self::start(at, &arguments);
        peer.wait_for("ACCEPT", |bytes| {
            bytes.windows(6).any(|window| window == b"ACCEPT").then_some(())
        });
        peer
    }

    fn start(namespace: &Namespace, arguments: &[String]) -> Self {
        let mut command = Command::new("openssl");
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = namespace.run(|| command.spawn()).expect("openssl runs");
        let stdin = child.stdin.take().expect("invariant: stdin was piped");
        let mut stdout = child.stdout.take().expect("invariant: stdout was piped");
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let receiving = Arc::clone(&received);
        // Ends with the process; nobody has to wait for it.
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(got @ 1..) = stdout.read(&mut buffer) {
                let mut received = lock(&receiving);
                received.extend_from_slice(&buffer[..got]);
            }
        });
        Self {
            child,
            stdin,
            received,
        }
    }

    /// Waits until `found` finds something in all that was received.
    pub fn wait_for<T>(&self, what: &str, found: impl Fn(&[u8]) -> Option<T>) -> T {
        uztunnel_rig::wait_until(what, || found(&lock(&self.received)))
    }

    /// False when the peer is gone: the proxy has cut it off.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stdin
            .write_all(bytes)
            .and_then(|()| self.stdin.flush())
            .is_ok()
    }

    pub fn is_over(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("the status of a child of ours")
            .is_some()
    }

    pub fn wait_until_over(&mut self) {
        uztunnel_rig::wait_until("the proxy to cut the peer off", || self.is_over().then_some(()));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
