//! Runs one [`Node`]: carries out its actions, and feeds it what comes of them.
//!
//! Owns: the requests under way, the inbox, the [`View`] that others look at.
//! Always holds: every request is answered exactly once: after its time with a failure or as unknown, and then never again. At
//! most [`Limits::in_flight`] are under way; the rest waits in order (the machine makes at most two for each slot), but for
//! those on which the run's life depends, which wait for nobody. Peers, workers and people are told in the order of the
//! actions.
//! Does not: decide anything, nor begin the next run: [`Ended`] holds the machine, for [`Node::rejoin`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use banyan_proto::id::SlotId;
use banyan_router::node::{Account, Action, End, Input, KeptAlive, Node, TargetOutcome, Watched};
use banyan_router::node_key::NodeEntry;
use banyan_router::slot::SlotCount;
use banyan_router::slot_owner::{self, CasOutcome, Failed, Opening};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::coordination::{Coordination, Event, Joined, LeaseId};
use crate::metrics;
use crate::surroundings::Surroundings;
use crate::view::{SlotTable, View};

/// A node's key that another run holds is looked at again after this time.
const TAKEN_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests under way at once.
    pub in_flight: usize,
    /// Inputs that wait; above that, who sends waits.
    pub inbox: usize,
    /// Changes that wait; above that, etcd keeps them.
    pub watch_buffer: usize,
    /// Longer than the backend's own for a request, which knows more about the outcome. A swap of a slot's key may be
    /// several.
    pub etcd_timeout: Duration,
    pub store_timeout: Duration,
    /// A new run waits so long for the lease of the one before it to run out; then the node's name is taken by another.
    pub taken_for: Duration,
    /// Of the lease; the same as that of the machine.
    pub ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let ttl = Duration::from_millis(banyan_router::node::Limits::default().ttl_ms);
        Self {
            in_flight: 512,
            inbox: 4_096,
            watch_buffer: 1_024,
            etcd_timeout: Duration::from_secs(2),
            store_timeout: Duration::from_secs(2),
            taken_for: ttl * 2 + Duration::from_secs(1),
            ttl,
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub node: Node,
    pub why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    Dead(End),
    /// Another process has this node's name and lives. Trying again is for people.
    Taken(Box<NodeEntry>),
    Left,
    /// By its caller, as a crash would: its lease runs out.
    Stopped,
}

#[derive(Debug)]
struct Shared {
    began: Instant,
    /// When each worker ticked last, in milliseconds since the run began.
    ticked: Box<[AtomicU64]>,
    fenced: AtomicBool,
    stuck: AtomicBool,
    signal: Notify,
    lease: OnceLock<LeaseId>,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the run is over")]
pub struct Over;

/// What is said to a run.
#[derive(Debug)]
enum Said {
    Input(Input),
    /// Somebody asks why a slot is (not) served.
    Account(SlotId, oneshot::Sender<Option<Account>>),
}

/// How others speak to a run. Clones are alike.
#[derive(Debug, Clone)]
pub struct RunnerHandle {
    inbox: mpsc::Sender<Said>,
    shared: Arc<Shared>,
    view: watch::Receiver<View>,
}

impl RunnerHandle {
    /// What peers, workers and people say: `Refused`, `ReadyAsked`, `Ready`, `Drain`, and of slots `StatePassed` and
    /// `Drained`. Waits while the inbox is full.
    pub async fn input(&self, input: Input) -> Result<(), Over> {
        self.inbox.send(Said::Input(input)).await.map_err(|_| Over)
    }

    /// The same for who must not wait: `false` if the inbox is full. Not for what is said only once.
    pub fn try_input(&self, input: Input) -> Result<bool, Over> {
        match self.inbox.try_send(Said::Input(input)) {
            Ok(()) => Ok(true),
            Err(mpsc::error::TrySendError::Full(_)) => Ok(false),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Over),
        }
    }

