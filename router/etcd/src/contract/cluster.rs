//! A cluster of runners over a backend: workers, links and store are stand-ins that remember what they were told.
//!
//! Always holds: no two runs serve one slot at one epoch, and what is served at a later epoch is served by whom the slot's key
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banyan_proto::id::{Epoch, Incarnation, SlotId, Tenure};
use banyan_router::node::{self, End, Input, Node, Standing};
use banyan_router::node_key::{NodeEntry, Role};
use banyan_router::recover::{Progress, Step};
use banyan_router::slot::SlotCount;
use banyan_router::slot_key::{OwnerRow, Peer, generation};
use banyan_router::slot_owner::{self, Failed, Opening, Why};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{LIMIT, World, entry, peer};
use crate::coordination::Coordination;
use crate::runner::{self, Ended, Runner, RunnerHandle};
use crate::surroundings::{Records, Surroundings};
use crate::view::View;

const SLOTS: u32 = 64;

/// The store, and who says what to whom.
#[derive(Debug, Default)]
pub struct Ground {
    state: Mutex<GroundState>,
}

#[derive(Debug, Default)]
struct GroundState {
    runs: Vec<Peer>,
    fences: BTreeSet<Incarnation>,
    owners: BTreeMap<SlotId, Vec<OwnerRow>>,
    handles: BTreeMap<Incarnation, RunnerHandle>,
    /// Who has begun to serve a slot at an epoch.
    served: BTreeMap<(SlotId, Epoch), Incarnation>,
    /// What each run serves.
    serving: BTreeMap<Incarnation, BTreeMap<SlotId, Tenure>>,
    handed_over: usize,
    dead: Vec<(Incarnation, End)>,
    frozen: Vec<Why>,
    /// Requests under way, and the most that ever were.
    busy: usize,
    busiest: usize,
    /// How long each takes.
    takes: Duration,
}

impl Ground {
    fn state(&self) -> MutexGuard<'_, GroundState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn serving(&self, run: &Peer) -> usize {
        self.state().serving.get(&run.incarnation).map_or(0, BTreeMap::len)
    }

    pub fn handed_over(&self) -> usize {
        self.state().handed_over
    }

    pub fn frozen(&self) -> Vec<Why> {
        self.state().frozen.clone()
    }

    pub fn dead(&self) -> Vec<(Incarnation, End)> {
        self.state().dead.clone()
    }

    /// The most requests to the store that were ever under way at once.
    pub fn busiest(&self) -> usize {
        self.state().busiest
    }

    /// Every request to the store takes so long from now on.
    pub fn slow_down(&self, takes: Duration) {
        self.state().takes = takes;
    }

    /// Nobody serves for it any more: it was stopped from outside.
    pub fn forget(&self, run: &Peer) {
        let mut state = self.state();
        state.handles.remove(&run.incarnation);
        state.serving.remove(&run.incarnation);
    }

    fn told(&self, to: Incarnation, input: Input) {
        if let Some(handle) = self.state().handles.get(&to).cloned() {
            tokio::spawn(async move { handle.input(input).await });
        }
    }
}

/// One request to the store, until it is answered or given up.
struct Busy(Arc<Ground>);

impl Busy {
    fn begin(ground: Arc<Ground>) -> Self {
        {
            let mut state = ground.state();
            state.busy += 1;
            state.busiest = state.busiest.max(state.busy);
        }
        Self(ground)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
    }
}

/// What one run sees of it.
#[derive(Debug)]
struct Place {
    ground: Arc<Ground>,
    me: Peer,
}

impl Place {
    fn later<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut GroundState) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Failed>> {
        let ground = Arc::clone(&self.ground);
        async move {
            let busy = Busy::begin(ground);
            let takes = busy.0.state().takes;
            sleep(takes.max(Duration::from_millis(1))).await;
            Ok(act(&mut busy.0.state()))
        }
        .boxed()
    }

    fn begin(&self, slot: SlotId, tenure: Tenure) {
        let mut state = self.ground.state();
        let by = *state.served.entry((slot, tenure.epoch)).or_insert(self.me.incarnation);
        assert_eq!(by, self.me.incarnation, "slot {slot} is served twice at epoch {}", tenure.epoch);
        state.serving.entry(self.me.incarnation).or_default().insert(slot, tenure);
    }
}

impl Records for Place {
    fn register_incarnation(&self, me: Peer) -> BoxFuture<'static, Result<(), Failed>> {
        self.later(move |state| state.runs.push(me))
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Failed>> {
        self.later(move |state| {
            state.fences.insert(incarnation);
            // Its workers read their fence all the time.
            if let Some(handle) = state.handles.get(&incarnation) {
                handle.fenced();
            }
        })
    }

    fn read_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<bool, Failed>> {
        self.later(move |state| state.fences.contains(&incarnation))
    }

