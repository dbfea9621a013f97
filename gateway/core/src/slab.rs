//! A slab whose keys carry a generation, so that a name outlives its thing without ever naming another one.

/// Index and generation of an entry. The generation wraps at 2^12, leaving out 0 (no key is all zeros): with
/// [`INDEX_BITS`] a key fits a `u32` pair and a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub index: u32,
    pub generation: u32,
}

/// Entries are bounded so that index and generation fit 32 bits of a ticket.
pub const INDEX_BITS: u32 = 20;
pub const GENERATION_BITS: u32 = 32 - INDEX_BITS;

impl Key {
    pub const fn to_bits(self) -> u32 {
        (self.generation << INDEX_BITS) | self.index
    }

    pub const fn from_bits(bits: u32) -> Self {
        Self { index: bits & ((1 << INDEX_BITS) - 1), generation: bits >> INDEX_BITS }
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Values in insertion order of their slots; a freed slot is used again, the last freed first.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), len: 0 }
    }
}

impl<T> Slab<T> {
    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many slots there are, used or free: one more than the highest index.
    pub const fn slots(&self) -> usize {
        self.entries.len()
    }

    /// `None` when all 2^20 slots are taken.
    pub fn insert(&mut self, value: T) -> Option<Key> {
        let key = if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            Key { index, generation: entry.generation }
        } else {
            let index = u32::try_from(self.entries.len()).ok().filter(|index| *index < 1 << INDEX_BITS)?;
            self.entries.push(Entry { generation: 1, value: Some(value) });
            Key { index, generation: 1 }
        };
        self.len += 1;
        Some(key)
    }

    pub fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.remove_held(index)?;
        self.release(index);
        Some(value)
    }

    /// Removes a value, but keeps its slot from being used again until [`Self::release`].
    pub fn remove_held(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?;
        let value = entry.value.take()?;
        entry.generation = entry.generation % ((1 << GENERATION_BITS) - 1) + 1;
        self.len -= 1;
        Some(value)
    }

    /// Gives back the slot of a value that [`Self::remove_held`] took out.
    pub fn release(&mut self, index: u32) {
        debug_assert!(self.get(index).is_none(), "slot {index} is in use");
        self.free.push(index);
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)?.value.as_ref()
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)?.value.as_mut()
    }

    /// The entry only if it is still the one that the key was made for.
    pub fn get_key(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    pub fn get_key_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    pub fn key_of(&self, index: u32) -> Option<Key> {
        let entry = self.entries.get(index as usize)?;
        entry.value.as_ref()?;
        Some(Key { index, generation: entry.generation })
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0u32..).zip(&self.entries).filter_map(|(index, entry)| Some((index, entry.value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_never_names_a_new_entry() {
        let mut slab = Slab::default();
        let a = slab.insert('a').unwrap();
        assert_eq!(slab.remove(a.index), Some('a'));
        let b = slab.insert('b').unwrap();
        assert_eq!(b.index, a.index);
        assert_eq!((slab.get_key(a), slab.get_key(b)), (None, Some(&'b')));
        assert_eq!(Key::from_bits(b.to_bits()), b);
        assert_eq!((slab.len(), slab.remove(7)), (1, None));
    }

    #[test]
    fn a_held_slot_is_not_used_again_until_it_is_released() {
        let mut slab = Slab::default();
        let a = slab.insert('a').unwrap();
        assert_eq!((slab.remove_held(a.index), slab.remove_held(a.index)), (Some('a'), None));
        let b = slab.insert('b').unwrap();
        assert_ne!(b.index, a.index);
        slab.release(a.index);
        let c = slab.insert('c').unwrap();
        assert_eq!((c.index, slab.get_key(a), slab.len()), (a.index, None, 2));
    }
}
