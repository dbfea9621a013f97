//! The rows of the ring in a store of messages.

use std::sync::Arc;

use banyan_proto::id::{Incarnation, SlotId, Tenure};
use banyan_router::slot_key::{NodeId, OwnerRow, Peer};
use banyan_router::slot_owner::Failed;
use banyan_router_etcd::surroundings::Records;
use banyan_storage::log_store::SlotOwner;
use banyan_storage::{Error, LogStore};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

#[derive(Debug)]
pub(crate) struct Rows(pub(crate) Arc<dyn LogStore>);

fn done<T: Send + 'static>(
    what: &'static str,
    answer: BoxFuture<'static, Result<T, Error>>,
) -> BoxFuture<'static, Result<T, Failed>> {
    async move {
        answer.await.map_err(|error| {
            tracing::warn!(%error, what, "the store did not answer as it should");
            Failed
        })
    }
    .boxed()
}

impl Records for Rows {
    fn register_incarnation(&self, me: Peer) -> BoxFuture<'static, Result<(), Failed>> {
        done("register_incarnation", self.0.register_incarnation(me.incarnation, me.node.to_string()))
    }

    fn write_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<(), Failed>> {
        done("write_fence", self.0.write_fence(incarnation))
    }

    fn read_fence(&self, incarnation: Incarnation) -> BoxFuture<'static, Result<bool, Failed>> {
        let answer = self.0.is_fenced(incarnation);
        done("read_fence", Box::pin(answer.get()))
    }

    fn put_owner(
        &self,
        slot: SlotId,
        row: OwnerRow,
        closes: Option<Tenure>,
    ) -> BoxFuture<'static, Result<(), Failed>> {
        let OwnerRow { tenure: Tenure { epoch, incarnation }, closed } = row;
        let owner = SlotOwner { epoch, incarnation, closed };
        let closes = closes.map(|Tenure { epoch, incarnation }| (epoch, incarnation));
        done("put_slot_owner", self.0.put_slot_owner(slot, owner, closes))
    }

    fn read_owners(&self, slot: SlotId) -> BoxFuture<'static, Result<Vec<OwnerRow>, Failed>> {
        let rows = done("slot_owners", self.0.slot_owners(slot));
        let row = |SlotOwner { epoch, incarnation, closed }| OwnerRow {
            tenure: Tenure { epoch, incarnation },
            closed,
        };
        async move { Ok(rows.await?.into_iter().map(row).collect()) }.boxed()
    }

    fn read_incarnations(&self) -> BoxFuture<'static, Result<Vec<Peer>, Failed>> {
        let rows = done("incarnations", self.0.incarnations());
        async move {
            let peer = |(incarnation, node): (Incarnation, String)| {
                NodeId::parse(&node).map(|node| Peer { node, incarnation })
            };
            rows.await?.into_iter().map(peer).collect::<Result<_, _>>().map_err(|_| Failed)
        }
        .boxed()
    }
}