    fn put_owner(
        &self,
        slot: SlotId,
        row: OwnerRow,
        closes: Option<Tenure>,
    ) -> BoxFuture<'static, Result<(), Failed>> {
        self.later(move |state| {
            let rows = state.owners.entry(slot).or_default();
            let mut put =
                |tenure: Tenure, closed: bool| match rows.iter_mut().find(|row| row.tenure == tenure) {
                    Some(row) => row.closed |= closed,
                    None => rows.push(OwnerRow { tenure, closed }),
                };
            put(row.tenure, row.closed);
            closes.into_iter().for_each(|tenure| put(tenure, true));
        })
    }

    fn read_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<OwnerRow>, Failed>> {
        self.later(move |state| state.owners.get(&slot).cloned().unwrap_or_default())
    }

    fn read_incarnations(&self) -> BoxFuture<'static, Result<Vec<Peer>, Failed>> {
        self.later(|state| state.runs.clone())
    }
}

impl Surroundings for Place {
    fn ask_ready(&self, peer: &Peer) {
        self.ground.told(peer.incarnation, Input::ReadyAsked { by: self.me.clone() });
    }

    fn say_ready(&self, to: &Peer) {
        self.ground.told(to.incarnation, Input::Ready { incarnation: self.me.incarnation });
    }

    fn send_state(&self, slot: SlotId, to: &Peer, epoch: Epoch, complete: bool) {
        let input = slot_owner::Input::StatePassed { epoch, complete };
        self.ground.told(to.incarnation, Input::Slot { slot, input });
    }

    fn serve(&self, slot: SlotId, tenure: Tenure, opening: Opening) {
        // Counted first: who sees the slot served sees it counted.
        if matches!(opening, Opening::HandedOver { .. }) {
            self.ground.state().handed_over += 1;
        }
        self.begin(slot, tenure);
    }

    fn drain(&self, slot: SlotId, drain: u32) {
        self.ground
            .told(self.me.incarnation, Input::Slot { slot, input: slot_owner::Input::Drained { drain } });
    }

    fn resume(&self, slot: SlotId, tenure: Tenure) {
        self.begin(slot, tenure);
    }

    fn release(&self, slot: SlotId, _to: Option<Tenure>) {
        if let Some(serving) = self.ground.state().serving.get_mut(&self.me.incarnation) {
            serving.remove(&slot);
        }
    }

    fn frozen(&self, _slot: SlotId, why: Why) {
        self.ground.state().frozen.push(why);
    }

    fn dead(&self, why: End) {
        self.ground.state().dead.push((self.me.incarnation, why));
        self.ground.forget(&self.me);
    }

    fn left(&self) {
        self.ground.forget(&self.me);
    }
}

/// A run under way.
#[derive(Debug)]
pub struct Running {
    pub me: Peer,
    pub handle: RunnerHandle,
    pub stop: CancellationToken,
    pub ended: JoinHandle<Ended>,
    ticking: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ticking.abort();
        self.ended.abort();
    }
}

impl Running {
    pub fn view(&self) -> View {
        self.handle.view().borrow().clone()
    }

    /// As kill -9 does.
    pub async fn kill(mut self, ground: &Ground) {
        self.stop.cancel();
        (&mut self.ended).await.unwrap();
        ground.forget(&self.me);
    }

    /// The end that it came to by itself.
    pub async fn end(mut self) -> Ended {
        tokio::time::timeout(LIMIT, &mut self.ended).await.expect("the run ends").unwrap()
    }

    /// Its workers stop ticking.
    pub fn stall(&mut self) {
        self.ticking.abort();
    }
}

/// What a run of that name sees of the ground.
pub fn place(ground: &Arc<Ground>, me: &Peer) -> Arc<dyn Surroundings> {
    Arc::new(Place { ground: Arc::clone(ground), me: me.clone() })
}

/// A run that has not begun.
pub fn new_node(me: &Peer, entry: NodeEntry) -> Node {
    let slots = SlotCount::new(SLOTS).unwrap();
    let limits = node::Limits { settle_ms: 300, ..node::Limits::default() };
    Node::new(node::Options { me: me.clone(), entry, slots, workers: 2, limits }, 0)
}

pub fn start(ring: &Arc<dyn Coordination>, ground: &Arc<Ground>, me: &Peer, entry: NodeEntry) -> Running {
    start_node(ring, ground, new_node(me, entry), runner::Limits::default())
}

/// The next run of a node, or a first one within other limits.
pub fn start_node(
    ring: &Arc<dyn Coordination>,
    ground: &Arc<Ground>,
    node: Node,
    limits: runner::Limits,
) -> Running {
    let slots = SlotCount::new(SLOTS).unwrap();
    let me = node.me().clone();
    let place = place(ground, &me);
    let (runner, handle) = Runner::new(node, slots, 2, Arc::clone(ring), place, limits);
    ground.state().handles.insert(me.incarnation, handle.clone());
    let stop = CancellationToken::new();
    let ended = tokio::spawn(runner.run(stop.clone()));
    let ticker = handle.clone();
    let ticking = tokio::spawn(async move {
        loop {
            ticker.alive(0);
            ticker.alive(1);
            sleep(Duration::from_millis(20)).await;
        }
    });
    Running { me, handle, stop, ended, ticking }
}

