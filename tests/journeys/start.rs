//! How the program starts, falls back and refuses to start.

use std::path::{Path, PathBuf};

use uztunnel_rig::{Backend, ControlPlane, Family, ProxyOptions, World, http};

use crate::setup::{
    BODY_BYTES, HTTP_PORT, binary, control_plane, io_choice, options, plan, serve_http, two_nodes, variables,
};

/// Starts node 0's proxy with these options and gives its exit code and what it printed.
fn run_to_its_end(options: &ProxyOptions) -> (Option<i32>, String) {
    let world = World::build(plan()).expect("a world");
    let mut proxy = world.launch_proxy(0, options).expect("started");
    let status = proxy.wait_for_exit().expect("it ends by itself");
    (status.code(), proxy.logs.lines().join("\n"))
}

fn assert_refused(variable: &str, value: &str, expected: &[&str]) {
    let (code, said) = run_to_its_end(&ProxyOptions::new(&binary()).variable(variable, value));
    assert!(
        code.is_some_and(|code| code != 0),
        "{variable}={value}: code {code:?}"
    );
    for words in expected {
        assert!(
            said.contains(words),
            "{variable}={value} should say {words:?}: {said}"
        );
    }
}

#[test]
fn a_wrong_setting_stops_the_start_and_says_what_would_be_right() {
    assert_refused(
        "ZTUNNEL_WORKER_THREADS",
        "many",
        &["ZTUNNEL_WORKER_THREADS", "many"],
    );
    assert_refused(
        "UZTUNNEL_IO",
        "kqueue",
        &["UZTUNNEL_IO", "kqueue", "auto", "uring", "epoll"],
    );
    assert_refused("UZTUNNEL_OI", "epoll", &["UZTUNNEL_OI", "UZTUNNEL_IO"]);
    assert_refused(
        "LOCAL_XDS_PATH",
        "/nonexistent/mesh.yaml",
        &["/nonexistent/mesh.yaml"],
    );
    assert_refused("PROXY_MODE", "dedicated", &["PROXY_MODE", "dedicated"]);
}

#[test]
fn without_io_uring_it_starts_on_epoll_and_says_why_in_one_line() {
    let denied = options().map(|options| ProxyOptions {
        backend: None,
        deny_io_uring: true,
        ..options
    });
    let world = World::start(plan(), &denied).expect("ready proxies");
    let logs = &world.nodes[0].proxy().logs;
    let reasons: Vec<String> = logs
        .lines()
        .into_iter()
        .filter(|line| line.contains("epoll") && line.contains("os error 1)") && line.contains("seccomp"))
        .collect();
    assert_eq!(reasons.len(), 1, "{:#?}", logs.lines());
    let _server = serve_http(world.pod("server"));
    let target = world.pod("server").address(Family::V4, HTTP_PORT);
    let response = world
        .pod("client")
        .run(async move { http::get(target, "/").await });
    assert_eq!(response.expect("a response").body.len(), BODY_BYTES);
}

#[test]
fn uring_that_is_asked_for_and_denied_stops_the_start_with_the_same_reason() {
    let options = ProxyOptions {
        deny_io_uring: true,
        ..ProxyOptions::new(&binary()).backend(Backend::Uring)
    };
    let (code, said) = run_to_its_end(&options);
    assert!(code.is_some_and(|code| code != 0), "code {code:?}");
    assert!(said.contains("os error 1)") && said.contains("seccomp"), "{said}");
}

#[test]
fn its_memory_is_in_small_pages() {
    let world = two_nodes();
    let huge = world.nodes[0].proxy().huge_page_bytes().expect("it runs");
    // On a node that uses them unasked, what was allocated before the proxy could say so may lie in two.
    assert!(huge <= 4 << 20, "{huge} bytes are in huge pages");
}

