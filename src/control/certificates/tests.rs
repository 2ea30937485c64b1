//! The record with an authority played by the test and a time of its own.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
/// In the middle: retries after exactly their delay.
const MIDDLE: f64 = 0.5;

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + 1000 * HOUR
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

fn cart() -> Identity {
    identity("cart")
}

fn issued(serial: u32, not_before: SystemTime) -> Result<Issued<u32>, CertificateError> {
    Ok(Issued {
        certificate: Arc::new(serial),
        not_before,
        not_after: not_before + 24 * HOUR,
    })
}

fn error(text: &str) -> CertificateError {
    CertificateError(text.into())
}

fn uid(name: &str) -> PodUid {
    PodUid::new(name)
}

fn known(serial: u32) -> Answer<u32> {
    Answer::Known(Ok(Arc::new(serial)))
}

/// With one pod of each account, the identities of which are not known yet.
fn with_pods(accounts: &[&str]) -> Certificates<u32> {
    let mut certificates = Certificates::new();
    for account in accounts {
        let forgotten = certificates.pod_started(uid(account), Account::of(&identity(account)), None);
        assert_eq!(forgotten, []);
    }
    certificates
}

/// One of each account, issued at the time beside it.
fn with_certificates(accounts: &[(&str, SystemTime)]) -> Certificates<u32> {
    let names: Vec<&str> = accounts.iter().map(|(account, _)| *account).collect();
    let mut certificates = with_pods(&names);
    for (account, at) in accounts {
        certificates.demand(0, &identity(account), *at);
        let asked = certificates.next_request(*at).expect("one at a time");
        certificates.issued(&asked, issued(1, *at), *at, MIDDLE);
    }
    certificates
}

/// Everything that may be asked for now.
fn requests(certificates: &mut Certificates<u32>, now: SystemTime) -> Vec<Identity> {
    std::iter::from_fn(|| certificates.next_request(now)).collect()
}

fn answer(
    certificates: &mut Certificates<u32>,
    result: Result<Issued<u32>, CertificateError>,
    now: SystemTime,
) -> Delivery<u32> {
    let delivery = certificates.issued(&cart(), result, now, MIDDLE);
    delivery.expect("a pod needs it")
}

#[test]
fn one_request_is_made_for_all_who_ask_and_all_hear_of_it() {
    let mut certificates = with_pods(&["cart"]);
    assert_eq!(certificates.demand(0, &cart(), start()), Answer::Wait);
    assert_eq!(certificates.demand(1, &cart(), start()), Answer::Wait);
    assert_eq!(requests(&mut certificates, start()), [cart()]);
    assert_eq!(certificates.demand(0, &cart(), start()), Answer::Wait);
    assert_eq!(requests(&mut certificates, start()), [], "single flight");
    let Delivery { workers, result, .. } = answer(&mut certificates, issued(1, start()), start());
    assert_eq!((workers, result), (BTreeSet::from([0, 1]), Ok(Arc::new(1))));
    assert_eq!(certificates.demand(2, &cart(), start()), known(1));
}

#[test]
fn an_announced_pod_has_its_certificate_before_anybody_asks() {
    let mut certificates: Certificates<u32> = Certificates::new();
    certificates.pod_started(uid("a"), Account::of(&cart()), Some(&cart()));
    certificates.pod_started(uid("b"), Account::of(&cart()), Some(&cart()));
    assert_eq!(
        requests(&mut certificates, start()),
        [cart()],
        "once for both pods"
    );
    let Delivery { workers, .. } = answer(&mut certificates, issued(1, start()), start());
    assert_eq!(workers, BTreeSet::new());
    assert_eq!(certificates.demand(0, &cart(), start()), known(1));
}

