//! Histories of several processes as files of JSON lines, and one history made of them.
//!
//! Owns: the format (one [`Line`] each, the first says the version) and the merge.
//! Always holds: numbers mean something within their file only; what two files both speak of has a name line in each.
//! Connections belong to one file. At equal times commands stand before what clients were told, so a tie between two
//! files hides an order and never invents one. A last line that was cut short (its process was killed) is ignored.
//! Does not: give processes one clock: times must be of one monotonic clock already.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::facts::{Counted, Fault, Fence, Liveness, SlotChange};
use crate::history::{Ask, Event, History, Kind, Record, What};
use crate::id::{Connection, Message, Room, Session, User};
use crate::names::{Named, Names};
use crate::store::{Store, StoredRoom};
use crate::world::Map;

pub const VERSION: u32 = 1;

/// One line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first line: the version.
    BanyanHistory(u32),
    /// What a number means, before its first use.
    Name {
        of: Named,
        number: u32,
        text: String,
    },
    /// Whose a session is, before its first use.
    Session {
        number: Session,
        user: User,
    },
    Record(Record),
    Room(Box<StoredRoom>),
    Slot(SlotChange),
    Fence(Fence),
    Fault(Fault),
    Liveness(Liveness),
    /// Adds up over files.
    Counted(Counted),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("file {file}: {why}")]
    Io { file: usize, why: std::io::Error },
    #[error("file {file}, line {line}: {why}")]
    Line { file: usize, line: usize, why: serde_json::Error },
    #[error("file {file} does not begin with the line {{\"banyan_history\":{VERSION}}}")]
    Version { file: usize },
    #[error("file {file}, line {line}: {session} is used before it was said whose it is")]
    Session { file: usize, line: usize, session: Session },
}

/// Begins a file.
pub fn begin(to: &mut impl Write) -> std::io::Result<()> {
    put(to, &Line::BanyanHistory(VERSION))
}

/// Appends a line.
pub fn put(to: &mut impl Write, line: &Line) -> std::io::Result<()> {
    serde_json::to_writer(&mut *to, line)?;
    to.write_all(b"\n")
}

/// A whole history as one file.
pub fn write(history: &History, to: &mut impl Write) -> std::io::Result<()> {
    begin(to)?;
    for (of, number, text) in history.names.all() {
        put(to, &Line::Name { of, number, text: text.to_owned() })?;
    }
    for (number, user) in (0..).zip(&history.sessions) {
        put(to, &Line::Session { number: Session(number), user: *user })?;
    }
    for record in &history.records {
        put(to, &Line::Record(record.clone()))?;
    }
    for room in history.store.iter().flat_map(|store| &store.rooms) {
        put(to, &Line::Room(Box::new(room.clone())))?;
    }
    for change in &history.slots {
        put(to, &Line::Slot(*change))?;
    }
    for fence in &history.fences {
        put(to, &Line::Fence(*fence))?;
    }
    for fault in &history.faults {
        put(to, &Line::Fault(*fault))?;
    }
    if let Some(liveness) = &history.liveness {
        put(to, &Line::Liveness(liveness.clone()))?;
    }
    put(to, &Line::Counted(history.counted))
}

/// One history of all files.
pub fn read<R: BufRead>(files: impl IntoIterator<Item = R>) -> Result<History, Error> {
    let mut history = History::default();
    let mut merge = Merge::default();
    let mut records: Vec<Vec<Record>> = Vec::new();
    for (file, from) in files.into_iter().enumerate() {
        merge.begin(file);
        records.push(read_file(from, file, &mut merge, &mut history)?);
    }
    history.records = merge_records(records);
    history.slots.sort_by_key(|change| change.at);
    history.faults.sort_by_key(|fault| fault.at);
    Ok(history)
}

