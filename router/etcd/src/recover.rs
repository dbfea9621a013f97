//! Carries out `banyan ring recover`: [`banyan_router::recover::Recover`] decides.
//!
//! Always holds: every request is answered; what does not succeed in its time is asked again by the machine, for as long as
//! the caller waits. Dropping the future breaks it off; it may be run again at any point.

use std::sync::Arc;
use std::time::Duration;

use banyan_proto::id::Incarnation;
use banyan_router::recover::{Action, Input, Progress, Recover};
use banyan_router::slot::SlotCount;
use banyan_router::slot_owner::{CasOutcome, Failed};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::coordination::Coordination;
use crate::surroundings::Records;

/// A request that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// `through` is the run that carries it out, if a node does. How far it has come is shown through `progress`.
pub async fn recover(
    coordination: Arc<dyn Coordination>,
    records: Arc<dyn Records>,
    slots: SlotCount,
    through: Option<Incarnation>,
    progress: &watch::Sender<Progress>,
) {
    let began = Instant::now();
    let mut machine = Recover::new(slots, through);
    let mut requests = JoinSet::new();
    let mut actions = Vec::new();
    let mut input = Input::Start;
    loop {
        let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        machine.handle(now_ms, input, &mut actions);
        progress.send_replace(machine.progress());
        for action in actions.drain(..) {
            if action == Action::Done {
                return;
            }
            requests.spawn(perform(action, Arc::clone(&coordination), Arc::clone(&records)));
        }
        let deadline = machine.next_deadline().map(|ms| began + Duration::from_millis(ms));
        input = tokio::select! {
            biased;
            () = sleep_until(deadline.unwrap_or(began)), if deadline.is_some() => Input::Tick,
            Some(answer) = requests.join_next() => match answer {
                Ok(answer) => answer,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is going down.
                    Err(_) => return,
                },
            },
        };
    }
}

async fn perform(action: Action, etcd: Arc<dyn Coordination>, records: Arc<dyn Records>) -> Input {
    match action {
        Action::WriteFrozen => Input::Frozen(in_time(etcd.freeze_to_recover()).await),
        Action::ReadIncarnations => Input::Incarnations(in_time(records.read_incarnations()).await),
        Action::WriteFence { incarnation } => {
            let result = in_time(records.write_fence(incarnation)).await;
            Input::FenceWritten { incarnation, result }
        }
        Action::ReadSlot { slot } => {
            let result = in_time(async {
                let key = etcd.read_slot(slot).await?;
                Ok((key, records.read_owners(slot).await?))
            });
            Input::SlotRead { slot, result: result.await }
        }
        Action::SetSlot { slot, expect, new } => {
            let set = timeout(TIMEOUT, etcd.recover_slot(slot, expect, new)).await;
            Input::SlotSet { slot, outcome: set.unwrap_or(CasOutcome::Unknown) }
        }
        Action::Lift => Input::Lifted(in_time(etcd.lift_frozen()).await),
        Action::Done => unreachable!("not a request"),
    }
}

async fn in_time<T>(request: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    timeout(TIMEOUT, request).await.unwrap_or(Err(Failed))
}
