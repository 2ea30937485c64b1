//! A control plane of the real programs: etcd, a Kubernetes API server and istiod.
//!
//! They run in the network namespace of node 0, from a folder that the caller has (`docs/testing.md` says where they come
//! from). There is no kubelet and no controller: the nodes, pods and services of a world are written to the API server as
//! those would write them, with the addresses that they have. Istiod makes the mesh of them, signs for the pods, and lets
//! proxies in by tokens that the API server issued for their own pods.
//!
//! Failures of the programs are `RigError`s with the last lines that they printed.

mod issuer;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use self::issuer::Issuer;
use crate::authority::Authority;
use crate::blueprint::{Membership, PodSpec, ServiceSpec};
use crate::mesh_file::node_name;
use crate::namespace::run_with_input;
use crate::process::Process;
use crate::proxy::{ProxyOptions, Upstream};
use crate::world::{Pod, World};
use crate::{Result, RigError, addresses};

/// What the folder of the programs holds.
const ETCD: &str = "etcd";
const API_SERVER: &str = "kube-apiserver";
const ISTIOD: &str = "pilot-discovery";
/// `manifests/charts/base/files/crd-all.gen.yaml` of Istio.
const RESOURCE_DEFINITIONS: &str = "crd-all.gen.yaml";
/// Only where it is asked for, and `deploy/crds/...` of cert-manager.
const ISTIO_CSR: &str = "istio-csr";
const REQUEST_DEFINITIONS: &str = "cert-manager.io_certificaterequests.yaml";

/// A start takes some seconds; on a busy machine of two CPUs a multiple.
const PATIENCE: Duration = Duration::from_secs(120);
const ETCD_URL: &str = "http://127.0.0.1:2379";
const ETCD_PEERS_URL: &str = "http://127.0.0.1:2380";
const API_URL: &str = "https://127.0.0.1:6443";
/// Everything is allowed to whoever shows it.
const ADMINISTRATOR: &str = "the-rig";
const ISTIOD_PORT: u16 = 15012;
/// On which the programs listen.
const RESERVED_PORTS: &str = "2379-2380,6060,6443,8080,9402,9876,15010-15017";
const ISTIOD_NAME: &str = "istiod.istio-system.svc";
const ISTIO_CSR_PORT: u16 = 15013;
const ISTIO_CSR_NAME: &str = "cert-manager-istio-csr.cert-manager.svc";
const SYSTEM: &str = "istio-system";
/// Of the proxies.
const ACCOUNT: &str = "ztunnel";
const ROOTS_FILE: &str = "istiods-roots.pem";
const ISSUER_FILE: &str = "issuer.pem";

pub struct Cluster {
    site: Site,
    /// Ended before those that they depend on: declared first.
    istiod: Option<Process>,
    istio_csr: Option<(Process, Issuer)>,
    _api_server: Process,
    _etcd: Process,
}

/// Where programs are started, and with what.
struct Site {
    api: Api,
    programs: PathBuf,
    folder: PathBuf,
}

/// The API server, as the administrator.
#[derive(Clone)]
struct Api {
    /// Of node 0, as `ip netns` knows it.
    namespace: String,
}

impl Cluster {
    /// Starts all programs and writes the world; istiod is ready afterwards.
    pub fn start(world: &World, programs: &Path) -> Result<Self> {
        let api = Api {
            namespace: world.nodes[0].namespace.name().to_owned(),
        };
        // Theirs are in the range from which this namespace takes those of outgoing connections.
        world.nodes[0]
            .namespace
            .write_sysctls(&[("net/ipv4/ip_local_reserved_ports", RESERVED_PORTS)])?;
        let folder = world.scratch().join("cluster");
        std::fs::create_dir_all(&folder)
            .map_err(|error| RigError::new(format!("creating {}", folder.display()), error))?;
        let site = Site {
            api,
            programs: programs.to_owned(),
            folder,
        };
        let etcd = site.etcd()?;
        let mut api_server = site.api_server()?;
        api_server.wait_for("be ready", PATIENCE, || site.api.ask("GET", "/readyz", None))?;
        let mut cluster = Self {
            site,
            istiod: None,
            istio_csr: None,
            _api_server: api_server,
            _etcd: etcd,
        };
        cluster.define_resources(RESOURCE_DEFINITIONS)?;
        cluster.write(world)?;
        cluster.start_istiod()?;
        Ok(cluster)
    }

    /// Ends istiod without notice.
    pub fn kill_istiod(&mut self) {
        self.istiod = None;
    }

