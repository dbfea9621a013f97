//! What one slot does on one node run: inputs and the actions that follow.

use super::*;
use crate::slot_key::NodeId;

fn peer(name: &str, incarnation: u128) -> Peer {
    Peer { node: NodeId::parse(name).unwrap(), incarnation: Incarnation(incarnation) }
}

fn a() -> Peer {
    peer("a", 1)
}

fn b() -> Peer {
    peer("b", 2)
}

fn c() -> Peer {
    peer("c", 3)
}

fn tenure(peer: &Peer, epoch: u64) -> Tenure {
    Tenure { epoch: Epoch(epoch), incarnation: peer.incarnation }
}

fn key(peer: &Peer, epoch: u64, prev: Option<Tenure>) -> SlotKey {
    SlotKey { owner: peer.node.clone(), incarnation: peer.incarnation, epoch: Epoch(epoch), prev }
}

fn row(peer: &Peer, epoch: u64, closed: bool) -> OwnerRow {
    OwnerRow { tenure: tenure(peer, epoch), closed }
}

/// The one place that touches the API.
struct Slot {
    machine: Ownership,
    now: u64,
}

impl Slot {
    fn new(me: Peer) -> Self {
        Self { machine: Ownership::new(me, Limits::default()), now: 1_000 }
    }

    #[track_caller]
    fn check(&mut self, input: Input, want: &[Action]) -> &mut Self {
        let mut out = Vec::new();
        self.machine.handle(self.now, input, &mut out);
        assert_eq!(out, want, "{:?}", self.machine);
        self
    }

    /// Registers alone: `rows` are what else is in the store.
    #[track_caller]
    fn registers(&mut self, me: &Peer, epoch: u64, rows: Vec<OwnerRow>, want: &[Action]) -> &mut Self {
        let own = row(me, epoch, false);
        self.check(Input::OwnerPut { row: own, result: Ok(()) }, &[Action::ReadOwners]);
        let all = rows.into_iter().chain([own]).collect();
        self.check(Input::Owners(Ok(all)), want)
    }

    /// It is told to take what `old` says is another's, and that owner is gone: it sends the fence.
    #[track_caller]
    fn fences_the_owner(&mut self, old: SlotKey) -> &mut Self {
        let incarnation = old.incarnation;
        self.check(Input::Key(Some(old)), &[])
            .check(Input::Take, &[Action::ReadNode { incarnation }])
            .check(Input::Node { incarnation, gone: Ok(true) }, &[Action::WriteFence { incarnation }])
    }

    /// A slot that nobody has owned, taken by `me` at epoch 1.
    fn serving(me: &Peer) -> Self {
        let mut slot = Self::new(me.clone());
        let first = key(me, 1, None);
        slot.check(Input::Take, &[Action::ReadKey])
            .check(Input::KeyRead(Ok(None)), &[Action::Cas { expect: None, new: first }])
            .check(Input::Cas(CasOutcome::Won), &[Action::PutOwner { row: row(me, 1, false), closes: None }])
            .registers(me, 1, vec![], &[serve(me, 1)]);
        slot
    }

    /// A serves at 1, has drained for B and sent the transaction.
    fn handing_over() -> Self {
        let mut slot = Self::serving(&a());
        let old = key(&a(), 1, None);
        let new = key(&b(), 2, Some(tenure(&a(), 1)));
        slot.check(Input::HandOff { to: b() }, &[Action::Drain { drain: 1 }]).check(
            Input::Drained { drain: 1 },
            &[
                Action::SendState { to: b(), epoch: Epoch(2), complete: true },
                Action::Cas { expect: Some(old), new },
            ],
        );
        slot
    }
}

fn serve(peer: &Peer, epoch: u64) -> Action {
    Action::Serve { tenure: tenure(peer, epoch), opening: Opening::Full }
}

fn close(peer: &Peer, epoch: u64) -> Action {
    Action::PutOwner { row: row(peer, epoch, true), closes: None }
}

#[test]
fn a_takeover_fences_an_owner_that_is_gone_before_it_claims() {
    let old = key(&a(), 4, None);
    let new = key(&b(), 5, Some(tenure(&a(), 4)));
    let mut slot = Slot::new(b());
    slot.fences_the_owner(old.clone())
        .check(
            Input::FenceWritten { incarnation: a().incarnation, result: Ok(()) },
            &[Action::Cas { expect: Some(old), new }],
        )
        .check(
            Input::Cas(CasOutcome::Won),
            &[Action::PutOwner { row: row(&b(), 5, false), closes: Some(tenure(&a(), 4)) }],
        )
        .registers(&b(), 5, vec![row(&a(), 4, true)], &[serve(&b(), 5)]);
    assert_eq!(slot.machine.standing(), Standing::Serving(tenure(&b(), 5)));
}

