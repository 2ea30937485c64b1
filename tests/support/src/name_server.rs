//! A tiny name server: answers what it is told, and counts what it is asked. UDP only, one question at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use crate::lock;
use crate::namespace::Namespace;
use crate::{Result, RigError};

/// How soon it notices that it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// On the loopback of a network namespace, port 53. Names are in lower case, without a dot at their end.
pub struct NameServer {
    state: Arc<Mutex<State>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    addresses: BTreeMap<String, (Vec<IpAddr>, Duration)>,
    asked: BTreeMap<(String, RecordType), usize>,
    ignores_ipv6: bool,
}

impl NameServer {
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let failed = |error| RigError::new("binding a name server", error);
        let bound = namespace.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)));
        let socket = bound.map_err(failed)?;
        socket.set_read_timeout(Some(LOOK_INTERVAL)).map_err(failed)?;
        let (state, ending) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (shared, end) = (Arc::clone(&state), Arc::clone(&ending));
        let thread = std::thread::spawn(move || serve(&socket, &shared, &end));
        Ok(Self {
            state,
            ending,
            thread: Some(thread),
        })
    }

    /// The text of a resolv.conf that names it.
    pub fn resolv_conf() -> &'static str {
        "nameserver 127.0.0.1\n"
    }

    /// From now on a name has these addresses, and answers may be kept so long.
    pub fn tell(&self, name: &str, addresses: &[IpAddr], ttl: Duration) {
        let told = (addresses.to_vec(), ttl);
        lock(&self.state).addresses.insert(name.to_owned(), told);
    }

    /// From now on questions for IPv6 addresses are not answered at all.
    pub fn ignore_ipv6(&self) {
        lock(&self.state).ignores_ipv6 = true;
    }

    /// How often it was asked for IPv4 addresses of a name.
    pub fn asked(&self, name: &str) -> usize {
        let asked = &lock(&self.state).asked;
        asked
            .get(&(name.to_owned(), RecordType::A))
            .copied()
            .unwrap_or_default()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only waits for the line above.
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, state: &Mutex<State>, ending: &AtomicBool) {
    let mut packet = [0; 4096];
    while !ending.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut packet) else {
            continue;
        };
        if let Some(answer) = answer(&packet[..length], &mut lock(state)) {
            // Who does not wait for it any more asks again.
            let _ = socket.send_to(&answer, client);
        }
    }
}

/// `None` for what is no question, and for what is ignored.
fn answer(query: &[u8], state: &mut State) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?;
    let kind = question.query_type();
    if state.ignores_ipv6 && kind == RecordType::AAAA {
        return None;
    }
    let name = question.name().to_lowercase().to_string();
    let name = name.trim_end_matches('.').to_owned();
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    match state.addresses.get(&name) {
        Some((addresses, ttl)) => {
            let records = addresses.iter().map(|address| RData::from(*address));
            let wanted = records.filter(|data| data.record_type() == kind);
            let ttl_s = ttl.as_secs() as u32;
            let records = wanted.map(|data| Record::from_rdata(question.name().clone(), ttl_s, data));
            answer.add_answers(records.collect::<Vec<_>>());
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    *state.asked.entry((name, kind)).or_default() += 1;
    answer.to_vec().ok()
}
