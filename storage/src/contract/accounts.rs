//! What every [`Accounts`] must do: users, usernames, logins.

use std::sync::Arc;

use banyan_proto::id::UnixMs;

use super::{Check, Subject, ok, user, wait};
use crate::Error;
use crate::accounts::{Accounts, Creation, LoginRow, SWEEP_MAX, TEXT_MAX, UserRow};

/// Every check. They may run in any order.
pub const ALL: &[Check<dyn Accounts>] = &[
    ("users_and_usernames", users_and_usernames),
    ("one_of_many_gets_the_username", one_of_many_gets_the_username),
    ("foreign_users", foreign_users),
    ("logins_end", logins_end),
    ("expired_logins_are_swept", expired_logins_are_swept),
    ("accounts_are_there_after_a_reopen", accounts_are_there_after_a_reopen),
];

fn user_row(id: &str, username: &str) -> UserRow {
    UserRow {
        user: user(id),
        name: "Näme".to_owned(),
        username: Some(username.to_owned()),
        skeleton: Some(username.replace('1', "l")),
        password_hash: Some("$argon2id$secret".to_owned()),
        disabled: false,
        created_at: UnixMs(5),
        tokens_not_before: UnixMs(0),
    }
}

fn users_and_usernames(subject: &mut Subject<dyn Accounts>) {
    let store = subject.store();
    let row = user_row("users.1", "paul");
    assert_eq!(ok(store.user_by_username("paul")), None);
    assert_eq!(ok(store.create_user(row.clone())), Creation::Created);
    assert_eq!(ok(store.user_by_username("paul")), Some(row.clone()));
    assert_eq!(ok(store.user(&user("users.1"))), Some(row.clone()));
    assert_eq!(
        ok(store.create_user(row.clone())),
        Creation::Created,
        "the very same again settles an unknown one"
    );
    assert_eq!(ok(store.create_user(user_row("users.2", "paul"))), Creation::UsernameTaken);
    assert_eq!(
        ok(store.create_user(user_row("users.3", "pau1"))),
        Creation::UsernameTaken,
        "it looks the same"
    );
    assert_eq!(ok(store.create_user(user_row("users.1", "other"))), Creation::IdTaken);
    assert_eq!(ok(store.user(&user("users.2"))), None);
    assert_eq!(ok(store.user_by_username("pau1")), None, "a skeleton is no name");
    assert_eq!(ok(store.user_by_username("other")), None);
    // A change keeps the name, whatever it says.
    let changed =
        UserRow { name: "New".to_owned(), disabled: true, tokens_not_before: UnixMs(9), ..row.clone() };
    ok(store.put_user(UserRow { username: None, skeleton: None, created_at: UnixMs(0), ..changed.clone() }));
    assert_eq!(ok(store.user_by_username("paul")), Some(changed));
    let long = UserRow { name: "x".repeat(TEXT_MAX + 1), ..user_row("users.4", "longname") };
    assert!(matches!(wait(store.create_user(long)), Err(Error::Refused(_))));
    assert!(!format!("{row:?}").contains("secret"), "a hash does not end up in logs");
}

fn one_of_many_gets_the_username(subject: &mut Subject<dyn Accounts>) {
    let store = subject.shared();
    let start = Arc::new(std::sync::Barrier::new(16));
    let racers: Vec<_> = (0..16)
        .map(|i| {
            let (store, start) = (Arc::clone(&store), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                ok(store.create_user(user_row(&format!("race.{i}"), "winner")))
            })
        })
        .collect();
    let got: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
    let winners: Vec<_> = (0..16).filter(|i| got[*i] == Creation::Created).collect();
    assert_eq!(winners.len(), 1, "{got:?}");
    assert_eq!(got.iter().filter(|got| **got == Creation::UsernameTaken).count(), 15);
    let row = ok(store.user_by_username("winner")).unwrap();
    assert_eq!(row.user, user(&format!("race.{}", winners[0])));
    for i in 0..16 {
        assert_eq!(ok(store.user(&user(&format!("race.{i}")))).is_some(), i == winners[0]);
    }
}

