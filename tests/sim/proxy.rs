//! A proxy of the simulated mesh: the workers that ship, on simulated drivers, and a stand-in for their control
//! thread that tells pods and certificates as the real one does.

use std::sync::Arc;
use std::time::Duration;

use uztunnel::bridge::{
    Demand, DemandQueue, LoadTable, LogQueue, OpenFiles, Order, Orders, Pod, PodInfo, PodListeners, PodUid,
    Revocations, SnapshotCell, Traffic, demands, log, orders,
};
use uztunnel::clock::simulated;
use uztunnel::config::Compliance;
use uztunnel::identity::Identity;
use uztunnel::mesh::Snapshot;
use uztunnel::runtime::tasks::Executor;
use uztunnel::sys::descriptor::Descriptor;
use uztunnel::sys::driver::Driver;
use uztunnel::sys::netns::Namespace;
use uztunnel::sys::select::Choice;
use uztunnel::sys::sim::{HostId, Network, SimDriver};
use uztunnel::sys::socket::Options;
use uztunnel::tls::{CertifiedIdentity, RecordMode};
use uztunnel::worker::Setup;
use uztunnel::worker::core::Core;
use uztunnel::worker::settings::Settings;
use uztunnel::worker::turn::{Life, Worker};

use crate::plan::{NodePlan, Plan};

/// Marks the proxy's own connections, which the redirection leaves alone.
const MARK: u32 = 1337;

pub struct Proxy {
    pub workers: Vec<SimWorker>,
    pub orders: Orders,
    pub demands: DemandQueue,
    pub snapshot: SnapshotCell,
    pub load: LoadTable,
    pub log: LogQueue,
    pub is_killed: bool,
    pub is_draining: bool,
    next_home: usize,
}

pub struct SimWorker {
    /// `None` when its drain is over: its thread would have ended.
    worker: Option<Worker<SimDriver>>,
    pub is_busy: bool,
    /// When its next timer is due.
    pub wakes_at: Option<Duration>,
    /// A slow worker's next turn.
    pub paused_until: Duration,
}

impl Proxy {
    pub fn start(
        network: &Network,
        home: HostId,
        plan: &Plan,
        node: &NodePlan,
        number: usize,
        snapshot: Snapshot,
    ) -> Self {
        let (demand_sender, demands) = demands::channel();
        let (sink, log) = log::log_queue();
        let load = LoadTable::new(node.workers);
        let traffic = Traffic::default();
        let snapshot = SnapshotCell::new(snapshot);
        let seed = |index: usize| {
            plan.seed
                .wrapping_mul(31)
                .wrapping_add((number * 16 + index) as u64)
        };
        let drivers: Vec<SimDriver> = (0..node.workers)
            .map(|index| {
                SimDriver::new(network, home, seed(index), plan.habits.clone())
                    .expect("memory for a few blocks")
            })
            .collect();
        let (handles, inboxes): (Vec<_>, Vec<_>) = drivers
            .iter()
            .map(|driver| orders::channel(driver.waker()))
            .unzip();
        let workers = drivers
            .into_iter()
            .zip(inboxes)
            .enumerate()
            .map(|(index, (driver, inbox))| {
                let setup = Setup {
                    index,
                    backend: Arc::new(Choice::Epoll(None)),
                    cpu: None,
                    seed: seed(index),
                    settings: settings(node),
                    snapshot: snapshot.clone(),
                    demands: demand_sender.clone(),
                    load: load.clone(),
                    files: OpenFiles::new(u64::MAX),
                    revocations: Revocations::default(),
                    log: sink.clone(),
                    traffic: traffic.shard(),
                };
                let executor = Executor::default();
                let core = Core::new(setup, driver, handles.clone().into(), executor.spawner());
                SimWorker {
                    worker: Some(Worker::new(core, executor, inbox)),
                    is_busy: true,
                    wakes_at: None,
                    paused_until: Duration::ZERO,
                }
            })
            .collect();
        Self {
            workers,
            orders: Orders::new(handles),
            demands,
            snapshot,
            load,
            log,
            is_killed: false,
            is_draining: false,
            next_home: 0,
        }
    }

    /// As the node agent's announcement does: every worker learns of the pod, its home worker last.
    pub fn add_pod(
        &mut self,
        network: &Network,
        host: HostId,
        number: usize,
        account: usize,
        node: &NodePlan,
    ) {
        let pod = Arc::new(Pod {
            uid: uid(number),
            info: PodInfo {
                name: name(number),
                namespace: "sim".to_owned(),
                service_account: account_name(account),
            },
            namespace: Arc::new(Namespace::simulated(host).expect("a descriptor")),
            preserve_source: node.preserve_source,
        });
        let listen = |port| -> Descriptor {
            network
                .listen(host, port, node.queue_max)
                .expect("the port is free")
                .into()
        };
        let listeners = PodListeners {
            outbound: listen(15001),
            inbound_plaintext: listen(15006),
            inbound_hbone: listen(15008),
        };
        let home = self.next_home % self.workers.len();
        self.next_home += 1;
        for worker in (0..self.workers.len()).filter(|worker| *worker != home) {
            self.orders.send(
                worker,
                Order::AddPod {
                    pod: pod.clone(),
                    listeners: None,
                },
            );
        }
        self.orders.send(
            home,
            Order::AddPod {
                pod,
                listeners: Some(listeners),
            },
        );
    }

