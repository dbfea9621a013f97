//! What workers have done beside them, on the runtime of the HTTP part: tokens checked, commands that need look-ups.
//!
//! Always holds: every question of a worker is answered once, through its control queue. How many are under way is
//! bounded by the workers (commands in flight, connections without a token).

use std::sync::Arc;
use std::time::Duration;

use banyan_gateway_core::command::Checked;
use banyan_gateway_core::slab::Key;
use banyan_proto::codes::Code;
use banyan_proto::id::Origin;
use banyan_proto::link::Person;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::accounts::{Identity, Service, Standing};
use crate::backend::Backend;
use crate::worker::Control;

/// Less than the deadline for `auth`: the client is told what is wrong.
const AUTH_DEADLINE: Duration = Duration::from_secs(8);

#[derive(Debug, Clone)]
pub struct Aside {
    runtime: Handle,
    backend: Backend,
    workers: Arc<[mpsc::Sender<Control>]>,
}

impl Aside {
    /// `workers`: the control queue of each worker, by its number.
    pub fn new(runtime: Handle, backend: Backend, workers: Vec<mpsc::Sender<Control>>) -> Self {
        Self { runtime, backend, workers: workers.into() }
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

    /// Carries revocations to every worker until the drain.
    pub async fn run(self, drain: CancellationToken) {
        let mut revocations = self.accounts().revocations();
        loop {
            let received = tokio::select! {
                biased;
                () = drain.cancelled() => return,
                received = revocations.recv() => received,
            };
            for worker in 0..self.workers.len() {
                let control = match &received {
                    Ok(revocation) => Control::Revoked(revocation.clone()),
                    Err(RecvError::Lagged(_)) => Control::RevocationsMissed,
                    Err(RecvError::Closed) => return,
                };
                self.tell(worker, control).await;
            }
        }
    }
}
