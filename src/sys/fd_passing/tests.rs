//! A sender that passes any number of descriptors, and what the receiver makes of it.

use std::fs::File;
use std::io::Write;

use super::*;

fn pair() -> (SeqPacket, SeqPacket) {
    let kind = Type::SEQPACKET.nonblocking().cloexec();
    let (a, b) = Socket::pair(Domain::UNIX, kind, None).expect("pair");
    (SeqPacket { socket: a }, SeqPacket { socket: b })
}

/// Sends `bytes` with every descriptor of `files`.
fn send_with(to: &SeqPacket, bytes: &[u8], files: &[BorrowedFd<'_>]) {
    let raw: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let data_bytes = size_of_val(&raw[..]);
    let mut control = vec![0u64; 64];
    let mut piece = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: zero is a valid value for every field of this C struct.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: pure arithmetic, then writes inside `control`, which is large enough for what is passed here.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(data_bytes as u32) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(data_bytes as u32) as _;
        std::ptr::copy_nonoverlapping(raw.as_ptr().cast(), libc::CMSG_DATA(header), data_bytes);
    }
    // SAFETY: `message` refers to memory that is alive.
    let n = unsafe { libc::sendmsg(to.as_raw_fd(), &raw const message, 0) };
    assert_eq!(n, bytes.len() as isize, "{}", io::Error::last_os_error());
}

/// A pipe tells when its writing end is closed everywhere.
fn closed_everywhere(mut reader: io::PipeReader) -> bool {
    let mut rest = Vec::new();
    io::Read::read_to_end(&mut reader, &mut rest).is_ok()
}

#[test]
fn a_message_arrives_with_its_descriptor() {
    let (agent, ours) = pair();
    let (mut reader, writer) = io::pipe().expect("pipe");
    send_with(&agent, b"add", &[writer.as_fd()]);
    let mut buffer = [0; 16];
    let datagram = ours.receive(&mut buffer).expect("received");
    assert_eq!(&buffer[..datagram.len], b"add");
    let mut passed = File::from(datagram.descriptor.expect("passed"));
    passed.write_all(b"through").expect("written");
    drop((passed, writer));
    let mut got = Vec::new();
    io::Read::read_to_end(&mut reader, &mut got).expect("read");
    assert_eq!(got, b"through");
}

#[test]
fn messages_keep_their_bounds_and_the_end_is_an_empty_one() {
    let (agent, ours) = pair();
    let mut buffer = [0; 16];
    let error = ours.receive(&mut buffer).expect_err("nothing sent");
    assert!(matches!(error, ReceiveError::Io(error) if error.kind() == io::ErrorKind::WouldBlock));
    agent.send(b"one").expect("sent");
    agent.send(b"second").expect("sent");
    assert_eq!(ours.receive(&mut buffer).expect("received").len, 3);
    let datagram = ours.receive(&mut buffer).expect("received");
    assert_eq!(&buffer[..datagram.len], b"second");
    assert!(datagram.descriptor.is_none());
    drop(agent);
    assert_eq!(ours.receive(&mut buffer).expect("the end").len, 0);
    assert_eq!(
        ours.send(b"late").expect_err("closed").kind(),
        io::ErrorKind::BrokenPipe
    );
}

#[test]
fn more_than_one_descriptor_is_refused_and_all_are_closed() {
    for count in [2, 3, 9] {
        let (agent, ours) = pair();
        let (reader, writer) = io::pipe().expect("pipe");
        send_with(&agent, b"add", &vec![writer.as_fd(); count]);
        drop(writer);
        let error = ours.receive(&mut [0; 16]).expect_err("too many");
        match count {
            2 => assert!(matches!(error, ReceiveError::TooManyDescriptors { count: 2 })),
            _ => assert!(matches!(error, ReceiveError::Truncated), "{error:?}"),
        }
        assert!(closed_everywhere(reader));
        agent.send(b"next").expect("sent");
        assert_eq!(ours.receive(&mut [0; 16]).expect("received").len, 4);
    }
}

#[test]
fn a_message_that_does_not_fit_is_refused_and_its_descriptor_closed() {
    let (agent, ours) = pair();
    let (reader, writer) = io::pipe().expect("pipe");
    send_with(&agent, &[7; 17], &[writer.as_fd()]);
    drop(writer);
    let error = ours.receive(&mut [0; 16]).expect_err("too long");
    assert_eq!(error.to_string(), "received truncated message");
    assert!(closed_everywhere(reader));
}

#[test]
fn connecting_reaches_a_listener_and_names_its_absence() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("agent.sock");
    let error = SeqPacket::connect(&path).expect_err("nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("socket");
    listener
        .bind(&SockAddr::unix(&path).expect("address"))
        .expect("bound");
    listener.listen(1).expect("listening");
    let ours = SeqPacket::connect(&path).expect("connected");
    let (theirs, _) = listener.accept().expect("accepted");
    ours.send(b"hello").expect("sent");
    let mut buffer = [0; 8];
    let theirs = SeqPacket { socket: theirs };
    assert_eq!(theirs.receive(&mut buffer).expect("received").len, 5);
    assert_eq!(&buffer[..5], b"hello");
}