    /// Waits until it is ready.
    pub fn start_istiod(&mut self) -> Result<()> {
        let mut istiod = self.site.istiod()?;
        istiod.wait_for("be ready", PATIENCE, || {
            self.site.api.probe("http://127.0.0.1:8080/ready")
        })?;
        let path = format!("/api/v1/namespaces/{SYSTEM}/configmaps/istio-ca-root-cert");
        let found = istiod.wait_for("write its root certificate", PATIENCE, || {
            self.site.api.ask("GET", &path, None)
        })?;
        write(
            &self.site.folder.join(ROOTS_FILE),
            text(&found["data"]["root-cert.pem"])?,
        )?;
        self.istiod = Some(istiod);
        Ok(())
    }

    /// From now on `options` name istio-csr as the CA, with an issuer of the rig behind it. Istiod signs no more for pods.
    pub fn start_istio_csr(&mut self) -> Result<()> {
        self.define_resources(REQUEST_DEFINITIONS)?;
        let authority = Authority::new("issuer of the rig")?;
        write(&self.site.folder.join(ISSUER_FILE), &authority.pem())?;
        let issuer = Issuer::start(self.site.api.clone(), SYSTEM, authority);
        let mut istio_csr = self.site.istio_csr()?;
        istio_csr.wait_for("be ready", PATIENCE, || {
            self.site.api.probe("http://127.0.0.1:6060/readyz")
        })?;
        self.istio_csr = Some((istio_csr, issuer));
        Ok(())
    }

    /// What makes the proxy of a node use it, with a token for the proxy's own pod.
    pub fn options(&self, node: usize, options: ProxyOptions) -> Result<ProxyOptions> {
        let name = proxy_name(node);
        let pod = self
            .site
            .api
            .ask("GET", &format!("{}/{name}", pods_path(SYSTEM)), None)?;
        let wanted = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": ["istio-ca"],
                "expirationSeconds": 3600,
                "boundObjectRef": {
                    "kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"],
                },
            },
        });
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{ACCOUNT}/token");
        let issued = self.create(&path, &wanted)?;
        let token_file = self.site.folder.join(format!("{name}.token"));
        write(&token_file, text(&issued["status"]["token"])?)?;
        let upstream = |port, name, roots| Upstream {
            address: (addresses::node(0).v4, port).into(),
            name,
            roots: self.site.folder.join(roots),
        };
        let istiod = upstream(ISTIOD_PORT, ISTIOD_NAME, ROOTS_FILE);
        let ca = match self.istio_csr {
            Some(_) => upstream(ISTIO_CSR_PORT, ISTIO_CSR_NAME, ISSUER_FILE),
            None => istiod.clone(),
        };
        Ok(options
            .under(&istiod, &ca, &token_file)
            .variable("POD_NAME", &name)
            .variable("POD_NAMESPACE", SYSTEM)
            .variable("SERVICE_ACCOUNT", ACCOUNT))
    }

    /// Creates an object in the collection at `path`; gives it as it is in the cluster.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.site.api.ask("POST", path, Some(object))
    }

    pub fn delete(&self, path: &str) -> Result<()> {
        self.site.api.ask("DELETE", path, None).map(drop)
    }

    /// Whether the pod's readiness probe is told to succeed.
    pub fn set_ready(&self, pod: &Pod, is_ready: bool) -> Result<()> {
        let path = format!("{}/{}/status", pods_path(&pod.spec.namespace), pod.spec.name);
        let status = json!({"status": {"conditions": [readiness(is_ready)]}});
        self.site.api.ask("PATCH", &path, Some(&status)).map(drop)
    }

    /// Those that a file of the programs' folder defines.
    fn define_resources(&self, file: &str) -> Result<()> {
        let path = self.site.programs.join(file);
        let yaml = std::fs::read_to_string(&path)
            .map_err(|error| RigError::new(format!("reading {}", path.display()), error))?;
        for definition in yaml
            .split("\n---")
            .filter(|text| text.contains("CustomResourceDefinition"))
        {
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
            self.site.api.send("POST", path, "application/yaml", definition)?;
        }
        Ok(())
    }

    fn write(&self, world: &World) -> Result<()> {
        let mut namespaces = vec![SYSTEM];
        namespaces.extend(world.pods.iter().map(|pod| &*pod.spec.namespace));
        namespaces.extend(world.blueprint.services.iter().map(|it| &*it.namespace));
        namespaces.sort_unstable();
        namespaces.dedup();
        for name in namespaces {
            let labels = json!({"istio.io/dataplane-mode": if name == SYSTEM { "none" } else { "ambient" }});
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
            });
            self.create("/api/v1/namespaces", &object)?;
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}});
        self.create(&format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts"), &account)?;
        for node in &world.nodes {
            let name = node_name(node.index);
            let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            self.create("/api/v1/nodes", &object)?;
            let mut proxy = PodSpec::new(&proxy_name(node.index), node.index);
            proxy = proxy.namespace(SYSTEM).service_account(ACCOUNT);
            proxy = proxy.membership(Membership::KnownPlain);
            self.write_pod(world, &proxy, addresses::node(node.index))?;
        }
        for pod in &world.pods {
            if pod.spec.membership != Membership::Outside {
                self.write_pod(world, &pod.spec, pod.addresses)?;
            }
        }
        for (index, spec) in world.blueprint.services.iter().enumerate() {
            self.write_service(spec, addresses::service(index))?;
        }
        Ok(())
    }

    fn write_pod(&self, world: &World, spec: &PodSpec, own: addresses::Addresses) -> Result<()> {
        let mut labels = json!({"app": spec.service_account});
        for service in &world.blueprint.services {
            if service.endpoints.contains(&spec.name) {
                labels[selected_by(service)] = "true".into();
            }
        }
        let annotations = match spec.membership {
            // What istio-cni notes on a pod that it has enrolled.
            Membership::Inside | Membership::Unredirected => {
                json!({"ambient.istio.io/redirection": "enabled"})
            }
            Membership::KnownPlain | Membership::Outside => json!({}),
        };
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": spec.name, "labels": labels, "annotations": annotations},
            "spec": {
                "nodeName": node_name(spec.node),
                "serviceAccountName": spec.service_account,
                "containers": [{"name": "application", "image": "of-the-rig"}],
            },
        });
        let path = pods_path(&spec.namespace);
        self.create(&path, &object)?;
        let node = addresses::node(spec.node);
        let status = json!({"status": {
            "phase": "Running",
            "podIP": own.v4, "podIPs": [{"ip": own.v4}, {"ip": own.v6}],
            "hostIP": node.v4, "hostIPs": [{"ip": node.v4}],
            "conditions": [readiness(true)],
        }});
        let path = format!("{path}/{}/status", spec.name);
        self.site.api.ask("PATCH", &path, Some(&status)).map(drop)
    }

    fn write_service(&self, spec: &ServiceSpec, own: addresses::Addresses) -> Result<()> {
        let ports = spec.ports.iter().map(|(port, target)| {
            json!({"name": format!("tcp-{port}"), "port": port, "targetPort": target, "protocol": "TCP"})
        });
        let object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": spec.name},
            "spec": {
                "selector": {selected_by(spec): "true"},
                "ports": ports.collect::<Vec<_>>(),
                "ipFamilyPolicy": "RequireDualStack",
                "clusterIP": own.v4,
                "clusterIPs": [own.v4.to_string(), own.v6.to_string()],
            },
        });
        let path = format!("/api/v1/namespaces/{}/services", spec.namespace);
        self.create(&path, &object).map(drop)
    }
}

