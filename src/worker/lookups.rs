//! Asking for what the snapshot does not hold: of the control thread, once for each question.
//!
//! A connection waits in its task, for `limits::LOOKUP_WAIT` at most, and a pod has only so many that wait. Invariant:
//! a destination that could not be found out about is refused, not passed on as one that nobody knows.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use super::core::Core;
use super::outcome::Outcome;
use super::pods::{Counted, PodState};
use super::shell::{Elapsed, Shell};
use crate::bridge::PodUid;
use crate::bridge::demands::Demand;
use crate::bridge::lookups::{LookupAnswer, LookupError, Question};
use crate::limits;
use crate::mesh::{GatewayTarget, Plan, RouteError, Unresolved};
use crate::runtime::oneshot;
use crate::sys::driver::Driver;

/// What this worker has asked, and who waits for it.
#[derive(Default)]
pub struct Lookups {
    asked: HashMap<Question, Waiting>,
    /// Of the questions that are not answered, each counted for the pod that asked first.
    parts: limits::Parts<PodUid, { limits::LOOKUPS_WORKER_MAX }>,
}

#[derive(Default)]
struct Waiting {
    senders: Vec<oneshot::Sender<LookupAnswer>>,
    /// The control thread was told of these, the first first, and then. Pods take turns there.
    pods: Vec<(PodUid, Instant)>,
}

/// Sees to it that what has to be known about `ip` of `network` is in the snapshot, as far as there is anything: where
/// the control plane tells the whole mesh unasked, that is so already.
pub async fn know<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    network: &str,
    ip: IpAddr,
) -> Result<(), Outcome> {
    let mut asked: Vec<GatewayTarget> = Vec::new();
    let missing = |asked: &[GatewayTarget]| {
        shell.with(|core| match core.settings.on_demand {
            true => core.snapshot.load().missing(network, ip, asked),
            false => None,
        })
    };
    let Some(first) = missing(&asked) else {
        return Ok(());
    };
    let _budget = Counted::lookup(pod)?;
    let mut wanted = Some(first);
    let asking = async {
        while let Some(target) = wanted.take()
            && asked.len() < limits::LOOKUPS_CONNECTION_MAX
        {
            asked.push(target.clone());
            ask(shell, pod, target).await?;
            wanted = missing(&asked);
        }
        Ok(())
    };
    match shell.within(limits::LOOKUP_WAIT, asking).await {
        Ok(done) => done,
        Err(Elapsed) => Err(no_answer(asked.last())),
    }
}

/// Asks for a network gateway that the snapshot does not hold, which shows only when an endpoint of another network has
/// been chosen, or for a service. Whether it did: then the choice is to be made again. Not where the control plane
/// tells everything unasked, nor for what was `asked` for already.
pub async fn ask_for<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    target: &GatewayTarget,
    asked: &mut Vec<GatewayTarget>,
) -> Result<bool, Outcome> {
    let is_asked_for = shell.with(|core| core.settings.on_demand && !core.snapshot.load().knows(target));
    if !is_asked_for || asked.contains(target) || asked.len() == limits::LOOKUPS_CONNECTION_MAX {
        return Ok(false);
    }
    asked.push(target.clone());
    let _budget = Counted::lookup(pod)?;
    match shell
        .within(limits::LOOKUP_WAIT, ask(shell, pod, target.clone()))
        .await
    {
        Ok(done) => done.map(|()| true),
        Err(Elapsed) => Err(no_answer(Some(target))),
    }
}

/// Until the control plane has told of it, or that there is nothing.
async fn ask<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &PodState,
    target: GatewayTarget,
) -> Result<(), Outcome> {
    let receiver = shell.with(|core| core.ask_control(&pod.pod.uid, Question::Mesh(target)))?;
    receiver.await.ok_or(Outcome::Drained)??;
    Ok(())
}

fn no_answer(asked: Option<&GatewayTarget>) -> Outcome {
    Outcome::Lookup(LookupError::NoAnswer {
        name: asked.map(GatewayTarget::to_string).unwrap_or_default().into(),
        seconds: limits::LOOKUP_WAIT.as_secs(),
    })
}

/// Looks up the name of the next hop and completes the plan by one of its addresses, which `choose` does.
pub async fn resolve<D: Driver + 'static>(
    shell: &Shell<D>,
    pod: &Rc<PodState>,
    unresolved: Unresolved,
    choose: impl FnOnce(&mut Core<D>, &Unresolved, Vec<IpAddr>) -> Result<Plan, RouteError>,
) -> Result<Plan, Outcome> {
    let _budget = Counted::lookup(pod)?;
    let question = Question::Host(unresolved.hostname.clone());
    let asking = async {
        let receiver = shell.with(|core| core.ask_control(&pod.pod.uid, question))?;
        receiver.await.ok_or(Outcome::Drained)
    };
    let answer = match shell.within(limits::LOOKUP_WAIT, asking).await {
        Ok(answer) => answer?.map_err(|error| error.to_string()),
        Err(Elapsed) => Err(format!("no answer within {} s", limits::LOOKUP_WAIT.as_secs())),
    };
    let addresses = answer.map_err(|reason| unresolved.refusal(reason))?;
    let plan = shell.with(|core| {
        let random = &mut core.random;
        let addresses = unresolved.in_turn(&addresses, &mut || random.u64(..))?;
        choose(core, &unresolved, addresses)
    });
    Ok(plan?)
}

