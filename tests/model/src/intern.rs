//! Values by number: what many states share is kept once, and equal numbers mean equal values.

use std::hash::{BuildHasher, Hash};

use hashbrown::HashTable;

/// Numbers values in the order in which they are first seen, so a run that is repeated numbers them alike.
#[derive(Debug)]
pub struct Interner<T> {
    values: Vec<T>,
    index: HashTable<u32>,
    hasher: foldhash::fast::FixedState,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self { values: Vec::new(), index: HashTable::new(), hasher: foldhash::fast::FixedState::default() }
    }
}

impl<T: Eq + Hash> Interner<T> {
    pub fn intern(&mut self, value: T) -> u32 {
        let hash = self.hasher.hash_one(&value);
        let (values, hasher) = (&self.values, &self.hasher);
        let entry = self.index.entry(
            hash,
            |at| values[*at as usize] == value,
            |at| hasher.hash_one(&values[*at as usize]),
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(at) => *at.get(),
            hashbrown::hash_table::Entry::Vacant(place) => {
                let at = u32::try_from(self.values.len()).expect("fewer than 2^32 values");
                place.insert(at);
                self.values.push(value);
                at
            }
        }
    }

    pub fn get(&self, at: u32) -> &T {
        &self.values[at as usize]
    }

    pub fn count(&self) -> usize {
        self.values.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_number() {
        let mut interner = Interner::default();
        let numbers: Vec<u32> =
            ["a", "b", "a", "c", "b"].into_iter().map(|text| interner.intern(text.to_owned())).collect();
        assert_eq!(numbers, [0, 1, 0, 2, 1]);
        assert_eq!((interner.get(2).as_str(), interner.count()), ("c", 3));
    }
}
