//! `floor`: the kernel's own cost of fan-out alone, without a server.

use serde::Serialize;
use serde_json::json;

use crate::cli::FloorOnly;
use crate::clock::now_ns;
use crate::floor::{CASES, Floor, Order};
use crate::report::{Progress, Report, Table, data};
use crate::setup::Setup;
use crate::stats::Spread;

#[derive(Debug, Serialize)]
struct Run {
    members: u32,
    order: Order,
    frames_per_send: u64,
    us_per_delivery: f64,
    us_per_send: f64,
    events: u64,
    blocked_sends: u64,
    sender_share: f64,
    generator_share: f64,
}

pub(crate) fn run(options: &FloorOnly) -> anyhow::Result<Report> {
    let setup = Setup::of(&options.common)?;
    let mut report = Report::new("floor");
    setup.describe_processors(&mut report, options.common.quick);
    let frame = sample(options.payload as usize);
    report.set(
        "frame",
        format!("{} B of JSON, as of an event with {} B of text", frame.len(), options.payload),
    );
    let seconds = if options.common.quick { 0.2 } else { options.seconds };
    let progress = Progress::new(options.members.len() * setup.runs as usize * CASES.len());
    let mut runs = Vec::new();
    for &members in &options.members {
        let mut pool = setup.pool(members as usize)?;
        let mut floor = Floor::start(&setup.server_cpus, &mut pool, members as usize)?;
        for run in 1..=setup.runs {
            for case in CASES {
                progress.say(format!("{members} sockets, {case:?}, run {run} of {}", setup.runs));
                let (generators, started_ns) = (pool.cpu()?, now_ns());
                let ran = floor.run(&mut pool, case, &frame, seconds)?;
                let wall_ns = now_ns().saturating_sub(started_ns) as f64;
                runs.push(Run {
                    members,
                    order: case.order,
                    frames_per_send: case.frames_per_send,
                    us_per_delivery: ran.cpu_ns as f64 / 1e3 / (ran.events as f64 * f64::from(members)),
                    us_per_send: ran.cpu_ns as f64 / 1e3 / ran.sends as f64,
                    events: ran.events,
                    blocked_sends: ran.blocked,
                    sender_share: ran.cpu_ns as f64 / ran.wall_ns as f64,
                    generator_share: pool.cpu_since(&generators)? as f64
                        / wall_ns
                        / setup.generator_cpus.count() as f64,
                });
                progress.step();
            }
        }
    }
    progress.done();
    let mut table = Table::new(
        "The kernel's own cost, one event after the other, receivers woken by the sends",
        &["sockets", "order", "frames a send", "µs/delivery", "µs/send", "generator CPU"],
    );
    let mut summaries = Vec::new();
    for &members in &options.members {
        for case in CASES {
            let of = || {
                let same = |run: &&Run| {
                    run.members == members
                        && run.order == case.order
                        && run.frames_per_send == case.frames_per_send
                };
                runs.iter().filter(same)
            };
            let spread = |value: fn(&Run) -> f64| Spread::of(of().map(value));
            let show =
                |value, decimals| spread(value).map_or_else(String::new, |spread| spread.show(decimals));
            let order = if case.order == Order::Memory { "memory" } else { "strided" };
            table.row([
                members.to_string(),
                order.to_owned(),
                case.frames_per_send.to_string(),
                show(|run| run.us_per_delivery, 2),
                show(|run| run.us_per_send, 2),
                show(|run| run.generator_share * 100.0, 0) + " %",
            ]);
            let us = spread(|run| run.us_per_delivery);
            summaries.push(json!({ "members": members, "order": order, "frames_per_send": case.frames_per_send, "us_per_delivery": us }));
        }
    }
    let blocked: u64 = runs.iter().map(|run| run.blocked_sends).sum();
    if blocked > 0 {
        report.notes.push(format!("{blocked} sends found a full socket: the receivers were the limit"));
    }
    report.tables.push(table);
    report.data = data(&runs, &summaries);
    Ok(report)
}

/// An event as the server would write it.
fn sample(payload: usize) -> String {
    let text = "x".repeat(payload);
    json!({ "event": {
        "room": "bench-fanout", "seq": 123_456, "at": 1_795_262_760_123_u64, "n": 123_400,
        "sender": "bench-0", "sender_name": "bench-0", "client_msg_id": "123456-1795262760123",
        "message": { "text": text, "content_type": "text/plain", "mentions": [] },
    }})
    .to_string()
}
