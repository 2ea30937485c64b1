//! The relay between two sockets (plaintext in and out of the mesh): a slot, moved by completions. What one
//! side received is sent to the other as it is, without a copy.

use std::io;
use std::rc::Rc;

use super::core::{Core, TimerEvent};
use super::outcome::{Outcome, ends_a_copy};
use super::owner::{Owned, Side};
use super::pods::PodState;
use super::room::Place;
use super::telemetry::Account;
use super::tunnel::adapted_read;
use crate::bridge::load::LoadShare;
use crate::limits;
use crate::runtime::slab::Key;
use crate::runtime::timer::TimerId;
use crate::sys::buffer::{Payload, RecvBuffer};
use crate::sys::driver::{Close, Driver, Event, ReceiveMode, Received, SendStatus, SocketId};

pub struct Pipe {
    client: End,
    server: End,
    broken: Option<Box<Broken>>,
    pub pod: Rc<PodState>,
    pub account: Box<Account>,
    _share: LoadShare,
    _place: Place,
}

/// A side that takes nothing any more. What it said before is still read: its receive ends behind that.
struct Broken {
    side: Side,
    outcome: Outcome,
    /// When the other is reset: it may write for ever before it reads.
    deadline: TimerId,
}

/// One socket and the direction that reads from it.
struct End {
    socket: SocketId,
    flow: Flow,
    read_bytes: usize,
}

/// Bytes read from one end on their way to the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Receiving,
    Sending,
    Ended,
}

impl End {
    fn new(socket: SocketId) -> Self {
        Self {
            socket,
            flow: Flow::Receiving,
            read_bytes: limits::READ_BYTES_MIN,
        }
    }
}

impl Pipe {
    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        }
    }
}

#[cfg(test)]
impl Pipe {
    /// One that no driver knows: it only waits.
    pub fn idle(
        pod: Rc<PodState>,
        sockets: [SocketId; 2],
        account: Box<Account>,
        share: LoadShare,
        place: Place,
    ) -> Self {
        let [client, server] = sockets.map(End::new);
        Self {
            client,
            server,
            broken: None,
            pod,
            account,
            _share: share,
            _place: place,
        }
    }
}