    /// Why a slot is (not) served by this run, for people. `None`: there is no such slot, or the run is over.
    pub async fn account(&self, slot: SlotId) -> Option<Account> {
        let (answer, asked) = oneshot::channel();
        self.inbox.send(Said::Account(slot, answer)).await.ok()?;
        asked.await.ok().flatten()
    }

    /// A worker has ticked: an atomic store, as often as it likes.
    pub fn alive(&self, worker: u16) {
        if let Some(ticked) = self.shared.ticked.get(usize::from(worker)) {
            ticked.store(self.shared.now_ms(), Ordering::Relaxed);
        }
    }

    /// A worker has seen this run's own fence row. Waits for nothing and cannot be lost.
    pub fn fenced(&self) {
        self.shared.fenced.store(true, Ordering::Release);
        self.shared.signal.notify_one();
    }

    /// A worker has not been able to read the fence for too long.
    pub fn stuck(&self) {
        self.shared.stuck.store(true, Ordering::Release);
        self.shared.signal.notify_one();
    }

    pub fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// On which the run is shown, if it is: for the panic hook, which ends it.
    pub fn lease(&self) -> Option<LeaseId> {
        self.shared.lease.get().copied()
    }
}

/// One run.
#[derive(Debug)]
pub struct Runner {
    node: Node,
    coordination: Arc<dyn Coordination>,
    surroundings: Arc<dyn Surroundings>,
    limits: Limits,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Said>,
    requests: JoinSet<Answer>,
    /// Under way, without those that wait for nobody.
    counted: usize,
    waiting: VecDeque<Request>,
    actions: Vec<Action>,
    revoking: bool,
    over: Option<Why>,
    taken: Option<NodeEntry>,
    view: watch::Sender<View>,
    next_view: View,
    is_news: bool,
    serving: Vec<bool>,
}

#[derive(Debug)]
struct Answer {
    input: Option<Input>,
    counts: bool,
    taken: Option<NodeEntry>,
}

struct Request {
    what: &'static str,
    limit: Duration,
    /// What comes of it, and who has taken the node's name.
    answer: BoxFuture<'static, (Option<Input>, Option<NodeEntry>)>,
    otherwise: Option<Input>,
    /// It does not wait for others.
    is_vital: bool,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Request").field(&self.what).finish()
    }
}

/// What a run waits for.
#[derive(Debug)]
enum Woken {
    Stop,
    Tick,
    Signal,
    Answer(Answer),
    Watch(Event),
    Said(Said),
}

impl Runner {
    /// `node` was made at time 0 and has not begun. `slots` and `workers` are those of its options.
    pub fn new(
        node: Node,
        slots: SlotCount,
        workers: u16,
        coordination: Arc<dyn Coordination>,
        surroundings: Arc<dyn Surroundings>,
        limits: Limits,
    ) -> (Self, RunnerHandle) {
        let (sender, inbox) = mpsc::channel(limits.inbox.max(1));
        let shared = Arc::new(Shared {
            began: Instant::now(),
            ticked: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            fenced: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            signal: Notify::new(),
            lease: OnceLock::new(),
        });
        let next_view = View {
            me: node.me().clone(),
            standing: node.standing(),
            fresh: false,
            frozen: false,
            nodes: Arc::new(BTreeMap::new()),
            target: None,
            slots: SlotTable::new(slots),
            serving: 0,
            lease: None,
        };
        let view = watch::Sender::new(next_view.clone());
        let handle = RunnerHandle { inbox: sender, shared: Arc::clone(&shared), view: view.subscribe() };
        let runner = Self {
            node,
            coordination,
            surroundings,
            limits,
            shared,
            inbox,
            requests: JoinSet::new(),
            counted: 0,
            waiting: VecDeque::new(),
            actions: Vec::new(),
            revoking: false,
            over: None,
            taken: None,
            view,
            next_view,
            is_news: false,
            serving: vec![false; slots.get() as usize],
        };
        (runner, handle)
    }

