//! Every state that a world can reach, breadth first.
//!
//! Owns: the visited states (by 128-bit hash), the parent of each, the frontier. The store, etcd and the network move here;
//! nodes move by their own machines (`node.rs`).
//! At every state a virtual further owner opens the room with any quorum: it must see all that was said, without a hole.

use std::fmt::Write as _;
use std::rc::Rc;

use banyan_proto::id::{Incarnation, SlotId};
use banyan_proto::plant::{self, Bug};
use banyan_router::recover;
use banyan_router::slot::SlotCount;
use banyan_router::slot_key::{Peer, SlotKey};
use banyan_router::slot_owner::{self, CasOutcome, Standing};
use banyan_shard_core::log;
use banyan_storage::Outcome;
use hashbrown::HashSet;

use crate::bits::Bits;
use crate::node::{Ask, Input, Kind, Node, Request, Start, incarnation, name, run_of, table_of};
use crate::search::{Space, Steps, Violation, hash128};
use crate::store::{Mutation, ReadFor, Store, Table};
use crate::universe::{Env, Recovery, Transaction, Universe};
use crate::world::{NodeKeys, World};

pub const NODES_MAX: usize = 4;

/// By number in the [`Universe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    store: u32,
    env: u32,
    said: u32,
    nodes: [u32; NODES_MAX],
}

#[derive(Debug)]
pub struct Explorer<'w> {
    world: &'w World,
    universe: Universe,
    checked: HashSet<u128, foldhash::fast::FixedState>,
    longest_said: usize,
    coverage: Vec<(&'static str, u64)>,
    /// Labels of the steps, when a trace is written.
    labels: Option<Vec<String>>,
}

impl State {
    fn hash(&self) -> u128 {
        let [a, b, c, d] = self.nodes.map(u64::from);
        hash128(&[
            u64::from(self.store) << 32 | u64::from(self.env),
            u64::from(self.said),
            a << 32 | b,
            c << 32 | d,
        ])
    }
}

impl Space for Explorer<'_> {
    type State = State;

    fn initial(&mut self) -> State {
        self.first_state()
    }

    fn hash(state: &State) -> u128 {
        state.hash()
    }

    fn check(&mut self, state: &State) -> Result<(), Violation> {
        self.check_state(state)
    }

    fn successors(&mut self, state: &State, steps: &mut Steps<State>) -> Result<(), Violation> {
        self.all_steps(state, steps)
    }

    fn labels(&mut self) -> &mut Option<Vec<String>> {
        &mut self.labels
    }

    fn found(&self) -> (usize, Vec<(&'static str, u64)>) {
        (self.longest_said, self.coverage.clone())
    }
}

impl<'w> Explorer<'w> {
    pub fn new(world: &'w World) -> Self {
        assert!(usize::from(world.nodes) <= NODES_MAX);
        Self {
            world,
            universe: Universe::new(world),
            checked: HashSet::default(),
            longest_said: 0,
            coverage: Vec::new(),
            labels: None,
        }
    }

