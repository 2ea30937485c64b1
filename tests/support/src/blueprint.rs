//! What a world shall consist of: plain data, filled in by a test and handed to `World::build`.

use std::net::IpAddr;

use crate::istiod::messages::workload::load_balancing::{HealthPolicy, Mode, Scope};
use crate::redirect::Redirect;

/// How a pod stands to the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Membership {
    /// Redirect rules in the pod, a workload with protocol HBONE in the mesh file, announced over ZDS.
    #[default]
    Inside,
    /// No rules, and nobody knows the address.
    Outside,
    /// No rules; the mesh file knows the workload, with protocol TCP.
    KnownPlain,
    /// The mesh file promises HBONE, but nothing is redirected or announced: the test itself answers on 15008.
    Unredirected,
}

#[derive(Debug, Clone)]
pub struct PodSpec {
    pub name: String,
    pub node: usize,
    pub namespace: String,
    pub service_account: String,
    pub membership: Membership,
    pub redirect: Redirect,
    /// Name of the pod, or of the service, that connections to this one go through.
    pub waypoint: Option<String>,
    /// Takes tunnels itself on this port, with a PROXY protocol header in front.
    pub tunnel_port: Option<u16>,
    /// Region, zone and subzone.
    pub locality: [String; 3],
}

impl PodSpec {
    pub fn new(name: &str, node: usize) -> Self {
        Self {
            name: name.to_owned(),
            node,
            namespace: "shop".to_owned(),
            service_account: name.to_owned(),
            membership: Membership::Inside,
            redirect: Redirect::default(),
            waypoint: None,
            tunnel_port: None,
            locality: Default::default(),
        }
    }

    pub fn waypoint(mut self, name: &str) -> Self {
        self.waypoint = Some(name.to_owned());
        self
    }

    pub fn tunnel_port(mut self, port: u16) -> Self {
        self.tunnel_port = Some(port);
        self
    }

    pub fn locality(mut self, parts: [&str; 3]) -> Self {
        self.locality = parts.map(str::to_owned);
        self
    }

    pub fn membership(mut self, membership: Membership) -> Self {
        self.membership = membership;
        self
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = namespace.to_owned();
        self
    }

    pub fn service_account(mut self, service_account: &str) -> Self {
        self.service_account = service_account.to_owned();
        self
    }
}

/// Which endpoints of a service take connections.
#[derive(Debug, Clone)]
pub struct Balancing {
    pub mode: Mode,
    /// What client and endpoint are compared by, the most important first.
    pub scopes: Vec<Scope>,
    pub health_policy: HealthPolicy,
}

/// A service with one address of each family.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    pub name: String,
    pub namespace: String,
    /// (service port, target port)
    pub ports: Vec<(u16, u16)>,
    /// Names of pods.
    pub endpoints: Vec<String>,
    /// Name of the pod, or of the service, that calls to the service go through.
    pub waypoint: Option<String>,
    /// Such names with their weights, of which calls go through one.
    pub weighted_waypoints: Vec<(String, u32)>,
    /// Further addresses: all that share the leading bits of one.
    pub ranges: Vec<(IpAddr, u8)>,
    pub balancing: Option<Balancing>,
}

impl ServiceSpec {
    pub fn new(name: &str, ports: &[(u16, u16)], endpoints: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            ports: ports.to_vec(),
            endpoints: endpoints.iter().map(|name| (*name).to_owned()).collect(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            ranges: Vec::new(),
            balancing: None,
        }
    }

    pub fn waypoint(mut self, name: &str) -> Self {
        self.waypoint = Some(name.to_owned());
        self
    }

    /// One more range, in CIDR notation.
    pub fn range(mut self, cidr: &str) -> Self {
        let parsed = cidr
            .split_once('/')
            .and_then(|(address, bits)| Some((address.parse().ok()?, bits.parse().ok()?)));
        self.ranges
            .push(parsed.unwrap_or_else(|| panic!("{cidr}: expected <address>/<bits>")));
        self
    }

    pub fn balancing(mut self, mode: Mode, scopes: &[Scope], health_policy: HealthPolicy) -> Self {
        self.balancing = Some(Balancing {
            mode,
            scopes: scopes.to_vec(),
            health_policy,
        });
        self
    }

    pub fn hostname(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }
}

/// Who tells the proxies of a world about the mesh, and who signs for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlPlane {
    /// The mesh file, and each proxy's own CA under the well-known root (`FAKE_CA`).
    #[default]
    File,
    /// One `Istiod` on node 0 that all nodes share.
    Istiod,
}

/// The whole plan. `Blueprint::default()` is empty; `two_nodes` is the usual start.
#[derive(Debug, Clone, Default)]
pub struct Blueprint {
    pub nodes: usize,
    pub pods: Vec<PodSpec>,
    pub services: Vec<ServiceSpec>,
    /// Names of pods (their workload is marked unhealthy in the mesh file).
    pub unhealthy: Vec<String>,
    pub control_plane: ControlPlane,
    /// Short word in the names of the namespaces, for people who look at `ip netns`.
    pub label: String,
}

impl Blueprint {
    /// Two nodes and four pods: `client` and `cart` inside the mesh on node 0, `server` inside on node 1, `stranger`
    /// outside the mesh on node 1. The service `shop` (port 80 to 8080) stands before `server`.
    pub fn two_nodes() -> Self {
        Self {
            nodes: 2,
            pods: vec![
                PodSpec::new("client", 0),
                PodSpec::new("cart", 0),
                PodSpec::new("server", 1),
                PodSpec::new("stranger", 1).membership(Membership::Outside),
            ],
            services: vec![ServiceSpec::new("shop", &[(80, 8080)], &["server"])],
            ..Self::default()
        }
    }

    pub fn redirect(mut self, redirect: Redirect) -> Self {
        for pod in &mut self.pods {
            pod.redirect = redirect;
        }
        self
    }

    pub fn control_plane(mut self, control_plane: ControlPlane) -> Self {
        self.control_plane = control_plane;
        self
    }

    /// Where the pod of this name stands.
    pub fn position(&self, pod: &str) -> usize {
        let found = self.pods.iter().position(|spec| spec.name == pod);
        found.unwrap_or_else(|| panic!("the blueprint has no pod {pod:?}"))
    }

    /// Where the service of this name stands, if there is one.
    pub fn service_position(&self, service: &str) -> Option<usize> {
        self.services.iter().position(|spec| spec.name == service)
    }

    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }
}