#[test]
fn nobody_is_fenced_whose_node_key_is_there_or_may_be() {
    for gone in [Ok(false), Err(Failed)] {
        let mut slot = Slot::new(b());
        slot.check(Input::Key(Some(key(&a(), 4, None))), &[])
            .check(Input::Take, &[Action::ReadNode { incarnation: a().incarnation }])
            .check(Input::Node { incarnation: a().incarnation, gone }, &[]);
        assert_eq!(slot.machine.standing(), Standing::Idle);
    }
}

#[test]
fn a_fence_that_may_not_be_complete_is_no_ground_for_a_claim() {
    let mut slot = Slot::new(b());
    slot.fences_the_owner(key(&a(), 4, None))
        .check(Input::FenceWritten { incarnation: a().incarnation, result: Err(Failed) }, &[]);
    assert_eq!(slot.machine.standing(), Standing::Idle);
}

#[test]
fn a_lost_claim_begins_again_with_the_new_owner() {
    let mut slot = Slot::new(c());
    slot.fences_the_owner(key(&a(), 4, None));
    let mut out = Vec::new();
    slot.machine.handle(0, Input::FenceWritten { incarnation: a().incarnation, result: Ok(()) }, &mut out);
    let current = key(&b(), 5, Some(tenure(&a(), 4)));
    slot.check(
        Input::Cas(CasOutcome::Lost(Some(current))),
        &[Action::ReadNode { incarnation: b().incarnation }],
    );
}

#[test]
fn a_claim_of_unknown_outcome_that_applied_is_opened_in_full() {
    let old = key(&a(), 4, None);
    let new = key(&b(), 5, Some(tenure(&a(), 4)));
    let mut slot = Slot::new(b());
    slot.fences_the_owner(old.clone())
        .check(
            Input::FenceWritten { incarnation: a().incarnation, result: Ok(()) },
            &[Action::Cas { expect: Some(old), new: new.clone() }],
        )
        .check(Input::Cas(CasOutcome::Unknown), &[])
        .check(
            Input::Key(Some(new)),
            &[Action::PutOwner { row: row(&b(), 5, false), closes: Some(tenure(&a(), 4)) }],
        )
        .registers(&b(), 5, vec![row(&a(), 4, true)], &[serve(&b(), 5)]);
}

#[test]
fn a_handoff_that_won_releases_and_closes_the_old_row() {
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Won), &[Action::Release { to: Some(tenure(&b(), 2)) }, close(&a(), 1)])
        .check(Input::OwnerPut { row: row(&a(), 1, true), result: Err(Failed) }, &[]);
    assert_eq!(slot.machine.next_deadline(), Some(1_100));
    slot.now = 1_100;
    slot.check(Input::Tick, &[close(&a(), 1)])
        .check(Input::OwnerPut { row: row(&a(), 1, true), result: Ok(()) }, &[]);
    assert_eq!((slot.machine.next_deadline(), slot.machine.standing()), (None, Standing::Idle));
}

#[test]
fn after_an_unknown_handoff_only_a_swap_of_its_own_lets_it_speak() {
    let old = key(&a(), 1, None);
    let own = key(&a(), 2, Some(tenure(&a(), 1)));
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Unknown), &[Action::ReadKey])
        .check(
            Input::KeyRead(Ok(Some(old.clone()))),
            &[Action::Cas { expect: Some(old.clone()), new: own.clone() }],
        )
        .check(Input::Cas(CasOutcome::Unknown), &[]);
    slot.now += 100;
    slot.check(Input::Tick, &[Action::ReadKey]).check(Input::KeyRead(Err(Failed)), &[]);
    slot.now += 100;
    slot.check(Input::Tick, &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(old.clone()))), &[Action::Cas { expect: Some(old), new: own }])
        .check(
            Input::Cas(CasOutcome::Won),
            &[Action::PutOwner { row: row(&a(), 2, false), closes: Some(tenure(&a(), 1)) }],
        )
        .registers(&a(), 2, vec![row(&a(), 1, true)], &[Action::Resume { tenure: tenure(&a(), 2) }]);
}

