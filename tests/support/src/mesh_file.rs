//! The mesh as every node's proxy reads it from `LOCAL_XDS_PATH` (YAML; the same file on all nodes).

use std::fmt::Write;

use crate::addresses;
use crate::blueprint::{Blueprint, Membership, PodSpec, ServiceSpec};
use crate::hbone;

/// Name of node `index`, as in `NODE_NAME` and in the workloads.
pub fn node_name(index: usize) -> String {
    format!("node-{index}")
}

/// Key of a workload.
pub fn workload_uid(pod: &PodSpec) -> String {
    format!("Kubernetes//Pod/{}/{}", pod.namespace, pod.name)
}

/// Writes the whole file. `addresses_of` gives the addresses of the pod with that position in the blueprint.
pub fn write(blueprint: &Blueprint, addresses_of: impl Fn(usize) -> addresses::Addresses) -> String {
    let mut yaml = String::from("workloads:\n");
    for (index, pod) in blueprint.pods.iter().enumerate() {
        let protocol = match pod.membership {
            Membership::Inside | Membership::Unredirected => "HBONE",
            Membership::KnownPlain => "TCP",
            Membership::Outside => continue,
        };
        let health = if blueprint.unhealthy.contains(&pod.name) {
            "Unhealthy"
        } else {
            "Healthy"
        };
        write_workload(&mut yaml, blueprint, pod, addresses_of(index), protocol, health)
            .and_then(|()| write_waypoints(&mut yaml, blueprint, pod.waypoint.as_deref(), &[], &addresses_of))
            .expect("invariant: writing to a string cannot fail");
    }
    yaml.push_str("services:\n");
    for (index, service) in blueprint.services.iter().enumerate() {
        write_service(&mut yaml, index, service)
            .and_then(|()| {
                let (one, weighted) = (service.waypoint.as_deref(), &service.weighted_waypoints);
                write_waypoints(&mut yaml, blueprint, one, weighted, &addresses_of)
            })
            .expect("invariant: writing to a string cannot fail");
    }
    if blueprint.services.is_empty() {
        yaml.truncate(yaml.len() - "services:\n".len());
    }
    yaml
}

fn write_workload(
    yaml: &mut String,
    blueprint: &Blueprint,
    pod: &PodSpec,
    own: addresses::Addresses,
    protocol: &str,
    health: &str,
) -> std::fmt::Result {
    writeln!(yaml, "- uid: {}", workload_uid(pod))?;
    writeln!(yaml, "  name: {}", pod.name)?;
    writeln!(yaml, "  namespace: {}", pod.namespace)?;
    writeln!(yaml, "  serviceAccount: {}", pod.service_account)?;
    writeln!(yaml, "  trustDomain: cluster.local")?;
    writeln!(yaml, "  workloadIps: [\"{}\", \"{}\"]", own.v4, own.v6)?;
    writeln!(yaml, "  node: {}", node_name(pod.node))?;
    writeln!(yaml, "  clusterId: Kubernetes")?;
    writeln!(yaml, "  canonicalName: {}", pod.service_account)?;
    writeln!(yaml, "  canonicalRevision: latest")?;
    writeln!(yaml, "  workloadName: {}", pod.service_account)?;
    writeln!(yaml, "  workloadType: deployment")?;
    writeln!(yaml, "  protocol: {protocol}")?;
    writeln!(yaml, "  status: {health}")?;
    if let Some(port) = pod.tunnel_port {
        writeln!(yaml, "  applicationTunnel: {{protocol: PROXY, port: {port}}}")?;
    }
    let [region, zone, subzone] = &pod.locality;
    writeln!(
        yaml,
        "  locality: {{region: \"{region}\", zone: \"{zone}\", subzone: \"{subzone}\"}}"
    )?;
    let memberships: Vec<&ServiceSpec> = blueprint
        .services
        .iter()
        .filter(|service| service.endpoints.contains(&pod.name))
        .collect();
    if memberships.is_empty() {
        return writeln!(yaml, "  services: {{}}");
    }
    writeln!(yaml, "  services:")?;
    for service in memberships {
        writeln!(
            yaml,
            "    \"{}/{}\": {}",
            service.namespace,
            service.hostname(),
            port_map(service)
        )?;
    }
    Ok(())
}

fn write_service(yaml: &mut String, index: usize, service: &ServiceSpec) -> std::fmt::Result {
    let own = addresses::service(index);
    writeln!(yaml, "- name: {}", service.name)?;
    writeln!(yaml, "  namespace: {}", service.namespace)?;
    writeln!(yaml, "  hostname: {}", service.hostname())?;
    writeln!(yaml, "  vips: [\"/{}\", \"/{}\"]", own.v4, own.v6)?;
    let ranges = service.ranges.iter();
    let ranges: Vec<String> = ranges
        .map(|(address, bits)| format!("{{network: \"\", cidr: \"{address}/{bits}\"}}"))
        .collect();
    writeln!(yaml, "  cidrVips: [{}]", ranges.join(", "))?;
    if let Some(balancing) = &service.balancing {
        // The file spells them as their types do.
        writeln!(yaml, "  loadBalancer:")?;
        writeln!(yaml, "    routingPreferences: {:?}", balancing.scopes)?;
        writeln!(yaml, "    mode: {:?}", balancing.mode)?;
        writeln!(yaml, "    healthPolicy: {:?}", balancing.health_policy)?;
    }
    writeln!(yaml, "  ports: {}", port_map(service))
}

/// Of a pod or a service; a service may have several that share its calls.
fn write_waypoints(
    yaml: &mut String,
    blueprint: &Blueprint,
    waypoint: Option<&str>,
    weighted: &[(String, u32)],
    addresses_of: impl Fn(usize) -> addresses::Addresses,
) -> std::fmt::Result {
    let gateway = |name: &str| {
        let address = match blueprint.service_position(name) {
            Some(service) => addresses::service(service).v4,
            None => addresses_of(blueprint.position(name)).v4,
        };
        format!("{{destination: \"/{address}\", hboneMtlsPort: {}}}", hbone::PORT)
    };
    if let Some(name) = waypoint {
        writeln!(yaml, "  waypoint: {}", gateway(name))?;
    }
    if !weighted.is_empty() {
        writeln!(yaml, "  weightedWaypoints:")?;
    }
    for (name, weight) in weighted {
        writeln!(yaml, "  - {{destination: {}, weight: {weight}}}", gateway(name))?;
    }
    Ok(())
}

fn port_map(service: &ServiceSpec) -> String {
    let pairs: Vec<String> = service
        .ports
        .iter()
        .map(|(port, target)| format!("{port}: {target}"))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_names_pods_of_the_mesh_and_leaves_strangers_out() {
        let blueprint = Blueprint::two_nodes();
        let yaml = write(&blueprint, |index| {
            addresses::pod(blueprint.pods[index].node, index)
        });
        assert!(yaml.contains("- uid: Kubernetes//Pod/shop/server\n"), "{yaml}");
        assert!(
            yaml.contains("    \"shop/shop.shop.svc.cluster.local\": {80: 8080}\n"),
            "{yaml}"
        );
        assert!(
            yaml.contains("vips: [\"/198.18.240.1\", \"/fd00:198:18:f0::1\"]"),
            "{yaml}"
        );
        assert!(!yaml.contains("stranger"), "{yaml}");
        assert!(!yaml.contains("waypoint"), "{yaml}");
    }
}
