//! Whether a worker is crowded: somebody with little to do waits behind somebody with much.
//!
//! A turn is long by what it costs, counted in bytes relayed as a tenant's part is; one that was kept short is judged by
//! what it would have cost otherwise. For a while after a long turn the worker is crowded, if a tenant has had little to
//! do beside another lately. So neither one tenant alone, nor several that ask for much the same, nor those whose turns
//! are short are held back.
//!
//! On the worker's thread. Invariant: a worker without long turns stays crowded for `limits::CROWDED_TURNS` at most.

use std::rc::Rc;

use super::Tenant;
use crate::limits;

/// What is known of the turns of late.
#[derive(Default)]
pub(super) struct Crowd {
    /// Number of this turn.
    turn: u64,
    turn_cost: i64,
    is_turn_long: bool,
    /// Until this turn the last long one counts.
    long_until: u64,
    /// Who did how much is compared stretch by stretch: number of this one, its turns and their cost so far.
    stretch: u64,
    turns: u64,
    cost: i64,
    /// Those that had work in this stretch, each once.
    active: Vec<Rc<Tenant>>,
    /// Until this turn somebody counts as having little to do.
    modest_until: u64,
}

impl Crowd {
    /// A tenant does something that costs as much.
    #[inline]
    pub fn note(&mut self, tenant: &Rc<Tenant>, cost: i64) {
        self.turn_cost += cost;
        if tenant.stretch.get() == self.stretch {
            tenant.used.set(tenant.used.get() + cost);
        } else {
            tenant.stretch.set(self.stretch);
            tenant.used.set(cost);
            self.active.push(tenant.clone());
        }
    }

    /// The turn is long, whatever was counted.
    pub fn note_long(&mut self) {
        self.is_turn_long = true;
    }

    /// `waiting`: what the turn before had no room for would have cost as much.
    pub fn begin_turn(&mut self, waiting: i64) {
        self.turn += 1;
        if self.is_turn_long || self.turn_cost + waiting >= limits::LONG_TURN_COST {
            self.long_until = self.turn + limits::CROWDED_TURNS;
        }
        self.turns += 1;
        self.cost += self.turn_cost;
        if self.turns >= limits::STRETCH_TURNS || self.cost >= limits::STRETCH_COST {
            self.begin_stretch();
        }
        self.is_turn_long = false;
        self.turn_cost = 0;
    }

    pub fn turn(&self) -> u64 {
        self.turn
    }

    pub fn is_crowded(&self) -> bool {
        self.turn < self.long_until.min(self.modest_until)
    }

    fn begin_stretch(&mut self) {
        let most = self.active.iter().map(|tenant| tenant.used.get()).max();
        let modest = most.unwrap_or(0) / limits::MODEST_PART;
        for tenant in &self.active {
            let busy = tenant.used.get() > modest;
            tenant.busy.set(busy);
            if !busy {
                self.modest_until = self.turn + limits::MODEST_TURNS;
            }
        }
        self.active.clear();
        self.stretch += 1;
        (self.turns, self.cost) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::tenants::Tenants;

    const LONG: i64 = limits::LONG_TURN_COST;
    const LITTLE: i64 = limits::EVENT_COST;

    struct Turns {
        crowd: Crowd,
        waiting: i64,
        tenants: [Rc<Tenant>; 2],
    }

    impl Turns {
        fn new() -> Self {
            let mut all = Tenants::default();
            Self {
                crowd: Crowd::default(),
                waiting: 0,
                tenants: [all.admit(), all.admit()],
            }
        }

        /// So many turns, in each of which the tenants do what costs as much. Gives those that were crowded.
        fn pass(&mut self, turns: u64, costs: [i64; 2]) -> u64 {
            let mut crowded = 0;
            for _ in 0..turns {
                self.crowd.begin_turn(self.waiting);
                crowded += u64::from(self.crowd.is_crowded());
                for (tenant, cost) in self.tenants.iter().zip(costs) {
                    if cost > 0 {
                        self.crowd.note(tenant, cost);
                    }
                }
            }
            crowded
        }
    }

    const MANY: u64 = 10 * limits::STRETCH_TURNS;

    #[test]
    fn one_tenant_alone_is_never_held_back() {
        assert_eq!(Turns::new().pass(MANY, [8 * LONG, 0]), 0);
    }

    #[test]
    fn several_that_ask_for_much_the_same_are_never_held_back() {
        assert_eq!(Turns::new().pass(MANY, [8 * LONG, 3 * LONG]), 0);
    }

    #[test]
    fn short_turns_are_nobodys_trouble() {
        assert_eq!(Turns::new().pass(MANY, [LONG / 2, LITTLE]), 0);
    }

    #[test]
    fn somebody_with_little_to_do_behind_a_long_turn_makes_the_next_ones_crowded_and_no_longer() {
        let mut turns = Turns::new();
        let until = limits::STRETCH_COST as u64 / LONG as u64 + 1;
        let crowded = turns.pass(MANY, [LONG, LITTLE]);
        assert!(crowded >= MANY - until, "{crowded} of {MANY}");
        let crowded = turns.pass(2 * limits::CROWDED_TURNS, [LITTLE, LITTLE]);
        assert_eq!(crowded, limits::CROWDED_TURNS);
        assert_eq!(turns.pass(1, [LONG, LITTLE]), 0);
        assert_eq!(turns.pass(1, [LITTLE, LITTLE]), 1, "the next turn already");
    }

    #[test]
    fn who_has_something_to_do_now_and_then_is_remembered() {
        let mut turns = Turns::new();
        turns.pass(MANY, [LONG, LITTLE]);
        let between = limits::MODEST_TURNS - 2 * limits::STRETCH_TURNS;
        assert_eq!(turns.pass(between, [LONG, 0]), between);
        turns.pass(limits::STRETCH_TURNS, [LONG, LITTLE]);
        assert_eq!(turns.pass(between, [LONG, 0]), between);
        assert!(turns.pass(limits::MODEST_TURNS, [LONG, 0]) < limits::MODEST_TURNS);
        assert_eq!(turns.pass(MANY, [LONG, 0]), 0, "and forgotten in the end");
    }

    #[test]
    fn a_turn_that_was_kept_short_is_as_long_as_what_waits_would_have_made_it() {
        let mut turns = Turns::new();
        turns.pass(MANY, [LONG, LITTLE]);
        turns.waiting = LONG;
        assert_eq!(turns.pass(MANY, [LITTLE, LITTLE]), MANY);
        turns.waiting = LONG / 2;
        assert!(turns.pass(MANY, [LITTLE, LITTLE]) <= limits::CROWDED_TURNS);
        for _ in 0..2 {
            turns.crowd.note_long();
            turns.pass(1, [LITTLE, LITTLE]);
            let crowded = turns.pass(limits::CROWDED_TURNS - 1, [LITTLE, LITTLE]);
            assert_eq!(crowded, limits::CROWDED_TURNS - 1);
        }
    }
}
