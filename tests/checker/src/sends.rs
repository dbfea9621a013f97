//! What became of each client message, once the whole run is known: I1, I6, I7, I8, I9.

use crate::check::Rules;
use crate::found::{Found, NONE, STORE, Slice};
use crate::history::{Kind, What};
use crate::id::{Room, Seq, Time};
use crate::pass::{Fate, Intent, Pass, Try};
use crate::report::Promise;
use crate::store::Row;
use crate::world::{Map, World};

/// More tries than this are not told one by one.
const TOLD_TRIES: usize = 8;

pub(crate) fn judge(world: &World<'_>, rules: &Rules, pass: &Pass<'_>, found: &mut Found<'_>) {
    let stored = match_rows(world, pass, found);
    let mut acked: Map<(Room, Seq), u32> = Map::default();
    let mut rows = Vec::new();
    for (index, intent) in (0u32..).zip(&pass.intents) {
        rows.clear();
        stored.of(index, &mut rows);
        let case = Case { world, rules, pass, intent, rows: &rows };
        case.count(found);
        case.acks(found, index, &mut acked);
        case.real_time(found);
        case.dedupe(found);
        case.phantom(found);
    }
    judge_ends(world, pass, found);
}

/// I1: no head was told beyond the end of the log.
fn judge_ends(world: &World<'_>, pass: &Pass<'_>, found: &mut Found<'_>) {
    for room in world.rooms() {
        let Some(state) = pass.room(room.stored.room) else { continue };
        if state.told > Seq(0) {
            found.checked(Promise::I1);
        }
        if state.told > room.last {
            found.broken(Promise::I1, state.told_by, |slice| {
                slice.say(format!(
                    "{}: seq {} was told, and the log ends at {}",
                    slice.room(room.stored.room),
                    state.told,
                    room.last
                ));
                slice.with_owners(Some(room.stored.slot));
            });
        }
    }
}

/// The rows of each intent; nearly always one.
struct Stored<'a> {
    first: Vec<Option<&'a Row>>,
    /// Further ones, by intent and seq.
    more: Vec<(u32, &'a Row)>,
}

impl<'a> Stored<'a> {
    fn of(&self, intent: u32, rows: &mut Vec<&'a Row>) {
        rows.extend(self.first[intent as usize]);
        let from = self.more.partition_point(|(of, _)| *of < intent);
        rows.extend(self.more[from..].iter().take_while(|(of, _)| *of == intent).map(|(_, row)| *row));
    }
}

fn match_rows<'a>(world: &World<'a>, pass: &Pass<'_>, found: &mut Found<'_>) -> Stored<'a> {
    let mut stored = Stored { first: vec![None; pass.intents.len()], more: Vec::new() };
    for room in world.rooms() {
        let id = room.stored.room;
        for row in room.stored.rows.iter().filter(|row| row.event.kind == Kind::Message) {
            found.checked(Promise::I8);
            let sent = row.event.message.and_then(|message| pass.intent(id, row.event.sender, message));
            let Some(sent) = sent else {
                let told = pass.room(id).and_then(|state| state.first_told(row.event.seq)).unwrap_or(STORE);
                found.broken(Promise::I8, told, |slice| {
                    let sender = slice.user(row.event.sender);
                    slice.say(format!(
                        "{}: seq {} was never sent by {sender}",
                        slice.room(id),
                        row.event.seq
                    ));
                    slice.row(id, row);
                });
                continue;
            };
            match &mut stored.first[sent as usize] {
                none @ None => *none = Some(row),
                Some(_) => stored.more.push((sent, row)),
            }
        }
    }
    stored.more.sort_by_key(|(intent, row)| (*intent, row.event.seq));
    stored
}

/// One client message and all that is known of it.
struct Case<'c, 'a> {
    world: &'c World<'a>,
    rules: &'c Rules,
    pass: &'c Pass<'c>,
    intent: &'c Intent,
    rows: &'c [&'a Row],
}

