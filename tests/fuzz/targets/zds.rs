//! A conversation with the CNI node agent: packets of any content, each `length, kind, bytes`, where `kind` says
//! what travelled beside the packet and whether a pod can be started.

use uztunnel::control::zds::protocol::{Attachment, Effect, Protocol};
use uztunnel::limits;
use uztunnel::sys::netns::NamespaceId;

pub fn run(mut input: &[u8]) {
    let mut protocol: Protocol<u8> = Protocol::new();
    carry_out(&mut protocol, |protocol| protocol.connected(), true);
    while let [length, kind, rest @ ..] = input {
        let (packet, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        input = rest;
        let attachment = match kind % 6 {
            0 | 1 => Attachment::Nothing,
            2 => Attachment::Several,
            3 => Attachment::Truncated,
            4 => Attachment::Unusable("no namespace".to_owned()),
            _ => {
                let id = NamespaceId {
                    device: 4,
                    inode: u64::from(kind >> 4),
                };
                Attachment::Namespace { id, namespace: *kind }
            }
        };
        let starts = kind & 0x80 == 0;
        let broken = carry_out(
            &mut protocol,
            |protocol| protocol.received(packet, attachment),
            starts,
        );
        if broken {
            protocol.disconnected();
            carry_out(&mut protocol, |protocol| protocol.connected(), starts);
        }
    }
    // Whatever was said, the pods that could not be started are tried again, and nobody is answered.
    let pending = protocol.pods_pending();
    let retries = protocol.retry();
    assert_eq!(retries.len(), pending);
    for effect in retries {
        let Effect::Start(start) = effect else {
            panic!("a retry starts, not {effect:?}")
        };
        assert_eq!(protocol.started(start, Ok(())), []);
    }
    assert_eq!(protocol.pods_pending(), 0);
}

/// Does what the shell does, and checks that there is exactly one packet in reply. True: the connection is made
/// anew.
fn carry_out(
    protocol: &mut Protocol<u8>,
    input: impl FnOnce(&mut Protocol<u8>) -> Vec<Effect<u8>>,
    starts: bool,
) -> bool {
    let running = protocol.pods_running();
    let mut effects = std::collections::VecDeque::from(input(protocol));
    let (mut sent, mut stopped, mut broken) = (0, 0, false);
    while let Some(effect) = effects.pop_front() {
        match effect {
            Effect::Send(packet) => {
                assert!((1..=limits::ZDS_PACKET_BYTES_MAX).contains(&packet.len()));
                sent += 1;
            }
            Effect::Start(start) => {
                let outcome = if starts { Ok(()) } else { Err("no".to_owned()) };
                effects.extend(protocol.started(start, outcome));
            }
            Effect::Stop(_) => stopped += 1,
            Effect::ArmRetry => {}
            Effect::Reconnect(_) => broken = true,
        }
    }
    assert_eq!(sent, 1);
    assert!(
        protocol.pods_running() + stopped >= running,
        "a pod went away without being stopped"
    );
    assert!(
        !broken || protocol.pods_running() == running,
        "nonsense changed what runs"
    );
    broken
}
