//! Who may do what: the table of docs/protocol.md as one function.
//!
//! Always holds: a room that the caller may not see answers 102 to everything, as if it were not there.

use banyan_proto::codes::Code;
use banyan_proto::v1::{Role, RoomKind};

/// How the caller stands to the room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A member with this role; never [`Role::None`].
    Member(Role),
    /// Was a member once: left or removed.
    Left,
    Stranger,
}

/// What the caller asks to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Read, subscribe, mark, list members.
    Read,
    Send,
    Join,
    /// `last`: nobody else is a member.
    Leave {
        last: bool,
    },
    /// Add members, rename, make public or private.
    Manage,
    Remove {
        target: Role,
    },
    SetRole {
        target: Role,
        to: Role,
    },
}

/// How far a permission goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    Yes,
    /// Up to the seq at which the caller left.
    UpToLeft,
    /// Joining: the caller is a member already.
    Already,
}

/// The table. A refusal is the code that the caller gets.
pub fn judge(kind: RoomKind, public: bool, standing: Standing, act: Act) -> Result<Grant, Code> {
    let role = match (standing, act) {
        (Standing::Member(role), _) => role,
        (Standing::Left, Act::Read) => return Ok(Grant::UpToLeft),
        (Standing::Left | Standing::Stranger, Act::Join) if public => return Ok(Grant::Yes),
        (Standing::Left, Act::Join) => return Err(Code::UnknownRoom),
        (Standing::Left, _) => return Err(Code::NotAMember),
        (Standing::Stranger, _) if public => return Err(Code::NotAMember),
        (Standing::Stranger, _) => return Err(Code::UnknownRoom),
    };
    if kind == RoomKind::Direct {
        // Two members for good, equal, and nothing to change.
        return match act {
            Act::Read | Act::Send => Ok(Grant::Yes),
            Act::Join | Act::Leave { .. } | Act::Manage | Act::Remove { .. } | Act::SetRole { .. } => {
                Err(Code::PermissionDenied)
            }
        };
    }
    let manages = role >= Role::Admin;
    let yes = match act {
        Act::Read => true,
        Act::Send => manages || (kind == RoomKind::Group && role == Role::Member),
        Act::Join => return Ok(Grant::Already),
        Act::Leave { last } => role != Role::Owner || last,
        Act::Manage => manages,
        // Not above oneself; an owner cannot be removed, not even by themselves.
        Act::Remove { target } => manages && target <= role && target != Role::Owner,
        Act::SetRole { target, to } => match role {
            Role::Owner => target != Role::Owner && to != Role::None,
            Role::Admin => target < Role::Admin && to < Role::Admin && to != Role::None,
            Role::Member | Role::Reader | Role::None => false,
        },
    };
    if yes { Ok(Grant::Yes) } else { Err(Code::PermissionDenied) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line a room and act, one column a standing: owner, admin, member, reader, left, stranger.
    fn table() -> String {
        let standings = [
            Standing::Member(Role::Owner),
            Standing::Member(Role::Admin),
            Standing::Member(Role::Member),
            Standing::Member(Role::Reader),
            Standing::Left,
            Standing::Stranger,
        ];
        let mut acts = vec![
            ("read", Act::Read),
            ("send", Act::Send),
            ("join", Act::Join),
            ("leave", Act::Leave { last: false }),
            ("leave last", Act::Leave { last: true }),
            ("manage", Act::Manage),
        ];
        for target in [Role::Owner, Role::Admin, Role::Member, Role::Reader] {
            acts.push(("remove", Act::Remove { target }));
        }
        for target in [Role::Owner, Role::Admin, Role::Reader] {
            for to in [Role::Owner, Role::Admin, Role::Member, Role::None] {
                acts.push(("set_role", Act::SetRole { target, to }));
            }
        }
        let mut text = String::new();
        for (room, kind, public) in [
            ("group private", RoomKind::Group, false),
            ("group public", RoomKind::Group, true),
            ("broadcast private", RoomKind::Broadcast, false),
            ("broadcast public", RoomKind::Broadcast, true),
            ("direct", RoomKind::Direct, false),
        ] {
            for (name, act) in &acts {
                let what = match act {
                    Act::Remove { target } => format!("{name} {}", target.word()),
                    Act::SetRole { target, to } => format!("{name} {} to {}", target.word(), to.word()),
                    Act::Read | Act::Send | Act::Join | Act::Leave { .. } | Act::Manage => (*name).to_owned(),
                };
                let cells: Vec<String> = standings
                    .iter()
                    .map(|standing| match judge(kind, public, *standing, *act) {
                        Ok(Grant::Yes) => "yes".to_owned(),
                        Ok(Grant::UpToLeft) => "left".to_owned(),
                        Ok(Grant::Already) => "-".to_owned(),
                        Err(code) => code.number().to_string(),
                    })
                    .collect();
                text.push_str(&format!("{room}: {what}: {}\n", cells.join(" ")));
            }
        }
        text
    }

    #[test]
    fn the_whole_table() {
        let got = table();
        for (got, want) in got.lines().zip(include_str!("permission_table.txt").lines()) {
            assert_eq!(got, want, "columns: owner admin member reader left stranger");
        }
        assert_eq!(got, include_str!("permission_table.txt"));
    }
}
