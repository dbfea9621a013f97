//! What every store must do, as code: each backend's tests run all of it, and so must the tests of any other backend.
//!
//! One suite for each trait. Functions take a [`Subject`], panic where the store is wrong, and use rooms and users of their own, so they
//! may share a store.

#![allow(clippy::unwrap_used, reason = "these are tests; they live here so that other crates can run them")]

pub mod accounts;
pub mod log;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use banyan_proto::id::{LogId, Origin, RoomId, Seq, UnixMs, UserId};
use bytes::Bytes;

use crate::page::ReadLimit;
use crate::row::{MemberRow, RoomRow, Row};
use crate::{BoxFuture, Error};

const ANY: ReadLimit = ReadLimit { events: usize::MAX, bytes: usize::MAX };

type Reopen<S> = dyn Fn(Option<Arc<S>>) -> Arc<S>;

/// One thing that must hold, by name.
pub type Check<S> = (&'static str, fn(&mut Subject<S>));

/// A store under test, and how to get at it again after it was closed.
pub struct Subject<S: ?Sized> {
    store: Option<Arc<S>>,
    reopen: Box<Reopen<S>>,
}

impl<S: ?Sized> std::fmt::Debug for Subject<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subject")
    }
}

impl<S: ?Sized> Subject<S> {
    /// `reopen` gets the store to close (none at first) and opens it again over the same data.
    pub fn new(reopen: impl Fn(Option<Arc<S>>) -> Arc<S> + 'static) -> Self {
        Self { store: Some(reopen(None)), reopen: Box::new(reopen) }
    }

    fn store(&self) -> &S {
        self.store.as_ref().unwrap()
    }

    fn shared(&self) -> Arc<S> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    fn reopen(&mut self) {
        let old = self.store.take();
        self.store = Some((self.reopen)(old));
    }
}

/// What every answer of a store has come by, however busy its servers are: far above any limit that a store has of its own.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// Runs a future to its end on this thread. Panics where it has none within two minutes.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "it runs on threads of the tests, where time is real")]
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    let begun = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        let left = ANSWERED_WITHIN.saturating_sub(begun.elapsed());
        assert!(left > Duration::ZERO, "no answer within {ANSWERED_WITHIN:?}");
        std::thread::park_timeout(left);
    }
}

fn ok<T>(future: BoxFuture<'static, Result<T, Error>>) -> T {
    wait(future).unwrap()
}

/// Asks until the answer is right: of what a store does when it likes. Marks are written within a second, on a machine that is not busy;
/// owners trust a store to have written them within a minute.
#[track_caller]
fn eventually<T: PartialEq + std::fmt::Debug>(ask: impl Fn() -> T, want: &T) {
    for _ in 0..3_000 {
        if ask() == *want {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ask(), *want);
}

pub fn room(name: &str) -> RoomId {
    RoomId::parse(name).unwrap()
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

/// Event `seq` of a room: content and numbers follow from both, so that checkers need no memory.
pub fn row(room: &RoomId, seq: u64, batch_first: u64) -> Row {
    let event = Bytes::from(format!("event {seq} of {room}, {}", "x".repeat((seq as usize * 7) % 50)));
    Row {
        seq: Seq(seq),
        batch_first: Seq(batch_first),
        n: seq.div_ceil(2),
        origin: Origin(!seq),
        event,
        derived: None,
    }
}

pub fn room_row(room: &RoomId) -> RoomRow {
    RoomRow {
        room: room.clone(),
        log: LogId(0xfeed_0000_0000_0001),
        kind: 2,
        public: true,
        lazy: false,
        name: "A rööm".to_owned(),
        created_at: UnixMs(1_700_000_000_000),
        floor: Seq(0),
        changed: Seq(0),
    }
}

pub fn member(name: &str, role: u8, joined: u64) -> MemberRow {
    MemberRow {
        user: user(name),
        name: format!("{name}'s name"),
        role,
        joined_seq: Seq(joined),
        left_seq: None,
        changed: Seq(0),
        out: Vec::new(),
    }
}
