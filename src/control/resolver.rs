//! Looks up workloads that have only a host name, for workers that ask.
//!
//! Control thread, in the process's own network namespace, by the name servers of its resolv.conf; names are taken as
//! they are, without a search list. One look-up for all who wait for a name, so many at a time, in which pods take turns,
//! each with a deadline; answers are kept as long as their TTL says. Specification: section 10 of the DNS contract.
//!
//! Invariant: whoever asks is answered once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bridge::lookups::{LookupAnswer, LookupError, Question};
use crate::bridge::{Order, Orders};
use crate::clock::Instant;
use crate::control::demands::Asked;
use crate::limits;
use waiting::Waiting;

mod waiting;

/// Who knows the addresses of names.
pub trait Resolve: 'static {
    fn addresses(&self, host: &str) -> impl Future<Output = Result<Vec<IpAddr>, String>>;
}

/// The name servers of resolv.conf, which is read when the first name is looked up.
pub struct NameServers {
    ipv6: bool,
    made: RefCell<Option<TokioResolver>>,
}

impl NameServers {
    /// Without `ipv6`, nobody is asked for IPv6 addresses.
    pub fn new(ipv6: bool) -> Self {
        Self {
            ipv6,
            made: RefCell::default(),
        }
    }

    fn resolver(&self) -> Result<TokioResolver, String> {
        if let Some(made) = &*self.made.borrow() {
            return Ok(made.clone());
        }
        let unusable = |error| format!("cannot use /etc/resolv.conf: {error}");
        let mut builder = TokioResolver::builder_tokio().map_err(unusable)?;
        let options = builder.options_mut();
        options.cache_size = limits::RESOLUTIONS_KEPT_MAX;
        options.negative_max_ttl = Some(limits::RESOLUTION_ABSENT_KEPT_MAX);
        // A question that is swallowed, such as that for IPv6 addresses, must not take what others were answered with it.
        options.timeout = options.timeout.min(limits::NAME_SERVER_TIMEOUT);
        options.attempts = options.attempts.min(limits::NAME_SERVER_RETRIES);
        options.ip_strategy = match self.ipv6 {
            true => LookupIpStrategy::Ipv4AndIpv6,
            false => LookupIpStrategy::Ipv4Only,
        };
        let made = builder.build().map_err(unusable)?;
        *self.made.borrow_mut() = Some(made.clone());
        Ok(made)
    }
}

impl Resolve for NameServers {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let resolver = self.resolver()?;
        let absolute = format!("{}.", host.trim_end_matches('.'));
        let found = resolver.lookup_ip(absolute).await;
        let found = found.map_err(|error| error.to_string())?;
        let addresses = found.iter().map(|address| address.to_canonical());
        Ok(addresses.take(limits::RESOLVED_ADDRESSES_MAX).collect())
    }
}

/// Answers as long as anybody may ask; `now` tells who has given up. Needs a `LocalSet`.
pub async fn serve(
    mut asked: mpsc::UnboundedReceiver<Asked<Arc<str>>>,
    resolver: impl Resolve,
    orders: Orders,
    now: impl Fn() -> Instant,
) {
    let resolver = Rc::new(resolver);
    let mut waiting = Waiting::default();
    let mut tasks = JoinSet::new();
    loop {
        // While anything waits, a look-up is under way: its end brings the next round.
        if let Some(since) = now().checked_sub(limits::LOOKUP_WAIT) {
            for (host, workers) in waiting.expire(since) {
                let limit = limits::RESOLUTIONS_MAX;
                tell(&orders, &host, &workers, &Err(LookupError::TooMany { limit }));
            }
        }
        while let Some(host) = waiting.begin() {
            let resolver = Rc::clone(&resolver);
            tasks.spawn_local(async move {
                let looking = resolver.addresses(&host);
                let in_time = timeout(limits::RESOLUTION_TIMEOUT, looking).await;
                let found = in_time.unwrap_or_else(|_| {
                    let seconds = limits::RESOLUTION_TIMEOUT.as_secs();
                    Err(format!("no answer within {seconds} s"))
                });
                (host, found)
            });
        }
        tokio::select! {
            asked = asked.recv() => {
                let Some(Asked { worker, pod, what }) = asked else { return };
                if let Err(error) = waiting.add(worker, &pod, &what, now()) {
                    tell(&orders, &what, &[worker].into(), &Err(error));
                }
            }
            Some(done) = tasks.join_next() => {
                let (host, found) = done.expect("invariant: a look-up ends with an answer");
                let answer = found
                    .map(Arc::from)
                    .map_err(|reason| LookupError::Host { reason: reason.into() });
                tell(&orders, &host, &waiting.ended(&host), &answer);
            }
        }
    }
}