#[test]
fn an_unknown_handoff_that_applied_is_left_alone() {
    let new = key(&b(), 2, Some(tenure(&a(), 1)));
    let release = [Action::Release { to: Some(tenure(&b(), 2)) }, close(&a(), 1)];
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Unknown), &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(new.clone()))), &release);
    // Or between the read and our own.
    let old = key(&a(), 1, None);
    let own = key(&a(), 2, Some(tenure(&a(), 1)));
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Unknown), &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(old.clone()))), &[Action::Cas { expect: Some(old), new: own }])
        .check(Input::Cas(CasOutcome::Lost(Some(new))), &release);
}

/// The slot moved twice before an answer came: the watch has shown that it names us, and will not show it again.
#[test]
fn an_answer_that_a_watch_has_overtaken_is_old_news() {
    let taken = key(&c(), 2, Some(tenure(&a(), 1)));
    let given = key(&b(), 3, Some(tenure(&c(), 2)));
    let registers = Action::PutOwner { row: row(&b(), 3, false), closes: Some(tenure(&c(), 2)) };
    // Lost to C, which handed it on at once.
    let mut claiming = Slot::new(b());
    let old = key(&a(), 1, None);
    let new = key(&b(), 2, Some(tenure(&a(), 1)));
    claiming.fences_the_owner(old.clone()).check(
        Input::FenceWritten { incarnation: a().incarnation, result: Ok(()) },
        &[Action::Cas { expect: Some(old), new }],
    );
    // Read before C handed it on.
    let mut reading = Slot::new(b());
    reading.check(Input::Take, &[Action::ReadKey]);
    let answers =
        [Input::Cas(CasOutcome::Lost(Some(taken.clone()))), Input::KeyRead(Ok(Some(taken.clone())))];
    for (slot, answer) in [&mut claiming, &mut reading].into_iter().zip(answers) {
        slot.check(Input::Key(Some(taken.clone())), &[])
            .check(Input::Key(Some(given.clone())), &[])
            .check(answer, std::slice::from_ref(&registers));
    }
}

#[test]
fn a_slot_that_is_handed_back_before_its_handoff_is_answered_is_not_forgotten() {
    let theirs = key(&b(), 2, Some(tenure(&a(), 1)));
    let back = key(&a(), 3, Some(tenure(&b(), 2)));
    let registers = Action::PutOwner { row: row(&a(), 3, false), closes: Some(tenure(&b(), 2)) };
    let mut won = Slot::handing_over();
    won.check(Input::Key(Some(theirs.clone())), &[]).check(Input::Key(Some(back.clone())), &[]).check(
        Input::Cas(CasOutcome::Won),
        &[Action::Release { to: Some(tenure(&b(), 2)) }, close(&a(), 1), registers.clone()],
    );
    // Unknown, applied late, and seen only by the swap that was to settle it.
    let old = key(&a(), 1, None);
    let own = key(&a(), 2, Some(tenure(&a(), 1)));
    let mut settling = Slot::handing_over();
    settling
        .check(Input::Cas(CasOutcome::Unknown), &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(old.clone()))), &[Action::Cas { expect: Some(old), new: own }])
        .check(Input::Key(Some(theirs.clone())), &[])
        .check(Input::Key(Some(back)), &[])
        .check(
            Input::Cas(CasOutcome::Lost(Some(theirs))),
            &[Action::Release { to: Some(tenure(&a(), 3)) }, registers],
        );
}

#[test]
fn an_own_swap_that_applied_unheard_is_opened_in_full() {
    let old = key(&a(), 1, None);
    let own = key(&a(), 2, Some(tenure(&a(), 1)));
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Unknown), &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(old.clone()))), &[Action::Cas { expect: Some(old), new: own.clone() }])
        .check(Input::Cas(CasOutcome::Unknown), &[]);
    slot.now += 100;
    slot.check(Input::Tick, &[Action::ReadKey])
        .check(
            Input::KeyRead(Ok(Some(own))),
            &[
                Action::Release { to: Some(tenure(&a(), 2)) },
                Action::PutOwner { row: row(&a(), 2, false), closes: Some(tenure(&a(), 1)) },
            ],
        )
        .registers(&a(), 2, vec![row(&a(), 1, true)], &[serve(&a(), 2)]);
}

#[test]
fn a_handoff_refused_while_frozen_never_resumes_at_its_epoch() {
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Lost(Some(key(&a(), 1, None)))), &[]);
    assert_eq!(slot.machine.standing(), Standing::Changing);
    slot.now += 100;
    slot.check(Input::Tick, &[Action::ReadKey]);
}

