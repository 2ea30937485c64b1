//! The shapes of everything that may be left out, from a file that leaves nothing out.

use serde_json::json;

use super::*;
use crate::mesh::{Builder, Locale};

const FULL: &str = "
workloads:
- uid: c//Pod/ns/a
  name: a
  namespace: ns
  trustDomain: td
  serviceAccount: sa
  workloadIps: [10.0.0.1, 'fd00::1']
  network: net1
  node: n1
  hostname: a.example
  protocol: HBONE
  networkMode: HostNetwork
  status: Unhealthy
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  waypoint: {destination: net1/10.9.0.1, hboneMtlsPort: 15008}
  networkGateway: {destination: gw/gw.example, hboneMtlsPort: 15009}
  authorizationPolicies: [ns/p]
  locality: {region: r, zone: z, subzone: s}
  capacity: 3
  clusterId: c
  workloadName: wn
  workloadType: deployment
  canonicalName: cn
  canonicalRevision: cr
  services: {ns/s.example: {80: 8080, 443: 0}}
policies:
- name: p
  namespace: ns
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - namespaces: [{Prefix: pre}]
        notNamespaces: [{Suffix: suf}]
        serviceAccounts: [{namespace: ns, serviceAccount: sa}]
        notServiceAccounts: [{namespace: ns, serviceAccount: sb}]
        principals: [{Exact: e}]
        notPrincipals: [{Presence: []}]
        sourceIps: [10.0.0.0/8]
        notSourceIps: [10.1.0.0/16]
        destinationIps: ['fd00::/8']
        notDestinationIps: [10.2.0.0/16]
        destinationPorts: [80]
        notDestinationPorts: [81]