fn read_file(
    from: impl BufRead,
    file: usize,
    merge: &mut Merge,
    history: &mut History,
) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    let mut lines = from.split(b'\n').enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let bytes = line.map_err(|why| Error::Io { file, why })?;
        let line = index + 1;
        let parsed = match serde_json::from_slice(&bytes) {
            Ok(parsed) => parsed,
            Err(_) if index > 0 && lines.peek().is_none() => break,
            Err(_) if index == 0 => return Err(Error::Version { file }),
            Err(why) => return Err(Error::Line { file, line, why }),
        };
        if (index == 0) != matches!(parsed, Line::BanyanHistory(VERSION)) {
            return Err(Error::Version { file });
        }
        let names = &mut history.names;
        match parsed {
            Line::BanyanHistory(_) => {}
            Line::Name { of, number, text } => {
                merge.texts.insert((of, number), text);
            }
            Line::Session { number, mut user } => {
                merge.user(names, &mut user);
                let new = Session(history.sessions.len() as u32);
                let session = match merge.texts.get(&(Named::Session, number.0)) {
                    Some(text) => *merge.named_sessions.entry(text.clone()).or_insert(new),
                    None => new,
                };
                if session == new {
                    history.sessions.push(user);
                }
                merge.sessions.insert(number, session);
            }
            Line::Record(mut record) => {
                record.on = merge.connection(record.on);
                if let What::Begin { session } = &mut record.what {
                    let Some(known) = merge.sessions.get(session) else {
                        return Err(Error::Session { file, line, session: *session });
                    };
                    *session = *known;
                }
                merge.what(names, &mut record.what);
                records.push(record);
            }
            Line::Room(mut stored) => {
                merge.stored(names, &mut stored);
                history.store.get_or_insert_with(Store::default).rooms.push(*stored);
            }
            Line::Slot(change) => history.slots.push(change),
            Line::Fence(fence) => history.fences.push(fence),
            Line::Fault(fault) => history.faults.push(fault),
            Line::Liveness(mut liveness) => {
                liveness.rooms.iter_mut().for_each(|room| merge.room(names, room));
                for (session, room) in &mut liveness.subscribers {
                    merge.room(names, room);
                    let Some(known) = merge.sessions.get(session) else {
                        return Err(Error::Session { file, line, session: *session });
                    };
                    *session = *known;
                }
                history.liveness = Some(liveness);
            }
            Line::Counted(counted) => {
                history.counted.fenced_utterances += counted.fenced_utterances;
                history.counted.unknown_outcomes += counted.unknown_outcomes;
                history.counted.gap_repairs += counted.gap_repairs;
            }
        }
    }
    Ok(records)
}

/// By time; at one time commands first; within a file as it is.
fn merge_records(files: Vec<Vec<Record>>) -> Vec<Record> {
    let mut all = Vec::with_capacity(files.iter().map(Vec::len).sum());
    let mut files: Vec<_> = files.into_iter().map(|file| file.into_iter().peekable()).collect();
    loop {
        let next = files
            .iter_mut()
            .enumerate()
            .filter_map(|(file, records)| {
                records.peek().map(|record| ((record.at, !record.what.is_command()), file))
            })
            .min();
        let Some((_, file)) = next else { return all };
        all.extend(files[file].next());
    }
}

/// From the numbers of the file that is being read to those of the history.
#[derive(Debug, Default)]
struct Merge {
    file: usize,
    texts: Map<(Named, u32), String>,
    sessions: Map<Session, Session>,
    named_sessions: Map<String, Session>,
    connections: Map<Connection, Connection>,
    connected: u32,
}

impl Merge {
    fn begin(&mut self, file: usize) {
        self.file = file;
        self.texts.clear();
        self.sessions.clear();
        self.connections.clear();
    }

    fn text(&self, of: Named, number: u32) -> String {
        let text = self.texts.get(&(of, number));
        // What has no name is nobody else's.
        text.cloned().unwrap_or_else(|| format!("{number} of file {}", self.file))
    }

    fn room(&self, names: &mut Names, room: &mut Room) {
        *room = names.room(&self.text(Named::Room, room.0));
    }

    fn user(&self, names: &mut Names, user: &mut User) {
        *user = names.user(&self.text(Named::User, user.0));
    }

    fn message(&self, names: &mut Names, message: &mut Message) {
        *message = names.message(&self.text(Named::Message, message.0));
    }