#[test]
fn a_drain_that_takes_too_long_is_called_off_and_its_end_does_not_count_for_the_next() {
    let mut slot = Slot::serving(&a());
    slot.check(Input::HandOff { to: b() }, &[Action::Drain { drain: 1 }]);
    slot.now += 2_000;
    slot.check(Input::Tick, &[Action::Resume { tenure: tenure(&a(), 1) }])
        .check(Input::HandOff { to: b() }, &[Action::Drain { drain: 2 }])
        .check(Input::Drained { drain: 1 }, &[])
        .check(Input::Take, &[Action::Resume { tenure: tenure(&a(), 1) }])
        .check(Input::Drained { drain: 2 }, &[]);
    assert_eq!(slot.machine.standing(), Standing::Serving(tenure(&a(), 1)));
}

/// B, to which A hands over: registered at epoch 2.
fn receiving(passed: &[(u64, bool)]) -> (Slot, Vec<Action>) {
    let mut slot = Slot::new(b());
    for &(epoch, complete) in passed {
        slot.check(Input::StatePassed { epoch: Epoch(epoch), complete }, &[]);
    }
    slot.check(
        Input::Key(Some(key(&b(), 2, Some(tenure(&a(), 1))))),
        &[Action::PutOwner { row: row(&b(), 2, false), closes: Some(tenure(&a(), 1)) }],
    )
    .check(Input::OwnerPut { row: row(&b(), 2, false), result: Ok(()) }, &[Action::ReadOwners]);
    let mut out = Vec::new();
    let rows = vec![row(&a(), 1, true), row(&b(), 2, false)];
    slot.machine.handle(slot.now, Input::Owners(Ok(rows)), &mut out);
    (slot, out)
}

#[test]
fn passed_state_is_used_under_the_epoch_that_it_was_made_for() {
    let used = Action::Serve { tenure: tenure(&b(), 2), opening: Opening::HandedOver { state: Epoch(2) } };
    assert_eq!(receiving(&[(2, true)]).1, std::slice::from_ref(&used));
    // State of another attempt, or not final: not used, waited for, then opened in full.
    for passed in [&[][..], &[(1, true)], &[(3, true)], &[(2, false)]] {
        let (mut slot, out) = receiving(passed);
        assert_eq!(out, []);
        assert_eq!(slot.machine.next_deadline(), Some(slot.now + 50));
        slot.now += 50;
        slot.check(Input::Tick, &[serve(&b(), 2)]);
        assert_eq!(slot.machine.next_deadline(), None);
    }
    // It comes in time.
    let (mut slot, _) = receiving(&[]);
    slot.check(Input::StatePassed { epoch: Epoch(2), complete: true }, &[used]);
}

#[test]
fn an_open_row_of_another_run_below_is_fenced_and_then_all_is_opened_in_full() {
    let mut slot = Slot::new(b());
    slot.check(Input::StatePassed { epoch: Epoch(9), complete: true }, &[])
        .check(
            Input::Key(Some(key(&b(), 9, Some(tenure(&a(), 8))))),
            &[Action::PutOwner { row: row(&b(), 9, false), closes: Some(tenure(&a(), 8)) }],
        )
        .registers(
            &b(),
            9,
            vec![row(&a(), 8, true), row(&c(), 6, false)],
            &[Action::WriteFence { incarnation: c().incarnation }],
        )
        .check(Input::FenceWritten { incarnation: c().incarnation, result: Err(Failed) }, &[]);
    slot.now += 100;
    slot.check(Input::Tick, &[Action::WriteFence { incarnation: c().incarnation }])
        .check(Input::FenceWritten { incarnation: c().incarnation, result: Ok(()) }, &[serve(&b(), 9)]);
}

#[test]
fn another_row_at_the_epoch_or_above_means_dead_or_restored() {
    for other in [row(&c(), 2, false), row(&c(), 2, true), row(&c(), 7, false)] {
        for fenced in [true, false] {
            let mut slot = Slot::new(b());
            slot.check(
                Input::Key(Some(key(&b(), 2, Some(tenure(&a(), 1))))),
                &[Action::PutOwner { row: row(&b(), 2, false), closes: Some(tenure(&a(), 1)) }],
            )
            .registers(&b(), 2, vec![other], &[Action::ReadOwnFence]);
            let (want, standing) = if fenced {
                (Action::Dead, Standing::Dead)
            } else {
                (Action::Freeze { why: Why::OtherOwner(other) }, Standing::Frozen)
            };
            slot.check(Input::OwnFence(Ok(fenced)), &[want]);
            assert_eq!(slot.machine.standing(), standing);
            slot.check(Input::Take, &[]);
        }
    }
}