#[test]
fn a_connection_that_waits_goes_before_prefetch_and_prefetch_before_renewal() {
    let mut certificates = with_pods(&["cart", "waiting"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    let Delivery { due, .. } = answer(&mut certificates, issued(1, start()), start());
    for account in ["first", "second", "third"] {
        let identity = identity(account);
        certificates.pod_started(uid(account), Account::of(&identity), Some(&identity));
    }
    assert_eq!(certificates.demand(0, &identity("waiting"), due), Answer::Wait);
    assert_eq!(certificates.demand(0, &identity("third"), due), Answer::Wait);
    let expected = ["waiting", "third", "first", "second", "cart"].map(identity);
    assert_eq!(requests(&mut certificates, due), expected);
}

#[test]
fn at_most_the_allowed_number_of_requests_is_under_way() {
    let accounts: Vec<String> = (0..200).map(|number| format!("account-{number:03}")).collect();
    let mut certificates: Certificates<u32> = Certificates::new();
    for account in &accounts {
        let identity = identity(account);
        certificates.pod_started(uid(account), Account::of(&identity), Some(&identity));
    }
    let mut under_way = requests(&mut certificates, start());
    let mut asked = under_way.len();
    while let Some(identity) = under_way.pop() {
        assert!(under_way.len() < limits::CERTIFICATE_REQUESTS_MAX);
        assert!(
            certificates
                .issued(&identity, issued(1, start()), start(), MIDDLE)
                .is_some()
        );
        let more = requests(&mut certificates, start());
        asked += more.len();
        under_way.extend(more);
    }
    assert_eq!(asked, accounts.len());
}

#[test]
fn a_certificate_is_renewed_before_half_its_life_and_given_to_all_who_asked_before() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    let Delivery { due, .. } = answer(&mut certificates, issued(1, start()), start());
    certificates.demand(3, &cart(), start());
    assert_eq!(certificates.next_due(), Some(due));
    assert_eq!(requests(&mut certificates, due - Duration::from_secs(1)), []);
    assert_eq!(requests(&mut certificates, due), [cart()]);
    assert_eq!(
        certificates.demand(0, &cart(), due),
        known(1),
        "the old one serves"
    );
    let Delivery { workers, .. } = answer(&mut certificates, issued(2, due), due);
    assert_eq!(workers, BTreeSet::from([0, 3]));
    assert_eq!(certificates.demand(0, &cart(), due), known(2));
}

#[test]
fn renewals_of_certificates_that_were_issued_together_are_spread() {
    let not_after = start() + 20 * HOUR;
    assert_eq!(renewal(start(), not_after, start(), 0.0), start() + 10 * HOUR);
    assert_eq!(renewal(start(), not_after, start(), 1.0), start() + 8 * HOUR);
}

#[test]
fn a_failure_is_told_at_once_and_retried_at_growing_delays() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    let mut now = start();
    for delay_s in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150] {
        assert_eq!(requests(&mut certificates, now), [cart()]);
        let Delivery { workers, result, .. } = answer(&mut certificates, Err(error("no")), now);
        assert_eq!((workers, result), (BTreeSet::from([0]), Err(error("no"))));
        assert_eq!(
            certificates.demand(0, &cart(), now),
            Answer::Known(Err(error("no")))
        );
        assert_eq!(requests(&mut certificates, now), [], "nobody hastens the CA");
        now += Duration::from_secs(delay_s);
        assert_eq!(certificates.next_due(), Some(now));
    }
    requests(&mut certificates, now);
    let Delivery { workers, result, .. } = answer(&mut certificates, issued(1, now), now);
    assert_eq!((workers, result), (BTreeSet::from([0]), Ok(Arc::new(1))));
}

#[test]
fn retries_are_spread_by_a_fifth() {
    for (random, delay) in [(0.0, 0.8), (1.0, 1.2)] {
        let mut certificates = with_pods(&["cart"]);
        certificates.demand(0, &cart(), start());
        requests(&mut certificates, start());
        certificates.issued(&cart(), Err(error("no")), start(), random);
        assert_eq!(
            certificates.next_due(),
            Some(start() + Duration::from_secs_f64(delay))
        );
    }
}