impl<D: Driver + 'static> Core<D> {
    fn ask_control(
        &mut self,
        pod: &PodUid,
        question: Question,
    ) -> Result<oneshot::Receiver<LookupAnswer>, LookupError> {
        let (sender, receiver) = oneshot::channel();
        let Lookups { asked, parts } = &mut self.lookups;
        if !asked.contains_key(&question) && !parts.take(pod) {
            let limit = limits::LOOKUPS_WORKER_MAX;
            return Err(LookupError::TooMany { limit });
        }
        let waiting = asked.entry(question.clone()).or_default();
        waiting.senders.push(sender);
        let now = self.now;
        let is_of_mesh = matches!(question, Question::Mesh(_));
        let told = waiting
            .pods
            .iter_mut()
            .find(|(told, _)| is_of_mesh || told == pod);
        match told {
            Some((_, at)) if now < *at + limits::LOOKUP_TOLD_AGAIN_AFTER => return Ok(receiver),
            Some((_, at)) => *at = now,
            None => waiting.pods.push((pod.clone(), now)),
        }
        // As long as somebody asks again there may be no answer, and no end to those whose time is over.
        waiting.senders.retain(|sender| !sender.is_abandoned());
        self.demands.send(Demand::Lookup {
            worker: self.index,
            pod: pod.clone(),
            question,
        });
        Ok(receiver)
    }

    /// The control thread's answer.
    pub(super) fn take_answer(&mut self, question: &Question, answer: &LookupAnswer) {
        let waiting = self.lookups.asked.remove(question).unwrap_or_default();
        if let Some((first, _)) = waiting.pods.first() {
            self.lookups.parts.give_back(first);
        }
        for sender in waiting.senders {
            // A connection whose time is over does not want it.
            let _ = sender.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::bridge::demands;
    use crate::runtime::tasks::Executor;
    use crate::worker::fixture;

    fn question(octet: u8) -> Question {
        Question::Mesh(format!("/10.0.0.{octet}").parse().expect("an address"))
    }

    fn pod() -> PodUid {
        PodUid::new("pod")
    }

    #[test]
    fn each_pod_that_waits_for_a_host_name_is_told_of_once() {
        let mut core = fixture::core(&Executor::default());
        let (demands, mut queue) = demands::channel();
        core.demands = demands;
        let host = Question::Host("api.example".into());
        for uid in ["crawler", "shop", "crawler", "shop"] {
            let asked = core.ask_control(&PodUid::new(uid), host.clone());
            asked.expect("within the bound");
        }
        for uid in ["crawler", "shop"] {
            let expected = Demand::Lookup {
                worker: 0,
                pod: PodUid::new(uid),
                question: host.clone(),
            };
            assert_eq!(queue.try_recv(), Ok(expected));
        }
        assert!(queue.try_recv().is_err());
    }

    #[test]
    fn who_joins_a_question_late_is_told_of_as_those_before_give_up_earlier() {
        let mut core = fixture::core(&Executor::default());
        let (demands, mut queue) = demands::channel();
        core.demands = demands;
        for question in [question(1), Question::Host("api.example".into())] {
            let mut told = || {
                let asked = core.ask_control(&pod(), question.clone());
                asked.expect("within the bound");
                core.now += limits::LOOKUP_TOLD_AGAIN_AFTER / 2;
                queue.try_recv().is_ok()
            };
            assert_eq!([told(), told(), told(), told()], [true, false, true, false]);
            let waiting = &core.lookups.asked[&question];
            assert_eq!(waiting.senders.len(), 2, "those before have given up");
        }
    }

    #[test]
    fn many_connections_ask_once_and_all_hear_the_answer() {
        let mut core = fixture::core(&Executor::default());
        let (demands, mut queue) = demands::channel();
        core.demands = demands;
        let waiting: Vec<_> = (0..3)
            .map(|_| core.ask_control(&pod(), question(1)).expect("within the bound"))
            .collect();
        let expected = Demand::Lookup {
            worker: 0,
            pod: pod(),
            question: question(1),
        };
        assert_eq!(queue.try_recv(), Ok(expected));
        assert!(queue.try_recv().is_err(), "asked once");
        core.take_answer(&question(1), &Ok(Arc::default()));
        let mut context = Context::from_waker(Waker::noop());
        for mut receiver in waiting {
            assert_eq!(
                Pin::new(&mut receiver).poll(&mut context),
                Poll::Ready(Some(Ok(Arc::default())))
            );
        }
        core.ask_control(&pod(), question(1)).expect("within the bound");
        assert!(queue.try_recv().is_ok(), "what was answered is asked again");
    }

    #[test]
    fn the_newest_question_is_shed_when_there_are_too_many_of_a_pod_and_others_still_ask() {
        let mut core = fixture::core(&Executor::default());
        let name = |index: usize| Question::Mesh(format!("ns/host-{index}").parse().expect("a name"));
        let limit = limits::LOOKUPS_WORKER_MAX;
        let shed = (0..limit).find_map(|index| Some((index, core.ask_control(&pod(), name(index)).err()?)));
        let part = limit - limit / 8;
        assert_eq!(shed, Some((part, LookupError::TooMany { limit })));
        core.ask_control(&pod(), name(0))
            .expect("somebody waits for it already");
        let other = PodUid::new("other");
        core.ask_control(&other, name(part)).expect("another one's");
        core.ask_control(&other, name(0)).expect("the first one's");
        // What is answered is counted for whoever asked first.
        for index in 0..=part {
            core.take_answer(&name(index), &Ok(Arc::default()));
        }
        assert_eq!(core.lookups.parts.taken(), 0);
    }
}
