//! Waiting, and being woken.

use std::time::{Duration, Instant};

use uztunnel::sys::driver::{Driver, Event};

use crate::bench::{Bench, PATIENCE};
use crate::rig::Rig;

pub fn a_wake_from_another_thread_ends_the_wait<B: Bench>(bench: &B) {
    let mut driver = bench.driver();
    let waker = driver.waker();
    for pause_ms in [0, 1, 30] {
        let waker = waker.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(pause_ms));
            waker.wake();
        });
        let start = Instant::now();
        let mut events = Vec::new();
        while events.is_empty() {
            driver.poll(Some(PATIENCE), &mut events).expect("polling works");
            assert!(start.elapsed() < PATIENCE, "the wake was lost");
        }
        assert!(matches!(events[..], [Event::Woken]), "{events:?}");
        thread.join().expect("woke");
    }
    // A wake that comes after the driver is gone is harmless.
    drop(driver);
    waker.wake();
}

pub fn many_wakes_are_one_event<B: Bench>(bench: &B) {
    let mut rig = Rig::new(bench);
    for _ in 0..3 {
        let waker = rig.driver.waker();
        std::thread::spawn(move || (0..1000).for_each(|_| waker.wake()))
            .join()
            .expect("woke");
        rig.next("wake", |event| match event {
            Event::Woken => Ok(()),
            other => Err(other),
        });
        rig.assert_silent();
    }
    rig.finish(&[]);
}

pub fn a_wait_without_events_lasts_its_timeout<B: Bench>(bench: &B) {
    let mut driver = bench.driver();
    for timeout in [Duration::from_micros(1500), Duration::from_millis(20)] {
        let start = bench.now();
        let mut events = Vec::new();
        // The first turn of a driver may have something of its own to do and return early.
        while let Some(rest) = timeout.checked_sub(bench.now() - start) {
            driver.poll(Some(rest), &mut events).expect("polling works");
        }
        assert!(events.is_empty(), "{events:?}");
        let waits = driver.counters().waits;
        assert!(waits < 10, "{waits} waits: the driver does not sleep");
    }
}

pub fn a_wait_of_no_time_returns_at_once<B: Bench>(bench: &B) {
    let mut driver = bench.driver();
    let mut events = Vec::new();
    let start = Instant::now();
    for _ in 0..100 {
        driver
            .poll(Some(Duration::ZERO), &mut events)
            .expect("polling works");
    }
    assert!(events.is_empty(), "{events:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
}