#[test]
fn a_key_that_was_set_back_to_us_is_won_again_or_freezes() {
    // A handed over to B at 2; etcd is restored and names A at 1 again.
    let mut slot = Slot::handing_over();
    let mut out = Vec::new();
    slot.machine.handle(0, Input::Cas(CasOutcome::Won), &mut out);
    slot.check(Input::OwnerPut { row: row(&a(), 1, true), result: Ok(()) }, &[]);
    let old = key(&a(), 1, None);
    let own = key(&a(), 2, Some(tenure(&a(), 1)));
    slot.check(Input::Key(Some(old.clone())), &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(old.clone()))), &[Action::Cas { expect: Some(old), new: own }])
        .check(
            Input::Cas(CasOutcome::Won),
            &[Action::PutOwner { row: row(&a(), 2, false), closes: Some(tenure(&a(), 1)) }],
        )
        .registers(&a(), 2, vec![row(&b(), 2, false)], &[Action::ReadOwnFence])
        .check(Input::OwnFence(Ok(false)), &[Action::Freeze { why: Why::OtherOwner(row(&b(), 2, false)) }]);

    // B, which served 2, reads that the key is at 1.
    let mut slot = Slot::new(b());
    slot.check(
        Input::Key(Some(key(&b(), 2, Some(tenure(&a(), 1))))),
        &[Action::PutOwner { row: row(&b(), 2, false), closes: Some(tenure(&a(), 1)) }],
    );
    slot.registers(&b(), 2, vec![], &[]);
    slot.now += 50;
    slot.check(Input::Tick, &[serve(&b(), 2)])
        .check(Input::HandOff { to: c() }, &[Action::Drain { drain: 1 }]);
    out.clear();
    slot.machine.handle(slot.now, Input::Drained { drain: 1 }, &mut out);
    slot.check(
        Input::Cas(CasOutcome::Lost(Some(key(&a(), 1, None)))),
        &[Action::Release { to: None }, Action::Freeze { why: Why::SetBack { served: Epoch(2) } }],
    );
}

#[test]
fn an_owner_that_was_moved_releases_and_a_late_watch_moves_nothing() {
    let mut slot = Slot::serving(&a());
    slot.check(Input::Key(None), &[])
        .check(Input::Key(Some(key(&a(), 1, None))), &[])
        .check(
            Input::Key(Some(key(&c(), 2, Some(tenure(&a(), 1))))),
            &[Action::Release { to: Some(tenure(&c(), 2)) }],
        )
        // An epoch that it has had: looked at, and found to be old news.
        .check(Input::Key(Some(key(&a(), 1, None))), &[Action::ReadKey])
        .check(Input::KeyRead(Ok(Some(key(&c(), 2, Some(tenure(&a(), 1)))))), &[]);
    assert_eq!(slot.machine.standing(), Standing::Idle);
}

#[test]
fn a_fenced_run_answers_to_nothing() {
    let mut slot = Slot::serving(&a());
    slot.check(Input::Fenced, &[])
        .check(Input::HandOff { to: b() }, &[])
        .check(Input::Key(Some(key(&a(), 9, None))), &[])
        .check(Input::Tick, &[]);
    assert_eq!(slot.machine.standing(), Standing::Dead);
}

#[test]
fn tick_at_the_deadline_moves_the_deadline() {
    let deadline_moves = |slot: &mut Slot| {
        let deadline = slot.machine.next_deadline().unwrap();
        slot.now = deadline;
        slot.machine.handle(deadline, Input::Tick, &mut Vec::new());
        assert!(slot.machine.next_deadline().is_none_or(|next| next > deadline), "{:?}", slot.machine);
    };
    // Draining.
    let mut slot = Slot::serving(&a());
    slot.check(Input::HandOff { to: b() }, &[Action::Drain { drain: 1 }]);
    deadline_moves(&mut slot);
    // Registration that failed.
    let mut slot = Slot::new(a());
    slot.check(
        Input::Key(Some(key(&a(), 3, None))),
        &[Action::PutOwner { row: row(&a(), 3, false), closes: None }],
    )
    .check(Input::OwnerPut { row: row(&a(), 3, false), result: Err(Failed) }, &[]);
    deadline_moves(&mut slot);
    // Waiting for state.
    deadline_moves(&mut receiving(&[]).0);
    // Settling.
    let mut slot = Slot::handing_over();
    slot.check(Input::Cas(CasOutcome::Unknown), &[Action::ReadKey]).check(Input::KeyRead(Err(Failed)), &[]);
    deadline_moves(&mut slot);
}

#[test]
fn it_is_small() {
    assert!(size_of::<Ownership>() <= 512, "{}", size_of::<Ownership>());
}