#[test]
fn as_many_workers_run_as_the_setting_says() {
    let three = options().map(|options| ProxyOptions {
        workers: 3,
        ..options
    });
    let world = World::start(plan(), &three).expect("ready proxies");
    let threads = format!("/proc/{}/task", world.nodes[0].proxy().pid());
    let mut names: Vec<String> = std::fs::read_dir(threads)
        .expect("it runs")
        .map(|thread| std::fs::read_to_string(thread.expect("listed").path().join("comm")))
        .map(|name| name.expect("it runs").trim_end().to_owned())
        .filter(|name| name.starts_with("uztunnel-"))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["uztunnel-0", "uztunnel-1", "uztunnel-2"]);
}

#[test]
fn the_control_thread_stands_back_behind_the_workers() {
    let world = two_nodes();
    let process = world.nodes[0].proxy().pid();
    let nice = |thread: &Path| {
        let stat = std::fs::read_to_string(thread.join("stat")).expect("it runs");
        // proc_pid_stat(5): field 19, and what follows the name begins with field 3.
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let nice = fields
            .split(' ')
            .nth(16)
            .and_then(|field| field.parse::<i32>().ok());
        nice.unwrap_or_else(|| panic!("a level of nice in {stat}"))
    };
    let ours = nice(Path::new("/proc/self"));
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    assert_eq!(nice(&tasks.join(process.to_string())), (ours + 5).min(19));
    let mut workers = 0;
    for thread in std::fs::read_dir(&tasks).expect("it runs") {
        let thread = thread.expect("listed").path();
        let name = std::fs::read_to_string(thread.join("comm")).expect("it runs");
        if name.starts_with("uztunnel-") {
            workers += 1;
            assert_eq!(nice(&thread), ours, "{name}");
        }
    }
    assert!(workers > 0);
}

#[test]
fn readiness_is_withdrawn_until_the_snapshot_of_pods_was_taken() {
    let world = World::build(plan()).expect("a world");
    // An agent's socket that nobody listens on.
    let orphan = world.scratch().join("orphan.sock");
    let options = ProxyOptions::new(&binary()).variable("INPOD_UDS", &orphan.display().to_string());
    let proxy = world.launch_proxy(0, &options).expect("started");
    let node = &world.nodes[0].namespace;
    let (status, body) = uztunnel_rig::wait_until("readiness to answer", || {
        node.run(|| uztunnel_rig::proxy::probe("/healthz/ready")).ok()
    });
    assert_eq!(status, 500, "{body}");
    assert!(body.contains("workload proxy manager"), "{body}");
    let (status, _) = node
        .run(|| uztunnel_rig::proxy::probe("/elsewhere"))
        .expect("an answer");
    assert_eq!(status, 404);
    drop(proxy);
}

#[test]
fn sigterm_ends_it_with_code_0() {
    let mut world = World::start(plan(), &options()).expect("ready proxies");
    let mut proxy = world.nodes[0].proxy.take().expect("started");
    proxy.terminate().expect("sent");
    let status = proxy.wait_for_exit().expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", proxy.logs.tail());
}

#[test]
fn what_the_run_asks_for_reaches_every_proxy() {
    let world = two_nodes();
    for node in &world.nodes {
        let process = format!("/proc/{}", node.proxy().pid());
        let read = |file: &str| std::fs::read_to_string(format!("{process}/{file}")).expect("it runs");
        let environment = read("environ");
        let told: Vec<&str> = environment.split('\0').collect();
        for (name, value) in variables() {
            assert!(told.contains(&format!("{name}={value}").as_str()), "{told:?}");
        }
        let is_filtered = read("status").lines().any(|line| line == "Seccomp:\t2");
        assert_eq!(is_filtered, io_choice() == "denied");
        let istiod = told.iter().find_map(|it| it.strip_prefix("XDS_ADDRESS="));
        let served = control_plane() == ControlPlane::Istiod;
        assert_eq!(istiod != Some(""), served, "{told:?}");
        assert_eq!(told.contains(&"FAKE_CA=true"), !served, "{told:?}");
    }
}