#[test]
fn who_waits_because_the_clock_was_ahead_gets_the_old_certificate_when_its_renewal_fails() {
    let mut certificates = with_pods(&["cart"]);
    for worker in [0, 1] {
        assert_eq!(certificates.demand(worker, &cart(), start()), Answer::Wait);
    }
    requests(&mut certificates, start());
    answer(&mut certificates, issued(1, start()), start());
    let ahead = start() + 25 * HOUR;
    assert_eq!(certificates.demand(0, &cart(), ahead), Answer::Wait);
    assert_eq!(requests(&mut certificates, ahead), [cart()]);
    // It is set right, and the CA cannot be reached.
    let Delivery { workers, result, .. } = answer(&mut certificates, Err(error("down")), start() + HOUR);
    assert_eq!((workers, result), (BTreeSet::from([0]), Ok(Arc::new(1))));
}

#[test]
fn a_failed_renewal_keeps_the_old_certificate_until_it_expires() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    answer(&mut certificates, issued(1, start()), start());
    let expiry = start() + 24 * HOUR;
    let now = expiry - Duration::from_millis(500);
    assert_eq!(requests(&mut certificates, now), [cart()]);
    let Delivery { workers, due, .. } = answer(&mut certificates, Err(error("no")), now);
    assert_eq!(workers, BTreeSet::new());
    assert_eq!(certificates.demand(0, &cart(), now), known(1));
    assert_eq!(due, expiry, "the retry is not later than the expiry");
    assert_eq!(requests(&mut certificates, expiry), [cart()]);
    let Delivery { workers, .. } = answer(&mut certificates, Err(error("no")), expiry);
    assert_eq!(workers, BTreeSet::from([0]));
    assert_eq!(
        certificates.demand(0, &cart(), expiry),
        Answer::Known(Err(error("no")))
    );
}