services:
- name: s
  namespace: ns
  hostname: s.example
  vips: [net1/10.9.0.7]
  cidrVips: [{network: net1, cidr: 10.8.0.0/16}]
  ports: {80: 8080, 443: 0}
  subjectAltNames: ['spiffe://td/ns/ns/sa/other']
  waypoint: {destination: ns/w.example, hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: /10.9.0.2, hboneMtlsPort: 15008}, weight: 7}]
  loadBalancer: {routingPreferences: [Region, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
";

fn dumped(text: &str) -> Value {
    let mut builder = Builder::new(Locale::default());
    builder.load(LocalState::parse(text).expect("a mesh"));
    let dump = Dump {
        live: crate::control::admin::Live::default(),
        snapshot: builder.build().into(),
        certificates: Inventory::default(),
        pods: Listed::default(),
        constants: Arc::new(Constants {
            local_state: Some(LocalSource::Text(text.to_owned())),
            ..Constants::default()
        }),
    };
    let mut bytes = Vec::new();
    dump.write(&mut bytes).expect("written");
    serde_json::from_slice(&bytes).expect("JSON")
}

#[test]
fn everything_that_may_be_left_out_is_there_when_it_is_set() {
    let dump = dumped(FULL);
    let mut workload = json!({
        "applicationTunnel": {"port": 15088, "protocol": "PROXY"},
        "authorizationPolicies": ["ns/p"],
        "canonicalName": "cn",
        "canonicalRevision": "cr",
        "capacity": 3,
        "clusterId": "c",
        "hostname": "a.example",
        "locality": {"region": "r", "subzone": "s", "zone": "z"},
        "name": "a",
        "namespace": "ns",
        "nativeTunnel": true,
        "network": "net1",
        "networkGateway": {"destination": "gw/gw.example", "hboneMtlsPort": 15009},
        "networkMode": "HostNetwork",
        "node": "n1",
        "protocol": "HBONE",
        "serviceAccount": "sa",
        "services": ["ns/s.example"],
        "status": "Unhealthy",
        "trustDomain": "td",
        "uid": "c//Pod/ns/a",
        "waypoint": {"destination": "net1/10.9.0.1", "hboneMtlsPort": 15008},
        "workloadIps": ["10.0.0.1", "fd00::1"],
        "workloadName": "wn",
        "workloadType": "deployment",
    });
    assert_eq!(dump["workloads"], json!([workload]));
    let policy = json!({
        "action": "Deny",
        "dryRun": true,
        "name": "p",
        "namespace": "ns",
        "rules": [[[{
            "destinationIps": ["fd00::/8"],
            "destinationPorts": [80],
            "namespaces": [{"Prefix": "pre"}],
            "notDestinationIps": ["10.2.0.0/16"],
            "notDestinationPorts": [81],
            "notNamespaces": [{"Suffix": "suf"}],
            "notPrincipals": [{"Presence": []}],
            "notServiceAccounts": [{"namespace": "ns", "serviceAccount": "sb"}],
            "notSourceIps": ["10.1.0.0/16"],
            "principals": [{"Exact": "e"}],
            "serviceAccounts": [{"namespace": "ns", "serviceAccount": "sa"}],
            "sourceIps": ["10.0.0.0/8"],
        }]]],
        "scope": "WorkloadSelector",
    });
    assert_eq!(dump["policies"], json!([policy]));
    let mut service = json!({
        "canonical": true,
        "cidrVips": [{"cidr": "10.8.0.0/16", "network": "net1"}],
        "endpoints": {"c//Pod/ns/a": {
            "port": {"443": 0, "80": 8080},
            "status": "Unhealthy",
            "workloadUid": "c//Pod/ns/a",
        }},
        "hostname": "s.example",
        "ipFamilies": "Dual",
        "loadBalancer": {
            "healthPolicy": "AllowAll",
            "mode": "Failover",
            "routingPreferences": ["Region", "Zone"],
        },
        "name": "s",
        "namespace": "ns",
        "ports": {"443": 0, "80": 8080},
        "subjectAltNames": ["spiffe://td/ns/ns/sa/other"],
        "vips": ["net1/10.9.0.7"],
        "visibility": "Namespace",
        "waypoint": {"destination": "ns/w.example", "hboneMtlsPort": 15008},
        "weightedWaypoints": [{
            "destination": {"destination": "/10.9.0.2", "hboneMtlsPort": 15008},
            "weight": 7,
        }],
    });
    assert_eq!(dump["services"], json!([service]));
    // The file itself: services of a workload with their ports, endpoints only where they are given.
    workload["services"] = json!({"ns/s.example": {"443": 0, "80": 8080}});
    service["endpoints"] = json!({});
    assert_eq!(
        dump["staticConfig"],
        json!({"policies": [policy], "services": [service], "workloads": [workload]})
    );
}

#[test]
fn what_is_not_set_is_left_out() {
    let dump = dumped(
        "workloads: [{uid: u, namespace: ns, workloadIps: [], services: {}}]\n\
         services: [{name: s, namespace: ns, hostname: h, vips: [], ports: {}}]",
    );
    assert_eq!(
        dump["workloads"],
        json!([{
            "capacity": 1,
            "clusterId": "",
            "name": "",
            "namespace": "ns",
            "networkMode": "Standard",
            "protocol": "TCP",
            "status": "Healthy",
            "uid": "u",
            "workloadIps": [],
        }])
    );
    assert_eq!(
        dump["services"],
        json!([{
            "canonical": false,
            "endpoints": {},
            "hostname": "h",
            "name": "s",
            "namespace": "ns",
            "ports": {},
            "subjectAltNames": [],
            "vips": [],
            "visibility": "Public",
        }])
    );
    assert_eq!(
        (&dump["stagedServices"], &dump["workloadState"]),
        (&json!({}), &json!({}))
    );
}

#[test]
fn a_dump_that_is_cut_off_does_not_look_complete() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        for (last, is_whole) in [(Some(Piece::End), true), (None, false)] {
            let (pieces, queue) = mpsc::channel(2);
            assert!(pieces.send(Piece::Bytes("{".into())).await.is_ok());
            if let Some(last) = last {
                assert!(pieces.send(last).await.is_ok());
            }
            drop(pieces);
            assert_eq!(Streamed(queue).collect().await.is_ok(), is_whole);
        }
    });
}