fn foreign_users(subject: &mut Subject<dyn Accounts>) {
    let store = subject.store();
    let row =
        UserRow { username: None, skeleton: None, password_hash: None, ..user_row("auth0|foreign", "") };
    ok(store.put_user(row.clone()));
    assert_eq!(ok(store.user(&user("auth0|foreign"))), Some(row));
    assert!(matches!(wait(store.put_user(user_row("auth0|other", "named"))), Err(Error::Refused(_))));
    assert_eq!(ok(store.user_by_username("named")), None);
}

fn login_row(login: &str, name: &str, expires_at: u64) -> LoginRow {
    LoginRow {
        login: login.to_owned(),
        user: user(name),
        created_at: UnixMs(1),
        expires_at: UnixMs(expires_at),
    }
}

fn logins_end(subject: &mut Subject<dyn Accounts>) {
    let store = subject.store();
    for i in 0..5 {
        ok(store.put_login(login_row(&format!("ends.{i}"), "ends.a", 1 << 60)));
    }
    ok(store.put_login(login_row("ends.other", "ends.ab", 1 << 60)));
    assert_eq!(ok(store.login("ends.3")), Some(login_row("ends.3", "ends.a", 1 << 60)));
    ok(store.end_login("ends.3"));
    ok(store.end_login("ends.3"));
    ok(store.end_login("ends.never"));
    assert_eq!(ok(store.login("ends.3")), None);
    assert!(ok(store.login("ends.2")).is_some());
    ok(store.end_all_logins(&user("ends.a")));
    for i in 0..5 {
        assert_eq!(ok(store.login(&format!("ends.{i}"))), None);
    }
    assert!(ok(store.login("ends.other")).is_some(), "another user's login");
    ok(store.put_login(login_row("ends.2", "ends.a", 1 << 60)));
    assert!(ok(store.login("ends.2")).is_some(), "a new one");
}

fn expired_logins_are_swept(subject: &mut Subject<dyn Accounts>) {
    let store = subject.store();
    for (login, expires_at) in [("sweep.a", 10), ("sweep.b", 20), ("sweep.c", 30)] {
        ok(store.put_login(login_row(login, "sweep", expires_at)));
    }
    ok(store.put_login(login_row("sweep.a", "sweep", 40))); // prolonged
    assert_eq!(ok(store.sweep_logins(UnixMs(9))), 0);
    assert_eq!(ok(store.sweep_logins(UnixMs(20))), 1);
    assert_eq!(ok(store.login("sweep.b")), None);
    assert!(ok(store.login("sweep.a")).is_some() && ok(store.login("sweep.c")).is_some());
    assert_eq!(ok(store.sweep_logins(UnixMs(40))), 2);
    assert_eq!(ok(store.sweep_logins(UnixMs(40))), 0);
    const { assert!(SWEEP_MAX > 3) };
}

fn accounts_are_there_after_a_reopen(subject: &mut Subject<dyn Accounts>) {
    {
        let store = subject.store();
        ok(store.create_user(user_row("reopen.1", "reopened")));
        ok(store.put_login(login_row("reopen.in", "reopen.1", 1 << 60)));
        ok(store.put_login(login_row("reopen.out", "reopen.1", 1 << 60)));
        ok(store.end_login("reopen.out"));
    }
    for _ in 0..3 {
        subject.reopen();
        let store = subject.store();
        assert_eq!(ok(store.user_by_username("reopened")), Some(user_row("reopen.1", "reopened")));
        assert!(ok(store.login("reopen.in")).is_some());
        assert_eq!(ok(store.login("reopen.out")), None);
        assert_eq!(ok(store.create_user(user_row("reopen.2", "reopened"))), Creation::UsernameTaken);
    }
}