    pub fn remove_pod(&self, number: usize) {
        self.orders.send_all(|| Order::RemovePod { uid: uid(number) });
    }

    pub fn publish(&self, snapshot: Snapshot) {
        drop(self.snapshot.publish(snapshot));
        self.orders.send_all(|| Order::Snapshot);
    }

    pub fn certify(&self, identity: &Identity, certificate: &Arc<CertifiedIdentity>) {
        self.orders.send_all(|| Order::Certificate {
            identity: identity.clone(),
            result: Ok(certificate.clone()),
        });
    }

    /// What workers asked for since the last call.
    pub fn take_demands(&mut self) -> Vec<(usize, Identity)> {
        let mut asked = Vec::new();
        while let Ok(demand) = self.demands.try_recv() {
            if let Demand::Certificate { worker, identity } = demand {
                asked.push((worker, identity));
            }
        }
        asked
    }

    /// The process dies: its sockets at once, what it had in memory as its turns find out.
    pub fn kill(&mut self, pods: usize) {
        self.is_killed = true;
        for worker in &self.workers {
            worker.look(|core| core.driver.kill());
        }
        for pod in 0..pods {
            self.remove_pod(pod);
        }
        self.drain(Duration::ZERO);
    }

    pub fn drain(&mut self, deadline: Duration) {
        self.is_draining = true;
        self.orders.send_all(|| Order::Drain { deadline });
    }

    /// Nobody reads the log, so it must not grow.
    pub fn forget_log(&self) {
        while self.log.next().is_some() {}
    }
}

impl SimWorker {
    pub fn is_runnable(&self, now: Duration) -> bool {
        !self.is_over()
            && self.paused_until <= now
            && (self.is_busy
                || self.wakes_at.is_some_and(|at| at <= now)
                || self.look(|core| core.driver.is_due()) == Some(true))
    }

    /// When it has something to do although nothing arrives.
    pub fn next_at(&self) -> Option<Duration> {
        if self.is_over() {
            return None;
        }
        match self.wakes_at {
            Some(at) => Some(at.max(self.paused_until)),
            None => Some(self.paused_until).filter(|until| !until.is_zero()),
        }
    }

    /// One turn at `now`, on the clock that the thread has been given.
    pub fn turn(&mut self, now: Duration) -> Result<(), String> {
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        match worker.turn() {
            Ok(Life::Goes { busy }) => self.is_busy = busy,
            Ok(Life::Over) => {
                // What its drain did not wait for ends with the process.
                worker.look(|core| core.driver.kill());
                self.worker = None;
            }
            Err(error) => return Err(format!("a worker ended: {error}")),
        }
        self.wakes_at = self
            .look(|core| core.timers.next_in(core.now))
            .flatten()
            .map(|wait| now + wait);
        Ok(())
    }

    /// `None` when it has ended.
    pub fn look<R>(&self, look: impl FnOnce(&mut Core<SimDriver>) -> R) -> Option<R> {
        self.worker.as_ref().map(|worker| worker.look(look))
    }

    pub fn is_over(&self) -> bool {
        self.worker.is_none()
    }
}

/// The time of the thread from now on.
pub fn set_clock(now: std::time::Instant, wall: std::time::SystemTime, step: Duration) {
    simulated::set(Some(simulated::Time { now, wall, step }));
}

pub fn uid(pod: usize) -> PodUid {
    PodUid::new(&format!("pod-{pod}"))
}

pub fn name(pod: usize) -> String {
    format!("pod-{pod}")
}

pub fn account_name(account: usize) -> String {
    format!("account-{account}")
}

pub fn identity(account: usize) -> Identity {
    Identity::new("cluster.local", "sim", &account_name(account))
}

fn settings(node: &NodePlan) -> Settings {
    Settings {
        socket_options: Options {
            mark: Some(MARK),
            ..Options::default()
        },
        tls_mode: match node.buffered {
            true => RecordMode::Buffered,
            false => RecordMode::Own,
        },
        tls_records_max: node.records_max,
        compliance: Compliance::Default,
        stream_window_bytes: node.stream_window_bytes,
        connection_window_bytes: node.connection_window_bytes,
        frame_bytes_max: node.frame_bytes_max,
        session_streams_max: node.session_streams_max,
        session_idle_timeout: Duration::from_secs(300),
        response_baggage: node.response_baggage,
        tunnels_on_loopback: true,
        on_demand: false,
        policy_info_logging: false,
    }
}
