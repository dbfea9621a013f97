//! The threads of a node's workers: each a runtime of its own, for one gateway worker and one shard worker at a time.
//!
//! Owns: the threads. A node that has come back as another run gives each its next shard worker; the gateway workers
//! beside them go on.

use std::io;
use std::net::TcpListener;
use std::thread;

use banyan_gateway::worker::{self, Deps};
use banyan_shard::End;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cannot;
use crate::failure::Failure;

/// A run begins when the workers of the one before have ended, so one is enough.
const ORDERS: usize = 8;

#[derive(Debug)]
pub(crate) struct Threads {
    /// One order at the start of the node and one for each run. Full: who waits for the worker sees that there is none.
    orders: Vec<mpsc::Sender<Order>>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// Gives threads their next shard workers.
#[derive(Debug, Clone)]
pub(crate) struct Hands(Vec<mpsc::Sender<Order>>);

#[derive(Debug)]
enum Order {
    Gateway {
        options: Box<worker::Options>,
        listener: TcpListener,
        deps: Box<Deps>,
        drain: CancellationToken,
        ended: oneshot::Sender<io::Result<()>>,
    },
    Shard {
        worker: Box<banyan_shard::Worker>,
        drain: CancellationToken,
        ended: oneshot::Sender<End>,
    },
}

impl Threads {
    pub(super) fn start(count: usize) -> Result<Self, Failure> {
        let mut threads = Self { orders: Vec::new(), threads: Vec::new() };
        for number in 0..count {
            let (order, orders) = mpsc::channel(ORDERS);
            // Made here, so that what the system refuses stops the start.
            let runtime =
                move || Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let started = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                match runtime() {
                    Ok(runtime) => runtime.block_on(run(orders)),
                    // Whoever waits for a worker of this thread sees that it is gone.
                    Err(error) => tracing::error!(%error, "a worker's thread has no runtime"),
                }
            });
            threads.threads.push(started.map_err(|error| cannot("start a worker", &error))?);
            threads.orders.push(order);
        }
        Ok(threads)
    }

    pub(super) fn gateway(
        &self,
        number: usize,
        options: worker::Options,
        listener: TcpListener,
        deps: Deps,
        drain: CancellationToken,
    ) -> oneshot::Receiver<io::Result<()>> {
        let (ended, end) = oneshot::channel();
        let (options, deps) = (Box::new(options), Box::new(deps));
        give(&self.orders, number, Order::Gateway { options, listener, deps, drain, ended });
        end
    }

    pub(super) fn hands(&self) -> Hands {
        Hands(self.orders.clone())
    }

    /// Waits for all workers, whose ends must have been asked for. Blocks.
    pub(super) fn join(self) {
        drop(self.orders);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker's thread ended in a panic");
            }
        }
    }
}

impl Hands {
    /// Runs each worker on the thread of its number until `drain`.
    pub(crate) fn shards(
        &self,
        workers: Vec<banyan_shard::Worker>,
        drain: &CancellationToken,
    ) -> Vec<oneshot::Receiver<End>> {
        let workers = workers.into_iter().enumerate();
        workers
            .map(|(number, worker)| {
                let (ended, end) = oneshot::channel();
                let (worker, drain) = (Box::new(worker), drain.clone());
                give(&self.0, number, Order::Shard { worker, drain, ended });
                end
            })
            .collect()
    }
}

fn give(orders: &[mpsc::Sender<Order>], number: usize, order: Order) {
    if let Some(orders) = orders.get(number) {
        // A thread that is gone drops it, and with it the sender of its end.
        orders.try_send(order).ok();
    }
}

async fn run(mut orders: mpsc::Receiver<Order>) {
    let mut tasks = JoinSet::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Gateway { options, listener, deps, drain, ended } => {
                tasks.spawn_local(async move {
                    let end = match worker::Worker::new(*options, listener, *deps) {
                        Ok(worker) => worker.run(drain).await,
                        Err(error) => Err(error),
                    };
                    drop(ended.send(end));
                });
            }
            Order::Shard { worker, drain, ended } => {
                tasks.spawn_local(async move {
                    ended.send(worker.run(drain).await).ok();
                });
            }
        }
    }
    // A panic has ended the process by its hook.
    while tasks.join_next().await.is_some() {}
}
