//! What workers have done beside them, on the runtime of the HTTP part: tokens checked, commands that need look-ups, the
//! end of logins carried to whom it concerns.
//!
//! Always holds: every question of a worker is answered once, through its control queue, but for looks at a login
//! ([`Aside::check_login`]), which are answered only with no. How many are under way is bounded by the workers (commands in
//! flight, connections without a token) and, looks at logins, by [`CHECKS`]; above that they are left out.
//!
//! In a cluster the end of a login is said to the other gateways three times ([`ECHOES`]), through the owner of the user's
//! channel: once may be lost with a change of owner, and a connection that was just being authenticated is not there yet
//! when it is said first. Whatever is lost all the same, workers find by looking up all logins by turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use banyan_gateway_core::command::Checked;
use banyan_gateway_core::slab::Key;
use banyan_proto::codes::Code;
use banyan_proto::id::{Origin, UnixMs, UserId};
use banyan_proto::link::Person;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::accounts::{Identity, Service, Standing};
use crate::backend::Backend;
use crate::worker::Control;

/// Less than the deadline for `auth`: the client is told what is wrong.
const AUTH_DEADLINE: Duration = Duration::from_secs(8);

/// Looks at logins under way at once.
const CHECKS: usize = 256;
const CHECK_DEADLINE: Duration = Duration::from_secs(5);
/// When the end of a login is said to the other gateways again: a slot without an owner has one by then, as a rule.
const ECHOES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Ends of logins that wait to be said again; above that the oldest are not.
const ECHOES_MAX: usize = 4_096;

#[derive(Debug, Clone)]
pub struct Aside {
    runtime: Handle,
    backend: Backend,
    workers: Arc<[mpsc::Sender<Control>]>,
    checks: Arc<Semaphore>,
    in_cluster: bool,
}

impl Aside {
    /// `workers`: the control queue of each worker, by its number.
    pub fn new(runtime: Handle, backend: Backend, workers: Vec<mpsc::Sender<Control>>) -> Self {
        let checks = Arc::new(Semaphore::new(CHECKS));
        Self { runtime, backend, workers: workers.into(), checks, in_cluster: false }
    }

    /// There are other gateways, which are told of logins that end here.
    #[must_use]
    pub fn in_cluster(self) -> Self {
        Self { in_cluster: true, ..self }
    }

    /// What is known of an identity at once.
    pub fn standing(&self, identity: &Identity) -> Standing {
        self.accounts().standing(identity)
    }

    fn accounts(&self) -> &Service {
        self.backend.accounts()
    }

    pub(crate) fn authenticate(&self, worker: usize, connection: Key, token: String, client: Option<String>) {
        let aside = self.clone();
        self.runtime.spawn(async move {
            let result = match timeout(AUTH_DEADLINE, aside.accounts().authenticate(&token)).await {
                Ok(result) => result.map_err(crate::accounts::Refusal::error),
                Err(_) => Err(Code::Unavailable.error("the token cannot be checked now")),
            };
            if let (Ok(identity), Some(client)) = (&result, client) {
                tracing::debug!(user = %identity.person.user, client, "a client has authenticated");
            }
            aside.tell(worker, Control::Authenticated { connection, result }).await;
        });
    }

    /// Looks whether a token that a connection has shown still holds. The worker hears of it if not.
    pub(crate) fn check_login(
        &self,
        worker: usize,
        connection: Key,
        user: UserId,
        login: Option<Arc<str>>,
        issued_at: UnixMs,
    ) {
        let count = |outcome| metrics::counter!("banyan_gateway_login_checks_total", "outcome" => outcome);
        // The store is slow: the turn of this one comes again.
        let Ok(permit) = Arc::clone(&self.checks).try_acquire_owned() else {
            return count("left_out").increment(1);
        };
        let aside = self.clone();
        self.runtime.spawn(async move {
            let looking = aside.accounts().has_ended(&user, login.as_deref(), issued_at);
            match timeout(CHECK_DEADLINE, looking).await {
                Ok(Ok(false)) => count("good").increment(1),
                Ok(Ok(true)) => {
                    count("ended").increment(1);
                    aside.tell(worker, Control::LoginEnded { connection, login, issued_at }).await;
                }
                Ok(Err(_)) | Err(_) => count("unknown").increment(1),
            }
            drop(permit);
        });
    }

    pub(crate) fn carry_out(
        &self,
        worker: usize,
        connection: Key,
        id: u64,
        person: Person,
        command: Checked,
    ) {
        let aside = self.clone();
        self.runtime.spawn(async move {
            let result = aside.backend.run_command(&person, Origin(0), command).await;
            aside.tell(worker, Control::Replied { connection, id, result }).await;
        });
    }

    async fn tell(&self, worker: usize, control: Control) {
        // A worker that is gone has no connections that could want it.
        if let Some(queue) = self.workers.get(worker) {
            queue.send(control).await.ok();
        }
    }

    /// Carries revocations to every worker, and to other gateways, until the drain.
    pub async fn run(self, drain: CancellationToken) {
        let mut revocations = self.accounts().revocations();
        let mut echoes = Echoes::default();
        loop {
            let next = echoes.next_at();
            let received = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                received = revocations.recv() => received,
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    for user in echoes.due(Instant::now()) {
                        self.backend.say_logins_ended(&user);
                    }
                    continue;
                }
            };
            for worker in 0..self.workers.len() {
                let control = match &received {
                    Ok(revocation) => Control::Revoked(revocation.clone()),
                    Err(RecvError::Lagged(_)) => Control::RevocationsMissed,
                    Err(RecvError::Closed) => return,
                };
                self.tell(worker, control).await;
            }
            if let Ok(revocation) = received
                && self.in_cluster
            {
                self.backend.say_logins_ended(&revocation.user);
                echoes.push(Instant::now(), &revocation.user);
            }
        }
    }
}

/// What is said again. In each queue in the order of its times.
#[derive(Debug, Default)]
struct Echoes([VecDeque<(Instant, UserId)>; ECHOES.len()]);

impl Echoes {
    fn push(&mut self, now: Instant, user: &UserId) {
        for (queue, after) in self.0.iter_mut().zip(ECHOES) {
            if queue.len() >= ECHOES_MAX {
                queue.pop_front();
            }
            queue.push_back((now + after, user.clone()));
        }
    }

    fn next_at(&self) -> Option<Instant> {
        self.0.iter().filter_map(|queue| queue.front()).map(|(at, _)| *at).min()
    }

    fn due(&mut self, now: Instant) -> Vec<UserId> {
        let mut due = Vec::new();
        for queue in &mut self.0 {
            while queue.front().is_some_and(|(at, _)| *at <= now) {
                due.extend(queue.pop_front().map(|(_, user)| user));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_login_is_said_again_and_not_for_ever() {
        let mut echoes = Echoes::default();
        let begun = Instant::now();
        let user = |n: usize| UserId::parse(&format!("u{n}")).unwrap();
        echoes.push(begun, &user(1));
        assert!(echoes.due(begun).is_empty());
        assert_eq!(echoes.next_at(), Some(begun + ECHOES[0]));
        assert_eq!(echoes.due(begun + ECHOES[0]), [user(1)]);
        assert_eq!(echoes.due(begun + ECHOES[1]), [user(1)]);
        assert_eq!(echoes.next_at(), None);
        for n in 0..ECHOES_MAX + 10 {
            echoes.push(begun, &user(n));
        }
        assert_eq!(echoes.due(begun + ECHOES[1]).len(), ECHOES_MAX * ECHOES.len());
    }
}
