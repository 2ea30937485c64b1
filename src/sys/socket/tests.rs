//! Sockets in namespaces of their own, with redirections as in a pod. As root, as the proxy itself runs.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;

use super::*;
use crate::sys::netns;

/// A namespace with a loopback interface that is up.
fn pod() -> Arc<Namespace> {
    let namespace = netns::tests::fresh();
    command(&namespace, "ip link set lo up");
    Arc::new(namespace)
}

fn command(namespace: &Namespace, line: &str) {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().expect("a program"));
    let output = namespace.run(|| command.args(words).output());
    let output = output.expect("entered").expect("started");
    assert!(output.status.success(), "{line}: {output:?}");
}

fn listen_spec(address: SocketAddr) -> ListenSpec {
    ListenSpec {
        namespace: None,
        address,
        reuse_port: false,
        mark: None,
        transparent: Some(false),
        backlog: 128,
    }
}

/// Connects inside `namespace`; returns both ends.
fn connect_inside(namespace: &Namespace, listening: &Listening, to: SocketAddr) -> (TcpStream, TcpStream) {
    let client = namespace.run(|| TcpStream::connect(to));
    let client = client.expect("entered").expect("connected");
    let listener = TcpListener::from(listening.fd.try_clone().expect("descriptor"));
    listener.set_nonblocking(false).expect("blocking");
    let (accepted, _) = listener.accept().expect("accepted");
    (client, accepted)
}

#[test]
fn a_listener_lives_in_the_namespace_given() {
    let pod = pod();
    let address = any_address(true, 15001);
    let listening = listen(&ListenSpec {
        namespace: Some(pod.clone()),
        ..listen_spec(address)
    })
    .expect("listening");
    for to in ["127.0.0.1:15001", "[::1]:15001"] {
        let to: SocketAddr = to.parse().expect("an address");
        let (client, accepted) = connect_inside(&pod, &listening, to);
        assert_eq!(local_address(accepted.as_fd()).expect("address"), to, "canonical");
        assert_eq!(
            peer_address(accepted.as_fd()).expect("address"),
            client.local_addr().expect("address")
        );
    }
    // Taken there, free in another namespace.
    let again = listen(&ListenSpec {
        namespace: Some(pod),
        ..listen_spec(address)
    });
    let error = again.expect_err("taken");
    assert_eq!(
        error.to_string(),
        "cannot bind [::]:15001: Address already in use (os error 98)"
    );
    listen(&ListenSpec {
        namespace: Some(self::pod()),
        ..listen_spec(address)
    })
    .expect("free in another namespace");
}

#[test]
fn listeners_overlap_with_reuse_port() {
    let spec = ListenSpec {
        namespace: Some(pod()),
        reuse_port: true,
        ..listen_spec(any_address(false, 15008))
    };
    let old = listen(&spec).expect("listening");
    let new = listen(&spec).expect("overlapping");
    drop((old, new));
}

#[test]
fn a_redirected_connection_tells_where_it_was_going() {
    let pod = pod();
    command(&pod, "ip addr add 2001:db8::7/128 dev lo nodad");
    for tables in ["iptables", "ip6tables"] {
        command(
            &pod,
            &format!("{tables} -t nat -A OUTPUT -p tcp --dport 9999 -j REDIRECT --to-ports 15001"),
        );
    }
    for dual_stack in [true, false] {
        let listening = listen(&ListenSpec {
            namespace: Some(pod.clone()),
            ..listen_spec(any_address(dual_stack, 15001))
        })
        .expect("listening");
        let redirected: &[&str] = match dual_stack {
            true => &["127.1.2.3:9999", "[2001:db8::7]:9999"],
            false => &["127.1.2.3:9999"],
        };
        for to in redirected {
            let to: SocketAddr = to.parse().expect("an address");
            let (_client, accepted) = connect_inside(&pod, &listening, to);
            assert_eq!(original_destination(accepted.as_fd()).expect("known"), to);
            assert_eq!(local_address(accepted.as_fd()).expect("address").port(), 15001);
        }
        let direct: SocketAddr = "127.0.0.1:15001".parse().expect("an address");
        let (_client, accepted) = connect_inside(&pod, &listening, direct);
        assert_eq!(original_destination(accepted.as_fd()).expect("known"), direct);
    }
}