fn tell(orders: &Orders, host: &Arc<str>, workers: &BTreeSet<usize>, answer: &LookupAnswer) {
    for worker in workers {
        let (question, answer) = (Question::Host(Arc::clone(host)), answer.clone());
        orders.send(*worker, Order::Answer { question, answer });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::Semaphore;
    use tokio::task::LocalSet;

    use super::*;
    use crate::bridge::{Inbox, PodUid, orders};
    use crate::clock::{self, Duration};
    use crate::sys::driver::Wake;

    struct NoWake;

    impl Wake for NoWake {
        fn wake(&self) {}
    }

    /// Answers as often as it is told to, and counts how often it was asked.
    #[derive(Clone)]
    struct Slow {
        asked: Rc<Cell<usize>>,
        answers: Rc<Semaphore>,
    }

    impl Resolve for Slow {
        async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
            self.asked.set(self.asked.get() + 1);
            self.answers.acquire().await.expect("open").forget();
            match host {
                "nobody.example" => Err("no such name".to_owned()),
                _ => Ok(vec![[192, 0, 2, 1].into()]),
            }
        }
    }

    struct World {
        ask: mpsc::UnboundedSender<Asked<Arc<str>>>,
        inboxes: [Inbox; 2],
        slow: Slow,
        /// Since the start, by the clock of those who give up.
        passed: Rc<Cell<Duration>>,
    }

    impl World {
        fn start() -> Self {
            let [(first, a), (second, b)] = [0, 1].map(|_| orders::channel(Arc::new(NoWake)));
            let (ask, asked) = mpsc::unbounded_channel();
            let slow = Slow {
                asked: Rc::default(),
                answers: Rc::new(Semaphore::new(0)),
            };
            let passed = Rc::new(Cell::new(Duration::ZERO));
            let now = {
                let (start, passed) = (clock::now(), passed.clone());
                move || start + passed.get()
            };
            let orders = Orders::new(vec![first, second]);
            tokio::task::spawn_local(serve(asked, slow.clone(), orders, now));
            Self {
                ask,
                inboxes: [a, b],
                slow,
                passed,
            }
        }

        fn ask(&self, worker: usize, host: &str) {
            let (pod, what) = (PodUid::new("pod"), host.into());
            self.ask.send(Asked { worker, pod, what }).expect("served");
        }

        async fn answer(&self, worker: usize, host: &str) -> LookupAnswer {
            loop {
                match self.inboxes[worker].next() {
                    Some(Order::Answer { question, answer }) => {
                        assert_eq!(question, Question::Host(host.into()));
                        return answer;
                    }
                    Some(order) => panic!("an answer was asked for, not {order:?}"),
                    // Time passes only while everybody sleeps.
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        }
    }

    fn run<R>(test: impl Future<Output = R>) -> R {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        LocalSet::new().block_on(&runtime, test)
    }

    #[test]
    fn one_look_up_serves_every_worker_that_waits_for_the_name() {
        run(async {
            let world = World::start();
            world.ask(0, "api.example");
            world.ask(1, "api.example");
            while world.slow.asked.get() == 0 {
                tokio::task::yield_now().await;
            }
            world.slow.answers.add_permits(1);
            let expected = Ok([IpAddr::from([192, 0, 2, 1])].into());
            for worker in [0, 1] {
                assert_eq!(world.answer(worker, "api.example").await, expected);
            }
            assert_eq!(world.slow.asked.get(), 1);
        });
    }

    #[test]
    fn a_name_is_looked_up_however_long_nobody_asked() {
        run(async {
            let world = World::start();
            world.slow.answers.add_permits(2);
            for host in ["api.example", "later.example"] {
                world.passed.set(world.passed.get() + limits::LOOKUP_WAIT * 2);
                world.ask(0, host);
                assert!(world.answer(0, host).await.is_ok());
            }
        });
    }

    #[test]
    fn failures_are_told_with_their_reason_and_end_nothing_else() {
        run(async {
            let world = World::start();
            world.slow.answers.add_permits(2);
            world.ask(0, "nobody.example");
            let error = world.answer(0, "nobody.example").await.expect_err("no address");
            assert_eq!(error.to_string(), "no such name");
            world.ask(0, "api.example");
            assert!(world.answer(0, "api.example").await.is_ok());
        });
    }

    #[test]
    fn a_server_that_is_silent_is_waited_for_until_the_deadline_and_only_so_many_times_at_once() {
        run(async {
            let world = World::start();
            let host = |index: usize| format!("host-{index}.example");
            for index in 0..=limits::RESOLUTIONS_MAX {
                world.ask(0, &host(index));
            }
            let error = world.answer(0, &host(0)).await.expect_err("nobody answers");
            let seconds = limits::RESOLUTION_TIMEOUT.as_secs();
            assert_eq!(error.to_string(), format!("no answer within {seconds} s"));
            assert!(world.slow.asked.get() <= limits::RESOLUTIONS_MAX + 1);
        });
    }
}