    /// Until the run is over, or is stopped.
    pub async fn run(mut self, stop: CancellationToken) -> Ended {
        let mut events = self.coordination.watch(self.limits.watch_buffer);
        self.feed(Input::Start);
        loop {
            self.publish();
            if let Some(why) = self.over.take() {
                return self.end(why).await;
            }
            let deadline = self.node.next_deadline();
            let deadline = deadline.map(|ms| self.shared.began + Duration::from_millis(ms));
            let woken = tokio::select! {
                biased; // stop first, then timers, then what was asked for, then news
                () = stop.cancelled() => Woken::Stop,
                () = sleep_until(deadline.unwrap_or(self.shared.began)), if deadline.is_some() => Woken::Tick,
                () = self.shared.signal.notified() => Woken::Signal,
                Some(answer) = self.requests.join_next() => match answer {
                    Ok(answer) => Woken::Answer(answer),
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // Nobody aborts them while the run lasts: the runtime is going down.
                        Err(_) => Woken::Stop,
                    },
                },
                Some(event) = events.recv() => Woken::Watch(event),
                Some(said) = self.inbox.recv() => Woken::Said(said),
            };
            self.note_ticks();
            match woken {
                Woken::Stop => self.over = Some(Why::Stopped),
                Woken::Tick => self.feed(Input::Tick),
                Woken::Signal => {
                    if self.shared.fenced.load(Ordering::Acquire) {
                        self.feed(Input::Fenced);
                    } else if self.shared.stuck.load(Ordering::Acquire) {
                        self.feed(Input::Stuck);
                    }
                }
                Woken::Answer(answer) => self.answered(answer),
                Woken::Watch(event) => self.watched(event),
                Woken::Said(Said::Input(input)) => self.feed(input),
                Woken::Said(Said::Account(slot, answer)) => {
                    // Who asked may have gone.
                    answer.send(self.node.account(self.shared.now_ms(), slot)).ok();
                }
            }
        }
    }

    fn note_ticks(&mut self) {
        for (worker, ticked) in (0_u16..).zip(&self.shared.ticked) {
            let at = ticked.load(Ordering::Relaxed);
            // With its own time: this run may have slept meanwhile.
            self.node.handle(at, Input::Alive { worker }, &mut self.actions);
        }
    }

    fn feed(&mut self, input: Input) {
        let touched = match &input {
            Input::Slot { slot, .. } | Input::Watched(Watched::Slot { slot, .. }) => Some(*slot),
            _ => None,
        };
        let all = matches!(input, Input::Listed(_));
        self.node.handle(self.shared.now_ms(), input, &mut self.actions);
        for action in std::mem::take(&mut self.actions) {
            if let Action::Slot { slot, .. } = &action {
                self.look(*slot);
            }
            self.perform(action);
        }
        touched.into_iter().for_each(|slot| self.look(slot));
        if all {
            (0..self.next_view.slots.count().get()).for_each(|slot| self.look(SlotId(slot as u16)));
        }
    }

    // ---------------------------------------------------------------- what is known

    fn watched(&mut self, event: Event) {
        let input = match event {
            Event::Listed(listing) => {
                self.next_view.fresh = true;
                self.next_view.nodes = Arc::new(listing.nodes.iter().cloned().collect());
                self.next_view.frozen = listing.frozen;
                Input::Listed(listing)
            }
            Event::Gone => {
                self.next_view.fresh = false;
                Input::EtcdGone
            }
            Event::Watched(watched) => {
                match &watched {
                    Watched::Node { node, entry } => {
                        let nodes = Arc::make_mut(&mut self.next_view.nodes);
                        match entry {
                            Some(entry) => nodes.insert(node.clone(), entry.clone()),
                            None => nodes.remove(node),
                        };
                    }
                    Watched::Frozen(frozen) => self.next_view.frozen = *frozen,
                    Watched::Slot { .. } | Watched::Target(_) => {}
                }
                Input::Watched(watched)
            }
        };
        self.is_news = true;
        self.feed(input);
    }

    /// A slot may have changed.
    fn look(&mut self, slot: SlotId) {
        let Some(machine) = self.node.slot(slot) else { return };
        self.is_news |= self.next_view.slots.set(slot, machine.known());
        let serves = matches!(machine.standing(), slot_owner::Standing::Serving(_));
        if let Some(serving) = self.serving.get_mut(usize::from(slot.0))
            && *serving != serves
        {
            *serving = serves;
            self.is_news = true;
            match serves {
                true => self.next_view.serving += 1,
                false => self.next_view.serving -= 1,
            }
        }
    }

    fn publish(&mut self) {
        let standing = self.node.standing();
        let lease = self.shared.lease.get().copied();
        let target = self.node.target();
        let same_target = match (&self.next_view.target, target) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if !self.is_news
            && same_target
            && self.next_view.standing == standing
            && self.next_view.lease == lease
        {
            return;
        }
        if self.next_view.standing != standing {
            tracing::info!(node = %self.node.me().node, ?standing, "this node's standing");
        }
        self.is_news = false;
        self.next_view.standing = standing;
        self.next_view.lease = lease;
        if !same_target {
            self.next_view.target = target.cloned();
        }
        metrics::slots(self.next_view.slots.count().get(), self.next_view.serving);
        self.view.send_replace(self.next_view.clone());
    }

    // ---------------------------------------------------------------- requests

    fn answered(&mut self, answer: Answer) {
        if answer.counts {
            self.counted -= 1;
        }
        while self.counted < self.limits.in_flight
            && let Some(request) = self.waiting.pop_front()
        {
            self.begin(request);
        }
        self.taken = self.taken.take().or(answer.taken);
        if answer.input == Some(Input::Revoked) {
            self.revoking = false;
        }
        if let Some(input) = answer.input {
            self.feed(input);
        }
    }

    fn ask(&mut self, request: Request) {
        if request.is_vital || self.counted < self.limits.in_flight {
            self.begin(request);
        } else {
            self.waiting.push_back(request);
        }
    }

    fn begin(&mut self, request: Request) {
        let Request { what, limit, answer, otherwise, is_vital } = request;
        self.counted += usize::from(!is_vital);
        self.requests.spawn(async move {
            let (input, taken) = timeout(limit, answer).await.unwrap_or_else(|_| {
                tracing::debug!(what, "given up after its time");
                metrics::timed_out(what);
                (otherwise, None)
            });
            Answer { input, counts: !is_vital, taken }
        });
    }

    fn etcd(
        &mut self,
        what: &'static str,
        otherwise: Option<Input>,
        answer: impl Future<Output = Option<Input>> + Send + 'static,
    ) {
        let answer = answer.map(|input| (input, None)).boxed();
        let limit = self.limits.etcd_timeout;
        self.ask(Request { what, limit, answer, otherwise, is_vital: false });
    }

    fn vital(
        &mut self,
        what: &'static str,
        limit: Duration,
        otherwise: Input,
        answer: impl Future<Output = Input> + Send + 'static,
    ) {
        let answer = answer.map(|input| (Some(input), None)).boxed();
        self.ask(Request { what, limit, answer, otherwise: Some(otherwise), is_vital: true });
    }

    fn store<T: Send + 'static>(
        &mut self,
        what: &'static str,
        request: BoxFuture<'static, Result<T, Failed>>,
        input: impl Fn(Result<T, Failed>) -> Input + Send + 'static,
    ) {
        let otherwise = Some(input(Err(Failed)));
        let answer = request.map(move |result| (Some(input(result)), None)).boxed();
        let limit = self.limits.store_timeout;
        self.ask(Request { what, limit, answer, otherwise, is_vital: false });
    }

    fn perform(&mut self, action: Action) {
        let etcd = Arc::clone(&self.coordination);
        let me = self.node.me().clone();
        match action {
            Action::RegisterIncarnation => {
                let request = self.surroundings.register_incarnation(me);
                let limit = self.limits.store_timeout;
                let otherwise = Input::IncarnationRegistered(Err(Failed));
                self.vital(
                    "register_incarnation",
                    limit,
                    otherwise,
                    request.map(Input::IncarnationRegistered),
                );
            }
            Action::Join { entry } => self.join(entry),
            Action::KeepAlive => {
                let Some(lease) = self.lease() else {
                    return self.feed_soon(Input::KeptAlive(KeptAlive::LeaseGone));
                };
                let limit = self.limits.etcd_timeout;
                let otherwise = Input::KeptAlive(KeptAlive::Failed);
                self.vital("keep_alive", limit, otherwise, async move {
                    Input::KeptAlive(etcd.keep_alive(lease).await)
                });
            }
            Action::PutNode { entry } => {
                let Some(lease) = self.lease() else { return self.feed_soon(Input::NodePut(Ok(false))) };
                let limit = self.limits.etcd_timeout;
                self.vital("put_node", limit, Input::NodePut(Err(Failed)), async move {
                    Input::NodePut(etcd.put_node(lease, me.node, entry).await)
                });
            }
            Action::Revoke => {
                let Some(lease) = self.lease() else { return self.feed_soon(Input::Revoked) };
                self.revoking = true;
                let limit = self.limits.etcd_timeout;
                self.vital("revoke", limit, Input::Revoked, async move {
                    // Whatever comes of it: the lease ends by itself.
                    etcd.revoke(lease).await.ok();
                    Input::Revoked
                });
            }
            Action::CasTarget { expect, new } => {
                let otherwise = Some(Input::TargetCas(TargetOutcome::Unknown));
                self.etcd("cas_target", otherwise, async move {
                    Some(Input::TargetCas(etcd.cas_target(expect, new).await))
                });
            }
            Action::ReadNode { incarnation } => {
                let otherwise = Some(Input::NodeRead { incarnation, gone: Err(Failed) });
                self.etcd("read_node", otherwise, async move {
                    Some(Input::NodeRead { incarnation, gone: etcd.read_node(incarnation).await })
                });
            }
            Action::WriteFence { incarnation } => {
                let request = self.surroundings.write_fence(incarnation);
                self.store("write_fence", request, move |result| Input::FenceWritten { incarnation, result });
            }
            Action::DeleteNode { peer } => {
                tracing::warn!(node = %peer.node, "two nodes were refused by it: its key is deleted");
                self.etcd("delete_node", None, async move {
                    // The watch shows it; if not, its lease runs out.
                    etcd.delete_node(peer).await.ok();
                    None
                });
            }
            Action::AskReady { peer } => self.surroundings.ask_ready(&peer),
            Action::SayReady { to } => self.surroundings.say_ready(&to),
            Action::WriteFrozen { slot, why, expect } => {
                self.surroundings.frozen(slot, why);
                let otherwise = Some(Input::FrozenWritten(CasOutcome::Unknown));
                self.etcd("freeze", otherwise, async move {
                    Some(Input::FrozenWritten(etcd.freeze(slot, expect, me.node, why).await))
                });
            }
            Action::Slot { slot, action } => self.perform_slot(slot, action),
            Action::Dead { why } => {
                self.surroundings.dead(why);
                self.over.get_or_insert(Why::Dead(why));
            }
            Action::Left => {
                self.surroundings.left();
                self.over.get_or_insert(Why::Left);
            }
        }
    }

    fn perform_slot(&mut self, slot: SlotId, action: slot_owner::Action) {
        use slot_owner::Action as Of;
        let etcd = Arc::clone(&self.coordination);
        let of = move |input: slot_owner::Input| Input::Slot { slot, input };
        match action {
            Of::ReadKey => {
                let otherwise = Some(of(slot_owner::Input::KeyRead(Err(Failed))));
                self.etcd("read_slot", otherwise, async move {
                    Some(of(slot_owner::Input::KeyRead(etcd.read_slot(slot).await)))
                });
            }
            Of::Cas { expect, new } => {
                let otherwise = Some(of(slot_owner::Input::Cas(CasOutcome::Unknown)));
                self.etcd("cas_slot", otherwise, async move {
                    Some(of(slot_owner::Input::Cas(etcd.cas_slot(slot, expect, new).await)))
                });
            }
            Of::PutOwner { row, closes } => {
                let request = self.surroundings.put_owner(slot, row, closes);
                self.store("put_owner", request, move |result| {
                    of(slot_owner::Input::OwnerPut { row, result })
                });
            }
            Of::ReadOwners => {
                let request = self.surroundings.read_owners(slot);
                self.store("read_owners", request, move |rows| of(slot_owner::Input::Owners(rows)));
            }
            Of::ReadOwnFence => {
                let request = self.surroundings.read_fence(self.node.me().incarnation);
                self.store("read_own_fence", request, move |fenced| of(slot_owner::Input::OwnFence(fenced)));
            }
            Of::Serve { tenure, opening } => {
                metrics::slot_begun(match opening {
                    Opening::Full => "full",
                    Opening::HandedOver { .. } => "handed_over",
                });
                self.surroundings.serve(slot, tenure, opening);
            }
            Of::Drain { drain } => self.surroundings.drain(slot, drain),
            Of::SendState { to, epoch, complete } => self.surroundings.send_state(slot, &to, epoch, complete),
            Of::Resume { tenure } => self.surroundings.resume(slot, tenure),
            Of::Release { to } => self.surroundings.release(slot, to),
            // The node's own, never passed on by it.
            Of::ReadNode { .. } | Of::WriteFence { .. } | Of::Freeze { .. } | Of::Dead => {
                unreachable!("the node keeps {action:?} to itself")
            }
        }
    }

    fn lease(&self) -> Option<LeaseId> {
        self.shared.lease.get().copied()
    }

    /// An answer without a request.
    fn feed_soon(&mut self, input: Input) {
        let otherwise = input.clone();
        self.vital("nothing", Duration::ZERO, otherwise, std::future::ready(input));
    }

    fn join(&mut self, entry: NodeEntry) {
        let etcd = Arc::clone(&self.coordination);
        let node = self.node.me().node.clone();
        let Limits { etcd_timeout, taken_for, ttl, .. } = self.limits;
        let shared = Arc::clone(&self.shared);
        let answer = async move {
            let failed = Some(Input::Joined(Err(Failed)));
            let Ok(lease) = etcd.grant(ttl).await else { return (failed, None) };
            // Known before anything is on it, so that it is revoked whatever happens.
            shared.lease.get_or_init(|| lease);
            let began = Instant::now();
            loop {
                match etcd.join(lease, node.clone(), entry.clone()).await {
                    Joined::Done => return (Some(Input::Joined(Ok(()))), None),
                    Joined::Unknown => return (failed, None),
                    Joined::Taken(other) if began.elapsed() >= taken_for => return (failed, Some(other)),
                    // The run before this one may not have run out yet.
                    Joined::Taken(_) => {
                        tokio::time::sleep(TAKEN_PAUSE).await;
                        if etcd.keep_alive(lease).await == KeptAlive::LeaseGone {
                            return (failed, None);
                        }
                    }
                }
            }
        };
        let limit = taken_for + etcd_timeout * 2;
        let otherwise = Some(Input::Joined(Err(Failed)));
        self.ask(Request { what: "join", limit, answer: answer.boxed(), otherwise, is_vital: true });
    }

    // ---------------------------------------------------------------- the end

    async fn end(mut self, why: Why) -> Ended {
        self.requests.abort_all();
        let lease = self.lease().filter(|_| why != Why::Stopped && (self.revoking || why == Why::Left));
        if let Some(lease) = lease {
            // Said again if it was under way: others need not wait for the lease then.
            timeout(self.limits.etcd_timeout, self.coordination.revoke(lease)).await.ok();
        }
        let why = match (why, self.taken.take()) {
            (Why::Dead(End::NotJoined), Some(other)) => Why::Taken(Box::new(other)),
            (why, _) => why,
        };
        metrics::slots(self.next_view.slots.count().get(), 0);
        tracing::info!(node = %self.node.me().node, ?why, "this run is over");
        Ended { node: self.node, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::cluster::{Ground, new_node, start, start_node, until, until_serving};
    use crate::contract::{entry, node, peer};
    use crate::keys::Keys;
    use crate::memory::{Reach, Store};
    use banyan_proto::id::Incarnation;
    use banyan_router::node::Standing;

    fn ground() -> (Store, Arc<dyn Coordination>, Arc<Ground>) {
        let store = Store::default();
        let ring = Keys::new(store.clone(), "test").unwrap();
        (store, Arc::new(ring), Arc::new(Ground::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_in_time_has_failed() {
        let (_, ring, ground) = ground();
        ground.slow_down(Duration::from_secs(3_600));
        let began = Instant::now();
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        assert_eq!(run.end().await.why, Why::Dead(End::NotJoined));
        assert_eq!(began.elapsed().as_secs(), Limits::default().store_timeout.as_secs());
        assert_eq!(ground.dead(), [(Incarnation(1), End::NotJoined)]);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_bounded_and_the_rest_waits() {
        let (_, ring, ground) = ground();
        let limits = Limits { in_flight: 3, ..Limits::default() };
        let run = start_node(&ring, &ground, new_node(&peer("a", 1), entry(1)), limits);
        until_serving(&ground, &[&run], "all is served in the end").await;
        assert_eq!(ground.busiest(), 3, "never more, and not fewer while 64 slots wait");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_requests_do_not_cost_the_lease() {
        let (_, ring, ground) = ground();
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        until_serving(&ground, &[&run], "it owns all").await;
        ground.slow_down(Duration::from_secs(3_600));
        let other = start(&ring, &ground, &peer("b", 2), entry(2));
        assert_eq!(other.end().await.why, Why::Dead(End::NotJoined));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(run.view().standing, Standing::Up);
        assert_eq!(ring.read_node(Incarnation(1)).await, Ok(false));
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_to_a_full_inbox_waits() {
        let (_, ring, _) = ground();
        let ground = Arc::new(Ground::default());
        let limits = Limits { inbox: 2, ..Limits::default() };
        let place = crate::contract::cluster::place(&ground, &peer("a", 1));
        let slots = SlotCount::new(64).unwrap();
        let (runner, handle) = Runner::new(new_node(&peer("a", 1), entry(1)), slots, 2, ring, place, limits);
        assert_eq!(handle.try_input(Input::Tick), Ok(true));
        assert_eq!(handle.try_input(Input::Tick), Ok(true));
        assert_eq!(handle.try_input(Input::Tick), Ok(false));
        let sent = handle.input(Input::Drain);
        assert!(timeout(Duration::from_secs(1), sent).await.is_err(), "it waits");
        drop(runner);
        assert_eq!(handle.try_input(Input::Tick), Err(Over));
        assert_eq!(handle.input(Input::Drain).await, Err(Over));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fenced_run_ends_at_once_and_nobody_waits_for_its_lease() {
        let (_, ring, ground) = ground();
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        until_serving(&ground, &[&run], "it owns all").await;
        let began = Instant::now();
        run.handle.fenced();
        let ended = run.end().await;
        assert_eq!(ended.why, Why::Dead(End::Fenced));
        assert_eq!(ring.read_node(Incarnation(1)).await, Ok(true), "its key is gone with it");
        assert!(began.elapsed() < Duration::from_millis(100));
        let next = start_node(&ring, &ground, ended.node.rejoin(Incarnation(2), 0), Limits::default());
        until_serving(&ground, &[&next], "the next run takes all").await;
        // A stuck one alike.
        next.handle.stuck();
        assert_eq!(next.end().await.why, Why::Dead(End::Stuck));
        assert_eq!(ring.read_node(Incarnation(2)).await, Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_run_leaves_its_key_to_its_lease_and_the_next_one_waits_for_it() {
        let (_, ring, ground) = ground();
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        until_serving(&ground, &[&run], "it owns all").await;
        run.kill(&ground).await;
        assert_eq!(ring.read_node(Incarnation(1)).await, Ok(false));
        let began = Instant::now();
        let next = start(&ring, &ground, &peer("a", 2), entry(2));
        until_serving(&ground, &[&next], "the next run takes all").await;
        assert!(began.elapsed() < Limits::default().ttl + Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn without_etcd_it_serves_on_and_says_so() {
        let (store, ring, ground) = ground();
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        until_serving(&ground, &[&run], "it owns all").await;
        for reach in [Reach::Hangs, Reach::Refuses] {
            store.set_reach(reach);
            until(&run, "it is degraded", |view| view.standing == Standing::Degraded).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(run.view().serving, 64);
            assert!(!run.view().fresh);
            store.set_reach(Reach::Up);
            until(&run, "it is up", |view| view.standing == Standing::Up && view.fresh).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_etcd_delays_and_an_overly_slow_one_is_as_good_as_gone() {
        let (store, ring, ground) = ground();
        store.slow_down(Duration::from_millis(600));
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        until_serving(&ground, &[&run], "it owns all").await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(run.view().standing, Standing::Up, "the lease is kept");
        store.slow_down(Duration::from_secs(10));
        store.break_watches();
        until(&run, "it is degraded", |view| view.standing == Standing::Degraded).await;
        assert_eq!(run.view().serving, 64, "it serves on");
    }

    #[tokio::test(start_paused = true)]
    async fn it_says_what_a_slot_waits_for() {
        let (_, ring, ground) = ground();
        let a = start(&ring, &ground, &peer("a", 1), entry(1));
        until_serving(&ground, &[&a], "it owns all").await;
        let b = start(&ring, &ground, &peer("b", 2), entry(2));
        until_serving(&ground, &[&a, &b], "both own half").await;
        let elsewhere =
            b.view().slots.iter().find_map(|(slot, key)| (key?.owner == a.me.node).then_some(slot));
        let account = b.handle.account(elsewhere.unwrap()).await.unwrap();
        assert_eq!(account.wanted, Some(node("a")), "{account}");
        assert_eq!(b.handle.account(SlotId(u16::MAX)).await, None);
        b.handle.fenced();
        let handle = b.handle.clone();
        b.end().await;
        assert_eq!(handle.account(SlotId(0)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn lost_and_late_answers_end_in_one_owner_for_each_slot() {
        let (store, ring, ground) = ground();
        let a = start(&ring, &ground, &peer("a", 1), entry(1));
        until(&a, "it has joined", |view| view.standing == Standing::Up).await;
        store.lose_answers(20);
        store.apply_late(20, Duration::from_millis(300));
        until_serving(&ground, &[&a], "it owns all").await;
        assert!(store.answer_again() < 40);
        let b = start(&ring, &ground, &peer("b", 2), entry(2));
        until(&b, "it has joined", |view| view.standing == Standing::Up).await;
        store.lose_answers(20);
        store.apply_late(20, Duration::from_millis(300));
        until_serving(&ground, &[&a, &b], "both own half").await;
        assert!(store.answer_again() < 40);
        assert!(ground.dead().is_empty(), "{:?}", ground.dead());
    }

    #[tokio::test(start_paused = true)]
    async fn who_joins_unheard_begins_again_under_another_name() {
        let (store, ring, ground) = ground();
        store.lose_answers(1);
        let run = start(&ring, &ground, &peer("a", 1), entry(1));
        let ended = run.end().await;
        assert_eq!(ended.why, Why::Dead(End::NotJoined));
        assert_eq!(
            ring.read_node(Incarnation(1)).await,
            Ok(true),
            "what was put unheard went with its lease"
        );
        let next = start_node(&ring, &ground, ended.node.rejoin(Incarnation(2), 0), Limits::default());
        until_serving(&ground, &[&next], "the next run owns all").await;
        assert_eq!(next.view().nodes[&node("a")].incarnation, Incarnation(2));
    }
}
