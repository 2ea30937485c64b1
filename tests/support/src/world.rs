//! A built world: nodes with their agents and proxies, pods with their applications.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;

use crate::addresses::{self, Addresses, Family};
use crate::agent::Agent;
use crate::applications::{Applications, Server};
use crate::blueprint::{Blueprint, ControlPlane, Membership, PodSpec};
use crate::capture::Capture;
use crate::istiod::Istiod;
use crate::mesh_file;
use crate::namespace::Namespace;
use crate::proxy::{Proxy, ProxyOptions, Surroundings};
use crate::zds::WorkloadInfo;
use crate::{Result, RigError, guardian, redirect, sys, topology};

static WORLDS: AtomicUsize = AtomicUsize::new(0);

pub struct Node {
    pub index: usize,
    /// Dropped before the namespace: declared first.
    pub proxy: Option<Proxy>,
    pub agent: Agent,
    pub namespace: Namespace,
}

impl Node {
    /// Starts capturing on the wire to node `peer`.
    pub fn capture(&self, peer: usize, marker: &[u8]) -> Result<Capture> {
        Capture::start(&self.namespace, &topology::wire_interface(peer), marker)
    }

    /// The running proxy of this node.
    pub fn proxy(&self) -> &Proxy {
        self.proxy
            .as_ref()
            .expect("invariant: the test started this node's proxy")
    }
}

pub struct Pod {
    pub spec: PodSpec,
    /// What the CNI agent calls it.
    pub uid: String,
    pub addresses: Addresses,
    applications: Applications,
    pub namespace: Namespace,
}

impl Pod {
    pub fn address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses.of(family), port)
    }

    /// The identity that the mesh gives to this pod.
    pub fn identity(&self) -> String {
        format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            self.spec.namespace, self.spec.service_account
        )
    }

    pub fn workload_info(&self) -> WorkloadInfo {
        WorkloadInfo {
            name: self.spec.name.clone(),
            namespace: self.spec.namespace.clone(),
            service_account: self.spec.service_account.clone(),
        }
    }

    /// See `Applications::run`.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        self.applications.run(task)
    }

    /// See `Applications::spawn`.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.applications.spawn(task)
    }

    /// See `Applications::serve`.
    pub fn serve<F>(&self, port: u16, serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static) -> Server
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        self.applications.serve(port, serve)
    }
}

pub struct World {
    pub nodes: Vec<Node>,
    pub pods: Vec<Pod>,
    pub blueprint: Blueprint,
    /// The control plane, where the blueprint wants one.
    istiod: Option<Istiod>,
    scratch: PathBuf,
}

impl World {
    /// Builds namespaces, links, rules, agents and application threads; starts no proxy. Needs root.
    pub fn build(blueprint: Blueprint) -> Result<Self> {
        if sys::effective_user_id() != 0 {
            return Err(RigError::new(
                "building the rig",
                "it makes network namespaces: run it as root",
            ));
        }
        guardian::ensure()?;
        sys::raise_descriptor_limit()
            .map_err(|error| RigError::new("raising the descriptor limit", error))?;
        let label = if blueprint.label.is_empty() {
            String::new()
        } else {
            format!("{}-", blueprint.label)
        };
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{number}-{label}", guardian::own_prefix());
        let scratch = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        {
            let _open = guardian::hold_open()?;
            std::fs::create_dir_all(&scratch)
                .map_err(|error| RigError::new(format!("creating {}", scratch.display()), error))?;
        }
        let mut world = Self {
            nodes: Vec::new(),
            pods: Vec::new(),
            blueprint,
            istiod: None,
            scratch,
        };
        world.build_nodes(&prefix)?;
        world.build_pods(&prefix)?;
        let yaml = mesh_file::write(&world.blueprint, |index| world.pods[index].addresses);
        std::fs::write(world.mesh_file(), yaml)
            .map_err(|error| RigError::new("writing the mesh file", error))?;
        if world.blueprint.control_plane == ControlPlane::Istiod {
            world.istiod = Some(Istiod::serve(&world)?);
        }
        Ok(world)
    }

    /// Builds the world and starts one proxy per node, each ready.
    pub fn start(blueprint: Blueprint, proxies: &[ProxyOptions]) -> Result<Self> {
        let mut world = Self::build(blueprint)?;
        world.start_proxies(proxies)?;
        Ok(world)
    }

