//! The report as one page that needs nothing else: a timeline of each run, tables over all of them.
//!
//! Always holds: whatever text comes from outside is escaped; the page loads nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::meter::percentile;
use super::report::{Report, Run};

/// Pixels of a timeline.
const WIDTH: f64 = 1_100.0;
const LEFT: f64 = 52.0;
/// Heights of its parts: faults, latency, sends, owners.
const FAULTS: f64 = 54.0;
const PLOT: f64 = 110.0;
const GAP: f64 = 28.0;
/// Free at the right.
const RIGHT: f64 = 12.0;
/// The width of a letter, about.
const LETTER: f64 = 6.5;

/// Faults of a run whose table is open at first.
const HITS_SHOWN: usize = 12;

/// For nodes, in the order of their names; then again.
const COLOURS: [&str; 8] =
    ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f"];

const STYLE: &str = ":root{--ink:#1c1e21;--soft:#5c6168;--line:#dfe2e6;--card:#f6f7f9;--back:#fff;--good:#1e7a34;--bad:#b3261e;--p50:#3b6ea8;--p99:#d9731a;--rate:#3f8f45;--fault:#d64545}\
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#a2a8b0;--line:#34383d;--card:#212427;--back:#17191b;--good:#6fcf87;--bad:#ff8a80;--p50:#7fb0e6;--p99:#ffac5f;--rate:#86cf8b;--fault:#ff7b7b}}\
body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1160px;padding:0 1rem;color:var(--ink);background:var(--back)}\
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}p{color:var(--soft);margin:.4rem 0}.good,.bad{font-weight:600;font-size:1.05rem}.bad{color:var(--bad)}.good{color:var(--good)}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;min-width:100%}td,th{padding:.3rem .5rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;font-variant-numeric:tabular-nums}\
th{color:var(--soft);font-weight:500;vertical-align:bottom;line-height:1.25}td{white-space:nowrap}td:first-child,th:first-child,.text{text-align:left}td.text{white-space:normal;min-width:16rem}\
.pair{display:flex;flex-wrap:wrap;gap:0 3rem}.pair>div{flex:1 1 22rem}pre{white-space:pre-wrap;background:var(--card);padding:.8rem;border-radius:.4rem}summary{cursor:pointer;color:var(--soft);margin:.6rem 0}\
svg{width:100%;height:auto;background:var(--card);border-radius:.5rem}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .name{fill:var(--ink);font-weight:600}svg .grid{stroke:var(--line);stroke-width:1}\
.p50{stroke:var(--p50)}.p99{stroke:var(--p99)}.rate{stroke:var(--rate)}.fault{fill:var(--fault)}svg text.t50{fill:var(--p50)}svg text.t99{fill:var(--p99)}svg text.tf{fill:var(--fault)}";

/// The page.
pub(super) fn html(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Chaos</title><style>{STYLE}</style><h1>Chaos</h1>"
    );
    put(&mut page, &verdict(report));
    put(&mut page, &nemeses(report));
    for (number, run) in (1..).zip(&report.runs) {
        put(&mut page, &self::run(number, run));
    }
    let (promises, coverage) = (promises(report), coverage(report));
    put(&mut page, &format!("<div class=\"pair\"><div>{promises}</div><div>{coverage}</div></div>"));
    page + "</html>\n"
}

fn put(page: &mut String, part: &str) {
    page.push_str(part);
    page.push('\n');
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn verdict(report: &Report) -> String {
    let seconds: f64 = report.runs.iter().filter_map(|run| run.seconds.last()).map(|last| last.at_s).sum();
    let strikes: usize = report.runs.iter().map(|run| run.hits.len()).sum();
    let acked = report.coverage().acked;
    let (class, words) = if report.is_broken() {
        ("bad", "promises are broken or something else went wrong: see the runs")
    } else {
        ("good", "0 lost, 0 duplicated, 0 reordered; no promise is broken")
    };
    format!(
        "<p class=\"{class}\">{words}</p><p>Runs: {}, {:.1} minutes, {strikes} faults, {acked} acked sends.</p>",
        report.runs.len(),
        seconds / 60.0
    )
}

/// One row for each nemesis.
fn nemeses(report: &Report) -> String {
    let mut table = "<h2>Faults</h2><div class=\"wide\"><table><tr><th>nemesis<th>lost / doubled / reordered<th>times<th>rooms<th>next acked send p50<th>p99<th>max\
                     <th>longest send p99<th>acked meanwhile<th>fenced utterances<th>unknown outcomes<th>gaps repaired\
                     <th>tries refused<th>connections lost<th>not taken<th>rooms silent"
        .to_owned();
    for (nemesis, sum) in report.by_nemesis() {
        let ms = |list: &[f64], percent| format!("{:.0} ms", percentile(list, percent));
        let cells = [
            sum.verdict(),
            sum.strikes.to_string(),
            sum.next_ack_ms.len().to_string(),
            ms(&sum.next_ack_ms, 50.0),
            ms(&sum.next_ack_ms, 99.0),
            ms(&sum.next_ack_ms, 100.0),
            ms(&sum.stall_ms, 99.0),
            sum.acks.to_string(),
            sum.counter("fenced utterances").to_string(),
            sum.counter("unknown outcomes").to_string(),
            sum.counter("gap repairs").to_string(),
            sum.refused.to_string(),
            sum.lost.to_string(),
            sum.turned_away.to_string(),
            sum.silent.to_string(),
        ];
        let _ok = write!(table, "<tr><td>{}<td>{}", nemesis.name(), cells.join("<td>")); // a string takes all
    }
    table
        + "</table></div><p>Time to the next acked send of a room counts from the fault; a send's time from its first try to its ack, retries \
             included. Faults that last (etcd, cuts, servers of the store) concern every room or those of the owner behind the cut. A killed node is found out by \
             two witnesses who are refused where it was, one killed unseen by its lease alone.</p>"
}

fn promises(report: &Report) -> String {
    let mut sums = BTreeMap::<&str, (u64, u64)>::new();
    for (promise, (checked, broken)) in report.runs.iter().flat_map(|run| &run.promises) {
        let sum = sums.entry(promise).or_default();
        *sum = (sum.0 + checked, sum.1 + broken);
    }
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|(promise, _)| promise.trim_start_matches('I').parse::<u32>().unwrap_or(u32::MAX));
    let mut table = "<h2>Promises</h2><table><tr><th>promise<th>checked<th>broken".to_owned();
    for (promise, (checked, broken)) in rows {
        let _ok = write!(table, "<tr><td>{}<td>{checked}<td>{broken}", escape(promise));
    }
    table + "</table>"
}

