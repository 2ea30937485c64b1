//! One resource of the control plane: the first byte says of which type, the rest is its payload. What decodes goes
//! into a mesh, which has to build.

use uztunnel::control::xds::decode::{self, Address};
use uztunnel::mesh::{Builder, Locale};

pub fn run(input: &[u8]) {
    let Some((kind, payload)) = input.split_first() else {
        return;
    };
    let mut builder = Builder::new(Locale::default());
    if kind % 2 == 0 {
        match decode::address(payload, builder.interner()) {
            Ok(Address::Workload(workload)) => {
                let uid = workload.uid.clone();
                builder.insert_workload(workload.clone());
                builder.insert_workload(workload);
                assert!(builder.build().workload(&uid).is_some());
                builder.remove(&uid);
            }
            Ok(Address::Service(service)) => {
                let key = service.key();
                builder.insert_service(*service.clone());
                builder.insert_service(*service);
                assert!(builder.build().service(&key.namespace, &key.hostname).is_some());
                assert!(builder.remove_service(&key));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    } else {
        match decode::policy("ns/name", payload) {
            Ok(policy) => {
                builder.insert_policy(policy);
                assert_eq!(builder.build().policies().count(), 1);
                assert!(builder.remove_policy("ns/name"));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let empty = builder.build();
    assert_eq!(
        (
            empty.workloads().count(),
            empty.services().count(),
            empty.policies().count()
        ),
        (0, 0, 0)
    );
    assert_eq!(builder.staged_services(), 0);
}