impl Site {
    fn etcd(&self) -> Result<Process> {
        let arguments = [
            format!("--data-dir={}", self.folder.join("etcd").display()),
            format!("--listen-client-urls={ETCD_URL}"),
            format!("--advertise-client-urls={ETCD_URL}"),
            format!("--listen-peer-urls={ETCD_PEERS_URL}"),
            format!("--initial-advertise-peer-urls={ETCD_PEERS_URL}"),
            format!("--initial-cluster=default={ETCD_PEERS_URL}"),
            // It is thrown away with the world.
            "--unsafe-no-fsync".to_owned(),
        ];
        self.start(ETCD, &arguments, &[])
    }

    fn api_server(&self) -> Result<Process> {
        let (key, tokens) = (self.folder.join("accounts.key"), self.folder.join("tokens.csv"));
        write(&key, &run_with_input("openssl", &["genrsa", "2048"], "")?)?;
        write(&tokens, &format!("{ADMINISTRATOR},rig,rig,system:masters\n"))?;
        let key = key.display();
        let arguments = [
            format!("--etcd-servers={ETCD_URL}"),
            format!("--cert-dir={}", self.folder.display()),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--advertise-address={}", addresses::node(0).v4),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--token-auth-file={}", tokens.display()),
            "--authorization-mode=AlwaysAllow".to_owned(),
            // Nobody makes accounts' tokens for pods here.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            // The rig's services are in there, and the cluster's own first address is none of theirs.
            "--service-cluster-ip-range=198.18.192.0/18,fd00:198:18:f0::/108".to_owned(),
        ];
        self.start(API_SERVER, &arguments, &[])
    }

    fn istiod(&self) -> Result<Process> {
        let mesh = self.folder.join("mesh.yaml");
        write(&mesh, &json!({"trustDomain": "cluster.local"}).to_string())?;
        let arguments = [
            "discovery".to_owned(),
            self.kubeconfig()?,
            format!("--meshConfig={}", mesh.display()),
            "--domain=cluster.local".to_owned(),
            "--httpAddr=127.0.0.1:8080".to_owned(),
            "--monitoringAddr=127.0.0.1:15014".to_owned(),
            "--httpsAddr=127.0.0.1:15017".to_owned(),
            "--grpcAddr=127.0.0.1:15010".to_owned(),
            format!("--secureGRPCAddr={}:{ISTIOD_PORT}", addresses::node(0).v4),
        ];
        let environment = [
            ("PILOT_ENABLE_AMBIENT", "true"),
            ("CA_TRUSTED_NODE_ACCOUNTS", &*format!("{SYSTEM}/{ACCOUNT}")),
            ("CLUSTER_ID", "Kubernetes"),
            ("POD_NAME", "istiod"),
            ("POD_NAMESPACE", SYSTEM),
            ("REVISION", "default"),
        ];
        self.start(ISTIOD, &arguments, &environment)
    }

    fn istio_csr(&self) -> Result<Process> {
        let address = addresses::node(0).v4;
        let arguments = [
            self.kubeconfig()?,
            format!("--serving-address={address}:{ISTIO_CSR_PORT}"),
            format!("--serving-certificate-dns-names={ISTIO_CSR_NAME}"),
            format!("--root-ca-file={}", self.folder.join(ISSUER_FILE).display()),
            format!("--certificate-namespace={SYSTEM}"),
            format!("--leader-election-namespace={SYSTEM}"),
            format!("--ca-trusted-node-accounts={SYSTEM}/{ACCOUNT}"),
            "--issuer-name=rig".to_owned(),
            "--istiod-cert-enabled=false".to_owned(),
            // Pods' copies of the mesh's root are istiod's here.
            "--configmap-namespace-selector=none=here".to_owned(),
        ];
        self.start(ISTIO_CSR, &arguments, &[])
    }

    /// The option that tells a program of the API server.
    fn kubeconfig(&self) -> Result<String> {
        let file = self.folder.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": {"server": API_URL, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "rig", "user": {"token": ADMINISTRATOR}}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig"}}],
            "current-context": "rig",
        });
        write(&file, &config.to_string())?;
        Ok(format!("--kubeconfig={}", file.display()))
    }

    fn start(&self, name: &str, arguments: &[String], environment: &[(&str, &str)]) -> Result<Process> {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.api.namespace])
            .arg(self.programs.join(name))
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(environment.iter().copied())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Process::start(name, || command.spawn())
    }
}