    fn build_nodes(&mut self, prefix: &str) -> Result<()> {
        for index in 0..self.blueprint.nodes {
            let namespace = Namespace::create(&format!("{prefix}node{index}"))?;
            topology::prepare(&namespace)?;
            topology::set_up_node(&namespace, index)?;
            let agent = Agent::listen(&self.scratch.join(format!("cni-{index}.sock")))?;
            self.nodes.push(Node {
                index,
                proxy: None,
                agent,
                namespace,
            });
        }
        for one in 0..self.nodes.len() {
            for other in one + 1..self.nodes.len() {
                let pair = [&self.nodes[one].namespace, &self.nodes[other].namespace];
                topology::set_up_wire(pair, [one, other])?;
            }
        }
        Ok(())
    }

    fn build_pods(&mut self, prefix: &str) -> Result<()> {
        for (index, spec) in self.blueprint.pods.clone().into_iter().enumerate() {
            let node = self.nodes.get(spec.node).ok_or_else(|| {
                RigError::new(
                    format!("placing pod {}", spec.name),
                    format!("there is no node {}", spec.node),
                )
            })?;
            let namespace = Namespace::create(&format!("{prefix}{}", spec.name))?;
            topology::prepare(&namespace)?;
            let own = addresses::pod(spec.node, index);
            topology::set_up_pod(&node.namespace, spec.node, &namespace, index, own)?;
            let applications = Applications::start(&namespace)?;
            let uid = format!("8f1c2d3e-0000-4000-8000-{index:012}");
            let pod = Pod {
                spec,
                uid,
                addresses: own,
                applications,
                namespace,
            };
            if pod.spec.membership == Membership::Inside {
                redirect::enrol(&pod.namespace, pod.spec.redirect)?;
                node.agent
                    .enrol(&pod.uid, pod.workload_info(), pod.namespace.fd());
            }
            self.pods.push(pod);
        }
        Ok(())
    }

    /// Starts the proxies of node 0, 1, ... and waits until all are ready.
    pub fn start_proxies(&mut self, options: &[ProxyOptions]) -> Result<()> {
        for (index, options) in options.iter().enumerate() {
            let proxy = self.launch_proxy(index, options)?;
            self.nodes[index].proxy = Some(proxy);
        }
        for node in self.nodes.iter_mut().take(options.len()) {
            let proxy = node.proxy.as_mut().expect("invariant: started just above");
            proxy.wait_until_ready(&node.namespace)?;
        }
        Ok(())
    }

    /// Starts a proxy on a node without waiting and without keeping it: for tests of the start itself.
    pub fn launch_proxy(&self, node: usize, options: &ProxyOptions) -> Result<Proxy> {
        let served = self.istiod.as_ref().map(|it| it.options(options.clone()));
        let options = served.as_ref().unwrap_or(options);
        let mesh_file = self.mesh_file();
        let node = &self.nodes[node];
        Proxy::start(
            options,
            &Surroundings {
                node: node.index,
                namespace: &node.namespace,
                mesh_file: &mesh_file,
                agent_socket: node.agent.path(),
                scratch: &self.scratch,
            },
        )
    }

    /// The control plane of a world that has one.
    pub fn istiod(&self) -> &Istiod {
        self.istiod
            .as_ref()
            .expect("invariant: the blueprint asks for a control plane")
    }

    pub fn pod(&self, name: &str) -> &Pod {
        let pod = self.pods.iter().find(|pod| pod.spec.name == name);
        pod.unwrap_or_else(|| panic!("the blueprint has no pod {name:?}"))
    }

    /// Address of a service, by its place in the blueprint's list.
    pub fn service(&self, name: &str, family: Family, port: u16) -> SocketAddr {
        let index = self.blueprint.service_position(name);
        let index = index.unwrap_or_else(|| panic!("the blueprint has no service {name:?}"));
        SocketAddr::new(addresses::service(index).of(family), port)
    }

    pub fn mesh_file(&self) -> PathBuf {
        self.scratch.join("mesh.yaml")
    }

    /// A folder that goes away with the world.
    pub fn scratch(&self) -> &std::path::Path {
        &self.scratch
    }

    /// CPU time of all proxies together, nanoseconds.
    pub fn proxies_cpu_ns(&self) -> Result<u64> {
        self.nodes
            .iter()
            .filter_map(|node| node.proxy.as_ref())
            .map(Proxy::cpu_ns)
            .sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                if let Some(proxy) = &node.proxy {
                    eprintln!(
                        "---- last lines of the proxy of node {}:\n{}",
                        node.index,
                        proxy.logs.tail()
                    );
                }
            }
        }
        for node in &mut self.nodes {
            node.proxy = None;
        }
        self.pods.clear();
        // Its thread is in the namespace of a node.
        self.istiod = None;
        self.nodes.clear();
        let Ok(_open) = guardian::hold_open() else { return };
        if let Err(error) = std::fs::remove_dir_all(&self.scratch) {
            eprintln!("rig: removing {}: {error}", self.scratch.display());
        }
    }
}
