//! What the client does while it waits.

use std::time::Duration;

use super::*;
use crate::bridge::{Orders, SnapshotCell};
use crate::config::{self, TrustRoots};
use crate::control::pods;
use crate::mesh::{Builder, Locale, Snapshot};

#[tokio::test]
async fn what_is_due_is_published_while_an_answer_waits_for_room() {
    let server = config::Server {
        uri: "https://istiod".to_owned(),
        roots: TrustRoots::Pem(String::new()),
        other_hostname: None,
        headers: Vec::new(),
    };
    let snapshots = SnapshotCell::new(Snapshot::empty(Locale::default()));
    let state = State::new(
        Builder::new(Locale::default()),
        snapshots.clone(),
        Orders::new(Vec::new()),
        pods::changes().0,
    );
    let (mut client, _synced) = Client::new(
        Server::new(&server, None, "c").expect("a server"),
        Node::default(),
        state,
        Readiness::default(),
        Metrics::default(),
    );
    client.state.remove(Kind::Address, "");
    let before = snapshots.load();
    let (requests, mut outgoing) = mpsc::channel(1);
    let answers = ["1", "2"].map(|nonce| DeltaDiscoveryRequest {
        response_nonce: nonce.to_owned(),
        ..DeltaDiscoveryRequest::default()
    });
    let published = async {
        while Arc::ptr_eq(&before, &snapshots.load()) {
            tokio::task::yield_now().await;
        }
    };
    {
        let mut answering = pin!(client.answer(&requests, answers));
        let waiting = async {
            tokio::select! {
                () = &mut answering => panic!("there was no room"),
                () = published => {}
            }
        };
        let waited = time::timeout(Duration::from_secs(20), waiting).await;
        waited.expect("published");
        assert_eq!(outgoing.recv().await.expect("the first").response_nonce, "1");
        answering.await;
    }
    assert_eq!(outgoing.recv().await.expect("the second").response_nonce, "2");
}
