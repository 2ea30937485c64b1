//! What a decision lacks where the control plane tells only what it is asked for (`XDS_ON_DEMAND`).
//!
//! Pure functions over a snapshot. Whoever decides asks for what is missing first, so that decisions need not know
//! how the mesh came to be known.

use std::net::IpAddr;

use super::{GatewayTarget, NetworkAddress, Snapshot, Workload};

impl Snapshot {
    /// What has to be asked for before it can be decided about `ip` of `network`: whoever owns the address, then the
    /// waypoints in front of it. `None` when nothing is left that was not `asked` already.
    pub fn missing(&self, network: &str, ip: IpAddr, asked: &[GatewayTarget]) -> Option<GatewayTarget> {
        let ip = ip.to_canonical();
        // Nobody else's.
        if ip.is_loopback() || ip.is_unspecified() {
            return None;
        }
        let workload = self.workload_by_address(network, ip);
        let address = GatewayTarget::Address(NetworkAddress::new(network, ip));
        // In a service's range there may be addresses of others, which go before it.
        let by_vip = self.index.services_by_vip.get(network);
        let is_vip = by_vip.is_some_and(|by_vip| by_vip.get(&ip).is_some());
        if workload.is_none() && !is_vip && !asked.contains(&address) {
            return Some(address);
        }
        let service = self.service_by_address(network, ip, None);
        let of_workload = workload.and_then(|workload| workload.waypoint.as_deref());
        let of_service = service.into_iter().flat_map(|service| service.waypoints());
        let mut waypoints = of_workload.into_iter().chain(of_service);
        waypoints
            .find(|waypoint| !self.knows(&waypoint.target) && !asked.contains(&waypoint.target))
            .map(|waypoint| waypoint.target.clone())
    }

    /// The service that is to be asked for before it can be decided about a stream for its name: one that `own` says it
    /// belongs to.
    pub fn missing_service(&self, own: &Workload, host: &str) -> Option<GatewayTarget> {
        let keys = || own.services.iter().map(|(key, _)| key);
        let named = keys()
            .find(|key| *key.hostname == *host)
            .or_else(|| keys().find(|key| key.hostname.eq_ignore_ascii_case(host)))?;
        let target = GatewayTarget::Hostname(named.clone());
        (!self.knows(&target)).then_some(target)
    }

    /// Whether anything has this address or name.
    pub fn knows(&self, target: &GatewayTarget) -> bool {
        match target {
            GatewayTarget::Address(NetworkAddress { network, ip }) => {
                self.workload_by_address(network, *ip).is_some()
                    || self.service_by_address(network, *ip, None).is_some()
            }
            GatewayTarget::Hostname(key) => {
                self.service(&key.namespace, &key.hostname).is_some()
                    || self.workload_by_hostname(&key.namespace, &key.hostname).is_some()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::mesh::{Builder, GatewayTarget, LocalState, Locale, Snapshot};

    const WORKLOADS: &str = "
workloads:
- uid: c//Pod/shop/plain
  name: plain
  namespace: shop
  serviceAccount: a
  trustDomain: t
  workloadIps: [10.0.0.1]
  services: {}
- uid: c//Pod/shop/behind
  name: behind
  namespace: shop
  serviceAccount: a
  trustDomain: t
  workloadIps: [10.0.0.2]
  waypoint: {destination: shop/wp.shop, hboneMtlsPort: 15008}
  services: {}
services:
- name: front
  namespace: shop
  hostname: front.shop
  vips: [/10.9.0.1]
  ports: {80: 80}
  waypoint: {destination: /10.0.0.9, hboneMtlsPort: 15008}
- name: range
  namespace: shop
  hostname: range.shop
  vips: []
  cidrVips: [{network: '', cidr: 10.8.0.0/16}]
  ports: {80: 80}
";
    const WAYPOINT: &str = "
- {name: wp, namespace: shop, hostname: wp.shop, vips: [/10.0.0.9], ports: {15008: 15008}}
";

    fn snapshot(text: &str) -> Snapshot {
        let mut builder = Builder::new(Locale::default());
        builder.load(LocalState::parse(text).expect("valid"));
        builder.build()
    }

    #[test]
    fn a_service_is_asked_for_by_name_where_the_pod_says_that_it_belongs_to_it() {
        let pod = "
workloads:
- uid: c//Pod/shop/server
  name: server
  namespace: shop
  serviceAccount: a
  trustDomain: t
  workloadIps: [10.0.0.3]
  services: {shop/front.shop: {80: 8080}}
";
        let part = snapshot(pod);
        let own = part.workload("c//Pod/shop/server").expect("there it is");
        let missing =
            |snapshot: &Snapshot, host| snapshot.missing_service(own, host).map(|it| it.to_string());
        assert_eq!(missing(&part, "front.shop"), Some("shop/front.shop".to_owned()));
        assert_eq!(missing(&part, "other.shop"), None);
        assert_eq!(missing(&part, "Front.Shop"), Some("shop/front.shop".to_owned()));
        assert_eq!(missing(&snapshot(WORKLOADS), "front.shop"), None, "it is known");
    }

    fn missing(snapshot: &Snapshot, ip: &str, asked: &[GatewayTarget]) -> Option<String> {
        let missing = snapshot.missing("", ip.parse().expect("an address"), asked);
        missing.map(|target| target.to_string())
    }

    #[test]
    fn the_owner_of_an_address_is_asked_for_and_then_its_waypoints() {
        let part = snapshot(WORKLOADS);
        let named = |name: &str| Some(name.to_owned());
        for (ip, expected) in [
            ("10.0.0.1", None),
            ("10.0.0.2", named("shop/wp.shop")),
            ("10.9.0.1", named("/10.0.0.9")),
            ("10.0.0.7", named("/10.0.0.7")),
            ("10.8.0.1", named("/10.8.0.1")),
            ("::ffff:10.0.0.7", named("/10.0.0.7")),
            ("fd00::1", named("/fd00::1")),
            ("127.0.0.1", None),
            ("::1", None),
            ("0.0.0.0", None),
        ] {
            assert_eq!(missing(&part, ip, &[]), expected, "{ip}");
            let asked = expected.iter().map(|name| name.parse().expect("a target"));
            let asked: Vec<GatewayTarget> = asked.collect();
            assert_eq!(missing(&part, ip, &asked), None, "{ip}, asked for already");
        }
        let whole = snapshot(&format!("{WORKLOADS}{WAYPOINT}"));
        for ip in ["10.0.0.2", "10.9.0.1", "10.0.0.9"] {
            assert_eq!(missing(&whole, ip, &[]), None, "{ip}");
        }
    }
}
