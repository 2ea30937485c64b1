//! Large transfers arrive byte for byte.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use uztunnel_rig::pattern::Pattern;
use uztunnel_rig::{Family, World};

use crate::setup::{options, two_nodes};

const PORT: u16 = 4100;
const GIB: u64 = 1 << 30;

/// Moves so many bytes there and back, at once over one connection, and checks each of them.
pub fn assert_transfer(world: &World, client: &str, server: &str, family: Family, bytes: [u64; 2]) {
    let [bytes_there, bytes_back] = bytes;
    let (there, back) = (Pattern::new(11), Pattern::new(12));
    let (expected, answer) = (there.clone(), back.clone());
    let serving = world.pod(server).serve(PORT, move |mut stream, _| {
        let (expected, answer) = (expected.clone(), answer.clone());
        async move {
            let (mut reader, mut writer) = stream.split();
            let sending = async {
                answer.send(&mut writer, bytes_back).await?;
                writer.shutdown().await
            };
            let (received, sent) = tokio::join!(expected.receive(&mut reader), sending);
            sent?;
            assert_eq!(received?, bytes_there, "bytes that reached the server");
            Ok(())
        }
    });
    let target = world.pod(server).address(family, PORT);
    let received = world.pod(client).run(async move {
        let mut stream = TcpStream::connect(target).await?;
        let (mut reader, mut writer) = stream.split();
        let sending = async {
            there.send(&mut writer, bytes_there).await?;
            writer.shutdown().await
        };
        let (received, sent) = tokio::join!(back.receive(&mut reader), sending);
        sent?;
        received
    });
    assert_eq!(
        received.expect("an orderly end"),
        bytes_back,
        "bytes that reached the client"
    );
    assert_eq!(serving.wait_for_ends(1), [Ok(())]);
}

#[test]
fn a_gibibyte_each_way_arrives_byte_for_byte_through_a_tunnel() {
    assert_transfer(&two_nodes(), "client", "server", Family::V4, [GIB; 2]);
}

#[test]
fn a_quarter_gibibyte_each_way_arrives_over_ipv6_and_through_both_kinds_of_passthrough() {
    let world = two_nodes();
    assert_transfer(&world, "client", "server", Family::V6, [GIB / 4; 2]);
    assert_transfer(&world, "client", "stranger", Family::V4, [GIB / 4; 2]);
    assert_transfer(&world, "stranger", "server", Family::V6, [GIB / 4; 2]);
}

/// The way back carries less, so that the test stays within the time of the others, but its keys change as often.
#[test]
fn two_gibibytes_on_one_connection_survive_a_key_update_every_16_records() {
    let options = options().map(|options| options.variable("UZTUNNEL_TLS_RECORDS_MAX", "16"));
    let world = World::start(crate::setup::plan(), &options).expect("ready proxies");
    assert_transfer(&world, "client", "server", Family::V4, [2 * GIB, GIB / 8]);
}
