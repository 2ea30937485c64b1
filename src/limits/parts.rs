//! Who has how much of something of which there is so much for all.
//!
//! Invariant: whoever asks for more than others is refused before them (`part_max`), and who has nothing is not
//! remembered.

use std::collections::HashMap;
use std::hash::Hash;

use super::has_part;

/// `ALL`: how much there is.
#[derive(Debug)]
pub struct Parts<W, const ALL: usize> {
    taken: usize,
    of: HashMap<W, usize>,
}

impl<W, const ALL: usize> Default for Parts<W, ALL> {
    fn default() -> Self {
        Self {
            taken: 0,
            of: HashMap::new(),
        }
    }
}

impl<W: Clone + Eq + Hash, const ALL: usize> Parts<W, ALL> {
    /// True if `who` got one.
    pub fn take(&mut self, who: &W) -> bool {
        let own = self.of.get(who).copied().unwrap_or(0);
        let has_room = has_part(ALL, self.taken, own);
        if has_room {
            self.taken += 1;
            self.of.insert(who.clone(), own + 1);
        }
        has_room
    }

    /// One of those that `who` took is free again.
    pub fn give_back(&mut self, who: &W) {
        let own = self.of.get_mut(who);
        let own = own.expect("invariant: only what was taken is given back");
        *own -= 1;
        if *own == 0 {
            self.of.remove(who);
        }
        self.taken -= 1;
    }

    pub fn taken(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_all_that_it_can_leaves_some_for_others_and_nothing_behind() {
        let mut parts = Parts::<&str, 4000>::default();
        let mut take_all = |who: &&'static str| {
            let mut got = 0;
            while parts.take(who) {
                got += 1;
            }
            got
        };
        let (greedy, second) = (take_all(&"greedy"), take_all(&"second"));
        assert_eq!(greedy, 3500);
        assert!((1..500).contains(&second), "{second}");
        assert_eq!(take_all(&"greedy"), 0);
        assert!(parts.take(&"third"), "there is still room");
        parts.give_back(&"third");
        for _ in 0..second {
            parts.give_back(&"second");
        }
        assert!(!parts.take(&"greedy"), "an eighth is for others");
        for _ in 0..greedy {
            parts.give_back(&"greedy");
        }
        assert!(parts.taken() == 0 && parts.of.is_empty());
    }
}
