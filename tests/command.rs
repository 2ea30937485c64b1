//! The binary itself: sub-commands, exit codes, and its end by signals. As root: the proxy needs its privileges.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use uztunnel_rig::Namespace;
use uztunnel_rig::sys;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uztunnel"));
    command
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    command
}

fn output(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(arguments, variables).output().expect("started");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("utf-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn version_prints_the_banner() {
    let (code, stdout, _) = output(&["version"], &[("ISTIO_META_ISTIO_VERSION", "1.31.0")]);
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("version.BuildInfo{Version:\""), "{stdout}");
    assert!(stdout.contains("IstioVersion:\"1.31.0\""), "{stdout}");
    assert_eq!(stdout.lines().count(), 1);
}

#[test]
fn help_goes_to_stdout_and_an_unknown_command_to_stderr_with_exit_code_1() {
    let (code, help, _) = output(&["help"], &[]);
    assert_eq!(code, Some(0));
    for word in ["proxy", "preflight", "version"] {
        assert!(help.contains(word), "{help}");
    }
    let (code, stdout, stderr) = output(&["prxoy", "ztunnel"], &[]);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(stderr.starts_with("unknown command: prxoy\n"), "{stderr}");
    assert!(stderr.contains(&help));
}

#[test]
fn a_bad_setting_stops_the_start_and_is_named() {
    let sound = [
        ("FAKE_CA", "true"),
        ("XDS_ADDRESS", ""),
        ("LOCAL_XDS", "workloads: []"),
        ("CA_ADDRESS", ""),
    ];
    let cases = [
        ("PACKET_MARK", "lots", "invalid env var PACKET_MARK=lots"),
        ("RUST_LOG", "inof", "invalid env var RUST_LOG=\"inof\""),
        ("LOCAL_XDS", "workloads: 7", "LOCAL_XDS: invalid mesh state"),
        (
            "FAKE_CA",
            "false",
            "invalid configuration: ca_address must be set to use CA",
        ),
        (
            "UZTUNNEL_OI",
            "epoll",
            "invalid env var UZTUNNEL_OI (no such variable; did you mean UZTUNNEL_IO?",
        ),
    ];
    for (name, value, expected) in cases {
        let mut variables = sound.to_vec();
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
        let (code, _, stderr) = output(&["proxy", "ztunnel"], &variables);
        assert_eq!(code, Some(1), "{name}={value}");
        assert!(
            stderr.starts_with(&format!("error: {expected}")),
            "{name}={value}: {stderr}"
        );
    }
}

#[test]
fn sigterm_ends_the_proxy_in_order_with_exit_code_0() {
    for io in ["epoll", "auto"] {
        let (_namespace, mut proxy, mut log) = running(&format!("term-{io}"), io);
        sys::send_signal(proxy.id(), SIGTERM).expect("signalled");
        let mut rest = String::new();
        log.read_to_string(&mut rest).expect("utf-8");
        assert_eq!(proxy.wait().expect("waited").code(), Some(0), "{rest}");
        assert!(rest.contains("SIGTERM"), "{rest}");
        assert!(
            rest.trim_end().ends_with("\tended"),
            "the last line reaches the reader: {rest}"
        );
    }
}

#[test]
fn sigint_ends_the_proxy_with_exit_code_0() {
    let (_namespace, mut proxy, _log) = running("int", "epoll");
    sys::send_signal(proxy.id(), SIGINT).expect("signalled");
    assert_eq!(proxy.wait().expect("waited").code(), Some(0));
}

/// A proxy in a namespace of its own that has told what it is.
fn running(purpose: &str, io: &str) -> (Namespace, Child, BufReader<ChildStdout>) {
    let namespace =
        Namespace::create(&format!("uzcmd-{}-{purpose}", std::process::id())).expect("a namespace, as root");
    let variables = [
        ("FAKE_CA", "true"),
        ("XDS_ADDRESS", ""),
        ("LOCAL_XDS", "workloads: []"),
        ("UZTUNNEL_IO", io),
        ("ZTUNNEL_WORKER_THREADS", "2"),
        ("INPOD_UDS", "/nonexistent/ztunnel.sock"),
    ];
    let spawn = || {
        command(&["proxy", "ztunnel"], &variables)
            .stdout(Stdio::piped())
            .spawn()
    };
    let mut proxy = namespace.run(spawn).expect("started");
    let mut log = BufReader::new(proxy.stdout.take().expect("piped"));
    let mut banner = String::new();
    while !banner.contains("version.BuildInfo{") {
        banner.clear();
        assert_ne!(
            log.read_line(&mut banner).expect("utf-8"),
            0,
            "the proxy ended before its banner"
        );
    }
    let columns: Vec<&str> = banner.trim_end().split('\t').collect();
    assert_eq!((columns[1], columns[2]), ("info", "process::boot"));
    assert!(
        columns[4].starts_with("io=\"") && columns[4].ends_with(" workers=2"),
        "{banner}"
    );
    (namespace, proxy, log)
}