    fn connection(&mut self, on: Connection) -> Connection {
        let new = Connection(self.connected);
        let known = *self.connections.entry(on).or_insert(new);
        self.connected += u32::from(known == new);
        known
    }

    fn event(&self, names: &mut Names, event: &mut Event) {
        self.user(names, &mut event.sender);
        if let Some(message) = &mut event.message {
            self.message(names, message);
        }
        match &mut event.kind {
            Kind::Joined(user) | Kind::Left(user) | Kind::Removed(user) | Kind::RoleChanged(user) => {
                self.user(names, user);
            }
            Kind::Message | Kind::Created | Kind::RoomChanged | Kind::Other => {}
        }
    }

    fn what(&self, names: &mut Names, what: &mut What) {
        match what {
            What::Begin { .. }
            | What::End
            | What::Sent { .. }
            | What::PageGap { .. }
            | What::Page { .. }
            | What::Marked { .. }
            | What::Answered { .. } => {}
            What::Send { room, message, .. } => {
                self.room(names, room);
                self.message(names, message);
            }
            What::Ask { room, about, .. } => {
                self.room(names, room);
                if let Ask::Add(user) | Ask::Remove(user) | Ask::SetRole(user) = about {
                    self.user(names, user);
                }
            }
            What::Subscribe { room, .. }
            | What::Unsubscribe { room, .. }
            | What::History { room, .. }
            | What::Mark { room, .. }
            | What::Subscribed { room, .. }
            | What::UnsubscribeDone { room, .. }
            | What::Gap { room, .. }
            | What::Unsubscribed { room, .. }
            | What::Head { room, .. } => self.room(names, room),
            What::Refused { room, .. } => room.iter_mut().for_each(|room| self.room(names, room)),
            What::PageEvent { event, .. } => self.event(names, event),
            What::Event { room, event } => {
                self.room(names, room);
                self.event(names, event);
            }
            What::Marks { room, user, .. } => {
                self.room(names, room);
                self.user(names, user);
            }
        }
    }