#[test]
fn an_expired_certificate_is_not_handed_out_and_its_renewal_becomes_urgent() {
    let mut certificates = with_pods(&["cart", "other"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    answer(&mut certificates, issued(1, start()), start());
    // The machine slept for two days.
    let now = start() + 48 * HOUR;
    certificates.pod_started(
        uid("other"),
        Account::of(&identity("other")),
        Some(&identity("other")),
    );
    assert_eq!(certificates.demand(0, &cart(), now), Answer::Wait);
    assert_eq!(requests(&mut certificates, now), [cart(), identity("other")]);
}

#[test]
fn what_no_pod_has_any_more_is_forgotten_and_not_asked_for_again() {
    let mut certificates = with_pods(&["cart"]);
    certificates.pod_started(uid("second"), Account::of(&cart()), Some(&cart()));
    certificates.demand(1, &cart(), start());
    requests(&mut certificates, start());
    answer(&mut certificates, issued(1, start()), start());
    assert_eq!(certificates.pod_stopped(&uid("cart")), [], "another pod has it");
    let forgotten = Forgotten {
        identity: cart(),
        workers: BTreeSet::from([1]),
    };
    assert_eq!(certificates.pod_stopped(&uid("second")), [forgotten]);
    assert_eq!(certificates.pod_stopped(&uid("second")), []);
    assert_eq!(certificates.next_due(), None);
    assert_eq!(
        certificates.demand(1, &cart(), start()),
        Answer::Known(Err(CertificateError::no_longer_needed()))
    );
    assert_eq!(requests(&mut certificates, start() + 48 * HOUR), []);
    assert!(
        certificates.entries.is_empty() && certificates.needed.is_empty() && certificates.pods.is_empty()
    );
}

#[test]
fn an_answer_that_nobody_needs_any_more_is_dropped() {
    let mut certificates: Certificates<u32> = Certificates::new();
    certificates.pod_started(uid("a"), Account::of(&cart()), Some(&cart()));
    assert_eq!(requests(&mut certificates, start()), [cart()]);
    certificates.pod_stopped(&uid("a"));
    assert!(
        certificates
            .issued(&cart(), issued(1, start()), start(), MIDDLE)
            .is_none()
    );
    assert_eq!(certificates.next_due(), None);
}

#[test]
fn a_pod_that_comes_back_takes_the_answer_that_is_under_way() {
    let mut certificates: Certificates<u32> = Certificates::new();
    certificates.pod_started(uid("a"), Account::of(&cart()), Some(&cart()));
    assert_eq!(requests(&mut certificates, start()), [cart()]);
    certificates.pod_stopped(&uid("a"));
    certificates.pod_started(uid("b"), Account::of(&cart()), Some(&cart()));
    assert_eq!(requests(&mut certificates, start()), [], "single flight");
    answer(&mut certificates, issued(1, start()), start());
    assert_eq!(certificates.demand(0, &cart(), start()), known(1));
}

#[test]
fn a_pod_that_is_announced_again_as_somebody_else_gives_its_old_identity_up() {
    let mut certificates: Certificates<u32> = Certificates::new();
    certificates.pod_started(uid("a"), Account::of(&cart()), Some(&cart()));
    let again = certificates.pod_started(uid("a"), Account::of(&cart()), Some(&cart()));
    assert_eq!(again, []);
    let till = identity("till");
    let forgotten = certificates.pod_started(uid("a"), Account::of(&till), Some(&till));
    assert_eq!(forgotten.len(), 1);
    assert_eq!(requests(&mut certificates, start()), [till]);
}

#[test]
fn a_pod_gets_no_certificate_of_an_account_that_it_does_not_have() {
    let mut certificates: Certificates<u32> = Certificates::new();
    certificates.pod_started(uid("a"), Account::of(&cart()), Some(&identity("till")));
    assert_eq!(requests(&mut certificates, start()), []);
}

#[test]
fn a_certificate_past_its_half_life_is_not_renewed_in_a_busy_loop() {
    let now = start() + 2 * HOUR;
    // Expired, inverted, empty.
    for (not_before, not_after) in [(start(), start() + HOUR), (start() + HOUR, start()), (now, now)] {
        assert_eq!(renewal(not_before, not_after, now, MIDDLE), now + RETRY_DELAY_MIN);
    }
    // Backdated by more than its life is long, as short ones of istiod are.
    let due = renewal(
        now - Duration::from_secs(120),
        now + Duration::from_secs(60),
        now,
        0.0,
    );
    assert_eq!(due, now + Duration::from_secs(30));
}

#[test]
fn the_listing_says_how_every_certificate_stands() {
    let accounts = ["cart", "failed", "new", "unasked"];
    let mut certificates = with_pods(&accounts);
    for account in &accounts[..3] {
        certificates.demand(0, &identity(account), start());
    }
    assert_eq!(requests(&mut certificates, start()).len(), 3);
    certificates.issued(&cart(), issued(1, start()), start(), MIDDLE);
    certificates.issued(&identity("failed"), Err(error("no")), start(), MIDDLE);
    let listed = |certificates: &Certificates<u32>, now: SystemTime| -> Vec<(String, String)> {
        let listing = certificates.listing(now).into_iter();
        listing
            .map(|(identity, standing)| (identity.service_account().to_owned(), format!("{standing:?}")))
            .collect()
    };
    let states = |cart: &str| {
        let failed = format!("{:?}", Standing::<u32>::Unavailable(error("no")));
        [("cart", cart), ("failed", &failed), ("new", "Initializing")]
            .map(|(account, state)| (account.to_owned(), state.to_owned()))
    };
    assert_eq!(listed(&certificates, start()), states("Available(1)"));
    let expired = start() + 24 * HOUR;
    assert_eq!(listed(&certificates, expired), states("Initializing"));
}

#[test]
fn a_certificate_that_is_doubted_is_renewed_once_and_not_before_it_has_some_age() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    assert!(!certificates.doubt(&cart(), start(), 0.0), "none is held yet");
    answer(&mut certificates, issued(1, start()), start());
    let now = start() + Duration::from_secs(1);
    assert!(certificates.doubt(&cart(), now, 0.0));
    assert_eq!(
        certificates.next_due(),
        Some(start() + limits::CERTIFICATE_DOUBT_AGE)
    );
    for later in 1..1000 {
        assert!(
            !certificates.doubt(&cart(), now + Duration::from_secs(later), 0.0),
            "{later}"
        );
    }
    let due = start() + limits::CERTIFICATE_DOUBT_AGE;
    assert_eq!(requests(&mut certificates, due), [cart()]);
    assert!(!certificates.doubt(&cart(), due, 0.0), "it is under way");
    answer(&mut certificates, issued(2, due), due);
    assert!(
        certificates.doubt(&cart(), due, 0.0),
        "the next one may be doubted again"
    );
    assert_eq!(certificates.next_due(), Some(due + limits::CERTIFICATE_DOUBT_AGE));
}

#[test]
fn doubts_about_many_certificates_are_spread() {
    let names: Vec<String> = (0..50).map(|index| format!("account-{index}")).collect();
    let accounts: Vec<_> = names.iter().map(|name| (name.as_str(), start())).collect();
    let mut certificates = with_certificates(&accounts);
    let now = start() + HOUR;
    for (account, _) in &accounts {
        assert!(certificates.doubt(&identity(account), now, 0.0));
    }
    for seconds in 0..accounts.len() {
        let now = now + Duration::from_secs(seconds as u64);
        let due = requests(&mut certificates, now);
        assert_eq!(due.len(), 1, "after {seconds} s: {due:?}");
        certificates.issued(&due[0], issued(2, now), now, MIDDLE);
    }
    assert_eq!(requests(&mut certificates, now + HOUR), []);
}

#[test]
fn a_doubt_about_a_new_certificate_delays_none_about_others() {
    let now = start() + HOUR;
    let accounts = [
        ("old", start()),
        ("old-too", start()),
        ("new", now),
        ("new-too", now),
    ];
    let mut certificates = with_certificates(&accounts);
    for account in ["new", "new-too", "old", "old-too"] {
        assert!(certificates.doubt(&identity(account), now, 0.0), "{account}");
    }
    let aged = now + limits::CERTIFICATE_DOUBT_AGE;
    for (from, accounts) in [(now, ["old", "old-too"]), (aged, ["new", "new-too"])] {
        for (seconds, account) in (0..).zip(accounts) {
            let now = from + seconds * limits::CERTIFICATE_DOUBT_INTERVAL;
            assert_eq!(certificates.next_due(), Some(now));
            assert_eq!(requests(&mut certificates, now), [identity(account)]);
        }
    }
}

#[test]
fn so_many_doubts_are_remembered_and_no_more_until_some_are_over() {
    let names: Vec<String> = (0..=limits::CERTIFICATE_DOUBTS_MAX)
        .map(|index| format!("account-{index}"))
        .collect();
    let accounts: Vec<_> = names.iter().map(|name| (name.as_str(), start())).collect();
    let mut certificates = with_certificates(&accounts);
    let now = start() + HOUR;
    let (last, first) = accounts.split_last().expect("some");
    for (account, _) in first {
        assert!(certificates.doubt(&identity(account), now, 0.0), "{account}");
    }
    let last = identity(last.0);
    assert!(!certificates.doubt(&last, now, 0.0));
    let later = now + limits::CERTIFICATE_DOUBT_INTERVAL;
    assert!(certificates.doubt(&last, later, 0.0), "one is over");
}

#[test]
fn a_doubt_delays_no_renewal() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    let due = answer(&mut certificates, issued(1, start()), start()).due;
    assert!(!certificates.doubt(&cart(), due, 1.0));
    assert_eq!(certificates.next_due(), Some(due));
}

