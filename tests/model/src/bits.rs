//! Small sets of mutations.

use std::fmt;

const WORDS: usize = 6;

/// A set of numbers below 384.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bits([u64; WORDS]);

impl Bits {
    pub const MAX: usize = WORDS * 64;
    pub const EMPTY: Self = Self([0; WORDS]);

    pub fn one(at: u16) -> Self {
        let mut bits = Self::EMPTY;
        bits.insert(at);
        bits
    }

    pub fn insert(&mut self, at: u16) {
        self.0[usize::from(at) / 64] |= 1 << (at % 64);
    }

    pub fn contains(&self, at: u16) -> bool {
        self.0[usize::from(at) / 64] >> (at % 64) & 1 == 1
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & other.0[i]))
    }

    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// What is here and not there.
    #[must_use]
    pub fn less(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    pub fn includes(&self, other: &Self) -> bool {
        other.less(self).is_empty()
    }

    pub fn meets(&self, other: &Self) -> bool {
        !self.and(other).is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().enumerate().flat_map(|(word, bits)| {
            let mut rest = *bits;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let at = rest.trailing_zeros();
                    rest &= rest - 1;
                    // At most 383.
                    (word * 64) as u16 + at as u16
                })
            })
        })
    }

    /// Every subset, the empty one first.
    pub fn subsets(&self) -> impl Iterator<Item = Self> + use<> {
        let members: Vec<u16> = self.iter().collect();
        assert!(members.len() < 24, "too much is under way to try every part of it");
        (0_u32..1 << members.len()).map(move |chosen| {
            let mut bits = Self::EMPTY;
            for (i, at) in members.iter().enumerate() {
                if chosen >> i & 1 == 1 {
                    bits.insert(*at);
                }
            }
            bits
        })
    }
}

impl FromIterator<u16> for Bits {
    fn from_iter<I: IntoIterator<Item = u16>>(iter: I) -> Self {
        let mut bits = Self::EMPTY;
        iter.into_iter().for_each(|at| bits.insert(at));
        bits
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_sets() {
        let a: Bits = [1, 64, 383].into_iter().collect();
        let b: Bits = [64, 3].into_iter().collect();
        assert_eq!(a.and(&b), Bits::one(64));
        assert_eq!(a.or(&b).iter().collect::<Vec<_>>(), [1, 3, 64, 383]);
        assert_eq!(a.less(&b).iter().collect::<Vec<_>>(), [1, 383]);
        assert!(a.includes(&Bits::one(383)) && !a.includes(&b) && a.meets(&b));
        assert_eq!(a.subsets().count(), 8);
        assert!(a.subsets().all(|part| a.includes(&part)));
        assert_eq!(a.subsets().collect::<std::collections::BTreeSet<_>>().len(), 8);
    }
}
