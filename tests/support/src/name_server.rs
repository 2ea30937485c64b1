//! A tiny name server: answers what it is told, and counts what it is asked. UDP only, one question at a time.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::namespace::Namespace;
use crate::{Result, RigError};

const HEADER_BYTES: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const NAME_ERROR: u8 = 3;

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
    asked: BTreeMap<(String, u16), usize>,
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

    /// How often it was asked for IPv4 addresses of a name.
    pub fn asked(&self, name: &str) -> usize {
        let asked = &lock(&self.state).asked;
        asked.get(&(name.to_owned(), TYPE_A)).copied().unwrap_or_default()
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

fn answer(query: &[u8], state: &mut State) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = query.get(at..at + length)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
    let question = query.get(HEADER_BYTES..at + 4)?;
    *state.asked.entry((name.clone(), kind)).or_default() += 1;
    let known = state.addresses.get(&name);
    let records: Vec<Vec<u8>> = known
        .iter()
        .flat_map(|(addresses, ttl)| addresses.iter().map(move |address| (address, ttl)))
        .filter_map(|(address, ttl)| record(address, kind, *ttl))
        .collect();
    let code = if known.is_some() { 0 } else { NAME_ERROR };
    let mut answer = query[..2].to_vec();
    // A response to a query that may be answered by others, too.
    answer.extend([0x81, 0x80 | code, 0, 1]);
    answer.extend((records.len() as u16).to_be_bytes());
    answer.extend([0; 4]);
    answer.extend_from_slice(question);
    answer.extend(records.concat());
    Some(answer)
}

fn record(address: &IpAddr, kind: u16, ttl: Duration) -> Option<Vec<u8>> {
    let data = match (address, kind) {
        (IpAddr::V4(address), TYPE_A) => address.octets().to_vec(),
        (IpAddr::V6(address), TYPE_AAAA) => address.octets().to_vec(),
        (_, _) => return None,
    };
    // The name is that of the question.
    let mut record = vec![0xc0, HEADER_BYTES as u8];
    record.extend(kind.to_be_bytes());
    record.extend(1_u16.to_be_bytes());
    record.extend((ttl.as_secs() as u32).to_be_bytes());
    record.extend((data.len() as u16).to_be_bytes());
    record.extend(data);
    Some(record)
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