impl Case<'_, '_> {
    fn tries(&self) -> impl Iterator<Item = &Try> {
        self.pass.tries_of(self.intent)
    }

    fn at(&self, record: u32) -> Time {
        self.world.history.records[record as usize].at
    }

    fn room(&self) -> Room {
        self.intent.room
    }

    /// The record by which a client could know that this seq is taken.
    fn shown(&self, seq: Seq) -> u32 {
        self.pass.room(self.room()).and_then(|state| state.first_told(seq)).unwrap_or(STORE)
    }

    fn tell(&self, slice: &mut Slice<'_>) {
        for of in self.tries().take(TOLD_TRIES) {
            slice.record(of.record);
            slice.record(of.reply);
        }
        for row in self.rows.iter().take(TOLD_TRIES) {
            slice.row(self.room(), row);
        }
        slice.with_owners(self.world.slot(self.room()));
    }

    fn name(&self, slice: &Slice<'_>) -> String {
        let names = &self.world.history.names;
        format!(
            "{}: {} of {}",
            slice.room(self.room()),
            names.message_text(self.intent.message),
            slice.user(self.intent.sender)
        )
    }

    fn count(&self, found: &mut Found<'_>) {
        let coverage = &mut found.coverage;
        coverage.sends += 1;
        coverage.tried_again += u64::from(self.intent.first != self.intent.last);
        let mut acked = false;
        for of in self.tries() {
            coverage.tries += 1;
            acked |= matches!(of.fate, Fate::Acked(_));
            coverage.indefinite += u64::from(of.fate == Fate::Unknown);
            coverage.duplicates += u64::from(of.duplicate);
        }
        coverage.acked += u64::from(acked);
    }

