//! Simulated sockets in virtual time, with blocking peers made of calls that never wait.
//!
//! What exists in a kernel alone is asserted by `KernelBench` alone: the flags of an accepted descriptor, and the
//! limit on open files. That its send buffer and its receive buffer are two is not modelled either; a stream has one
//! number of bytes under way in each direction.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::{Close, Driver, Owner, ReceiveMode};
use uztunnel::sys::sim::faults::{Fault, Rates};
use uztunnel::sys::sim::{Endpoint, Habits, HostId, Network, Shape, SimDriver};

use crate::bench::{Bench, Caller, PATIENCE, Peer, Port};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// As the standard library's listeners.
const QUEUE_MAX: usize = 128;

/// Seeds that each scenario runs with on the adverse network.
const ADVERSE_SEEDS: u64 = 4;

/// A part that shows as much as the whole, where everything is small and slow.
const BULK_DIVISOR: usize = 64;

pub struct SimBench {
    network: Network,
    host: HostId,
    habits: Habits,
    seed: u64,
    drivers: Cell<u64>,
    unread_max: usize,
    is_adverse: bool,
}

impl SimBench {
    /// The network is as loopback, the driver as on an idle machine.
    pub fn instant() -> Self {
        Self::new(1, Shape::instant(), Habits::plain(), false)
    }

    /// Everything that a driver may do to its user, often.
    pub fn adverse() -> impl Iterator<Item = Self> {
        (1..=ADVERSE_SEEDS).map(|seed| {
            let mut rates = Rates::default();
            rates.set(Fault::CancelRace, 0.5);
            rates.set(Fault::NoBuffer, 0.1);
            let shape = Shape {
                buffer_bytes: (4096, 24_000),
                window_percent: None,
                latency_us: (0, 3_000),
                bandwidth: Some((2_000_000, 200_000_000)),
                short: true,
                rates,
            };
            let habits = Habits {
                blocks: 6,
                block_bytes: 700,
                postpone: 30,
                direct: 50,
                linger: 50,
                keeps_time: true,
            };
            // Shown when the test fails.
            println!("seed {seed}");
            Self::new(seed, shape, habits, true)
        })
    }

    fn new(seed: u64, shape: Shape, habits: Habits, is_adverse: bool) -> Self {
        let unread_max = shape.buffer_bytes.0;
        let network = Network::new(seed, shape);
        Self {
            host: network.add_host(&[]),
            network,
            habits,
            seed,
            drivers: Cell::new(0),
            unread_max,
            is_adverse,
        }
    }
}

impl Bench for SimBench {
    type Driver = SimDriver;
    type Peer = SimPeer;
    type Port = SimPort;
    type Caller = SimCaller;
    type Crowd = Endpoint;
    type Hoard = SimHoard;

    fn driver(&self) -> SimDriver {
        let number = self.drivers.get();
        self.drivers.set(number + 1);
        let seed = self.seed << 32 | number;
        SimDriver::new(&self.network, self.host, seed, self.habits.clone()).expect("a simulated driver")
    }

    fn now(&self) -> Duration {
        self.network.now()
    }

    fn pair(&self) -> (Descriptor, SimPeer) {
        let (ours, theirs) = self.network.pair(self.host);
        (ours.into(), SimPeer::new(theirs))
    }

    fn narrow_pair(&self) -> (Descriptor, SimPeer) {
        let (ours, theirs) = self.network.pair(self.host);
        ours.set_send_buffer(4096);
        (ours.into(), SimPeer::new(theirs))
    }

    fn inner_pairs(&self, count: usize) -> Vec<(Descriptor, Descriptor)> {
        let pairs = (0..count).map(|_| self.network.pair(self.host));
        pairs.map(|(one, other)| (one.into(), other.into())).collect()
    }

    fn listener(&self) -> (Descriptor, SocketAddr) {
        let SimPort(endpoint) = self.port();
        let address = endpoint.local_address().expect("address");
        (endpoint.into(), address)
    }

    fn port(&self) -> SimPort {
        SimPort(self.network.listen(self.host, 0, QUEUE_MAX).expect("a free port"))
    }

    fn full_port(&self) -> (Endpoint, SocketAddr) {
        let listener = self.network.listen(self.host, 0, 0).expect("a free port");
        let address = listener.local_address().expect("address");
        (listener, address)
    }

    fn caller(&self) -> SimCaller {
        SimCaller(self.network.open(self.host, false, None, LOCALHOST))
    }

    fn hoard_descriptors(&self) -> SimHoard {
        self.network.set_rate(Fault::NoDescriptors, 1.0);
        SimHoard(self.network.clone())
    }

    fn alone(&self, _scenario: &str, part: impl FnOnce()) {
        part();
    }

    fn assert_is_as_accepted(&self, fd: &Descriptor) {
        assert!(fd.as_fd().is_none(), "a socket of the kernel");
    }

