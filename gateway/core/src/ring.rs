//! The recent events of one room in one format, as finished WebSocket frames back to back: what waits for a cursor is
//! one slice.
//!
//! Always holds: seqs in a ring are dense; a slice begins and ends at frame boundaries; the bytes never exceed the cap
//! unless the newest frame alone does. Does not: know cursors. One that asks for a seq below [`Ring::first`] has fallen
//! off and reads the log.

use std::collections::VecDeque;

use banyan_proto::id::Seq;

use crate::ws::Opcode;
use crate::ws::encode::put_frame;

#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Vec<u8>,
    /// Where each frame begins, counted from `bytes[0]` at the time when `shift` was 0.
    starts: VecDeque<u64>,
    /// Bytes removed from the front of `bytes` so far.
    shift: u64,
    /// Seq of the oldest frame.
    first: Seq,
}

impl Ring {
    /// A ring whose first frame will be `first`.
    pub(crate) fn new(first: Seq) -> Self {
        Self { bytes: Vec::new(), starts: VecDeque::new(), shift: 0, first }
    }

    /// The oldest seq that is still here (the next one to come if none is).
    pub(crate) const fn first(&self) -> Seq {
        self.first
    }

    /// The seq that the next frame will have.
    #[cfg(test)]
    pub(crate) fn next(&self) -> Seq {
        Seq(self.first.0 + self.starts.len() as u64)
    }

    /// Bytes of frames that can be read.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Heap bytes that this ring holds.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity() + self.starts.capacity() * size_of::<u64>()
    }

    /// Appends one frame; drops the oldest ones above `cap` bytes, a quarter of the cap at once so that it is rare.
    pub(crate) fn push(&mut self, opcode: Opcode, payload: &[u8], cap: usize) {
        let frame = payload.len() + 10;
        if self.len() + frame > cap {
            self.shrink((cap - cap / 4).min(cap.saturating_sub(frame)));
        }
        self.starts.push_back(self.shift + self.bytes.len() as u64);
        put_frame(&mut self.bytes, opcode, payload);
    }

    /// Drops the oldest frames until at most `target` bytes are left.
    pub(crate) fn shrink(&mut self, target: usize) {
        let mut dropped = 0;
        while self.bytes.len() - dropped > target && !self.starts.is_empty() {
            self.starts.pop_front();
            self.first = self.first.next();
            dropped = self.starts.front().map_or(self.bytes.len(), |start| (start - self.shift) as usize);
        }
        // A move of at most the cap for every quarter of it that came in.
        self.bytes.drain(..dropped);
        self.shift += dropped as u64;
    }

    /// The frames of `from..=through`, both in the ring.
    pub(crate) fn slice(&self, from: Seq, through: Seq) -> &[u8] {
        &self.bytes[self.offset(from)..self.offset(through.next())]
    }

    /// Where the frame of a seq begins in `bytes`; for the next one to come, where it will.
    fn offset(&self, seq: Seq) -> usize {
        match self.starts.get((seq.0 - self.first.0) as usize) {
            Some(start) => (start - self.shift) as usize,
            None => self.bytes.len(),
        }
    }

    /// After `sent` bytes of the slice that began at `from`: the seq whose frame is not fully sent, and the rest of
    /// that frame if it was begun.
    pub(crate) fn after_partial(&self, from: Seq, sent: usize) -> (Seq, &[u8]) {
        let at = self.offset(from) + sent;
        let place = at as u64 + self.shift;
        // The last frame that begins at or before `place`.
        let index = self.starts.partition_point(|start| *start <= place) - 1;
        let seq = Seq(self.first.0 + index as u64);
        if self.starts[index] == place { (seq, &[]) } else { (seq, &self.bytes[at..self.offset(seq.next())]) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_frame(&mut out, Opcode::Text, payload);
        out
    }

    #[test]
    fn a_partial_send_names_the_frame_and_its_rest() {
        let mut ring = Ring::new(Seq(5));
        for payload in [b"aa", b"bb", b"cc"] {
            ring.push(Opcode::Text, payload, 1 << 20);
        }
        assert_eq!(ring.slice(Seq(5), Seq(7)).len(), 12);
        assert_eq!(ring.after_partial(Seq(5), 4), (Seq(6), &[][..]));
        assert_eq!(ring.after_partial(Seq(5), 5), (Seq(6), &frame(b"bb")[1..]));
        assert_eq!(ring.after_partial(Seq(6), 1), (Seq(6), &frame(b"bb")[1..]));
        assert_eq!(ring.after_partial(Seq(5), 0), (Seq(5), &[][..]));
    }

    #[test]
    fn a_frame_above_a_quarter_of_the_cap_does_not_burst_it() {
        let mut ring = Ring::new(Seq(1));
        for _ in 0..20 {
            ring.push(Opcode::Text, &[0; 38], 100);
            assert!(ring.len() <= 100);
        }
        ring.push(Opcode::Text, &[0; 200], 100);
        assert_eq!((ring.len(), ring.first()), (204, Seq(21)));
    }

    proptest! {
        #[test]
        fn a_ring_is_the_newest_of_what_was_pushed(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..200),
            cap in 64usize..400,
            shrinks in proptest::collection::vec(0usize..200, 0..4),
        ) {
            let mut ring = Ring::new(Seq(1));
            for (i, payload) in payloads.iter().enumerate() {
                ring.push(Opcode::Text, payload, cap);
                prop_assert_eq!(ring.next(), Seq(i as u64 + 2));
                prop_assert!(ring.len() <= cap.max(payload.len() + 10));
                if let Some(target) = shrinks.get(i % 7) {
                    ring.shrink(*target);
                }
                let all: Vec<u8> = (ring.first().0..ring.next().0).flat_map(|seq| frame(&payloads[seq as usize - 1])).collect();
                prop_assert_eq!(ring.len(), all.len());
                if !ring.starts.is_empty() {
                    prop_assert_eq!(ring.slice(ring.first(), Seq(ring.next().0 - 1)), &all[..]);
                    let mut sent = 0;
                    for seq in ring.first().0..ring.next().0 {
                        let whole = frame(&payloads[seq as usize - 1]);
                        prop_assert_eq!(ring.after_partial(ring.first(), sent), (Seq(seq), &[][..]));
                        prop_assert_eq!(ring.after_partial(ring.first(), sent + 1), (Seq(seq), &whole[1..]));
                        sent += whole.len();
                    }
                }
            }
        }
    }
}
