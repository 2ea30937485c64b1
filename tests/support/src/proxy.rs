//! A proxy process inside a node's namespace: ours or any other program with the same environment variables.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::logs::Logs;
use crate::mesh_file::node_name;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::{PATIENCE, Result, RigError, sys};

const READINESS_PORT: u16 = 15021;

/// Which driver the proxy is told to use (`UZTUNNEL_IO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Uring,
    Epoll,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        }
    }
}

/// What the scheduler says of threads (`/proc/PID/task/TID/schedstat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// On a CPU, user and kernel.
    pub ran_ns: u64,
    /// Ready to run, while others had the CPU.
    pub waited_ns: u64,
    /// How often it got a CPU.
    pub runs: u64,
}

impl CpuTimes {
    /// Of one thread, so far; `task` is its folder in `/proc`.
    pub fn read(task: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(task.join("schedstat"))?;
        let mut numbers = text.split_whitespace().map(str::parse);
        match [(); 3].map(|()| numbers.next()) {
            [Some(Ok(ran_ns)), Some(Ok(waited_ns)), Some(Ok(runs))] => Ok(Self {
                ran_ns,
                waited_ns,
                runs,
            }),
            _ => Err(io::Error::other(format!(
                "{}: {text:?} is not what schedstat says",
                task.display()
            ))),
        }
    }

    /// Without what was there before.
    pub fn since(self, before: Self) -> Self {
        Self {
            ran_ns: self.ran_ns.saturating_sub(before.ran_ns),
            waited_ns: self.waited_ns.saturating_sub(before.waited_ns),
            runs: self.runs.saturating_sub(before.runs),
        }
    }
}

impl AddAssign for CpuTimes {
    fn add_assign(&mut self, other: Self) {
        self.ran_ns += other.ran_ns;
        self.waited_ns += other.waited_ns;
        self.runs += other.runs;
    }
}

/// Where the proxy's output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Into `Proxy::logs`.
    Collected,
    /// To /dev/null: for measurements, where reading it would cost CPU time.
    Discarded,
}

#[derive(Debug, Clone)]
pub struct ProxyOptions {
    pub binary: PathBuf,
    /// `None` leaves the choice to the proxy.
    pub backend: Option<Backend>,
    pub workers: usize,
    /// `RUST_LOG`.
    pub log_filter: String,
    pub output: Output,
    /// Further variables; they replace those that the rig sets.
    pub environment: Vec<(String, String)>,
    /// Put before the binary, to start it under another program (a profiler).
    pub wrapper: Vec<String>,
    /// The three io_uring calls fail with EPERM, as under the seccomp profile of most container runtimes.
    pub deny_io_uring: bool,
    /// Whether `LOCAL_XDS_PATH` is set: to other proxies an empty one is a file, too.
    pub has_mesh_file: bool,
}