impl<D: Driver + 'static> Core<D> {
    pub fn attach_pipe(
        &mut self,
        pod: Rc<PodState>,
        client: SocketId,
        server: SocketId,
        account: Box<Account>,
        share: LoadShare,
        place: Place,
    ) {
        let pipe = Pipe {
            client: End::new(client),
            server: End::new(server),
            broken: None,
            pod,
            account,
            _share: share,
            _place: place,
        };
        let key = self.pipes.insert(pipe);
        self.driver
            .set_owner(client, Owned::Pipe(key, Side::Client).to_owner());
        self.driver
            .set_owner(server, Owned::Pipe(key, Side::Server).to_owner());
        self.read_pipe(key, Side::Client);
        self.read_pipe(key, Side::Server);
    }

    pub fn pipe_event(&mut self, key: Key<Pipe>, side: Side, event: Event) {
        match event {
            Event::Received { data, .. } => self.pipe_received(key, side, data),
            // The send on this side carried what was read from the other.
            Event::Sent { taken, error, .. } => self.pipe_sent(key, side.other(), taken, error),
            Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::Connected { .. } | Event::Woken => {}
        }
    }

    fn read_pipe(&mut self, key: Key<Pipe>, from: Side) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        let end = pipe.end(from);
        end.flow = Flow::Receiving;
        self.driver.receive(
            end.socket,
            ReceiveMode::Once {
                bytes_max: end.read_bytes.min(self.tenants.read_bytes_max()),
            },
        );
    }

    fn pipe_received(&mut self, key: Key<Pipe>, from: Side, data: Received) {
        match data {
            Received::Data(buffer) => self.pipe_data(key, from, buffer),
            Received::End => self.pipe_end(key, from),
            Received::Failed(error) => self.break_pipe(key, from, Outcome::of_copy(from, error)),
        }
    }

    fn pipe_data(&mut self, key: Key<Pipe>, from: Side, buffer: RecvBuffer) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        let bytes_max = self.tenants.read_bytes_max();
        let asked = pipe.end(from).read_bytes.min(bytes_max);
        self.tenants.note_received(&pipe.pod.tenant, buffer.len());
        let end = pipe.end(from);
        end.read_bytes = adapted_read(end.read_bytes, asked, buffer.len());
        end.flow = Flow::Sending;
        let to = pipe.end(from.other()).socket;
        let bytes = buffer.len();
        match self.driver.send(to, Payload::Received(buffer)) {
            SendStatus::Done(payload) => {
                drop(payload);
                self.pipe_sent(key, from, bytes, None);
            }
            SendStatus::Queued => {}
            SendStatus::Failed { taken, error, .. } => self.pipe_sent(key, from, taken, Some(error)),
        }
    }

    fn pipe_sent(&mut self, key: Key<Pipe>, from: Side, taken: usize, error: Option<io::Error>) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        match from {
            Side::Client => pipe.account.from_client(taken),
            Side::Server => pipe.account.to_client(taken),
        }
        match error {
            None => self.read_pipe(key, from),
            Some(error) => {
                let to = from.other();
                let is_gone = ends_a_copy(&error);
                let outcome = Outcome::of_copy(from, error);
                if pipe.broken.is_some() || pipe.end(to).flow == Flow::Ended || !is_gone {
                    return self.break_pipe(key, to, outcome);
                }
                // It may have said something before, and nobody has read that yet.
                let event = TimerEvent::PipeParting(key);
                pipe.broken = Some(Box::new(Broken {
                    side: to,
                    outcome,
                    deadline: self.timers.start(self.now + limits::LAST_WORDS_TIME, event),
                }));
            }
        }
    }

    /// One side ended: the other side's sending half is shut down, the other direction goes on.
    fn pipe_end(&mut self, key: Key<Pipe>, from: Side) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        pipe.end(from).flow = Flow::Ended;
        let is_broken = pipe.broken.is_some();
        let other = pipe.end(from.other());
        if other.flow == Flow::Ended {
            return self.remove_pipe(key, [Close::Orderly; 2], Outcome::Complete);
        }
        // Fails only when that side has gone; its reading direction notices that by itself.
        let _ = self.driver.shutdown_send(other.socket);
        if is_broken {
            // This one said everything, and takes nothing.
            self.break_pipe(key, from, Outcome::Complete);
        }
    }

    /// One side broke: the other sees a reset, unless it was given the end already. Then a reset would only throw
    /// away what its socket took and it has not read.
    fn break_pipe(&mut self, key: Key<Pipe>, broken: Side, outcome: Outcome) {
        let Some(pipe) = self.pipes.get_mut(key) else {
            return;
        };
        let (broken, outcome) = match pipe.broken.take() {
            Some(first) => {
                self.timers.cancel(first.deadline);
                (first.side, first.outcome)
            }
            None => (broken, outcome),
        };
        let other = match pipe.end(broken).flow {
            Flow::Ended => Close::Orderly,
            Flow::Receiving | Flow::Sending => Close::Reset,
        };
        let how = match broken {
            Side::Client => [Close::Reset, other],
            Side::Server => [other, Close::Reset],
        };
        self.remove_pipe(key, how, outcome);
    }

    /// What one side said before it was gone takes too long.
    pub fn part_pipe(&mut self, key: Key<Pipe>) {
        let broken = self.pipes.get(key).and_then(|pipe| pipe.broken.as_ref());
        if let Some(side) = broken.map(|broken| broken.side) {
            self.break_pipe(key, side, Outcome::Complete);
        }
    }

    /// Ends both sides with a reset.
    pub fn cut_pipe(&mut self, key: Key<Pipe>, outcome: Outcome) {
        self.remove_pipe(key, [Close::Reset; 2], outcome);
    }

    /// `how` the client's socket is closed, and the server's.
    fn remove_pipe(&mut self, key: Key<Pipe>, how: [Close; 2], outcome: Outcome) {
        let Some(pipe) = self.pipes.remove(key) else {
            return;
        };
        self.driver.close(pipe.client.socket, how[0]);
        self.driver.close(pipe.server.socket, how[1]);
        self.telemetry.close(*pipe.account, self.now, &outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;
    use crate::runtime::tasks::Executor;
    use crate::sys::epoll::EpollDriver;
    use crate::worker::fixture;

    /// A pipe, with its applications' ends.
    struct Piped {
        core: Core<EpollDriver>,
        client: TcpStream,
        server: TcpStream,
    }

    /// `shape` is given the sockets of the client, ours first, and then that of the server.
    fn piped(shape: impl FnOnce(SockRef<'_>, SockRef<'_>, SockRef<'_>) -> io::Result<()>) -> Piped {
        let mut core = fixture::core(&Executor::default());
        let (near_client, client) = fixture::connection();
        let (near_server, server) = fixture::connection();
        let shaped = shape((&near_client).into(), (&client).into(), (&server).into());
        shaped.expect("open sockets");
        let owner = Owned::Task(Key::from_bits(0)).to_owner();
        let [near_client, near_server] = [near_client, near_server].map(|socket| {
            let adopted = core.driver.adopt(socket.into(), owner);
            adopted.expect("adopted")
        });
        let (account, share) = (fixture::account(&core), core.load.share(0));
        let pod = fixture::pod();
        let place = fixture::place(&core, &pod);
        core.attach_pipe(pod, near_client, near_server, account, share, place);
        Piped { core, client, server }
    }

    /// Neither reads what the other says, and both would wait for ever.
    #[test]
    fn a_side_that_only_writes_is_told_that_the_other_is_gone() {
        let Piped {
            mut core,
            mut client,
            mut server,
        } = piped(|near_client, client, _| {
            // Takes in less than the server says.
            near_client.set_send_buffer_size(1)?;
            client.set_recv_buffer_size(1)
        });
        server.write_all(&vec![7; 100 << 10]).expect("sent");
        client.write_all(b"more").expect("sent");
        let is_broken = |core: &Core<EpollDriver>| core.pipes.iter().all(|(_, pipe)| pipe.broken.is_some());
        SockRef::from(&server)
            .set_linger(Some(Duration::ZERO))
            .expect("an open socket");
        drop(server);
        while !is_broken(&core) {
            fixture::turn(&mut core);
        }
        for _ in 0..10 {
            fixture::turn(&mut core);
        }
        assert_eq!(core.pipes.len(), 1, "the client may read it yet");
        fixture::pass(&mut core, limits::LAST_WORDS_TIME * 2);
        assert!(core.pipes.is_empty());
        let end = std::iter::repeat_with(|| client.write(&[1; 100])).find_map(Result::err);
        let gone = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(end.is_some_and(|end| gone.contains(&end.kind())));
    }

    /// An upload that is refused early, by a server that does not read the rest of it.
    #[test]
    fn what_a_side_said_before_it_broke_reaches_the_other_also_when_a_send_finds_out_first() {
        let Piped {
            mut core,
            mut client,
            mut server,
        } = piped(|_, _, _| Ok(()));
        client.write_all(b"more").expect("sent");
        server.set_nonblocking(true).expect("an open socket");
        while !matches!(server.peek(&mut [0; 4]), Ok(4)) {
            fixture::turn(&mut core);
        }
        server.set_nonblocking(false).expect("an open socket");
        client.write_all(b"and more").expect("sent");
        // More than one receive takes. Unread bytes make the end a reset.
        let said = vec![7; 100 << 10];
        server.write_all(&said).expect("sent");
        drop(server);
        while !core.pipes.is_empty() {
            fixture::turn(&mut core);
        }
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received).map_err(|error| error.kind());
        assert_eq!(
            (received.len(), end),
            (said.len(), Err(io::ErrorKind::ConnectionReset))
        );
    }

    #[test]
    fn what_a_side_ended_stays_ended_although_a_send_finds_out_before_the_end_is_read() {
        let Piped {
            mut core,
            mut client,
            mut server,
        } = piped(|_, _, _| Ok(()));
        let said = vec![7; 100 << 10];
        server.write_all(&said).expect("sent");
        drop(server);
        // The first one is answered by a reset, which the second one meets.
        for _ in 0..2 {
            client.write_all(b"more").expect("sent");
            fixture::turn(&mut core);
        }
        let is_broken = core.pipes.iter().any(|(_, pipe)| pipe.broken.is_some());
        assert!(is_broken, "its end is read too early for this test");
        while !core.pipes.is_empty() {
            fixture::turn(&mut core);
        }
        let mut received = Vec::new();
        client.read_to_end(&mut received).expect("an orderly end");
        assert!(received == said, "{} bytes arrived", received.len());
    }

    #[test]
    fn a_reset_behind_the_end_leaves_the_other_side_what_its_socket_took() {
        let Piped {
            mut core,
            mut client,
            mut server,
        } = piped(|_, _, server| {
            // Takes in less than the socket before it holds.
            server.set_recv_buffer_size(1)
        });
        assert_eq!(core.room.taken(), 1);
        let said = vec![7; 100 << 10];
        client.write_all(&said).expect("sent");
        client.shutdown(Shutdown::Write).expect("ended");
        let has_ended =
            |core: &Core<EpollDriver>| core.pipes.iter().all(|(_, pipe)| pipe.client.flow == Flow::Ended);
        while !has_ended(&core) {
            fixture::turn(&mut core);
        }
        let reset = Some(Duration::ZERO);
        SockRef::from(&client).set_linger(reset).expect("an open socket");
        drop(client);
        server.write_all(b"x").expect("sent");
        while !core.pipes.is_empty() {
            fixture::turn(&mut core);
        }
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("an orderly end");
        assert!(received == said, "{} bytes arrived", received.len());
        assert_eq!(core.room.taken(), 0);
    }
}
