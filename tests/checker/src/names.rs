//! The texts behind the numbers of a history.

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::id::{Message, Room, User};

/// Gives numbers to texts, in order of their first use. What has no text here is shown as its number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    rooms: Table,
    users: Table,
    messages: Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Named {
    Room,
    User,
    Message,
    Session,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    texts: Vec<String>,
    numbers: HashMap<String, u32, foldhash::fast::FixedState>,
}

impl Table {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len() as u32;
        self.texts.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }

    fn text(&self, number: u32) -> Option<&str> {
        self.texts.get(number as usize).map(String::as_str)
    }
}

impl Names {
    pub fn room(&mut self, text: &str) -> Room {
        Room(self.rooms.number(text))
    }

    pub fn user(&mut self, text: &str) -> User {
        User(self.users.number(text))
    }

    pub fn message(&mut self, text: &str) -> Message {
        Message(self.messages.number(text))
    }

    /// Every number that has a text.
    pub fn all(&self) -> impl Iterator<Item = (Named, u32, &str)> {
        let tables =
            [(Named::Room, &self.rooms), (Named::User, &self.users), (Named::Message, &self.messages)];
        tables.into_iter().flat_map(|(of, table)| {
            (0..).zip(&table.texts).map(move |(number, text)| (of, number, text.as_str()))
        })
    }

    pub fn room_text(&self, room: Room) -> String {
        self.rooms.text(room.0).map_or_else(|| room.to_string(), str::to_owned)
    }

    pub fn user_text(&self, user: User) -> String {
        self.users.text(user.0).map_or_else(|| user.to_string(), str::to_owned)
    }

    pub fn message_text(&self, message: Message) -> String {
        self.messages.text(message.0).map_or_else(|| message.to_string(), str::to_owned)
    }
}