#[test]
fn a_clock_that_is_set_back_delays_no_retry() {
    let year = 365 * 24 * HOUR;
    for set_back in [Duration::from_secs(1), HOUR, 10 * year] {
        let mut certificates = with_pods(&["cart"]);
        certificates.demand(0, &cart(), start());
        requests(&mut certificates, start());
        let due = answer(&mut certificates, Err(error("no")), start()).due;
        let now = start() - set_back;
        assert_eq!(requests(&mut certificates, now), [], "not earlier either");
        assert_eq!(certificates.next_due(), Some(due - set_back));
        assert_eq!(requests(&mut certificates, due - set_back), [cart()]);
    }
}

#[test]
fn a_retry_after_the_clock_was_set_back_comes_within_one_look_at_it() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    answer(&mut certificates, Err(error("no")), start());
    // Nobody looked between the failure and the end of the pause, when the clock had been set back.
    let now = start() - HOUR + limits::CLOCK_CHECK_INTERVAL;
    assert_eq!(requests(&mut certificates, now), []);
    assert_eq!(certificates.next_due(), Some(now + RETRY_DELAY_MIN));
}

#[test]
fn a_clock_that_is_set_back_delays_no_renewal_and_no_doubt() {
    let back = 8 * HOUR;
    let mut certificates = with_pods(&["cart", "till"]);
    for identity in [cart(), identity("till")] {
        certificates.demand(0, &identity, start());
        requests(&mut certificates, start());
        certificates.issued(&identity, issued(1, start()), start(), MIDDLE);
    }
    let due = certificates.next_due().expect("renewals");
    assert_eq!(requests(&mut certificates, start() - back), []);
    assert_eq!(certificates.next_due(), Some(due - back));
    let now = start() - back + Duration::from_secs(1);
    let aged = start() - back + limits::CERTIFICATE_DOUBT_AGE;
    assert!(certificates.doubt(&cart(), now, 0.0));
    assert_eq!(certificates.next_due(), Some(aged));
    // The next doubt finds a clock that shows the time before the first one again.
    let now = now - back;
    assert!(certificates.doubt(&identity("till"), now, 0.0));
    assert_eq!(requests(&mut certificates, aged - back), [cart()]);
    assert_eq!(
        requests(
            &mut certificates,
            aged - back + limits::CERTIFICATE_DOUBT_INTERVAL
        ),
        [identity("till")]
    );
}

