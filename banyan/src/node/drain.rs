//! An operator's drain, from the ring to the clients of this node.
//!
//! Owns: the order: slots first, then clients. Always holds: workers are told once of each drain and of its end; whoever
//! undrains a node before its slots have left finds its clients where they were. Slots that find no other node hold nothing
//! up for longer than [`Patience`].
//! Does not: take slots away (the ring's machine does) or say how ready the node is (`serve.rs`).

use std::time::Duration;

use banyan_gateway::worker::Control;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// What the ring says of this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// An operator has drained it.
    pub(crate) asked: bool,
    /// It serves slots still.
    pub(crate) serves: bool,
}

/// How long clients stay while slots leave. As long as at a stop of the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(pub(crate) Duration);

/// Tells the workers, until `stop`.
pub(crate) async fn follow(
    mut drained: watch::Receiver<Drained>,
    workers: Vec<mpsc::Sender<Control>>,
    patience: Patience,
    stop: CancellationToken,
) {
    let following = async {
        loop {
            drained.wait_for(|now| now.asked).await?;
            tracing::info!("an operator has drained this node: its slots leave, then its clients");
            tokio::select! {
                // Gone, or called off.
                changed = drained.wait_for(|now| !now.asked || !now.serves) => {
                    if !changed?.asked {
                        tracing::info!("the drain was called off");
                        continue;
                    }
                }
                () = sleep(patience.0) => {
                    tracing::warn!("some slots have found no other node yet: clients are sent away all the same");
                }
            }
            tell(&workers, || Control::Drain).await;
            drained.wait_for(|now| !now.asked).await?;
            tell(&workers, || Control::Undrain).await;
            tracing::info!("this node is not drained any more: it takes clients again");
        }
    };
    let following = async {
        // The ring's machine is gone: the node stops.
        let _gone: Result<(), watch::error::RecvError> = following.await;
    };
    stop.run_until_cancelled(following).await;
}

async fn tell(workers: &[mpsc::Sender<Control>], what: impl Fn() -> Control) {
    for worker in workers {
        // A worker that is gone ends the process.
        worker.send(what()).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        ring: watch::Sender<Drained>,
        worker: mpsc::Receiver<Control>,
    }

    fn world() -> World {
        let (ring, drained) = watch::channel(Drained { asked: false, serves: true });
        let (control, worker) = mpsc::channel(8);
        let patience = Patience(Duration::from_secs(6));
        tokio::spawn(follow(drained, vec![control], patience, CancellationToken::new()));
        World { ring, worker }
    }

    impl World {
        async fn told(&mut self, ms: u64) -> Option<&'static str> {
            sleep(Duration::from_millis(ms)).await;
            self.worker.try_recv().ok().map(|control| match control {
                Control::Drain => "drain",
                Control::Undrain => "undrain",
                _ => "else",
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_go_after_the_slots_and_come_back_after_the_drain() {
        let mut w = world();
        for _ in 0..2 {
            w.ring.send_replace(Drained { asked: true, serves: true });
            assert_eq!(w.told(5_000).await, None, "slots first");
            w.ring.send_replace(Drained { asked: true, serves: false });
            assert_eq!(w.told(10).await, Some("drain"));
            // Slots may come and go; it is drained.
            w.ring.send_replace(Drained { asked: true, serves: true });
            assert_eq!(w.told(60_000).await, None);
            w.ring.send_replace(Drained { asked: false, serves: false });
            assert_eq!(w.told(10).await, Some("undrain"));
            assert_eq!(w.told(60_000).await, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_is_called_off_early_moves_nobody_and_a_stuck_one_does_not_wait_for_ever() {
        let mut w = world();
        w.ring.send_replace(Drained { asked: true, serves: true });
        assert_eq!(w.told(1_000).await, None);
        w.ring.send_replace(Drained { asked: false, serves: true });
        assert_eq!(w.told(60_000).await, None);
        w.ring.send_replace(Drained { asked: true, serves: true });
        assert_eq!(w.told(5_900).await, None);
        assert_eq!(w.told(200).await, Some("drain"));
    }
}
