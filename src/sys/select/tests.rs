//! What `choose` makes of a kernel that has io_uring, and of one that forbids it.

use std::io;

use super::*;
use crate::sys::confinement::tests::confined;
use crate::sys::uring::Step;

const NO_CAPABILITIES: &str = "0";

fn refused(errno: i32) -> RingError {
    RingError {
        step: Step::Setup,
        error: io::Error::from_raw_os_error(errno),
    }
}

#[test]
fn the_likely_cause_follows_from_errno_and_confinement() {
    let cause =
        |errno, seccomp, disabled| diagnose(&refused(errno), &confined(seccomp, NO_CAPABILITIES, disabled));
    assert_eq!(cause(libc::EPERM, "2", Some("0")), Cause::Seccomp);
    assert_eq!(cause(libc::EPERM, "2", Some("2")), Cause::Sysctl);
    assert_eq!(cause(libc::EPERM, "0", Some("2")), Cause::Sysctl);
    assert_eq!(cause(libc::EPERM, "0", Some("0")), Cause::Sandbox);
    assert_eq!(cause(libc::EPERM, "0", None), Cause::Sandbox);
    assert_eq!(cause(libc::ENOSYS, "2", None), Cause::Seccomp);
    assert_eq!(cause(libc::ENOSYS, "0", None), Cause::Kernel);
    assert_eq!(cause(libc::EINVAL, "0", None), Cause::Kernel);
    assert_eq!(cause(libc::ENOMEM, "0", Some("0")), Cause::Memory);
    assert_eq!(cause(libc::EMFILE, "0", Some("0")), Cause::Descriptors);
    assert_eq!(cause(libc::ETIME, "0", Some("0")), Cause::Sandbox);
}

#[test]
fn auto_falls_back_on_any_error_and_uring_never_does() {
    for errno in [
        libc::EPERM,
        libc::ENOSYS,
        libc::EOPNOTSUPP,
        libc::ENOTSUP,
        libc::EFAULT,
        libc::ETIME,
    ] {
        let found = decide(
            IoMode::Auto,
            Err(refused(errno)),
            confined("0", NO_CAPABILITIES, None),
        );
        assert!(matches!(found, Ok(Choice::Epoll(Some(_)))), "{errno}");
        let found = decide(
            IoMode::Uring,
            Err(refused(errno)),
            confined("0", NO_CAPABILITIES, None),
        );
        assert!(found.is_err(), "{errno}");
    }
}

#[test]
fn auto_does_not_take_a_ring_that_is_slower_than_epoll() {
    for (release, told) in [("6.0.1", "Linux 6.0"), ("6.5.1", "CVE-2024-0582")] {
        let set = if release == "6.0.1" {
            FeatureSet::V6_0
        } else {
            FeatureSet::V6_1
        };
        let profile = Profile::new(set, 64, KernelRelease::parse(release));
        let found = decide(IoMode::Auto, Ok(profile), Confinement::default()).expect("falls back");
        assert!(found.to_string().contains("backend=epoll"), "{found}");
        assert!(found.to_string().contains(told), "{found}");
        let found = decide(IoMode::Uring, Ok(profile), Confinement::default()).expect("asked for");
        assert_eq!(found.name(), "uring");
    }
}

#[test]
fn epoll_needs_no_reason() {
    let found = choose(IoMode::Epoll, None).expect("epoll always works");
    assert!(matches!(found, Choice::Epoll(None)));
}

#[test]
fn this_kernel_gives_a_ring() {
    let found = choose(IoMode::Auto, None).expect("auto never fails");
    assert_eq!(found.name(), "uring", "{found}");
}

#[test]
fn a_filter_on_the_three_calls_leads_to_epoll_and_is_named() {
    // A filter binds the thread that installs it, and cannot be taken off again.
    let blocked = std::thread::spawn(|| {
        deny_io_uring();
        let auto = choose(IoMode::Auto, None).expect("auto never fails");
        assert_eq!(auto.name(), "epoll");
        let refusal = choose(IoMode::Uring, None).expect_err("forbidden");
        assert_eq!(refusal.cause, Cause::Seccomp);
        assert!(
            matches!(&refusal.obstacle, Obstacle::Failed(RingError { step: Step::Setup, error })
                if error.raw_os_error() == Some(libc::EPERM)),
            "{refusal}"
        );
        (auto.to_string(), refusal.to_string())
    });
    let (line, error) = blocked.join().expect("asserted inside");
    assert_eq!(line.lines().count(), 1);
    for text in [&line, &error] {
        assert!(
            text.contains("reason=seccomp (io_uring_setup: Operation not permitted"),
            "{text}"
        );
        assert!(text.contains("seccomp filter active"), "{text}");
        assert!(
            text.contains("allows io_uring_setup, io_uring_enter and io_uring_register"),
            "{text}"
        );
    }
}

/// What containerd's default profile does: EPERM for the three calls.
fn deny_io_uring() {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let jump_if = |call: libc::c_long, over: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: over,
        jf: 0,
        k: call as u32,
    };
    // The call's number is the first word of what a filter sees.
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump_if(libc::SYS_io_uring_setup, 3),
        jump_if(libc::SYS_io_uring_enter, 2),
        jump_if(libc::SYS_io_uring_register, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
        statement(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: changes this thread only; the program outlives the call, which copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let installed = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        );
        assert_eq!(installed, 0, "{}", io::Error::last_os_error());
    }
}
