//! Names for what the store is asked, and whose question each was.
//!
//! Always holds: a name is answered once; an answer that comes late, for a room that was closed meanwhile or for a name
//! that was given anew, finds nobody.

#[derive(Debug, Clone)]
pub(super) struct Tickets<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    generation: u32,
    asked: Option<T>,
}

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Tickets<T> {
    /// A name whose lower half is as small as it can be: the shell may keep a table by it.
    pub(super) fn give(&mut self, asked: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, asked: None });
            // Bounded by what rooms have under way.
            (self.entries.len() - 1) as u32
        });
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.asked = Some(asked);
        u64::from(entry.generation) << 32 | u64::from(index)
    }

    pub(super) fn take(&mut self, ticket: u64) -> Option<T> {
        // The lower half.
        let index = ticket as u32;
        let entry = self.entries.get_mut(index as usize)?;
        if u64::from(entry.generation) != ticket >> 32 {
            return None;
        }
        let asked = entry.asked.take()?;
        self.free.push(index);
        Some(asked)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.len() == self.free.len()
    }

    /// Forgets every question; names go on where they were.
    pub(super) fn clear(&mut self) {
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.asked.take().is_some() {
                self.free.push(index as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_answered_once() {
        let mut tickets = Tickets::default();
        let (a, b) = (tickets.give("a"), tickets.give("b"));
        assert_eq!((tickets.take(a), tickets.take(a)), (Some("a"), None));
        let c = tickets.give("c");
        assert_eq!(c as u32, a as u32, "the place is used again");
        assert_eq!((tickets.take(a), tickets.take(c), tickets.take(b)), (None, Some("c"), Some("b")));
        assert!(tickets.is_empty());
        let d = tickets.give("d");
        tickets.clear();
        assert_eq!((tickets.take(d), tickets.is_empty()), (None, true));
    }
}