fn coverage(report: &Report) -> String {
    let mut table = "<h2>What happened</h2><table><tr><th>what<th>times".to_owned();
    for (words, times) in report.coverage().rows() {
        let _ok = write!(table, "<tr><td>{words}<td>{times}");
    }
    table + "</table>"
}

fn run(number: usize, run: &Run) -> String {
    let mut text = format!(
        "<h2>Run {number}: seed {}, {} nodes, {} etcd, {} CQL, {} slots{}</h2>",
        run.seed,
        run.nodes,
        run.etcd,
        run.cql,
        run.slots,
        if run.netns { ", each node in a network namespace" } else { "" }
    );
    text += &timeline(run);
    let many = run.hits.len() > HITS_SHOWN;
    if many {
        let _ok = write!(text, "<details><summary>all {} faults</summary>", run.hits.len()); // a string takes all
    }
    text += "<div class=\"wide\"><table><tr><th>at<th>for<th class=\"text\">what<th>next acked send p50<th>p99<th>sends beyond the usual p99: p50<th>p99<th>max<th>tries refused<th>connections lost";
    for hit in &run.hits {
        let _ok = write!(
            text,
            "<tr><td>{:.1} s<td>{:.1} s<td class=\"text\">{}: {}<td>{:.0} ms<td>{:.0} ms<td>{:.0} ms<td>{:.0} ms<td>{:.0} ms<td>{}<td>{}",
            hit.begun_s,
            hit.healed_s - hit.begun_s,
            hit.nemesis.name(),
            escape(&hit.what),
            percentile(&hit.next_ack_ms, 50.0),
            percentile(&hit.next_ack_ms, 99.0),
            hit.sends.p50_ms,
            hit.sends.p99_ms,
            hit.sends.max_ms,
            hit.refused.iter().map(|(code, n)| format!("{n} × {code}")).collect::<Vec<_>>().join(", "),
            hit.lost
        );
    }
    text += if many { "</table></div></details>" } else { "</table></div>" };
    text += "<p>Share of one processor: ";
    let length = run.seconds.last().map_or(1.0, |last| last.at_s.max(1.0));
    let shares: Vec<String> = run
        .processor
        .iter()
        .map(|(name, used)| format!("{} {:.0} %", escape(name), used / length * 100.0))
        .collect();
    text += &shares.join(", ");
    text += "</p>";
    for wrong in run.wrong.iter().chain(&run.violations) {
        let _ok = write!(text, "<pre class=\"bad\">{}</pre>", escape(wrong));
    }
    text
}