    fn assert_sound(&self) {
        assert_eq!(self.network.finding(), None);
    }

    fn unread_max(&self) -> usize {
        self.unread_max
    }

    fn bulk(&self, bytes: usize) -> usize {
        match self.is_adverse {
            true => bytes / BULK_DIVISOR,
            false => bytes,
        }
    }

    fn cuts_messages(&self) -> bool {
        self.is_adverse
    }

    fn delivers_after_stop(&self) -> bool {
        self.is_adverse
    }

    fn is_roomy(&self) -> bool {
        !self.is_adverse
    }
}

/// Gives the descriptors back.
pub struct SimHoard(Network);

impl Drop for SimHoard {
    fn drop(&mut self) {
        self.0.set_rate(Fault::NoDescriptors, 0.0);
    }
}

pub struct SimPeer {
    endpoint: Endpoint,
    waits: bool,
}

impl SimPeer {
    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            waits: true,
        }
    }

    fn call<T>(&self, attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let patience = if self.waits { PATIENCE } else { Duration::ZERO };
        patiently(self.endpoint.network(), patience, attempt)
    }
}

impl Read for SimPeer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.call(|| self.endpoint.read(into))
    }
}

impl Write for SimPeer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call(|| self.endpoint.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Peer for SimPeer {
    fn local_address(&self) -> SocketAddr {
        self.endpoint.local_address().expect("address")
    }

    fn shutdown_send(&mut self) {
        self.endpoint.shutdown_send().expect("shut down");
    }

    fn reset(self) {
        self.endpoint.close(Close::Reset);
    }

    fn send_urgent(&mut self) {
        self.endpoint.write_urgent().expect("sent");
    }

    fn never_wait(&mut self) {
        self.waits = false;
    }
}

pub struct SimPort(Endpoint);

impl Port for SimPort {
    type Peer = SimPeer;

    fn address(&self) -> SocketAddr {
        self.0.local_address().expect("address")
    }

    fn accept(&self) -> (SimPeer, SocketAddr) {
        let accepted = patiently(self.0.network(), PATIENCE, || self.0.accept());
        let (endpoint, from) = accepted.expect("accepted");
        (SimPeer::new(endpoint), from)
    }
}

pub struct SimCaller(Endpoint);

impl Caller for SimCaller {
    type Peer = SimPeer;

    fn connect(self, to: SocketAddr) -> io::Result<SimPeer> {
        self.0.connect(to);
        patiently(self.0.network(), PATIENCE, || {
            self.0
                .take_connected()
                .unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
        })?;
        Ok(SimPeer::new(self.0))
    }
}

/// Tries until it need not wait. Between the attempts time moves on to what happens next, or, when it is others who
/// have to do something, passes for real.
fn patiently<T>(
    network: &Network,
    patience: Duration,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !patience.is_zero() => {}
            outcome => return outcome,
        }
        if start.elapsed() > patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match network.next_happening() {
            Some(next) => network.advance(next),
            None => network.wait_for_others(Duration::from_millis(1)),
        }
    }
}

/// Whether bytes take time or not.
#[test]
fn a_writer_is_told_by_a_reset_that_nobody_reads_any_more() {
    for bench in SimBench::adverse().chain([SimBench::instant()]) {
        let (ours, mut peer) = bench.pair();
        drop(ours);
        let mut written = 0;
        let error = loop {
            assert!(written < 1 << 20, "it goes on for ever");
            match peer.write(&[1; 100]) {
                Ok(n) => written += n,
                Err(error) => break error,
            }
        };
        // The end was there before the reset.
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

#[test]
fn a_dropped_driver_resets_what_was_to_be_reset() {
    let bench = SimBench::instant();
    // Each driver has its own seed, which decides whether a socket is closed at once.
    for _ in 0..20 {
        let mut driver = bench.driver();
        let (ours, mut peer) = bench.pair();
        let socket = driver.adopt(ours, Owner(0)).expect("adopted");
        driver.receive(socket, ReceiveMode::Stream);
        driver.close(socket, Close::Reset);
        drop(driver);
        let error = peer.read(&mut [0; 1]).expect_err("reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

/// The storm has no other thread, so everything about it is decided by the seed.
#[test]
fn equal_seeds_make_equal_runs() {
    let traces = || {
        let benches = SimBench::adverse();
        benches.map(|bench| {
            crate::storm::connections_cut_off_at_random_never_see_each_others_bytes(&bench);
            for fault in [Fault::CancelRace, Fault::NoBuffer] {
                assert!(bench.network.struck().get(fault) > 0, "no {fault}");
            }
            bench.network.trace(|trace, _| (trace.events(), trace.hash()))
        })
    };
    let first: Vec<_> = traces().collect();
    assert_eq!(first, traces().collect::<Vec<_>>());
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]), "{first:?}");
}
