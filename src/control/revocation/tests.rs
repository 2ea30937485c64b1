//! The file as it is swapped, spoilt, hidden and mended.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber,
};
use tempfile::TempDir;

use super::*;

/// A list of so many certificates, as PEM.
fn list(certificates: u64) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, KeyPair::generate().expect("a key"));
    let revoked = |serial: u64| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: rcgen::date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2126, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: (1..=certificates).map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).expect("signed").pem().expect("PEM")
}

struct World {
    directory: TempDir,
    revocations: Revocations,
    watch: Watch,
}

impl World {
    /// `prepare` makes what is there at the start.
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        prepare(directory.path());
        let revocations = Revocations::default();
        let watch = Watch::start(directory.path().join("crl.pem"), revocations.clone());
        Self {
            directory,
            revocations,
            watch,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Looks twice, as a settled file is read at the second look. Whether workers would be told.
    fn look(&mut self) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let first = self.watch.check().await;
            first | self.watch.check().await
        })
    }

    #[track_caller]
    fn assert_in_force(&self, certificates: usize, failed: u64) {
        let lists = self.revocations.load().expect("asked for");
        let found = (lists.certificates(), self.revocations.failed_loads());
        assert_eq!(found, (certificates, failed));
    }
}

fn replace(directory: &Path, content: &[u8]) {
    let next = directory.join("next");
    fs::write(&next, content).expect("written");
    fs::rename(next, directory.join("crl.pem")).expect("renamed");
}

#[test]
fn a_file_is_read_at_start_and_when_it_changes_and_a_bad_one_changes_nothing() {
    let mut world = World::start(|at| replace(at, list(2).as_bytes()));
    world.assert_in_force(2, 0);
    assert!(!world.look(), "nothing changed");
    replace(world.path(), list(3).as_bytes());
    assert!(world.look());
    world.assert_in_force(3, 0);
    replace(world.path(), b"no list");
    assert!(!world.look());
    world.assert_in_force(3, 1);
    assert!(!world.look(), "and is told once");
    world.assert_in_force(3, 1);
    fs::remove_file(world.path().join("crl.pem")).expect("removed");
    assert!(!world.look());
    world.assert_in_force(3, 2);
    replace(
        world.path(),
        &vec![b' '; limits::REVOCATION_FILE_BYTES_MAX as usize + 1],
    );
    assert!(!world.look());
    world.assert_in_force(3, 3);
    replace(world.path(), b"");
    assert!(world.look(), "an empty file takes all back");
    world.assert_in_force(0, 3);
}

#[test]
fn a_file_that_is_missing_at_start_is_no_failure_and_found_later() {
    let mut world = World::start(|_| {});
    world.assert_in_force(0, 0);
    assert!(!world.look());
    world.assert_in_force(0, 0);
    replace(world.path(), list(1).as_bytes());
    assert!(world.look());
    world.assert_in_force(1, 0);
}

#[test]
fn a_bad_file_at_start_is_a_failure_and_healed_later() {
    let mut world = World::start(|at| replace(at, b"no list"));
    world.assert_in_force(0, 1);
    replace(world.path(), list(1).as_bytes());
    assert!(world.look());
    world.assert_in_force(1, 1);
}

#[test]
fn directories_swapped_as_kubernetes_does_are_seen() {
    let version = |at: &Path, name: &str, certificates: u64| {
        fs::create_dir(at.join(name)).expect("made");
        fs::write(at.join(name).join("crl.pem"), list(certificates)).expect("written");
    };
    let mut world = World::start(|at| {
        version(at, "..1", 1);
        symlink("..1", at.join("..data")).expect("linked");
        symlink("..data/crl.pem", at.join("crl.pem")).expect("linked");
    });
    world.assert_in_force(1, 0);
    version(world.path(), "..2", 2);
    symlink("..2", world.path().join("..data_tmp")).expect("linked");
    fs::rename(world.path().join("..data_tmp"), world.path().join("..data")).expect("swapped");
    assert!(world.look());
    world.assert_in_force(2, 0);
}

#[test]
fn a_file_that_is_still_written_is_left_alone() {
    let mut world = World::start(|_| {});
    let text = list(5);
    let path = world.path().join("crl.pem");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    for end in [text.len() / 3, text.len() / 2] {
        fs::write(&path, &text[..end]).expect("written");
        assert!(!runtime.block_on(world.watch.check()));
    }
    fs::write(&path, &text).expect("written");
    assert!(world.look());
    world.assert_in_force(5, 0);
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let mut world = World::start(|at| fs::create_dir(at.join("crl.pem")).expect("made"));
    world.assert_in_force(0, 1);
    fs::remove_dir(world.path().join("crl.pem")).expect("removed");
    let made = Command::new("mkfifo").arg(world.path().join("crl.pem")).status();
    assert!(made.expect("mkfifo runs").success());
    assert!(!world.look(), "a FIFO without a writer would wait for ever");
    world.assert_in_force(0, 2);
}

#[test]
fn a_file_that_could_not_be_opened_for_a_while_is_read_when_it_can_be() {
    let mut watched = World::start(|_| {});
    replace(watched.path(), list(1).as_bytes());
    watched.watch.reader = |_| Err(FileError::Read(io::Error::from_raw_os_error(libc::EMFILE)));
    while watched.watch.revocations.failed_loads() == 0 {
        watched.look();
    }
    // Tried again and again, and told once.
    for _ in 0..3 {
        assert!(!watched.look());
    }
    watched.assert_in_force(0, 1);
    watched.watch.reader = read_lists;
    assert!(watched.look());
    watched.assert_in_force(1, 1);
}