    pub fn sizes(&self) -> [(&'static str, usize); 5] {
        self.universe.sizes()
    }

    fn first_state(&mut self) -> State {
        let store = self.universe.stores.intern(Rc::new(Store::default()));
        let env = Env {
            key: None,
            node_keys: (1 << self.world.nodes) - 1,
            requests: Vec::new(),
            mail: Vec::new(),
            history: Vec::new(),
            restored: false,
            frozen: false,
            recovery: None,
        };
        let env = self.universe.envs.intern(Rc::new(env));
        let mut nodes = [0; NODES_MAX];
        for run in 0..self.world.nodes {
            nodes[usize::from(run)] = self.universe.nodes.intern(Rc::new(Node::new(run)));
        }
        State { store, env, said: 0, nodes }
    }

    // ---------------------------------------------------------------- the virtual owner

    fn check_state(&mut self, state: &State) -> Result<(), Violation> {
        let store = Rc::clone(self.universe.stores.get(state.store));
        let env = Rc::clone(self.universe.envs.get(state.env));
        if self.world.healthy && !env.restored {
            for run in 0..self.world.nodes {
                let fenced = store.issued.meets(&self.universe.fence_of(run));
                if fenced && env.node_keys >> run & 1 == 1 {
                    let name = name(run);
                    return Err(Violation(format!(
                        "UNAVAILABLE: {name} is fenced though its node key is there"
                    )));
                }
            }
        }
        let key = hash128(&[u64::from(state.store), u64::from(state.said)]);
        if !self.checked.insert(key) {
            return Ok(());
        }
        let model = self.world.store;
        let records = store.views(model, &self.universe.table(Table::Segments));
        let rows = store.views(model, &self.universe.table(Table::Messages));
        let said = self.universe.logs.get(state.said).clone();
        for records in &records {
            for rows in &rows {
                let opened = self.universe.open(records, rows).map_err(|why| {
                    let said = self.log_text(state.said);
                    Violation(format!("LOST: a further owner cannot open the room ({why}); said was {said}"))
                })?;
                let log = self.universe.logs.get(opened.log);
                if !log.starts_with(&said) {
                    let (said, seen) = (self.log_text(state.said), self.log_text(opened.log));
                    let what = if log.len() < said.len() { "LOST" } else { "CHANGED" };
                    return Err(Violation(format!("{what}: {said} was said, a further owner sees {seen}")));
                }
                if self.world.counted {
                    let head = log.len() as u64;
                    for seen in store.views(model, &self.universe.table(Table::Derived)) {
                        let changed = self.universe.members_changed(&seen);
                        if changed > head {
                            let log = self.log_text(opened.log);
                            return Err(Violation(format!(
                                "VIEW: the members table was changed at {changed}, the log is {log}"
                            )));
                        }
                    }
                }
                if self.world.changes {
                    let fold = self.universe.fold(opened.log);
                    for seen in store.views(model, &self.universe.table(Table::Derived)) {
                        let view = self.universe.member_with(&seen, opened.derived.as_ref());
                        if view != fold {
                            let log = self.log_text(opened.log);
                            return Err(Violation(format!(
                                "VIEW: the members table says {view}, the log {log} says {fold}"
                            )));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    // ---------------------------------------------------------------- steps

    fn cover(&mut self, what: &'static str) {
        match self.coverage.iter_mut().find(|(known, _)| *known == what) {
            Some((_, count)) => *count += 1,
            None => self.coverage.push((what, 1)),
        }
    }

    fn push(&mut self, steps: &mut Steps<State>, state: State, label: impl FnOnce(&Universe) -> String) {
        steps.out.push(state);
        if let Some(labels) = &mut self.labels {
            labels.push(label(&self.universe));
        }
    }

    fn intern_store(&mut self, store: Store) -> u32 {
        self.universe.stores.intern(Rc::new(store.canonical(self.world.store)))
    }

    fn intern_env(&mut self, mut env: Env) -> u32 {
        if !self.world.restores {
            // What waits for a value that the key has left behind never applies.
            let passed = |transaction: &Transaction| {
                let expects = transaction.expect.as_ref().map(|key| key.epoch);
                let now = env.key.as_ref().map(|key| key.epoch);
                expects < now
            };
            let keep: Vec<bool> = env.requests.iter().map(|transaction| !passed(transaction)).collect();
            let mut keep = keep.into_iter();
            env.requests.retain(|_| keep.next().unwrap_or(true));
        }
        env.requests.sort_by_cached_key(|request| format!("{request:?}"));
        self.universe.envs.intern(Rc::new(env))
    }

    fn node(&self, state: &State, run: u8) -> Rc<Node> {
        Rc::clone(self.universe.nodes.get(state.nodes[usize::from(run)]))
    }

    /// Gives a node an input and carries out what it asks for at once.
    fn give(
        &mut self,
        steps: &mut Steps<State>,
        state: &State,
        run: u8,
        (store, env): (Store, Env),
        input: Input,
        label: impl FnOnce(&Universe) -> String,
    ) -> Result<(), Violation> {
        let mut to = *state;
        let (mut store, mut env) = (store, env);
        let mut notes = String::new();
        let before = env.requests.len();
        let result = self.settle(&mut to, run, &mut store, &mut env, input, &mut notes);
        if let Err(violation) = result {
            // The label of the step that breaks the rule.
            if let Some(labels) = &mut self.labels {
                labels.push(format!("{}{notes}", label(&self.universe)));
            }
            return Err(violation);
        }
        if env.requests.len() > before && env.requests.len() > self.world.requests {
            return Ok(());
        }
        to.store = self.intern_store(store);
        to.env = self.intern_env(env);
        self.push(steps, to, |universe| format!("{}{notes}", label(universe)));
        Ok(())
    }

    fn settle(
        &mut self,
        to: &mut State,
        run: u8,
        store: &mut Store,
        env: &mut Env,
        input: Input,
        notes: &mut String,
    ) -> Result<(), Violation> {
        let (world, model, place) = (self.world, self.world.store, usize::from(run));
        let mut todo = vec![input];
        while let Some(input) = todo.pop() {
            let (node, asks) = self.universe.step(world, to.nodes[place], input);
            to.nodes[place] = node;
            let node = self.node(to, run);
            for ask in asks.iter() {
                match ask {
                    Ask::Issue(what) => {
                        for at in what.iter() {
                            if let Some(other) = self.universe.clash(&store.issued, at) {
                                let (new, old) =
                                    (self.universe.get(at).text(), self.universe.get(other).text());
                                return Err(Violation(format!("KEY CLASH: {old} and {new}")));
                            }
                            if self.universe.get(at).table() == Table::Owners && !world.registers {
                                store.put(&Bits::one(at));
                            }
                            if self.labels.is_some() && !store.issued.contains(at) {
                                let _ok = write!(notes, "; writes {}", self.universe.get(at).text());
                            }
                        }
                        store.issued = store.issued.or(what);
                    }
                    Ask::Begin(ReadFor::Owners | ReadFor::OwnFence) if !world.registers => {}
                    Ask::Begin(what) => {
                        let table = table_of(&self.universe, &node, *what);
                        store.begin(model, run, *what, &table);
                    }
                    Ask::Forget(what) => store.forget(run, *what),
                    Ask::ForgetAll => {
                        store.forget_node(run);
                        env.mail.retain(|(to, _)| *to != run);
                    }
                    Ask::ReadKey => {
                        let input = slot_owner::Input::KeyRead(Ok(env.key.clone()));
                        todo.push(Input::Slot(input));
                    }
                    Ask::ReadNode(incarnation) => {
                        let gone = world.node_keys == NodeKeys::None
                            || env.node_keys >> run_of(*incarnation) & 1 == 0;
                        let input = slot_owner::Input::Node { incarnation: *incarnation, gone: Ok(gone) };
                        todo.push(Input::Slot(input));
                    }
                    Ask::Cas { expect, new } => {
                        if self.labels.is_some() {
                            let _ok = write!(notes, "; asks etcd for {}", key_text(Some(new)));
                        }
                        if world.unknown {
                            let transaction =
                                Transaction { expect: expect.clone(), new: new.clone(), by: run };
                            env.requests.push(transaction);
                        }
                    }
                    Ask::Request(at) => {
                        let request = &node.requests[usize::from(*at)];
                        if let Some(input) = self.at_once(run, store, env, request) {
                            todo.push(Input::Ended(*at, input));
                        }
                    }
                    Ask::Say { log, asked } => {
                        if self.labels.is_some() {
                            let _ok = write!(notes, "; SAYS {}", self.log_text(*log));
                        }
                        self.say(to, run, *log, *asked)?;
                    }
                    Ask::Send { to, passed } => {
                        env.mail.push((run_of(*to), passed.clone()));
                    }
                    Ask::Freeze(why) => {
                        self.cover("stops: another owner is registered");
                        if !env.restored {
                            let name = name(run);
                            return Err(Violation(format!(
                                "FALSE ALARM: {name} stops ({why}) though nothing was restored"
                            )));
                        }
                    }
                    Ask::View { log, members } => {
                        let current = env.key.as_ref().is_some_and(|key| Some(key.tenure()) == node.serving);
                        if current && log != members {
                            let name = name(run);
                            return Err(Violation(format!(
                                "VIEW: {name} opens, the members table says {members}, the log {log}"
                            )));
                        }
                    }
                    Ask::Cover(what) => self.cover(what),
                    Ask::Violation(why) => return Err(Violation(why.clone())),
                }
            }
            if node.dead {
                env.mail.retain(|(to, _)| *to != run);
            }
        }
        Ok(())
    }

    /// Requests that this world does not let wait.
    fn at_once(
        &mut self,
        run: u8,
        store: &Store,
        env: &mut Env,
        request: &Request,
    ) -> Option<slot_owner::Input> {
        let world = self.world;
        match request {
            Request::Cas { expect, new } if !world.unknown => {
                let outcome = if env.key == *expect && !env.frozen && !stands_still(world, env) {
                    self.set_key(env, new.clone());
                    CasOutcome::Won
                } else {
                    CasOutcome::Lost(env.key.clone())
                };
                Some(slot_owner::Input::Cas(outcome))
            }
            Request::Put { row, .. } if !world.registers => {
                Some(slot_owner::Input::OwnerPut { row: *row, result: Ok(()) })
            }
            Request::ReadOwners if !world.registers => {
                let seen = store.complete(world.store).and(&self.universe.table(Table::Owners));
                Some(slot_owner::Input::Owners(Ok(self.universe.owners(&seen))))
            }
            Request::ReadOwnFence if !world.registers => {
                let fenced = store.issued.meets(&self.universe.fence_of(run));
                Some(slot_owner::Input::OwnFence(Ok(fenced)))
            }
            _ => None,
        }
    }

    fn set_key(&self, env: &mut Env, key: SlotKey) {
        if self.world.restores && !env.restored {
            env.history.push(key.clone());
        }
        env.key = Some(key);
    }

    fn say(&mut self, state: &mut State, run: u8, log: u32, asked: u8) -> Result<(), Violation> {
        let (new, old) = (self.universe.logs.get(log), self.universe.logs.get(state.said));
        let common = new.len().min(old.len());
        if new[..common] != old[..common] {
            let (name, new, old) = (name(run), self.log_text(log), self.log_text(state.said));
            return Err(Violation(format!("CHANGED: {name} says {new}, said before was {old}")));
        }
        if new.len() < usize::from(asked) {
            let (name, new, old) = (name(run), self.log_text(log), self.log_text(state.said));
            return Err(Violation(format!(
                "STALE: {name} says {new}; {asked} events of {old} had been said before it was asked"
            )));
        }
        if new.len() > old.len() {
            self.longest_said = self.longest_said.max(new.len());
            state.said = log;
        }
        Ok(())
    }

    fn all_steps(&mut self, state: &State, steps: &mut Steps<State>) -> Result<(), Violation> {
        let world = self.world;
        let store = Rc::clone(self.universe.stores.get(state.store));
        let env = Rc::clone(self.universe.envs.get(state.env));
        let both = || (Store::clone(&store), Env::clone(&env));
        // ---- the environment
        if world.store == crate::store::Model::Rep {
            for (at, replica, delivered) in store.deliveries() {
                let to = State { store: self.intern_store(delivered), ..*state };
                self.push(steps, to, |universe| {
                    format!("replica {} gets {}", replica + 1, universe.get(at).text())
                });
            }
        }
        self.etcd_steps(state, &store, &env, steps)?;
        for (at, (to, passed)) in env.mail.iter().enumerate() {
            let mut env = Env::clone(&env);
            env.mail.remove(at);
            let label = format!("{} gets the state for epoch {}", name(*to), passed.epoch);
            let input = Input::Mail(passed.clone());
            self.give(steps, state, *to, (Store::clone(&store), env), input, |_| label)?;
        }
        // ---- nodes
        for run in 0..world.nodes {
            let node = self.node(state, run);
            let who = name(run);
            if plant::is(Bug::IncarnationReused) && node.lives < 2 && (node.serving.is_some() || node.dead) {
                self.give(steps, state, run, both(), Input::Restart, |_| {
                    format!("{who} starts again as itself")
                })?;
            }
            if node.dead {
                continue;
            }
            self.slot_steps(state, run, &node, &store, &env, steps)?;
            // ---- its gate
            if !node.gate.is_empty() {
                let issued = store.issued.meets(&self.universe.fence_of(run));
                let under_way =
                    (0..4).filter(|read| store.begun_at(run, ReadFor::Gate(*read)).is_some()).count();
                if world.gate_reads && under_way >= world.overlaps {
                    // As many as this world has.
                } else if world.gate_reads {
                    self.give_if_changed(steps, state, run, &node, Input::GateBegins, "begins a fence read")?;
                } else {
                    if !store.complete(world.store).meets(&self.universe.fence_of(run)) {
                        let input = Input::Barrier { fenced: false };
                        self.give(steps, state, run, both(), input, |_| format!("{who}: barrier passed"))?;
                    }
                    if issued && plant_looks_at_fence() {
                        let input = Input::Barrier { fenced: true };
                        self.give(steps, state, run, both(), input, |_| {
                            format!("{who}: barrier finds the fence")
                        })?;
                    }
                }
            }
            for read in 0..4_u8 {
                let what = ReadFor::Gate(read);
                self.reads(state, run, &node, what, &store, &env, steps, |_, seen| {
                    let fenced = !seen.is_empty();
                    let found = if fenced { "finds the fence" } else { "finds nothing" };
                    vec![(Input::GateEnds { read, fenced }, format!("{who}: fence read {found}"))]
                })?;
            }
            // ---- its room
            self.room_steps(state, run, &node, &store, &env, steps)?;
        }
        Ok(())
    }

    fn give_if_changed(
        &mut self,
        steps: &mut Steps<State>,
        state: &State,
        run: u8,
        _node: &Node,
        input: Input,
        label: &'static str,
    ) -> Result<(), Violation> {
        let (stepped, asks) = self.universe.step(self.world, state.nodes[usize::from(run)], input.clone());
        if stepped == state.nodes[usize::from(run)] && asks.is_empty() {
            return Ok(());
        }
        let both = (
            Store::clone(self.universe.stores.get(state.store)),
            Env::clone(self.universe.envs.get(state.env)),
        );
        self.give(steps, state, run, both, input, |_| format!("{}: {label}", name(run)))
    }

    /// Every way in which a read that is under way may go on.
    #[expect(clippy::too_many_arguments, reason = "the state in its parts, which the callers hold anyway")]
    fn reads(
        &mut self,
        state: &State,
        run: u8,
        node: &Node,
        what: ReadFor,
        store: &Store,
        env: &Env,
        steps: &mut Steps<State>,
        inputs: impl Fn(&Universe, &Bits) -> Vec<(Input, String)>,
    ) -> Result<(), Violation> {
        let Some(at) = store.begun_at(run, what) else { return Ok(()) };
        let table = table_of(&self.universe, node, what);
        for (answered, seen) in store.answers(self.world.store, at, &table) {
            match seen {
                None => {
                    let to = State { store: self.intern_store(answered), ..*state };
                    self.push(steps, to, |_| format!("{}: a first replica answers its read", name(run)));
                }
                Some(seen) => {
                    for (input, label) in inputs(&self.universe, &seen) {
                        self.give(steps, state, run, (answered.clone(), env.clone()), input, |_| label)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn etcd_steps(
        &mut self,
        state: &State,
        store: &Store,
        env: &Env,
        steps: &mut Steps<State>,
    ) -> Result<(), Violation> {
        let world = self.world;
        let stands_still = stands_still(world, env);
        for (at, transaction) in env.requests.iter().enumerate() {
            if stands_still {
                break;
            }
            if world.fresh && transaction.by == world.nodes - 1 && !recovered(env) {
                continue;
            }
            let node = self.node(state, transaction.by);
            let waits = node.requests.iter().position(|request| {
                matches!(request, Request::Cas { expect, new }
                    if *expect == transaction.expect && *new == transaction.new)
            });
            let mut rest = env.clone();
            rest.requests.remove(at);
            let (who, what) = (name(transaction.by), key_text(Some(&transaction.new)));
            if env.key == transaction.expect && !env.frozen {
                self.set_key(&mut rest, transaction.new.clone());
                if let Some(waits) = waits {
                    let input = Input::Ended(waits as u8, slot_owner::Input::Cas(CasOutcome::Won));
                    let label = format!("etcd sets {what}, {who} hears it");
                    self.give(steps, state, transaction.by, (store.clone(), rest.clone()), input, |_| label)?;
                }
                self.cover("etcd: applied, nobody hears it");
                let to = State { env: self.intern_env(rest), ..*state };
                self.push(steps, to, |_| format!("etcd sets {what}, nobody hears it"));
            } else if let Some(waits) = waits {
                let lost = CasOutcome::Lost(env.key.clone());
                let input = Input::Ended(waits as u8, slot_owner::Input::Cas(lost));
                let label = format!("etcd refuses {what}, {who} hears it");
                self.give(steps, state, transaction.by, (store.clone(), rest), input, |_| label)?;
            }
        }
        if world.node_keys == NodeKeys::Lost && (env.restored || !world.lean) {
            for run in 0..world.nodes {
                if env.node_keys >> run & 1 == 1 {
                    let env = Env { node_keys: env.node_keys & !(1 << run), ..env.clone() };
                    let to = State { env: self.intern_env(env), ..*state };
                    self.push(steps, to, |_| format!("the node key of {} is gone (it lives)", name(run)));
                }
            }
        }
        if world.restores && !env.restored {
            let earlier = env.history.len().saturating_sub(1);
            for key in &env.history[..earlier] {
                let env = Env {
                    key: Some(key.clone()),
                    node_keys: (1 << world.nodes) - 1,
                    history: Vec::new(),
                    restored: true,
                    ..env.clone()
                };
                self.cover("etcd restored");
                let to = State { env: self.intern_env(env), ..*state };
                self.push(steps, to, |_| format!("RESTORE of etcd to {}", key_text(Some(key))));
            }
        }
        self.recovery_steps(state, store, env, steps)
    }

    /// `ring recover`, run once after a restore.
    fn recovery_steps(
        &mut self,
        state: &State,
        store: &Store,
        env: &Env,
        steps: &mut Steps<State>,
    ) -> Result<(), Violation> {
        let world = self.world;
        if !world.recovers || !env.restored {
            return Ok(());
        }
        let Some(recovery) = env.recovery.as_deref() else {
            // The second owner: after a lost handoff it is the one whom nobody knows.
            let through = incarnation(1);
            let slots = SlotCount::new(1).expect("one is a power of two");
            let fresh = Recovery {
                machine: recover::Recover::new(slots, Some(through)),
                fences: Vec::new(),
                reads: None,
                done: false,
            };
            let env = Env { recovery: Some(Box::new(fresh)), ..env.clone() };
            self.recover(state, (store.clone(), env), recover::Input::Start, steps, |_| {
                "ring recover begins".to_owned()
            });
            return Ok(());
        };
        for run in &recovery.fences {
            for done in store.completions(world.store, &self.universe.fence_of(*run)) {
                let mut env = env.clone();
                if let Some(recovery) = env.recovery.as_deref_mut() {
                    recovery.fences.retain(|other| other != run);
                }
                let incarnation = incarnation(*run);
                let input = recover::Input::FenceWritten { incarnation, result: Ok(()) };
                let label = format!("ring recover: the fence of {} is complete", name(*run));
                self.recover(state, (done, env), input, steps, |_| label);
            }
        }
        if let Some(key) = &recovery.reads
            && let Some(at) = store.begun_at(RECOVERY, ReadFor::Owners)
        {
            let table = self.universe.table(Table::Owners);
            for (answered, seen) in store.answers(world.store, at, &table) {
                let Some(seen) = seen else { continue };
                let mut env = env.clone();
                if let Some(recovery) = env.recovery.as_deref_mut() {
                    recovery.reads = None;
                }
                let rows = self.universe.owners(&seen);
                let label = format!("ring recover reads the slot's owners: {}", owners_text(&rows));
                let input = recover::Input::SlotRead { slot: SlotId(0), result: Ok((key.clone(), rows)) };
                self.recover(state, (answered, env), input, steps, |_| label);
            }
        }
        Ok(())
    }

    /// Gives `ring recover` an input; what it asks of etcd is answered at once.
    fn recover(
        &mut self,
        state: &State,
        (store, env): (Store, Env),
        input: recover::Input,
        steps: &mut Steps<State>,
        label: impl FnOnce(&Universe) -> String,
    ) {
        let (mut store, mut env) = (store, env);
        let Some(mut recovery) = env.recovery.take() else { return };
        let runs = (0..self.world.nodes - u8::from(self.world.fresh)).map(|run| Node::new(run).peer);
        let runs: Vec<Peer> = runs.collect();
        let mut todo = vec![input];
        while let Some(input) = todo.pop() {
            let mut out = Vec::new();
            recovery.machine.handle(0, input, &mut out);
            for action in out {
                match action {
                    recover::Action::WriteFrozen => {
                        env.frozen = true;
                        todo.push(recover::Input::Frozen(Ok(())));
                    }
                    recover::Action::ReadIncarnations => {
                        todo.push(recover::Input::Incarnations(Ok(runs.clone())))
                    }
                    recover::Action::WriteFence { incarnation } => {
                        let run = run_of(incarnation);
                        store.issued = store.issued.or(&self.universe.fence_of(run));
                        recovery.fences.push(run);
                    }
                    recover::Action::ReadSlot { .. } => {
                        let table = self.universe.table(Table::Owners);
                        store.begin(self.world.store, RECOVERY, ReadFor::Owners, &table);
                        recovery.reads = Some(env.key.clone());
                    }
                    recover::Action::SetSlot { slot, expect, new } => {
                        let outcome = if env.key == expect {
                            env.key = Some(new);
                            CasOutcome::Won
                        } else {
                            CasOutcome::Lost(env.key.clone())
                        };
                        todo.push(recover::Input::SlotSet { slot, outcome });
                    }
                    recover::Action::Lift => {
                        env.frozen = false;
                        todo.push(recover::Input::Lifted(Ok(())));
                    }
                    recover::Action::Done => {
                        self.cover("ring recover is through");
                        recovery.done = true;
                    }
                }
            }
        }
        recovery.fences.sort_unstable();
        env.recovery = Some(recovery);
        let to = State { store: self.intern_store(store), env: self.intern_env(env), ..*state };
        self.push(steps, to, label);
    }

    /// Runs that have not done anything are alike: of those, only the first one may come into play.
    fn may_enter(&self, state: &State, env: &Env, run: u8) -> bool {
        let fresh = |run: u8| {
            let node = self.universe.nodes.get(state.nodes[usize::from(run)]);
            **node == Node::new(run) && env.mail.iter().all(|(to, _)| *to != run)
        };
        let named = |run: u8| {
            let key = env.key.iter().chain(&env.history).any(|key| run_of(key.incarnation) == run);
            key || env.requests.iter().any(|request| run_of(request.new.incarnation) == run)
        };
        let unused = |run: u8| fresh(run) && !named(run);
        if self.world.once && !unused(run) {
            return false;
        }
        if self.world.fresh && run == self.world.nodes - 1 {
            return recovered(env);
        }
        !unused(run) || (0..run).all(|lower| !unused(lower))
    }

    fn slot_steps(
        &mut self,
        state: &State,
        run: u8,
        node: &Node,
        store: &Store,
        env: &Env,
        steps: &mut Steps<State>,
    ) -> Result<(), Violation> {
        let world = self.world;
        let who = name(run);
        let both = || (store.clone(), env.clone());
        let stands_still = stands_still(world, env);
        let epoch = env.key.as_ref().map_or(0, counter);
        let has_key = env.node_keys >> run & 1 == 1;
        let mine = env.key.as_ref().is_some_and(|key| key.incarnation == node.peer.incarnation);
        let first = self.may_enter(state, env, run);
        let takes = world.takes && !(world.lean && !env.restored && env.key.is_some());
        if takes && node.is_idle() && has_key && epoch < world.epochs && !mine && first && !stands_still {
            let input = Input::Take(env.key.clone());
            self.give(steps, state, run, both(), input, |_| format!("{who} is to take the slot"))?;
        }
        // Who only learns that others own the slot does nothing about it.
        if let Some(key) = &env.key
            && node.own.known() != Some(key)
            && (world.watches || mine)
        {
            let input = Input::Slot(slot_owner::Input::Key(Some(key.clone())));
            self.give(steps, state, run, both(), input, |_| {
                format!("{who} sees the key {}", key_text(Some(key)))
            })?;
        }
        let serves = matches!(node.own.standing(), Standing::Serving(_)) && node.draining.is_none();
        // A drain that is called off may be tried again, once.
        let may_drain = !world.calls_off || node.drains < 2;
        if world.handoffs
            && may_drain
            && serves
            && epoch < world.epochs
            && !(world.lean && env.restored)
            && !stands_still
        {
            for to in (0..world.nodes).filter(|to| *to != run) {
                if !self.may_enter(state, env, to) {
                    continue;
                }
                let peer = Node::new(to).peer;
                let input = Input::Slot(slot_owner::Input::HandOff { to: peer });
                self.give(steps, state, run, both(), input, |_| {
                    format!("{who} is to hand the slot to {}", name(to))
                })?;
            }
        }
        if plant::is(Bug::SaidReadBeforeFence)
            && node.is_idle()
            && node.room.is_none()
            && let Some(key) = &env.key
            && !mine
            && epoch < world.epochs
        {
            let input = Input::Prefetch { key: key.clone() };
            self.give(steps, state, run, both(), input, |_| {
                format!("{who} begins to read before it owns the slot")
            })?;
        }
        if node.own.next_deadline().is_some() && (node.draining.is_none() || world.calls_off) {
            self.give(steps, state, run, both(), Input::SlotTick, |_| format!("{who}: time passes"))?;
        }
        for (at, request) in node.requests.iter().enumerate() {
            let number = at as u8;
            match request {
                Request::Fence { incarnation, what } => {
                    for done in store.completions(world.store, what) {
                        let input =
                            slot_owner::Input::FenceWritten { incarnation: *incarnation, result: Ok(()) };
                        let input = Input::Ended(number, input);
                        let of = name(run_of(*incarnation));
                        self.give(steps, state, run, (done, env.clone()), input, |_| {
                            format!("{who}: the fence of {of} is complete")
                        })?;
                    }
                }
                Request::Put { row, what } => {
                    for done in store.completions(world.store, what) {
                        let input = slot_owner::Input::OwnerPut { row: *row, result: Ok(()) };
                        let input = Input::Ended(number, input);
                        self.give(steps, state, run, (done, env.clone()), input, |_| {
                            format!("{who}: its row of owners is complete")
                        })?;
                    }
                }
                Request::ReadOwners => {
                    self.reads(state, run, node, ReadFor::Owners, store, env, steps, |universe, seen| {
                        let rows = universe.owners(seen);
                        let label = format!("{who} reads the slot's owners: {}", owners_text(&rows));
                        vec![(Input::Ended(number, slot_owner::Input::Owners(Ok(rows))), label)]
                    })?;
                }
                Request::ReadOwnFence => {
                    self.reads(state, run, node, ReadFor::OwnFence, store, env, steps, |_, seen| {
                        let fenced = !seen.is_empty();
                        let input = slot_owner::Input::OwnFence(Ok(fenced));
                        vec![(Input::Ended(number, input), format!("{who} reads its own fence: {fenced}"))]
                    })?;
                }
                Request::Cas { new, .. } => {
                    if world.unknown {
                        self.cover("etcd: a transaction of unknown outcome");
                        let input = Input::Ended(number, slot_owner::Input::Cas(CasOutcome::Unknown));
                        let what = key_text(Some(new));
                        self.give(steps, state, run, both(), input, |_| {
                            format!("{who} gives up waiting for {what}")
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    fn room_steps(
        &mut self,
        state: &State,
        run: u8,
        node: &Node,
        store: &Store,
        env: &Env,
        steps: &mut Steps<State>,
    ) -> Result<(), Violation> {
        let world = self.world;
        let who = name(run);
        let both = || (store.clone(), env.clone());
        let admits = node.serving.is_some() && node.draining.is_none();
        let Some(room) = node.room.as_deref() else {
            let again = node.openings <= world.reopens;
            if admits && again && node.start != Start::Never && world.read_open {
                for read_only in [true, false] {
                    let how = if read_only { "for reads" } else { "in full" };
                    let input = Input::Open { read_only };
                    self.give(steps, state, run, both(), input, |_| format!("{who} opens the room {how}"))?;
                }
            }
            return Ok(());
        };
        // ---- what is under way
        let said = matches!(room.reading, Some(crate::node::Reading::Said));
        self.reads(state, run, node, ReadFor::Log, store, env, steps, |universe, seen| {
            if said {
                let values = universe.said(seen).into_iter().map(Some);
                let none = seen.is_empty().then_some(None);
                return values
                    .chain(none)
                    .map(|said| (Input::ReadSaid(said), format!("{who} reads said: {said:?}")))
                    .collect();
            }
            vec![(Input::Read(*seen), format!("{who} reads {}", universe.seen_text(seen)))]
        })?;
        self.reads(state, run, node, ReadFor::Members, store, env, steps, |universe, seen| {
            let member = universe.member(seen);
            vec![(Input::Members(*seen), format!("{who} reads the members: {member}"))]
        })?;
        for which in [log::Which::Record, log::Which::Rows, log::Which::Derived] {
            let Some(what) = &room.writes[which as usize] else { continue };
            for done in store.completions(world.store, what) {
                let input = Input::Wrote { which, outcome: Outcome::Done };
                let text = self.universe.seen_text(what);
                self.give(steps, state, run, (done, env.clone()), input, |_| {
                    format!("{who}: stored {text}")
                })?;
            }
            if world.unknown_writes {
                let input = Input::Wrote { which, outcome: Outcome::Unknown };
                self.give(steps, state, run, both(), input, |_| {
                    format!("{who}: a write of unknown outcome")
                })?;
            }
        }
        if room.log.next_deadline().is_some() {
            self.give(steps, state, run, both(), Input::LogTick, |_| format!("{who}: tries again"))?;
        }
        // ---- what its callers want
        if !admits {
            return Ok(());
        }
        let idle = room.log.is_idle();
        let may_wait = node.gate.len() < world.waiting;
        if world.asks && room.usable && may_wait && (idle || world.asks_always) {
            let said = self.universe.logs.get(state.said).len() as u8;
            self.give(steps, state, run, both(), Input::Ask { said }, |_| {
                format!("{who} is asked for the log")
            })?;
        }
        let open = room.usable && idle && room.log.is_open_in_full();
        if open && node.appended < world.appends && may_wait {
            for kinds in self.batches(room.log.head().0, self.universe.fold(room.entries)) {
                for window in 0..=world.windows {
                    let input = Input::Append { kinds, window };
                    self.give(steps, state, run, both(), input, |_| {
                        let kinds: Vec<Kind> = kinds.into_iter().flatten().collect();
                        format!(
                            "{who} appends {kinds:?}{}",
                            if window > 0 { " in a later window" } else { "" }
                        )
                    })?;
                }
            }
        }
        if open && world.counted && may_wait && room.counted < room.log.head() {
            self.give(steps, state, run, both(), Input::Change, |_| format!("{who}: a counted join"))?;
        }
        if open && world.rests && may_wait && room.log.said().is_some() {
            for stays in [true, false] {
                let then = if stays { "stays open" } else { "closes the room" };
                let input = Input::Rest { stays };
                self.give(steps, state, run, both(), input, |_| {
                    format!("{who} writes where the log ends, {then}")
                })?;
            }
        }
        if room.usable && room.log.is_read_open() {
            let input = Input::Open { read_only: false };
            self.give(steps, state, run, both(), input, |_| format!("{who}: a send: opens in full"))?;
        }
        if node.openings <= world.reopens && !world.goes_on {
            self.give(steps, state, run, both(), Input::Reopen, |_| {
                format!("{who} drops the room and opens it again")
            })?;
        }
        Ok(())
    }

    /// What may be appended to a log of this length by somebody who takes the user for a member or not.
    fn batches(&self, head: u64, member: u8) -> Vec<[Option<Kind>; 2]> {
        let world = self.world;
        if head >= world.head {
            return Vec::new();
        }
        let mut kinds = vec![Kind::Message];
        if world.changes {
            kinds.push(if member == 1 { Kind::Removed } else { Kind::Joined });
        }
        let mut batches: Vec<[Option<Kind>; 2]> = kinds.iter().map(|kind| [Some(*kind), None]).collect();
        if world.batches && head + 2 <= world.head {
            for first in &kinds {
                for second in &kinds {
                    if *first == Kind::Message || *second == Kind::Message {
                        batches.push([Some(*first), Some(*second)]);
                    }
                }
            }
        }
        batches
    }

    fn log_text(&self, log: u32) -> String {
        self.universe.log_text(log)
    }
}

/// Under this number the store knows what `ring recover` reads.
const RECOVERY: u8 = 15;

fn recovered(env: &Env) -> bool {
    env.recovery.as_deref().is_some_and(|recovery| recovery.done)
}

/// The most favourable operator: after a restore nothing changes before `ring recover` is through.
fn stands_still(world: &World, env: &Env) -> bool {
    world.stands_still && env.restored && !recovered(env)
}

fn plant_looks_at_fence() -> bool {
    plant::is(Bug::NoBarrier) || plant::is(Bug::NoBarrierOnAcks) || plant::is(Bug::NoBarrierOnReplies)
}

fn counter(key: &SlotKey) -> u64 {
    key.epoch.0 & 0xffff_ffff
}

fn key_text(key: Option<&SlotKey>) -> String {
    key.map_or_else(
        || "nothing".to_owned(),
        |key| format!("{{{}, {}}}", owner(key.incarnation), counter(key)),
    )
}

fn owner(incarnation: Incarnation) -> char {
    name(run_of(incarnation))
}

fn owners_text(rows: &[banyan_router::slot_key::OwnerRow]) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let closed = if row.closed { " closed" } else { "" };
            format!("{}@{}{closed}", owner(row.tenure.incarnation), row.tenure.epoch)
        })
        .collect();
    format!("[{}]", rows.join(", "))
}

impl Mutation {
    pub fn text(&self) -> String {
        match self {
            Self::Record(record) => {
                let prev = record
                    .prev
                    .map_or_else(|| "-".to_owned(), |id| format!("{}.{}", id.epoch, part(id.part)));
                format!(
                    "record {}.{} {{first {}, prev {prev}}}",
                    record.id.epoch,
                    part(record.id.part),
                    record.first_seq
                )
            }
            Self::Rows { segment, rows } => {
                let seqs: Vec<String> = rows.iter().map(|row| row.seq.to_string()).collect();
                format!("rows {}.{}#{}", segment.epoch, part(segment.part), seqs.join(","))
            }
            Self::Derived(derived) => {
                let role = derived.members.first().map(|row| (row.role, row.changed.0));
                format!("members {role:?}")
            }
            Self::Said(said) => {
                format!("said {}.{} head {}", said.segment.epoch, part(said.segment.part), said.head)
            }
            Self::Fence(run) => format!("fence of {}", name(*run)),
            Self::Owner(tenure) => format!("owner {}@{}", owner(tenure.incarnation), tenure.epoch),
            Self::Closed(tenure) => format!("closed {}@{}", owner(tenure.incarnation), tenure.epoch),
        }
    }
}

/// Openings and rolls, short.
fn part(part: banyan_proto::id::Part) -> String {
    format!("{}{}", part.0 >> 32, "r".repeat((part.0 & 0xffff) as usize))
}

impl Universe {
    pub fn seen_text(&self, seen: &Bits) -> String {
        let texts: Vec<String> = seen.iter().map(|at| self.get(at).text()).collect();
        if texts.is_empty() { "nothing".to_owned() } else { texts.join(" and ") }
    }

    pub fn log_text(&self, log: u32) -> String {
        let events: Vec<String> = self
            .logs
            .get(log)
            .iter()
            .map(|at| {
                let event = self.events.get(u32::from(*at));
                let kind = match event.kind {
                    Kind::Message => "",
                    Kind::Removed => "-",
                    Kind::Joined => "+",
                };
                format!("{kind}{}{}.{}", name(event.run), event.epoch, event.seq)
            })
            .collect();
        format!("[{}]", events.join(" "))
    }
}