impl ProxyOptions {
    pub fn new(binary: &Path) -> Self {
        Self {
            // The proxy runs in a folder of its own: a relative path would be looked up there.
            binary: std::path::absolute(binary).unwrap_or_else(|_| binary.to_owned()),
            backend: None,
            workers: 2,
            log_filter: "info".to_owned(),
            output: Output::Collected,
            environment: Vec::new(),
            wrapper: Vec::new(),
            deny_io_uring: false,
            has_mesh_file: true,
        }
    }

    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Uses this control plane and this CA, instead of the mesh file and a CA of its own. What is said otherwise wins.
    pub fn under(mut self, discovery: &Upstream, ca: &Upstream, token: &Path) -> Self {
        let own = [
            ("XDS_ADDRESS", discovery.address.to_string()),
            ("ALT_XDS_HOSTNAME", discovery.name.to_owned()),
            ("XDS_ROOT_CA", discovery.roots.display().to_string()),
            ("CA_ADDRESS", ca.address.to_string()),
            ("ALT_CA_HOSTNAME", ca.name.to_owned()),
            ("CA_ROOT_CA", ca.roots.display().to_string()),
            ("AUTH_TOKEN", token.display().to_string()),
            ("FAKE_CA", "false".to_owned()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        self.environment.splice(..0, own);
        self.has_mesh_file = false;
        self
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server that a proxy is told of.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    /// That its certificate is for.
    pub name: &'static str,
    /// The file of those who may sign that.
    pub roots: PathBuf,
}

/// A running proxy; killed when dropped.
pub struct Proxy {
    process: Process,
    pub logs: Logs,
}

/// Where the proxy of a node finds its world.
pub struct Surroundings<'a> {
    pub node: usize,
    pub namespace: &'a Namespace,
    pub mesh_file: &'a Path,
    pub agent_socket: &'a Path,
    pub scratch: &'a Path,
}

impl Proxy {
    /// Starts the process; it is not ready yet.
    pub fn start(options: &ProxyOptions, around: &Surroundings<'_>) -> Result<Self> {
        let mut command = match options.wrapper.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&options.binary);
                command
            }
            None => Command::new(&options.binary),
        };
        command
            .args(["proxy", "ztunnel"])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUST_LOG", &options.log_filter)
            .env("NODE_NAME", node_name(around.node))
            .env("INPOD_UDS", around.agent_socket)
            .env("FAKE_CA", "true")
            .env("XDS_ADDRESS", "")
            .env("CA_ADDRESS", "")
            .env("CLUSTER_ID", "Kubernetes")
            .env("ISTIO_META_DNS_CAPTURE", "false")
            .env("ZTUNNEL_WORKER_THREADS", options.workers.to_string())
            .current_dir(around.scratch)
            .stdin(Stdio::null())
            .process_group(0);
        if options.has_mesh_file {
            command.env("LOCAL_XDS_PATH", around.mesh_file);
        }
        match options.output {
            Output::Collected => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
            Output::Discarded => command.stdout(Stdio::null()).stderr(Stdio::null()),
        };
        if let Some(backend) = options.backend {
            command.env("UZTUNNEL_IO", backend.name());
        }
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        sys::unblock_interrupts_in_child(&mut command);
        if options.deny_io_uring {
            sys::deny_io_uring_in_child(&mut command);
        }
        let name = options.binary.display().to_string();
        let process = Process::start(&name, || around.namespace.run(|| command.spawn()))?;
        let logs = process.logs.clone();
        Ok(Self { process, logs })
    }

    /// Waits until readiness answers 200.
    pub fn wait_until_ready(&mut self, namespace: &Namespace) -> Result<()> {
        self.process.wait_for("be ready", PATIENCE, || {
            match namespace.run(|| probe("/healthz/ready")) {
                Ok((200, _)) => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `None` while it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.process.exit_status()
    }

    /// Waits until the process ends by itself.
    pub fn wait_for_exit(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exit_status()? {
                self.process.collect_rest();
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(RigError::new(
                    "waiting for the proxy to end",
                    format!("still there after {PATIENCE:?}"),
                ));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        sys::send_signal(self.pid(), libc::SIGTERM)
            .map_err(|error| RigError::new("sending SIGTERM to the proxy", error))
    }

    /// CPU time of all its threads, also of those that have ended (nanoseconds; user and kernel).
    pub fn cpu_ns(&self) -> Result<u64> {
        sys::process_cpu_ns(self.pid())
            .map_err(|error| RigError::new(format!("reading the CPU clock of process {}", self.pid()), error))
    }

    /// What the threads that run had of CPUs, by their names: `worker-0` and `worker-1` are `worker-*`.
    pub fn times_by_thread(&self) -> Result<BTreeMap<String, CpuTimes>> {
        let tasks = format!("/proc/{}/task", self.pid());
        let failed = |error| RigError::new(format!("reading {tasks}"), error);
        let mut by_name: BTreeMap<String, CpuTimes> = BTreeMap::new();
        for task in std::fs::read_dir(&tasks).map_err(failed)? {
            let task = task.map_err(failed)?.path();
            let name = std::fs::read_to_string(task.join("comm"));
            let (Ok(name), Ok(times)) = (name, CpuTimes::read(&task)) else {
                // It has ended meanwhile.
                continue;
            };
            let name = name.trim();
            let name = match name.trim_end_matches(|end: char| end.is_ascii_digit()) {
                kind if kind.len() < name.len() => format!("{kind}*"),
                _ => name.to_owned(),
            };
            *by_name.entry(name).or_default() += times;
        }
        Ok(by_name)
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory_bytes("VmRSS:")
    }

    /// The most resident memory since `forget_peak`, or since its start, bytes.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.memory_bytes("VmHWM:")
    }

    /// From now on the peak is that of what comes (proc_pid_clear_refs(5)).
    pub fn forget_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        std::fs::write(&path, "5").map_err(|error| RigError::new(format!("writing {path}"), error))
    }

    /// Resident memory in huge pages (proc_pid_smaps(5)).
    pub fn huge_page_bytes(&self) -> Result<u64> {
        self.bytes_of("smaps_rollup", "AnonHugePages:")
    }

    /// What the kernel's status file says under `name`.
    fn memory_bytes(&self, name: &str) -> Result<u64> {
        self.bytes_of("status", name)
    }

    fn bytes_of(&self, file: &str, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/{file}", self.pid());
        let text = std::fs::read_to_string(&path)
            .map_err(|error| RigError::new(format!("reading {path}"), error))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024)
            .ok_or_else(|| RigError::new(format!("reading {path}"), format!("no {name}")))
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.pid());
        let entries =
            std::fs::read_dir(&path).map_err(|error| RigError::new(format!("reading {path}"), error))?;
        Ok(entries.count())
    }
}

/// Status and body of a GET on the readiness port of the calling thread's namespace.
pub fn probe(path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, READINESS_PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no HTTP status in {response:?}")))?;
    let body = response
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body)
        .to_owned();
    Ok((status, body))
}