#[test]
fn a_foreign_source_address_is_preserved() {
    let pod = pod();
    // What the CNI agent sets up: answers to the foreign address come back to this host.
    command(&pod, "ip route add local 10.9.8.0/24 dev lo");
    let listening = listen(&ListenSpec {
        namespace: Some(pod.clone()),
        transparent: None,
        ..listen_spec(any_address(false, 8080))
    })
    .expect("listening");
    assert!(listening.transparent, "root may");
    for source in ["10.9.8.7", "10.9.8.6"] {
        let source: IpAddr = source.parse().expect("an address");
        let spec = SocketSpec {
            namespace: Some(pod.clone()),
            bind_transparent: Some(source),
            ..SocketSpec::default()
        };
        let to: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
        let socket = Socket::from(open(&spec, to.ip()).expect("opened"));
        socket.set_nonblocking(false).expect("blocking");
        socket.connect(&to.into()).expect("connected");
        let listener = TcpListener::from(listening.fd.try_clone().expect("descriptor"));
        listener.set_nonblocking(false).expect("blocking");
        let (_, from) = listener.accept().expect("accepted");
        assert_eq!(from.ip(), source);
    }
}

#[test]
fn a_source_of_the_other_family_fails_to_connect_not_to_open() {
    let spec = SocketSpec {
        bind_transparent: Some("::1".parse().expect("an address")),
        ..SocketSpec::default()
    };
    let socket = Socket::from(open(&spec, Ipv4Addr::LOCALHOST.into()).expect("opened"));
    let to: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    assert!(socket.connect(&to.into()).is_err());
}

#[test]
fn options_reach_opened_sockets_and_those_that_a_listener_accepts() {
    let options = Options {
        local_peer: false,
        mark: Some(0x539),
        keepalive: Some(Keepalive {
            time_s: 181,
            interval_s: 61,
            retries: 7,
        }),
        user_timeout_ms: Some(600_000),
    };
    let assert_set = |socket: &Socket| {
        assert!(socket.tcp_nodelay().expect("option"));
        assert!(socket.keepalive().expect("option"));
        assert_eq!(
            socket.tcp_keepalive_time().expect("option"),
            Duration::from_secs(181)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().expect("option"),
            Duration::from_secs(61)
        );
        assert_eq!(socket.tcp_keepalive_retries().expect("option"), 7);
        assert_eq!(
            socket.tcp_user_timeout().expect("option"),
            Some(Duration::from_secs(600))
        );
    };
    let spec = SocketSpec {
        options,
        ..SocketSpec::default()
    };
    let opened = Socket::from(open(&spec, Ipv4Addr::LOCALHOST.into()).expect("opened"));
    assert_set(&opened);
    assert_eq!(opened.mark().expect("option"), 0x539);

    let listening = listen(&ListenSpec {
        mark: Some(0x539),
        ..listen_spec("127.0.0.1:0".parse().expect("an address"))
    })
    .expect("listening");
    assert!(!listening.transparent);
    set_options(listening.fd.as_fd(), &options);
    let listener = Socket::from(listening.fd);
    assert_eq!(listener.mark().expect("option"), 0x539);
    listener.set_nonblocking(false).expect("blocking");
    let address = local_address(listener.as_fd()).expect("address");
    let mut client = TcpStream::connect(address).expect("connected");
    let (accepted, _) = listener.accept().expect("accepted");
    assert_set(&accepted);
    client.write_all(b"x").expect("written");
    (&accepted).read_exact(&mut [0; 1]).expect("read");
}

#[test]
fn the_kernel_takes_the_largest_keepalive_and_no_larger_one() {
    let (time_s, retries, user_timeout_ms) = (32_767, 127, i32::MAX as u32);
    let read = |time_s, interval_s, retries| {
        let options = Options {
            keepalive: Some(Keepalive {
                time_s,
                interval_s,
                retries,
            }),
            user_timeout_ms: Some(user_timeout_ms),
            ..Options::default()
        };
        let spec = SocketSpec {
            options,
            ..SocketSpec::default()
        };
        let socket = Socket::from(open(&spec, Ipv4Addr::LOCALHOST.into()).expect("opened"));
        let user_timeout = socket.tcp_user_timeout().expect("option").expect("set");
        assert_eq!(user_timeout.as_millis(), u128::from(user_timeout_ms));
        let time = |time: io::Result<Duration>| time.expect("option").as_secs() as u32;
        (
            time(socket.tcp_keepalive_time()),
            time(socket.tcp_keepalive_interval()),
            socket.tcp_keepalive_retries().expect("option"),
        )
    };
    assert_eq!(read(time_s, time_s, retries), (time_s, time_s, retries));
    assert_eq!(read(1, 1, 1), (1, 1, 1));
    assert_ne!(read(time_s + 1, 60, 5).0, time_s + 1);
    assert_ne!(read(60, time_s + 1, 5).1, time_s + 1);
    assert_ne!(read(60, 60, retries + 1).2, retries + 1);
}

#[test]
fn a_listener_that_must_be_transparent_is() {
    let listening = listen(&ListenSpec {
        namespace: Some(pod()),
        transparent: Some(true),
        ..listen_spec(any_address(true, 15006))
    })
    .expect("listening");
    assert!(listening.transparent);
    assert!(SockRef::from(&listening.fd).ip_transparent_v4().expect("option"));
}