    /// I1, I9, and I2 as far as acks show it.
    fn acks(&self, found: &mut Found<'_>, index: u32, taken: &mut Map<(Room, Seq), u32>) {
        for of in self.tries() {
            let Fate::Acked(seq) = of.fate else { continue };
            found.checked(Promise::I2);
            let other = *taken.entry((self.room(), seq)).or_insert(index);
            if other != index {
                let other = &self.pass.intents[other as usize];
                found.broken(Promise::I2, of.reply, |slice| {
                    let names = &self.world.history.names;
                    slice.say(format!(
                        "{} is acked as seq {seq}, and so is {} of {}",
                        self.name(slice),
                        names.message_text(other.message),
                        slice.user(other.sender)
                    ));
                    slice.record(of.record);
                    let acks = self.pass.tries_of(other).filter(|of| of.fate == Fate::Acked(seq));
                    for of in acks.take(1) {
                        slice.record(of.record);
                        slice.record(of.reply);
                    }
                });
            }
            let Some(room) = self.world.room(self.room()) else { continue };
            if seq <= room.stored.floor && seq > Seq(0) {
                continue;
            }
            found.checked(Promise::I1);
            let killed = self.world.last_loss().is_some_and(|at| at >= self.at(of.reply));
            if killed {
                found.checked(Promise::I9);
            }
            let row = room.row(seq);
            let is_there = row.is_some_and(|row| {
                row.event.message == Some(self.intent.message)
                    && row.event.sender == self.intent.sender
                    && row.event.content == of.content
            });
            if is_there {
                self.judge_time(found, of, row);
                continue;
            }
            let tell = |slice: &mut Slice<'_>| {
                slice.say(match row {
                    None => format!("{} was acked as seq {seq} and is not in the log", self.name(slice)),
                    Some(_) => {
                        format!("{} was acked as seq {seq}, where something else stands", self.name(slice))
                    }
                });
                slice.record(of.record);
                row.into_iter().for_each(|row| slice.row(self.room(), row));
                let mine = |row: &&Row| {
                    row.event.message == Some(self.intent.message) && row.event.sender == self.intent.sender
                };
                self.rows.iter().for_each(|row| slice.row(self.room(), row));
                for void in room.stored.void.iter().filter(mine).take(2) {
                    slice.fact("off the chain, void:");
                    slice.row(self.room(), void);
                }
                if row.is_none() {
                    slice.fact(format!("{}: the log ends at {}", slice.room(self.room()), room.last));
                }
                slice.with_owners(Some(room.stored.slot));
            };
            found.broken(Promise::I1, of.reply, tell);
            if killed {
                found.broken(Promise::I9, of.reply, |slice| {
                    tell(slice);
                    let after = self.world.history.faults.iter().filter(|fault| fault.kind.takes_memory());
                    for kill in after.filter(|fault| fault.at >= self.at(of.reply)).take(1) {
                        slice.fact(format!("{:?} at {:.6} s", kill.kind, kill.at.0 as f64 / 1e6));
                    }
                });
            }
        }
    }

    /// I2: the time in the reply is the event's.
    fn judge_time(&self, found: &mut Found<'_>, of: &Try, row: Option<&Row>) {
        let What::Sent { at, .. } = self.world.history.records[of.reply as usize].what else { return };
        if let Some(row) = row
            && row.event.at != at
        {
            found.broken(Promise::I2, of.reply, |slice| {
                slice.say(format!("{} is acked with another time than its event has", self.name(slice)));
                slice.record(of.record);
                slice.row(self.room(), row);
                slice.fact(format!("acked at {at}, stored at {}", row.event.at));
            });
        }
    }

    /// I6: above everything that anybody had been told when it was sent first.
    fn real_time(&self, found: &mut Found<'_>) {
        let first = &self.pass.tries[self.intent.first as usize];
        if first.floor == Seq(0) {
            return;
        }
        let acked = self
            .tries()
            .filter_map(|of| match of.fate {
                Fate::Acked(seq) => Some((seq, of.reply)),
                _ => None,
            })
            .min();
        let stored = self.rows.first().map(|row| (row.event.seq, self.shown(row.event.seq)));
        let Some((seq, by)) = acked.into_iter().chain(stored).min() else { return };
        found.checked(Promise::I6);
        if seq <= first.floor {
            found.broken(Promise::I6, by, |slice| {
                slice.say(format!(
                    "{} stands at seq {seq}, and {} had been told before it was first sent",
                    self.name(slice),
                    first.floor
                ));
                slice.record(first.floor_by);
                slice.record(first.record);
                slice.with_owners(self.world.slot(self.room()));
            });
        }
    }

    /// I7: one event, and every ok names it.
    fn dedupe(&self, found: &mut Found<'_>) {
        let mut earlier: Option<&Try> = None;
        found.checked(Promise::I7);
        for of in self.tries() {
            let Fate::Acked(seq) = of.fate else {
                if of.fate == Fate::Definite(120) {
                    self.false_reuse(found, of);
                }
                continue;
            };
            if let Some(other) = earlier
                && let Fate::Acked(was) = other.fate
                && was != seq
                && !self.may_be_second(was.min(seq), was.max(seq), None)
            {
                found.broken(Promise::I7, of.reply.max(other.reply), |slice| {
                    slice.say(format!("{} is acked as seq {was} and as seq {seq}", self.name(slice)));
                    self.tell(slice);
                });
            }
            self.duplicate(found, of, earlier);
            earlier = earlier.or(Some(of));
        }
        for pair in self.rows.windows(2) {
            let (a, b) = (pair[0].event.seq, pair[1].event.seq);
            if !self.may_be_second(a, b, Some(pair[1])) {
                found.broken(Promise::I7, self.shown(b), |slice| {
                    slice.say(format!("{} is stored twice, at seq {a} and {b}", self.name(slice)));
                    self.tell(slice);
                });
            }
        }
    }

    /// Whether a second event of this id is allowed: some try looked only above the first, or came too late.
    fn may_be_second(&self, first: Seq, second: Seq, row: Option<&Row>) -> bool {
        let begun = self.at(self.pass.tries[self.intent.first as usize].record);
        self.tries().any(|of| {
            let refused = matches!(of.fate, Fate::Refused(_) | Fate::Definite(_));
            let late = match of.since {
                Some(since) => since >= first && since < second,
                None => {
                    second.0 - first.0 > self.rules.window_events
                        || self.at(of.record).0 - begun.0 > self.rules.window_us
                }
            };
            late && !refused && row.is_none_or(|row| row.event.content == of.content)
        })
    }

    /// What `duplicate` says, where nobody but the client tries again: behind a gateway that hands sends to a new owner,
    /// a first try may be a retry.
    fn duplicate(&self, found: &mut Found<'_>, of: &Try, acked: Option<&Try>) {
        if !self.world.history.slots.is_empty() {
            return;
        }
        let alone = of.record == self.pass.tries[self.intent.first as usize].record
            && self.pass.tries.get(of.next as usize).is_none_or(|next| next.record > of.reply);
        if of.duplicate && alone {
            found.broken(Promise::I7, of.reply, |slice| {
                slice.say(format!("{} is called a duplicate at its first try", self.name(slice)));
                slice.record(of.record);
            });
        }
        if let Some(acked) = acked
            && !of.duplicate
            && acked.reply < of.record
            && acked.fate == of.fate
        {
            found.broken(Promise::I7, of.reply, |slice| {
                slice.say(format!("{} is acked as new, and was acked before", self.name(slice)));
                self.tell(slice);
            });
        }
    }

    /// 120 says that the id is in the log, with another body.
    fn false_reuse(&self, found: &mut Found<'_>, of: &Try) {
        let Some(room) = self.world.room(self.room()) else { return };
        if room.stored.floor == Seq(0) && self.rows.is_empty() {
            found.broken(Promise::I7, of.reply, |slice| {
                slice
                    .say(format!("{} is refused as used before, and it is not in the log", self.name(slice)));
                slice.record(of.record);
                slice.with_owners(self.world.slot(self.room()));
            });
        }
    }

    /// I8: what is there was sent with this content, by a try that was not refused.
    fn phantom(&self, found: &mut Found<'_>) {
        for row in self.rows {
            let seq = row.event.seq;
            let mut same = self.tries().filter(|of| of.content == row.event.content).peekable();
            if same.peek().is_none() {
                found.broken(Promise::I8, self.shown(seq), |slice| {
                    slice.say(format!("{} was never sent with the content of seq {seq}", self.name(slice)));
                    self.tell(slice);
                });
                continue;
            }
            let mut open = false;
            for of in same {
                open |= matches!(of.fate, Fate::Unknown | Fate::Acked(_));
                if let Fate::Definite(code) = of.fate
                    && self.belies(of, code, seq)
                {
                    let at = of.reply.max(self.shown(seq));
                    found.broken(Promise::I8, if at == NONE { STORE } else { at }, |slice| {
                        slice.say(format!(
                            "{} was refused for good with {code}, and seq {seq} holds it",
                            self.name(slice)
                        ));
                        slice.record(of.floor_by);
                        self.tell(slice);
                    });
                }
            }
            if !open {
                found.broken(Promise::I8, self.shown(seq), |slice| {
                    slice.say(format!(
                        "{} was refused at every try, and seq {seq} holds it",
                        self.name(slice)
                    ));
                    self.tell(slice);
                });
            }
        }
    }

    /// Whether an event at `seq` makes a definite refusal false. It may have been stored later and rightly so, if what
    /// the refusal was about has changed since the room was where it was when the refused try was made.
    fn belies(&self, of: &Try, code: u16, seq: Seq) -> bool {
        match code {
            // Depends on the command alone.
            104 | 121 => true,
            _ if seq <= of.floor => true,
            102 | 103 | 123 => {
                let view = self.world.view(self.room(), self.intent.sender);
                !view.changed_within(of.floor, seq)
            }
            _ => false,
        }
    }
}
