//! The inbound plaintext journey (15006): somebody outside the mesh, or a peer that does not tunnel, connects
//! to a pod; policies decide without an identity, and the bytes go on as they are.
//!
//! Captured, identified, authorized, connected, relayed; recorded when the relay ends.

use std::rc::Rc;
use std::sync::Arc;

use super::inbound::{Facts, authorize_and_connect};
use super::listen::Captured;
use super::live::Attempting;
use super::outcome::Outcome;
use super::pods::PodState;
use super::shell::{Shell, Socket};
use super::telemetry::Account;
use super::workload::own_workload;
use crate::bridge::log::Direction;
use crate::mesh::Workload;
use crate::sys::driver::Driver;

/// Serves one captured connection up to its relay.
pub async fn serve<D: Driver + 'static>(shell: Shell<D>, captured: Captured) {
    drop(captured.unbegun);
    let Captured {
        pod,
        fd,
        peer,
        share,
        place,
        ..
    } = captured;
    let now = shell.with(|core| core.now);
    let Ok(client) = Socket::adopt(&shell, fd) else {
        return;
    };
    let Some(target) = shell.with(|core| core.original_destination(client.id())) else {
        return;
    };
    let mut account = Account::new(Direction::Inbound, now, peer, target);
    account.connection_id = shell.with(|core| core.random.u128(..));

    let identified = pod.while_present(identify(&shell, &pod, &mut account)).await;
    let own = match identified.and_then(|identified| identified) {
        Ok(own) => own,
        Err(outcome) => {
            shell.with(|core| core.telemetry.refuse(account, &outcome));
            return;
        }
    };
    shell.with(|core| core.telemetry.open(&mut account));
    let attempting = Attempting::begin(&shell, &pod, &account, target);
    let facts = Facts {
        peer,
        application: target,
        identity: None,
        connection_id: account.connection_id,
    };
    let connected = pod.while_present(authorize_and_connect(&shell, &pod, &own, &facts, target, None));
    let connected = connected.await.and_then(|connected| connected);
    drop(attempting);
    match connected {
        Ok(server) => {
            let (client, server) = (client.release(), server.release());
            shell.with(|core| core.attach_pipe(pod, client, server, Box::new(account), share, place));
        }
        Err(outcome) => shell.with(|core| core.telemetry.fail(account, core.now, &outcome)),
    }
}

async fn identify<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    account: &mut Account,
) -> Result<Arc<Workload>, Outcome> {
    // What was aimed at our own ports would come back to us for ever.
    if shell.with(|core| {
        core.snapshot
            .load()
            .is_captured_port(account.destination_address.port())
    }) {
        return Err(Outcome::RecursiveCall);
    }
    let own = own_workload(shell, pod).await?;
    shell.with(|core| account.describe_plaintext(&core.snapshot.load(), &own));
    Ok(own)
}