#[test]
fn a_certificate_that_has_expired_when_it_comes_is_a_failure_until_the_clock_is_right() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    let ahead = 10 * 365 * 24 * HOUR;
    let mut now = start() + ahead;
    for delay_s in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150] {
        assert_eq!(requests(&mut certificates, now), [cart()]);
        let Delivery {
            workers, result, due, ..
        } = answer(&mut certificates, issued(1, now - ahead), now);
        let late_s = (ahead - 24 * HOUR).as_secs();
        let expired = error(&format!(
            "the CA's certificate expired {late_s} s ago by the clock of this node"
        ));
        assert_eq!((workers, result), (BTreeSet::from([0]), Err(expired.clone())));
        assert_eq!(certificates.demand(0, &cart(), now), Answer::Known(Err(expired)));
        assert_eq!(
            requests(&mut certificates, now),
            [],
            "no connection hastens the CA"
        );
        assert_eq!(due, now + Duration::from_secs(delay_s));
        now = due;
    }
    // Somebody sets the clock right just after the last answer.
    let now = now - ahead;
    assert_eq!(requests(&mut certificates, now - RETRY_DELAY_MAX), []);
    assert_eq!(requests(&mut certificates, now), [cart()]);
    let Delivery { result, due, .. } = answer(&mut certificates, issued(2, now), now);
    assert_eq!(result, Ok(Arc::new(2)));
    assert_eq!(due, renewal(now, now + 24 * HOUR, now, MIDDLE));
}

#[test]
fn an_expired_certificate_replaces_no_valid_one() {
    let mut certificates = with_pods(&["cart"]);
    certificates.demand(0, &cart(), start());
    requests(&mut certificates, start());
    let now = answer(&mut certificates, issued(1, start()), start()).due;
    requests(&mut certificates, now);
    let delivery = answer(&mut certificates, issued(2, now - 24 * HOUR), now);
    let Delivery {
        workers,
        due,
        failure,
        ..
    } = delivery;
    assert_eq!(workers, BTreeSet::new());
    assert!(failure.is_some(), "to be told");
    assert_eq!(certificates.demand(0, &cart(), now), known(1));
    assert_eq!(due, now + RETRY_DELAY_MIN);
}
