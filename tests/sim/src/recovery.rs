//! An operator who runs `ring recover` after etcd was restored.
//!
//! Does not: decide anything: `router::recover` does. Etcd answers the operator at once or not at all; the store answers as it
//! answers everybody.

use banyan_checker as checker;
use banyan_proto::id::{Incarnation, SlotId};
use banyan_router::SlotCount;
use banyan_router::recover::{Action, Input, Recover};
use banyan_router::slot_key::{Peer, SlotKey};
use banyan_router::slot_owner::{CasOutcome, Failed};
use banyan_storage::Outcome;

use crate::coordination::{Key, Value};
use crate::nodes::{Asked, node_id, row_of};
use crate::schedule::{MS, Time};
use crate::sometimes;
use crate::store::{Answer, Change, Question, Reading};
use crate::world::{Caller, Event, World};

/// Stands for the operator among the callers of the store.
pub const OPERATOR: u8 = u8::MAX;

/// What the operator asked the store for.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Incarnations,
    Fence(Incarnation),
    Slot(u16),
}

#[derive(Debug)]
pub struct Recovery {
    machine: Recover,
    /// Keys as they were read, until the rows are there too.
    keys: Vec<Option<SlotKey>>,
    ticks_at: Time,
}

impl World {
    pub fn recover(&mut self) {
        self.recorder.note(|| "an operator runs ring recover".to_owned());
        let slots = SlotCount::new(self.plan.slots).unwrap_or_default();
        let keys = vec![None; self.plan.slots as usize];
        self.recovery = Some(Recovery { machine: Recover::new(slots, None), keys, ticks_at: Time::MAX });
        self.recovery_input(Input::Start);
    }

    pub fn recovery_ticks(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            recovery.ticks_at = Time::MAX;
            self.recovery_input(Input::Tick);
        }
    }

    fn recovery_input(&mut self, input: Input) {
        let now = self.now() / MS;
        self.input(0x300);
        let Some(recovery) = &mut self.recovery else { return };
        let mut actions = Vec::new();
        recovery.machine.handle(now, input, &mut actions);
        for action in actions {
            self.recovery_action(action);
        }
        let Some(recovery) = &mut self.recovery else { return };
        if let Some(at) = recovery.machine.next_deadline() {
            let at = (at * MS).max(self.schedule.now() + MS);
            if at < recovery.ticks_at {
                recovery.ticks_at = at;
                self.schedule.at(at, Event::RecoveryTicks);
            }
        }
    }

    fn ask(&mut self, step: Step, question: Question) {
        let now = self.now();
        self.store.read(now, Caller { node: OPERATOR, run: 0, asked: Asked::Recover(step) }, question);
        self.store_planned();
    }

    fn recovery_action(&mut self, action: Action) {
        let down = self.coordination.down;
        match action {
            Action::WriteFrozen => {
                if !down {
                    self.set_key(vec![(Key::Frozen, Some(Value::Frozen))]);
                }
                self.recovery_input(Input::Frozen(if down { Err(Failed) } else { Ok(()) }));
            }
            Action::ReadIncarnations => self.ask(Step::Incarnations, Question::Incarnations),
            Action::WriteFence { incarnation } => {
                let now = self.now();
                let caller =
                    Caller { node: OPERATOR, run: 0, asked: Asked::Recover(Step::Fence(incarnation)) };
                self.store.write(now, caller, Change::Fence(incarnation));
                self.store_planned();
            }
            Action::ReadSlot { slot } => {
                if down {
                    return self.recovery_input(Input::SlotRead { slot, result: Err(Failed) });
                }
                let key = match self.coordination.etcd.get(&Key::Slot(slot.0)) {
                    Some(Value::Slot(key)) => Some(key.clone()),
                    _ => None,
                };
                if let Some(recovery) = &mut self.recovery {
                    recovery.keys[usize::from(slot.0)] = key;
                }
                self.ask(Step::Slot(slot.0), Question::SlotOwners(slot));
            }
            Action::SetSlot { slot, expect, new } => {
                let outcome = if down {
                    CasOutcome::Unknown
                } else {
                    let there = match self.coordination.etcd.get(&Key::Slot(slot.0)) {
                        Some(Value::Slot(key)) => Some(key.clone()),
                        _ => None,
                    };
                    if there == expect {
                        let (epoch, incarnation) = (new.epoch, new.incarnation);
                        self.record_slot(slot.0, epoch, incarnation.0, checker::How::Recover);
                        self.set_key(vec![(Key::Slot(slot.0), Some(Value::Slot(new)))]);
                        CasOutcome::Won
                    } else {
                        CasOutcome::Lost(there)
                    }
                };
                self.recovery_input(Input::SlotSet { slot, outcome });
            }
            Action::Lift => {
                if !down {
                    self.set_key(vec![(Key::Frozen, None)]);
                }
                self.recovery_input(Input::Lifted(if down { Err(Failed) } else { Ok(()) }));
            }
            Action::Done => {
                sometimes!(self.coverage, Recovered);
                self.recorder.note(|| "ring recover is done".to_owned());
                self.recovery = None;
            }
        }
    }

    fn set_key(&mut self, put: Vec<(Key, Option<Value>)>) {
        self.coordination.etcd.transact(&[], put, None);
        self.tell_watches();
    }

    pub fn recovery_told(&mut self, step: Step, answer: Answer) {
        let input = match (step, answer) {
            (Step::Incarnations, Answer::Read(Reading::Incarnations(runs))) => {
                let peer = |(incarnation, node): (Incarnation, String)| Peer {
                    node: node_id(node.trim_start_matches('n').parse().unwrap_or_default()),
                    incarnation,
                };
                Input::Incarnations(Ok(runs.into_iter().map(peer).collect()))
            }
            (Step::Incarnations, _) => Input::Incarnations(Err(Failed)),
            (Step::Fence(incarnation), Answer::Wrote(Outcome::Done)) => {
                self.fence_written(incarnation);
                Input::FenceWritten { incarnation, result: Ok(()) }
            }
            (Step::Fence(incarnation), _) => Input::FenceWritten { incarnation, result: Err(Failed) },
            (Step::Slot(slot), Answer::Read(Reading::SlotOwners(owners))) => {
                let key =
                    self.recovery.as_ref().and_then(|recovery| recovery.keys[usize::from(slot)].clone());
                let rows = owners.into_iter().map(row_of).collect();
                Input::SlotRead { slot: SlotId(slot), result: Ok((key, rows)) }
            }
            (Step::Slot(slot), _) => Input::SlotRead { slot: SlotId(slot), result: Err(Failed) },
        };
        self.recovery_input(input);
    }
}
