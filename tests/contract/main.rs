//! What every driver must do, as one list of scenarios that runs on each of them.
//!
//! A scenario takes a bench, which makes drivers, talks to blocking sockets of the same bench, and ends with
//! `Rig::finish`, which asserts that no socket, operation or receive buffer is left. On the kernel's drivers those
//! are ordinary sockets over loopback TCP; with the cargo feature `sim` the list also runs on the simulated driver,
//! on a network like loopback and on adverse ones.

mod accept;
mod allocations;
mod bench;
mod buffers;
mod connect;
mod handles;
mod kernel;
mod receive;
mod reset;
mod rig;
mod send;
#[cfg(feature = "sim")]
mod simulated;
mod storm;
mod waiting;

use uztunnel::limits;
use uztunnel::sys::driver::Driver;
use uztunnel::sys::epoll::EpollDriver;
use uztunnel::sys::uring::{FeatureSet, KernelRelease, Profile, UringDriver};

use crate::bench::Bench;
use crate::kernel::KernelBench;
#[cfg(feature = "sim")]
use crate::simulated::SimBench;

/// One scenario on each of the benches.
fn run<B: Bench>(benches: impl IntoIterator<Item = B>, scenario: impl Fn(&B)) {
    for bench in benches {
        scenario(&bench);
        bench.assert_sound();
    }
}

macro_rules! tests {
    ($benches:expr; $($module:ident :: $scenario:ident),* $(,)?) => {
        $(
            #[test]
            fn $scenario() {
                crate::run($benches, crate::$module::$scenario);
            }
        )*
    };
}

/// The list, on one driver.
macro_rules! contract {
    ($driver:ident, $benches:expr) => {
        mod $driver {
            use super::*;

            tests! {
                $benches;
                accept::a_connection_is_accepted_with_its_peer_and_not_registered,
                accept::a_burst_of_connections_is_accepted_completely,
                accept::an_accepted_connection_is_handed_to_another_driver,
                accept::a_closed_listener_accepts_nothing_more,
                accept::running_out_of_descriptors_pauses_accepting_until_asked_again,
                allocations::relaying_messages_allocates_nothing,
                allocations::relaying_bulk_allocates_nothing,
                buffers::other_sockets_receive_while_every_buffer_is_held,
                buffers::a_received_buffer_outlives_its_socket_and_its_driver,
                buffers::a_thousand_pairs_echo_and_leave_nothing_behind,
                connect::a_connection_is_made_and_carries_bytes_both_ways,
                connect::a_refused_connection_says_so,
                connect::closing_while_connecting_is_silent,
                connect::the_source_address_can_be_chosen,
                handles::a_stale_handle_does_nothing_and_never_reaches_the_next_socket,
                handles::events_carry_the_owner_of_the_moment,
                handles::closing_with_operations_in_flight_is_silent_and_complete,
                handles::dropping_a_driver_with_operations_in_flight_closes_its_sockets,
                receive::a_stream_arrives_in_order_and_complete,
                receive::a_single_receive_gives_no_more_than_asked_and_only_once,
                receive::a_single_receive_larger_than_a_message_gives_the_message,
                receive::a_stopped_stream_is_silent_and_goes_on_without_a_gap,
                receive::a_stream_that_waits_owns_no_buffer_also_after_a_stop,
                receive::bytes_that_came_before_anyone_asked_are_not_lost,
                receive::bytes_before_the_end_come_before_the_end,
                receive::the_peer_may_end_its_side_and_still_read,
                receive::we_may_end_our_side_and_still_read,
                receive::nothing_follows_the_end,
                receive::an_end_that_was_taken_is_the_end,
                receive::what_goes_on_is_not_taken_for_the_end,
                receive::urgent_data_does_not_stall_the_stream,
                receive::a_busy_socket_does_not_starve_a_quiet_one,
                reset::a_reset_by_the_peer_is_received_as_a_reset,
                reset::a_reset_behind_bytes_is_not_taken_for_the_end,
                reset::closing_with_reset_is_seen_as_a_reset_by_the_peer,
                reset::closing_orderly_delivers_what_was_sent,
                reset::a_reset_that_a_send_meets_first_is_still_received_as_a_reset,
                reset::a_send_in_flight_fails_when_the_peer_resets,
                reset::a_reset_that_a_send_and_a_receive_meet_at_once_is_received_as_a_reset,
                reset::a_reset_amid_a_send_is_received_as_a_reset,
                send::a_small_payload_comes_back_when_sent,
                send::the_last_payload_arrives_with_the_end,
                send::plain_bytes_reach_a_slow_reader_exactly,
                send::slices_reach_a_slow_reader_exactly,
                send::a_received_buffer_reaches_a_slow_reader_exactly,
                send::receiving_goes_on_while_a_send_waits,
                storm::connections_cut_off_at_random_never_see_each_others_bytes,
                waiting::a_wake_from_another_thread_ends_the_wait,
                waiting::many_wakes_are_one_event,
                waiting::a_wait_without_events_lasts_its_timeout,
                waiting::a_wait_of_no_time_returns_at_once,
            }
        }
    };
}

/// The list, on one kind of the kernel's drivers.
macro_rules! kernel_contract {
    ($driver:ident, $make:expr) => {
        contract!($driver, [KernelBench::new(|| $make)]);
    };
}

kernel_contract!(epoll, EpollDriver::new().expect("an epoll driver"));
kernel_contract!(
    epoll_crowded,
    crowded(EpollDriver::new().expect("an epoll driver"))
);

/// Everything is held back that may be.
fn crowded<D: Driver>(mut driver: D) -> D {
    driver.set_crowded(true);
    driver
}

/// A ring held back to what kernels of one generation offer.
fn uring(set: FeatureSet) -> UringDriver {
    UringDriver::new(Profile::new(set, limits::RING_ENTRIES, None)).expect("an io_uring driver")
}

/// A ring as on a kernel whose buffer rings are unsafe.
fn uring_without_buffer_rings() -> UringDriver {
    let unsafe_kernel = KernelRelease::parse("6.5.0");
    let profile = Profile::new(FeatureSet::NEWEST, limits::RING_ENTRIES_MIN, unsafe_kernel);
    UringDriver::new(profile).expect("an io_uring driver")
}

kernel_contract!(uring, uring(FeatureSet::NEWEST));
kernel_contract!(uring_crowded, crowded(uring(FeatureSet::NEWEST)));
kernel_contract!(uring_6_1, uring(FeatureSet::V6_1));
kernel_contract!(uring_6_0, uring(FeatureSet::V6_0));
kernel_contract!(uring_5_19, uring(FeatureSet::V5_19));
kernel_contract!(uring_5_18, uring(FeatureSet::V5_18));
kernel_contract!(uring_5_15, uring(FeatureSet::V5_15));
kernel_contract!(uring_5_15_crowded, crowded(uring(FeatureSet::V5_15)));
kernel_contract!(uring_cve_2024_0582, uring_without_buffer_rings());

#[cfg(feature = "sim")]
contract!(sim_instant, [SimBench::instant()]);
#[cfg(feature = "sim")]
contract!(sim_adverse, SimBench::adverse());
