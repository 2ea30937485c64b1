//! A peer that puts a single byte into each TLS record. openssl cannot be told to, so the program's own record layer
//! seals them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::SystemTime;

use uztunnel::identity::Identity;
use uztunnel::tls::{Channel, FakeCa, Handshake, Output, Progress, RecordMode};
use uztunnel_rig::{Namespace, PATIENCE, sys};

pub struct Peer {
    socket: TcpStream,
    channel: Channel,
}

impl Peer {
    /// With a valid certificate.
    pub fn connect(
        authority: &FakeCa,
        from: &Namespace,
        target: SocketAddr,
        own: &str,
        server: &str,
    ) -> Self {
        let [own, server] = [own, server].map(|identity| identity.parse::<Identity>().expect("an identity"));
        let certificate = authority.issue(&own, SystemTime::now()).expect("issued");
        let mut handshake =
            Handshake::client(&certificate, Arc::new([server]), RecordMode::Own).expect("a client");
        let mut socket = from.run(|| TcpStream::connect(target)).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        let mut buffer = [0; 16 * 1024];
        let mut received = 0;
        loop {
            let mut out = Output::default();
            let progress = handshake.advance(&buffer[..received], &mut out);
            socket.write_all(out.filled()).expect("sent");
            if progress.expect("a server that we expect") == Progress::Done {
                break;
            }
            received = sys::uninterrupted(|| socket.read(&mut buffer)).expect("an answer");
        }
        let established = handshake.finish().expect("it is done");
        Self {
            socket,
            channel: established.channel,
        }
    }

    /// Sends each byte in a record of its own. Fails when the proxy has cut the peer off.
    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = Output::default();
        for byte in bytes {
            self.channel.seal(&mut out, std::slice::from_ref(byte));
        }
        self.socket.write_all(out.filled())
    }
}