/// Faults, send latency, sends a second and owners over time.
fn timeline(run: &Run) -> String {
    let end = run.seconds.last().map_or(1.0, |last| last.at_s).max(1.0);
    let x = |s: f64| LEFT + (WIDTH - LEFT - RIGHT) * (s / end).clamp(0.0, 1.0);
    let height = FAULTS + 3.0 * (PLOT + GAP);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"timeline\">");
    for (at, hit) in run.hits.iter().enumerate() {
        let (from, to) = (x(hit.begun_s), x(hit.healed_s));
        let width = (to - from).max(2.0);
        let name = hit.nemesis.name();
        let room = run.hits.get(at + 1).map_or(WIDTH, |next| x(next.begun_s)) - from;
        // What has no room is told by the title.
        let name = if room > LETTER * name.len() as f64 { name } else { String::new() };
        let title = escape(&format!("{}: {}", hit.nemesis.name(), hit.what));
        let _ok = write!(
            svg,
            "<g><title>{title}</title><rect x=\"{from:.1}\" y=\"12\" width=\"{width:.1}\" height=\"{:.1}\" class=\"fault\" opacity=\".12\"/>\
             <rect x=\"{from:.1}\" y=\"8\" width=\"{width:.1}\" height=\"5\" rx=\"2\" class=\"fault\"/><text x=\"{from:.1}\" y=\"26\" class=\"tf\">{}</text></g>",
            height - GAP - 12.0,
            name
        );
    }
    let mut top = FAULTS;
    // Latency spans milliseconds to a minute: in powers of ten.
    let latency = |ms: f64| (ms.max(1.0).log10() / 5.0).clamp(0.0, 1.0);
    svg += &axis(
        top,
        "from first try to ack",
        &[(0.0, "1 ms"), (0.2, "10 ms"), (0.4, "100 ms"), (0.6, "1 s"), (0.8, "10 s")],
    );
    // A string takes all.
    let _ok = write!(
        svg,
        "<text x=\"{0}\" y=\"{2:.1}\" class=\"t50\">p50</text><text x=\"{1}\" y=\"{2:.1}\" class=\"t99\">p99</text>",
        LEFT + 130.0,
        LEFT + 160.0,
        top - 5.0
    );
    for (class, value) in [("p99", 1), ("p50", 0)] {
        // Where nothing was acked there is nothing to draw.
        for seconds in run.seconds.split(|second| second.sends_per_s == 0.0) {
            let points = seconds.iter().map(|second| {
                let ms = if value == 1 { second.p99_ms } else { second.p50_ms };
                (x(second.at_s), top + PLOT * (1.0 - latency(ms)))
            });
            svg += &line(points, class);
        }
    }
    top += PLOT + GAP;
    let most = run.seconds.iter().map(|second| second.sends_per_s).fold(1.0, f64::max);
    svg +=
        &axis(top, "acked sends a second (dots: tries refused)", &[(0.0, "0"), (1.0, &format!("{most:.0}"))]);
    let sends = run.seconds.iter().map(|s| (x(s.at_s), top + PLOT * (1.0 - s.sends_per_s / most)));
    svg += &line(sends, "rate");
    for second in run.seconds.iter().filter(|second| second.refused > 0) {
        let _ok = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" class=\"fault\"><title>{} tries refused</title></circle>",
            x(second.at_s),
            top + PLOT,
            second.refused
        );
    }
    top += PLOT + GAP;
    svg += &owners(run, top, &x);
    let mut at = 0.0;
    let step = [10.0, 30.0, 60.0, 300.0].into_iter().find(|step| end / step <= 24.0).unwrap_or(600.0);
    while at <= end {
        let _ok = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.0} s</text>",
            x(at),
            height - 9.0
        );
        at += step;
    }
    svg + "</svg>"
}

/// Slots of each node, stacked.
fn owners(run: &Run, top: f64, x: &dyn Fn(f64) -> f64) -> String {
    let mut nodes: Vec<&String> = run.seconds.iter().flat_map(|second| second.owners.keys()).collect();
    nodes.sort();
    nodes.dedup();
    let slots = f64::from(run.slots.max(1));
    let mut svg = axis(top, "owners of slots", &[(0.0, "0"), (1.0, &run.slots.to_string())]);
    let mut below = vec![0.0; run.seconds.len()];
    for (number, node) in nodes.into_iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let own =
            |at: usize| f64::from(run.seconds[at].owners.get(node).copied().unwrap_or_default()) / slots;
        let y = |share: f64| top + PLOT * (1.0 - share.min(1.0));
        let mut points = String::new();
        for (at, second) in run.seconds.iter().enumerate() {
            let _ok = write!(points, "{:.1},{:.1} ", x(second.at_s), y(below[at] + own(at)));
        }
        for (at, second) in run.seconds.iter().enumerate().rev() {
            let _ok = write!(points, "{:.1},{:.1} ", x(second.at_s), y(below[at]));
        }
        let name = escape(node);
        let _ok = write!(
            svg,
            "<polygon points=\"{points}\" fill=\"{colour}\" opacity=\".75\"><title>{name}</title></polygon>\
             <text x=\"{:.1}\" y=\"{:.1}\" style=\"fill:{colour};font-weight:600\">{name}</text>",
            LEFT + 110.0 + 40.0 * number as f64,
            top - 5.0
        );
        for (at, below) in below.iter_mut().enumerate() {
            *below += own(at);
        }
    }
    svg
}

fn axis(top: f64, name: &str, marks: &[(f64, &str)]) -> String {
    let mut svg = format!("<text x=\"{LEFT}\" y=\"{:.1}\" class=\"name\">{name}</text>", top - 5.0);
    for (share, mark) in marks {
        let y = top + PLOT * (1.0 - share);
        let _ok = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"grid\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0
        );
    }
    svg
}

fn line(points: impl Iterator<Item = (f64, f64)>, class: &str) -> String {
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!(
        "<polyline points=\"{}\" fill=\"none\" class=\"{class}\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>",
        points.join(" ")
    )
}
