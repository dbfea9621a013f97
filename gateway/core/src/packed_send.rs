//! A send that a reply is owed to, in one piece of memory. Nearly all are answered without a second look at what they
//! say; only where another owner must be asked is the message made of it again.

use banyan_proto::id::CLIENT_MSG_ID_MAX;
use banyan_proto::v1;
use prost::Message as _;

#[derive(Debug)]
pub(crate) struct PackedSend {
    /// The client's id of it, so that it can be compared as it lies there; then its protobuf.
    bytes: Box<[u8]>,
    id_len: u8,
}

const _: () = assert!(CLIENT_MSG_ID_MAX <= u8::MAX as usize);

impl PackedSend {
    /// Of a send whose fields have been checked.
    pub(crate) fn new(send: &v1::Send) -> Self {
        let id = send.client_msg_id.as_bytes();
        debug_assert!(id.len() <= CLIENT_MSG_ID_MAX, "an id is checked where it comes in");
        // An event would not be taken for what a longer one has made: the answer is its reply.
        let id = &id[..id.len().min(CLIENT_MSG_ID_MAX)];
        let mut bytes = Vec::with_capacity(id.len() + send.encoded_len());
        bytes.extend_from_slice(id);
        send.encode_raw(&mut bytes);
        Self { bytes: bytes.into_boxed_slice(), id_len: id.len() as u8 }
    }

    pub(crate) fn has_id(&self, client_msg_id: &str) -> bool {
        &self.bytes[..usize::from(self.id_len)] == client_msg_id.as_bytes()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// `None` would be a bug of ours.
    pub(crate) fn unpack(&self) -> Option<v1::Send> {
        let send = v1::Send::decode(&self.bytes[usize::from(self.id_len)..]);
        debug_assert!(send.is_ok(), "a send that we have packed: {send:?}");
        send.ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn its_id_is_told_from_its_beginnings_and_longer_ones() {
        let packed = PackedSend::new(&v1::Send {
            client_msg_id: "m1".into(),
            room: "m1".into(),
            ..v1::Send::default()
        });
        assert!(packed.has_id("m1"));
        for other in ["", "m", "m2", "m1\n", "m1\n\u{2}", "m12"] {
            assert!(!packed.has_id(other), "{other:?}");
        }
        // The longest one, and one that is not ASCII.
        for id in ["x".repeat(CLIENT_MSG_ID_MAX), "é".repeat(CLIENT_MSG_ID_MAX / 2)] {
            let packed = PackedSend::new(&v1::Send { client_msg_id: id.clone(), ..v1::Send::default() });
            assert!(packed.has_id(&id) && !packed.has_id(&id[..id.len() - 2]));
        }
    }

    #[test]
    #[should_panic(expected = "a send that we have packed")]
    fn what_cannot_be_read_is_our_bug() {
        PackedSend { bytes: b"m\xff".as_slice().into(), id_len: 1 }.unpack();
    }

    fn sends() -> impl Strategy<Value = v1::Send> {
        let texts =
            (".{1,40}", "[a-z0-9é]{1,32}", option::of(".{0,200}"), option::of("[a-z]{1,9}/[a-z]{1,9}"));
        let others = (
            option::of(any::<u64>()),
            option::of(any::<u64>()),
            proptest::collection::vec("[a-z|0-9]{1,20}", 0..5),
            option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        );
        (texts, others).prop_map(
            |((room, client_msg_id, text, content_type), (since, reply_to, mentions, data))| {
                let data = data.map(Into::into);
                v1::Send { room, client_msg_id, since, text, content_type, reply_to, mentions, data }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_again(send in sends()) {
            let packed = PackedSend::new(&send);
            prop_assert!(packed.has_id(&send.client_msg_id));
            prop_assert_eq!(packed.len(), send.client_msg_id.len() + send.encoded_len());
            prop_assert_eq!(packed.unpack(), Some(send));
        }
    }
}