/// Waits for a view that is as it should be.
pub async fn until(run: &Running, what: &str, is: impl Fn(&View) -> bool) {
    let mut view = run.handle.view();
    let waited = tokio::time::timeout(LIMIT, view.wait_for(|view| is(view)));
    if waited.await.is_err() {
        panic!("{what}: {:?}", run.view());
    }
}

pub async fn until_serving(ground: &Ground, runs: &[&Running], what: &str) {
    let began = Instant::now();
    loop {
        let each: Vec<usize> = runs.iter().map(|run| ground.serving(&run.me)).collect();
        let (min, max) = (each.iter().min().unwrap_or(&0), each.iter().max().unwrap_or(&0));
        if each.iter().sum::<usize>() == SLOTS as usize && max - min <= 1 {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{what}: {each:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A founding, a join, a gateway, a drain, a crash, a second process of one name, a stalled worker, a recovery.
pub(super) async fn run(world: &dyn World) {
    let ring = world.ring("runners").await;
    let ground = Arc::new(Ground::default());
    let a = start(&ring, &ground, &peer("a", 1), entry(1));
    until_serving(&ground, &[&a], "the first owns all").await;

    let b = start(&ring, &ground, &peer("b", 2), entry(2));
    until_serving(&ground, &[&a, &b], "the second gets its half").await;
    assert_eq!(ground.handed_over(), SLOTS as usize / 2, "by handoff, with the state");

    let gateway = NodeEntry { roles: vec![Role::Gateway], ..entry(3) };
    let gateway = start(&ring, &ground, &peer("gw", 3), gateway);
    until(&gateway, "a gateway knows every owner", |view| {
        view.standing == Standing::Up && (0..SLOTS).all(|slot| view.owner(SlotId(slot as u16)).is_some())
    })
    .await;
    until(&a, "a gateway is seen", |view| view.nodes.len() == 3).await;
    assert_eq!(gateway.view().serving, 0);

    // A second process with the name of a living one is refused, and the first goes on.
    let twin = start(&ring, &ground, &peer("b", 22), entry(22));
    match twin.end().await.why {
        runner::Why::Taken(other) => assert_eq!(*other, entry(2)),
        other => panic!("{other:?}"),
    }
    assert_eq!(b.view().standing, Standing::Up);

    // A drain hands over everything, and leaves.
    let c = start(&ring, &ground, &peer("c", 4), entry(4));
    until_serving(&ground, &[&a, &b, &c], "three share").await;
    c.handle.input(Input::Drain).await.unwrap();
    assert_eq!(c.end().await.why, runner::Why::Left);
    until_serving(&ground, &[&a, &b], "two share again").await;
    until(&a, "it is gone at once", |view| view.nodes.len() == 3).await;

    // A crash: its slots are taken when its lease has run out, and the gateway sees the new owners.
    b.kill(&ground).await;
    until_serving(&ground, &[&a], "the survivor takes all").await;
    assert!(ground.state().fences.contains(&Incarnation(2)), "who is replaced is fenced first");
    until(&gateway, "the gateway follows", |view| {
        (0..SLOTS).all(|slot| view.owner(SlotId(slot as u16)).is_some_and(|(key, _)| key.owner == a.me.node))
    })
    .await;

    // Workers that do not tick: the lease is not kept alive, and the run ends. The next one goes on.
    let mut a = a;
    let name = a.me.clone();
    a.stall();
    let ended = a.end().await;
    assert_eq!(ended.why, runner::Why::Dead(End::LeaseLost), "{name:?}");
    let a = start_node(&ring, &ground, ended.node.rejoin(Incarnation(11), 0), runner::Limits::default());
    until_serving(&ground, &[&a], "its next run takes all").await;
    assert!(ground.state().fences.contains(&Incarnation(1)));

    // `ring recover` fences every run and sets every slot; the next run goes on in a new generation.
    let (progress, shown) = watch::channel(Progress { step: Step::Freezing, done: 0, of: 1 });
    let records: Arc<dyn Records> = Arc::new(Place { ground: Arc::clone(&ground), me: peer("cli", 99) });
    let slots = SlotCount::new(SLOTS).unwrap();
    crate::recover(Arc::clone(&ring), records, slots, None, &progress).await;
    assert_eq!(shown.borrow().step, Step::Done);
    assert_eq!(a.end().await.why, runner::Why::Dead(End::Fenced));
    assert!(matches!(gateway.end().await.why, runner::Why::Dead(_)), "gateways restart as well");
    let a = start(&ring, &ground, &peer("a", 12), entry(12));
    until_serving(&ground, &[&a], "it takes all again").await;
    until(&a, "it is up", |view| view.standing == Standing::Up && !view.frozen).await;
    for (slot, key) in a.view().slots.iter() {
        let generation = key.map(|key| generation(key.epoch));
        assert_eq!(generation, Some(1), "slot {slot}");
    }
    a.kill(&ground).await;
}
