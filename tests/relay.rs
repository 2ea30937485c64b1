//! The relay of two real workers in one process: one acts for a client's pod, the other for a server's pod, and
//! applications are threads with the standard library's sockets.
//!
//! Every scenario runs on both drivers, each in a network namespace of its own, so that addresses and ports are
//! those of a real node. There are no redirect rules: the client's pod captures on 0.0.0.0:80, and a connection to a
//! service's address is routed by that address.

#[path = "relay/applications.rs"]
mod applications;
#[path = "relay/blocked.rs"]
mod blocked;
#[path = "relay/counting.rs"]
mod counting;
#[path = "relay/idle.rs"]
mod idle;
#[path = "relay/removal.rs"]
mod removal;
#[path = "relay/sessions.rs"]
mod sessions;
#[path = "relay/steady.rs"]
mod steady;
#[path = "relay/world.rs"]
mod world;

macro_rules! relay {
    ($driver:ident, $backend:expr; $($module:ident :: $scenario:ident),* $(,)?) => {
        mod $driver {
            $(
                #[test]
                fn $scenario() {
                    crate::world::World::enter($backend, crate::$module::$scenario);
                }
            )*
        }
    };
}

/// The list, on one driver.
macro_rules! on {
    ($driver:ident, $backend:expr $(; $($more:tt)*)?) => {
        relay! {
            $driver, $backend;
            blocked::a_reader_that_stops_slows_no_other_stream_of_its_session,
            idle::an_idle_connection_owns_no_buffer,
            idle::an_idle_worker_sleeps,
            removal::a_removed_client_pod_resets_its_connections_and_leaves_nothing_behind,
            removal::a_removed_server_pod_resets_its_connections_and_leaves_nothing_behind,
            removal::a_pod_that_goes_takes_its_unfinished_setups_along,
            sessions::a_retired_session_ends_with_its_last_stream,
            sessions::a_drain_lets_a_connection_that_is_being_set_up_through,
            sessions::a_failed_dial_answers_all_who_wait_for_it_at_once,
            sessions::more_streams_than_one_session_takes_use_a_further_one,
            sessions::a_thousand_short_connections_share_one_session,
            sessions::applications_that_reset_leave_the_session_to_the_others,
            steady::relaying_messages_allocates_nothing,
            steady::relaying_bulk_allocates_nothing,
            steady::relaying_plaintext_allocates_nothing,
            steady::relaying_plaintext_bulk_allocates_nothing,
            $($($more)*)?
        }
    };
}

on!(epoll, crate::world::Backend::Epoll);
on!(uring, crate::world::Backend::Uring; steady::a_ring_is_entered_at_most_once_for_four_messages,);

#[test]
fn connections_that_need_a_session_each_are_all_set_up() {
    let settings = uztunnel::worker::settings::Settings {
        session_streams_max: 1,
        ..world::settings()
    };
    let scenario = sessions::connections_that_need_a_session_each_are_all_set_up;
    world::World::enter_with(world::Backend::Epoll, settings, scenario);
}