    fn stored(&self, names: &mut Names, stored: &mut StoredRoom) {
        self.room(names, &mut stored.room);
        let rows = stored.rows.iter_mut().chain(&mut stored.void);
        rows.for_each(|row| self.event(names, &mut row.event));
        for member in stored.members.iter_mut().flatten() {
            self.user(names, &mut member.user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::specimen::Specimen;
    use crate::{Rules, Time, check};

    /// What a process writes that has only some of the sessions; the first one also the facts.
    fn file(history: &History, part: u32, parts: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        begin(&mut bytes).unwrap();
        let mut line = |line: &Line| put(&mut bytes, line).unwrap();
        let name = |of, number: u32| Line::Name { of, number, text: format!("the {number}") };
        for number in 0..3 {
            line(&name(Named::Room, number));
        }
        for (number, user) in (0..).zip(&history.sessions) {
            line(&name(Named::User, user.0));
            line(&name(Named::Session, number));
            line(&Line::Session { number: Session(number), user: *user });
        }
        let mut session_of = Map::default();
        let mut named = Map::default();
        for record in &history.records {
            if let What::Begin { session } = record.what {
                session_of.insert(record.on, session);
            }
            if session_of[&record.on].0 % parts != part {
                continue;
            }
            if let Some(number) = messages(&record.what)
                && named.insert(number, ()).is_none()
            {
                line(&name(Named::Message, number.0));
            }
            line(&Line::Record(record.clone()));
        }
        if part == 0 {
            for stored in &history.store.as_ref().unwrap().rooms {
                for number in stored.rows.iter().filter_map(|row| row.event.message) {
                    line(&name(Named::Message, number.0));
                }
                line(&Line::Room(Box::new(stored.clone())));
            }
            history.slots.iter().for_each(|change| line(&Line::Slot(*change)));
            history.fences.iter().for_each(|fence| line(&Line::Fence(*fence)));
            history.faults.iter().for_each(|fault| line(&Line::Fault(*fault)));
            line(&Line::Liveness(history.liveness.clone().unwrap()));
            line(&Line::Counted(history.counted));
        }
        bytes
    }

    fn messages(what: &What) -> Option<Message> {
        match what {
            What::Send { message, .. } => Some(*message),
            What::Event { event, .. } | What::PageEvent { event, .. } => event.message,
            _ => None,
        }
    }

    #[test]
    fn files_of_three_processes_are_judged_as_one_history() {
        let history = Specimen { seed: 5, records: 3_000, rooms: 3, users: 7 }.make();
        let files: Vec<_> = (0..3).map(|part| file(&history, part, 3)).collect();
        let read = read(files.iter().map(Vec::as_slice)).unwrap();
        assert_eq!(read.records.len(), history.records.len());
        let (want, got) = (check(&history, &Rules::default()), check(&read, &Rules::default()));
        assert!(!got.is_violated(), "{got}");
        assert_eq!(want.coverage, got.coverage);
        let checked = |report: &crate::Report| report.outcomes.iter().map(|o| o.checked).collect::<Vec<_>>();
        assert_eq!(checked(&want), checked(&got));
        assert_eq!(read.names.room_text(read.store.unwrap().rooms[0].room), "the 0");
    }

    #[test]
    fn a_history_that_was_written_is_judged_as_before() {
        let mut history = Specimen { seed: 6, records: 500, rooms: 2, users: 3 }.make();
        for named in ["0", "1"] {
            history.names.room(named);
        }
        for named in ["0", "1", "2"] {
            history.names.user(named);
        }
        let numbers = history.records.iter().filter_map(|record| messages(&record.what)).map(|of| of.0);
        for number in 0..=numbers.max().unwrap() {
            history.names.message(&number.to_string());
        }
        let mut bytes = Vec::new();
        write(&history, &mut bytes).unwrap();
        let read = read([&bytes[..]]).unwrap();
        let (want, got) = (check(&history, &Rules::default()), check(&read, &Rules::default()));
        assert!(want.coverage.acked > 0 && !got.is_violated(), "{got}");
        assert_eq!(want, got);
    }

    #[test]
    fn what_has_no_name_is_nobody_elses() {
        let record = r#"{"record":{"at":5,"on":0,"what":{"unsubscribe":{"call":1,"room":0}}}}"#;
        let text = format!("{{\"banyan_history\":1}}\n{record}\n");
        let read = read([text.as_bytes(), text.as_bytes()]).unwrap();
        let rooms: Vec<_> = read.records.iter().map(|record| (record.on, record.what.clone())).collect();
        assert_ne!(rooms[0].0, rooms[1].0);
        assert_ne!(rooms[0].1, rooms[1].1);
    }

    #[test]
    fn ties_hide_an_order() {
        let of = |what| Record { at: Time(1), on: Connection(0), what };
        let told = of(What::Head { room: Room(0), head: crate::Seq(1), n: 1 });
        let asked = of(What::Unsubscribe { call: crate::Call(1), room: Room(0) });
        let merged = merge_records(vec![vec![told.clone()], vec![asked.clone()]]);
        assert_eq!(merged, [asked, told]);
    }

    #[test]
    fn a_last_line_that_was_cut_short_is_ignored_and_others_are_not() {
        let good = r#"{"counted":{"fenced_utterances":2,"unknown_outcomes":0,"gap_repairs":0}}"#;
        let read = |text: &str| read([text.as_bytes()]);
        let cut = format!("{{\"banyan_history\":1}}\n{good}\n{{\"counted\":{{\"fen");
        assert_eq!(read(&cut).unwrap().counted.fenced_utterances, 2);
        let damaged = format!("{{\"banyan_history\":1}}\n{{\"counted\":{{\"fen\n{good}\n");
        assert!(matches!(read(&damaged), Err(Error::Line { line: 2, .. })));
        for not_ours in ["{\"banyan_history\":2}\n", good] {
            assert!(matches!(read(not_ours), Err(Error::Version { file: 0 })), "{not_ours:?}");
        }
    }
}