/// The pod of a node's proxy.
fn proxy_name(node: usize) -> String {
    format!("ztunnel-{node}")
}

/// The label of a service's endpoints.
fn selected_by(service: &ServiceSpec) -> String {
    format!("endpoint-of-{}", service.name)
}

fn pods_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn text(value: &Value) -> Result<&str> {
    let text = value.as_str();
    text.ok_or_else(|| {
        RigError::new(
            "reading an answer of the API server",
            format!("{value} is no text"),
        )
    })
}

fn readiness(is_ready: bool) -> Value {
    json!({"type": "Ready", "status": if is_ready { "True" } else { "False" }})
}

impl Api {
    /// An answer that is no success is an error with its text.
    fn ask(&self, method: &str, path: &str, object: Option<&Value>) -> Result<Value> {
        let kind = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = object.map(Value::to_string).unwrap_or_default();
        let answer = self.send(method, path, kind, &body)?;
        // Some answers are a word.
        Ok(serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
    }

    /// Of a program of this namespace.
    fn probe(&self, url: &str) -> Result<String> {
        run_in(&self.namespace, "curl", &["-sSf", url], "")
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &str) -> Result<String> {
        let (url, authorization, kind) = (
            format!("{API_URL}{path}"),
            format!("Authorization: Bearer {ADMINISTRATOR}"),
            format!("Content-Type: {kind}"),
        );
        let mut arguments = vec![
            "-sS",
            "-k",
            "-X",
            method,
            "-w",
            "\n%{http_code}",
            "-H",
            &authorization,
        ];
        if !body.is_empty() {
            arguments.extend(["-H", &kind, "--data-binary", "@-"]);
        }
        arguments.push(&url);
        let answer = run_in(&self.namespace, "curl", &arguments, body)?;
        let (text, status) = answer.rsplit_once('\n').unwrap_or_default();
        if status.starts_with('2') {
            Ok(text.to_owned())
        } else {
            Err(RigError::new(
                format!("{method} {path}"),
                format!("{status}: {text}"),
            ))
        }
    }
}

fn run_in(namespace: &str, program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut all = vec!["netns", "exec", namespace, program];
    all.extend(arguments);
    run_with_input("ip", &all, input)
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|error| RigError::new(format!("writing {}", path.display()), error))
}
