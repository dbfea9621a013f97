//! Boxes that came back empty, for the next who needs one: what a connection has only while it is busy comes and goes
//! with every command.
//!
//! Always holds: at most [`SPARE_MAX`] are kept; what is handed out is as new, but for memory that it may hold.

/// More connections than this that are busy at one moment take the rest from the allocator.
const SPARE_MAX: usize = 64;

/// What can be used again.
pub(crate) trait Reuse: Default {
    /// Makes it as new. False: it holds more memory than is worth keeping.
    fn clear(&mut self) -> bool;
}

#[derive(Debug)]
pub(crate) struct Spare<T> {
    boxes: Vec<Box<T>>,
}

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Self { boxes: Vec::new() }
    }
}

impl<T: Reuse> Spare<T> {
    /// An empty one.
    pub(crate) fn take(&mut self) -> Box<T> {
        self.boxes.pop().unwrap_or_default()
    }

    /// Takes one back; frees it where there are enough, or where it has grown too large.
    pub(crate) fn put(&mut self, mut used: Box<T>) {
        if self.boxes.len() < SPARE_MAX && used.clear() {
            self.boxes.push(used);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.boxes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{Flight, OUT_KEPT, Out, Pending, Waiting, What};
    use crate::packed_send::PackedSend;

    fn pending() -> Pending {
        let room = banyan_proto::id::RoomId::parse("r").unwrap();
        let send = PackedSend::new(&banyan_proto::v1::Send::default());
        let what = What::Send { room, send, above: banyan_proto::id::Seq(3) };
        Pending { id: 7, ticket: 9, since: 11, slot: 13, handed: true, twice: true, what }
    }

    fn waiting() -> (u64, Waiting) {
        (5, Waiting::Checked(crate::command::Checked::Ping))
    }

    #[test]
    fn they_are_bounded() {
        let mut spare = Spare::<Out>::default();
        for _ in 0..3 * SPARE_MAX {
            spare.put(Box::new(Out { bytes: vec![1; 10], sent: 4 }));
        }
        assert_eq!(spare.len(), SPARE_MAX);
        for _ in 0..2 * SPARE_MAX {
            let out = spare.take();
            assert!(out.bytes.is_empty() && out.sent == 0);
        }
        assert_eq!(spare.len(), 0);
    }

    #[test]
    fn a_queue_comes_back_empty_with_its_memory_unless_that_is_large() {
        let mut spare = Spare::<Out>::default();
        let mut out = spare.take();
        out.bytes.extend_from_slice(b"of somebody else");
        out.sent = 9;
        let memory = out.bytes.as_ptr();
        spare.put(out);
        let out = spare.take();
        assert_eq!((out.bytes.len(), out.sent, out.bytes.as_ptr()), (0, 0, memory));
        for (capacity, kept) in [(OUT_KEPT, 1), (OUT_KEPT + 1, 0)] {
            let mut spare = Spare::default();
            spare.put(Box::new(Out { bytes: Vec::with_capacity(capacity), sent: 0 }));
            assert_eq!(spare.len(), kept, "{capacity}");
        }
    }

    #[test]
    fn a_flight_comes_back_empty_unless_it_was_large() {
        let mut spare = Spare::<Flight>::default();
        let mut flight = spare.take();
        flight.pending.push(pending());
        flight.waiting.push_back(waiting());
        flight.refused = 3;
        spare.put(flight);
        assert_eq!(spare.len(), 1);
        let flight = spare.take();
        assert!(flight.is_empty() && flight.refused == 0);
        for (pendings, waitings) in [(2, 0), (0, 100)] {
            let mut flight = Flight::default();
            flight.pending.extend((0..pendings).map(|_| pending()));
            flight.waiting.extend((0..waitings).map(|_| waiting()));
            spare.put(Box::new(flight));
            assert_eq!(spare.len(), 0, "{pendings} {waitings}");
        }
    }
}
