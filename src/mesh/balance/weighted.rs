//! A weighted draw in constant time, by Walker's alias method over whole numbers, so that the shares are exact.
//!
//! Immutable once built. Invariant: every entry owns exactly `its weight * number of entries` of the
//! `number of entries * sum of weights` outcomes of the two numbers that a draw takes.

/// Indices of candidates with their weights. Those of weight 0 are left out.
#[derive(Debug, Clone, Default)]
pub struct Weighted {
    entries: Box<[u32]>,
    /// One for each entry; empty when all weights are equal.
    columns: Box<[Column]>,
    weights_sum: u64,
}

/// The outcomes below `own` of `weights_sum` are the column's own entry's, the others those of the entry at `other`.
#[derive(Debug, Clone, Copy)]
struct Column {
    own: u64,
    other: u32,
}

impl Weighted {
    pub fn build(chosen: &[u32], weight: impl Fn(u32) -> u32) -> Self {
        let entries: Box<[u32]> = chosen.iter().copied().filter(|at| weight(*at) > 0).collect();
        let equal = entries.windows(2).all(|pair| weight(pair[0]) == weight(pair[1]));
        if equal {
            return Self {
                entries,
                ..Self::default()
            };
        }
        let weights: Vec<u64> = entries.iter().map(|at| u64::from(weight(*at))).collect();
        let (columns, weights_sum) = fill(&weights);
        Self {
            entries,
            columns,
            weights_sum,
        }
    }

    /// `None` when nothing has a weight.
    pub fn draw(&self, random: &mut dyn FnMut() -> u64) -> Option<u32> {
        if self.entries.is_empty() {
            return None;
        }
        let at = (random() % self.entries.len() as u64) as usize;
        count_look();
        let Some(column) = self.columns.get(at) else {
            return Some(self.entries[at]);
        };
        count_look();
        if random() % self.weights_sum < column.own {
            return Some(self.entries[at]);
        }
        Some(self.entries[column.other as usize])
    }
}

/// Every column holds as much as all weights together: first what its own entry has of `weight * columns`, the rest
/// from an entry that has more than fits into its own.
fn fill(weights: &[u64]) -> (Box<[Column]>, u64) {
    let count = weights.len() as u64;
    let capacity: u64 = weights.iter().sum();
    let mut left: Vec<u64> = weights.iter().map(|weight| weight * count).collect();
    let mut columns: Box<[Column]> = (0u32..)
        .take(weights.len())
        .map(|at| Column {
            own: capacity,
            other: at,
        })
        .collect();
    let (mut poor, mut rich): (Vec<u32>, Vec<u32>) = (0u32..)
        .take(weights.len())
        .partition(|at| left[*at as usize] < capacity);
    while let (Some(small), Some(large)) = (poor.pop(), rich.pop()) {
        let own = left[small as usize];
        columns[small as usize] = Column { own, other: large };
        left[large as usize] -= capacity - own;
        if left[large as usize] < capacity {
            poor.push(large);
        } else {
            rich.push(large);
        }
    }
    (columns, capacity)
}

#[cfg(test)]
thread_local! {
    /// Entries looked at by this thread's draws.
    pub static LOOKS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Lets the tests count what a pick costs; nothing in the program itself.
#[inline(always)]
fn count_look() {
    #[cfg(test)]
    LOOKS.with(|looks| looks.set(looks.get() + 1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many of all outcomes each candidate owns, out of columns times their capacity.
    fn shares(weighted: &Weighted, candidates: usize) -> Vec<u64> {
        let mut shares = vec![0; candidates];
        for (at, entry) in weighted.entries.iter().enumerate() {
            match weighted.columns.get(at) {
                None => shares[*entry as usize] += 1,
                Some(column) => {
                    shares[*entry as usize] += column.own;
                    shares[weighted.entries[column.other as usize] as usize] +=
                        weighted.weights_sum - column.own;
                }
            }
        }
        shares
    }

    proptest! {
        #[test]
        fn every_candidate_owns_exactly_its_share(weights in prop::collection::vec(
            prop_oneof![Just(0), 1u32..5, Just(u32::MAX), any::<u32>()], 0..200,
        )) {
            let all: Vec<u32> = (0u32..).take(weights.len()).collect();
            let weighted = Weighted::build(&all, |at| weights[at as usize]);
            let drawn = shares(&weighted, weights.len());
            let outcomes: u128 = drawn.iter().map(|share| u128::from(*share)).sum();
            let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            // Share of the outcomes = weight of all weights, without a division.
            for (share, weight) in drawn.iter().zip(&weights) {
                prop_assert_eq!(u128::from(*share) * sum, u128::from(*weight) * outcomes);
            }
            prop_assert_eq!(weighted.draw(&mut || 7).is_none(), sum == 0);
        }
    }

    #[test]
    fn draws_with_every_number_visit_the_entries_by_weight() {
        let weights = [2, 0, 1, 5];
        let weighted = Weighted::build(&[0, 1, 2, 3], |at| weights[at as usize]);
        let mut hits = [0; 4];
        for column in 0..3 {
            for coin in 0..8 {
                let mut numbers = [column, coin].into_iter();
                let at = weighted.draw(&mut || numbers.next().expect("two numbers a draw"));
                hits[at.expect("an entry") as usize] += 1;
            }
        }
        assert_eq!(hits, [6, 0, 3, 15]);
    }
}
