"""Checks what operators watch: alerts, the dashboard, and what Compose scrapes and shows them with.

Owns: which metrics the code exports, of which kind and with which labels; that docs/operations.md says the same; that
alerts and panels ask for nothing else, in expressions that Prometheus reads; planted mistakes that must be found.
Does not: start Prometheus or Grafana.
"""

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from wrong import expect_wrong, load, need, run

DEPLOY = Path(__file__).resolve().parent.parent
ROOT = DEPLOY.parent
# A chart reads only what lies in it, so it has the only one.
DASHBOARD = DEPLOY / "helm/banyan/dashboards/banyan.json"

# Names there are no server's, or stand in tests.
NOT_THE_SERVER = {".git", "target", "node_modules", "tests", "xtask", "bench", "deploy", "docs"}
# Labels that whoever scrapes adds.
OF_THE_TARGET = {"job", "instance", "namespace"}
# Metrics that are Prometheus' own.
OF_PROMETHEUS = {"up", "ALERTS"}
# Only grows, but is set to what the system says: the recorder knows it as a gauge.
GROWS = {"process_cpu_seconds_total"}
# Ids of Grafana's units. It takes any other word too, and writes it behind the number.
UNITS = {"none", "short", "ops", "reqps", "wps", "cps", "s", "bytes", "Bps", "percentunit"}
COLOURS = {"page": "red", "ticket": "orange"}
VARIABLES = {"datasource", "job", "namespace", "instance"}
# Of Grafana's grid.
COLUMNS = 24


class Metric(NamedTuple):
    """What the code exports."""

    kind: str
    labels: frozenset


class Known(NamedTuple):
    """What may be asked for."""

    metrics: dict[str, Metric]
    # By metric, its row in docs/operations.md: kind, what is said of it.
    documented: dict[str, tuple[str, str]]
    # Words in quotes in the code: whatever value a label may have is one of them.
    words: set[str]


def monitoring():
    """Everything of this file but Compose's part."""
    metrics, words = read_code()
    known = Known(metrics, read_page(), words)
    check_page(known)
    for words, broken in {
        "a metric that the code does not export": known._replace(metrics=without(known.metrics, "banyan_storage_full")),
        "a metric that is not in the page": known._replace(documented=without(known.documented, "banyan_storage_full")),
        "a metric of another kind": known._replace(metrics={**known.metrics, "banyan_storage_full": Metric("counter", frozenset())}),
    }.items():
        expect_wrong(f"docs/operations.md with {words}", lambda: check_page(broken))
    alerts(known)
    dashboard(known)


def expect_all_wrong(where, text, planted, check, known):
    """Each mistake, put into the text in its turn, is found."""
    for words, old, new in planted:
        need(old in text, f"{where} has no {old}: nothing can be planted there")
        expect_wrong(f"{where} with {words}", lambda: check(text.replace(old, new), known))


def documented(known, name):
    """With a row in the page for a metric that there is not: that is not enough, the code must export it."""
    return known._replace(documented={**known.documented, name: ("gauge", "")})


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


# --- what there is ---------------------------------------------------------------------------------------------


def read_code():
    """Metrics by name, and all words in quotes, of the crates that are built into the server."""
    metrics, words = {}, set()
    for directory, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in NOT_THE_SERVER]
        for file in files:
            if file.endswith(".rs") and "src" in Path(directory).parts:
                # Names of unit tests are no server's.
                text = (Path(directory) / file).read_text().split("\n#[cfg(test)]\nmod tests {")[0]
                words.update(re.findall(r'"([\w.]+)"', text))
                for name, metric in metrics_of(f"{Path(directory).name}/{file}", text):
                    had = metrics.setdefault(name, metric)
                    need(had.kind == metric.kind, f"{file}: {name} is a {metric.kind} here and a {had.kind} elsewhere")
                    metrics[name] = Metric(had.kind, had.labels | metric.labels)
    need(len(metrics) > 80, f"only {len(metrics)} metrics were found in the code")
    return metrics, words


def metrics_of(where, text):
    """Those of one file: by the macros that register them. Where a macro takes a variable, names are in a table of the file."""
    by_table = []
    named = set()
    for macro in re.finditer(r"\b(counter|gauge|histogram)!\(", text):
        given = arguments(text[macro.end() :])
        metric = Metric(macro[1], frozenset(re.findall(r'"(\w+)"\s*=>', given)))
        if name := re.match(r'\s*"(\w+)"', given):
            named.add(name[1])
            yield name[1], metric
        else:
            by_table.append(metric)
    rest = set(re.findall(r'"(banyan_[a-z]+_\w+)"', text)) - named if by_table else set()
    need(len(by_table) <= 1, f"{where}: two macros take names from a table: whose is which name?")
    for name in rest:
        yield name, by_table[0]


def arguments(text):
    """Up to the parenthesis that closes."""
    depth = 1
    for at, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0:
            return text[:at]
    return text


def read_page():
    rows = [line for line in (ROOT / "docs/operations.md").read_text().splitlines() if line.startswith("| `")]
    documented = {}
    for row in rows:
        names, kind, _, says = [cell.strip() for cell in row.strip("|").split("|", 3)][:4] if row.count("|") > 4 else ("", "", "", "")
        for name in re.findall(r"`((?:banyan|process)_\w+)`", names):
            documented[name] = (kind, says)
    return documented


def check_page(known):
    for name, metric in known.metrics.items():
        need(name in known.documented, f"docs/operations.md does not have {name}")
        kind = known.documented[name][0]
        need(kind == metric.kind, f"docs/operations.md: {name} is a {metric.kind}, not a {kind}")
    gone = sorted(set(known.documented) - set(known.metrics))
    need(not gone, f"docs/operations.md has what the code does not export: {', '.join(gone)}")


# --- expressions -----------------------------------------------------------------------------------------------


def check_expression(where, expression, known):
    """Asks for what there is, as its kind wants it. Returns the labels that its result can have."""
    need(expression.count("(") == expression.count(")"), f"{where}: parentheses")
    bare = re.sub(r'"[^"]*"', "", expression)
    for name in re.findall(r"\b(?:(?:banyan|process)_\w+|up|ALERTS)\b(?!\{)", bare):
        need(False, f"{where}: {name} of every job: choose one")
    asked = list(re.finditer(r"\b([A-Za-z_]\w*)\{([^}]*)\}", expression))
    need(asked, f"{where} asks for nothing")
    labels = set(OF_THE_TARGET)
    for found in asked:
        name, matchers = found[1], re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', found[2])
        if name in OF_PROMETHEUS:
            labels |= {label for label, _ in matchers}
            continue
        histogram = re.sub(r"_(bucket|sum|count)$", "", name)
        metric = known.metrics.get(name) or known.metrics.get(histogram)
        need(metric, f"{where}: there is no metric {name}")
        need((metric.kind == "histogram") == (name not in known.metrics), f"{where}: {name} is a {metric.kind}")
        grows = metric.kind in ("counter", "histogram") or name in GROWS
        rated = re.search(r"\b(rate|increase)\($", expression[: found.start()])
        need(bool(rated) == grows, f"{where}: {name}, {'which only grows' if grows else 'a gauge'}, {'in' if rated else 'without'} rate()")
        has = metric.labels | OF_THE_TARGET | ({"le"} if name.endswith("_bucket") else set())
        labels |= has
        need("job" in dict(matchers), f"{where}: {name} of every job: choose one")
        for label, values in matchers:
            need(label in has, f"{where}: {name} has no label {label}; it has {', '.join(sorted(metric.labels)) or 'none'}")
            check_values(f"{where}: {name}", label, values, known)
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in re.split(r",\s*", grouped):
            need(label in labels, f"{where}: nothing here has a label {label}")
    by = {label for grouped in re.findall(r"\bby \(([^)]*)\)", expression) for label in re.split(r",\s*", grouped)}
    whole = not by and re.search(r"\b(sum|max|min|count)\(", bare)
    return by - {"le"} if by else set() if whole else labels


def check_values(where, label, values, known):
    """What a label can be stands with the first of the metrics that have it, and in the code."""
    # Statuses are HTTP's; what is scraped is whoever's.
    if label in OF_THE_TARGET | {"status"}:
        return
    listed = " ".join(says for _, says in known.documented.values() if f"`{label}`" in says)
    for value in values.split("|"):
        need(f"`{value}`" in listed, f"{where}: docs/operations.md has no {label} {value}")
        need(value in known.words, f"{where}: the code has no {label} {value}")


def check_syntax(where, expressions):
    """By Prometheus itself, as rules."""
    rules = [{"record": f"check:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "rules.yaml"
        # YAML reads JSON.
        file.write_text(json.dumps({"groups": [{"name": where, "rules": rules}]}))
        run(["promtool", "check", "rules", file])


# --- alerts ----------------------------------------------------------------------------------------------------


def alerts(known):
    text = (DEPLOY / "alerts.yaml").read_text()
    check_alerts(text, known)
    planted = [
        ("an alert of a metric that is none", "banyan_storage_full", "banyan_storage_fill"),
        ("an alert of a metric that the code has no more", "banyan_storage_full", "banyan_storage_fool"),
        ("an alert of a value that is none", 'outcome=~"failed', 'outcome=~"fialed'),
        ("an alert of a label that is none", "kind=~", "kin=~"),
        ("an alert without a severity", "severity: ticket", "urgency: low"),
        ("an alert of a counter's height", 'increase(banyan_cluster_rejoins_total{job="banyan"}[30m])', 'banyan_cluster_rejoins_total{job="banyan"}'),
        ("an alert that Prometheus does not read", "histogram_quantile(0.99,", "histogram_quantil(0.99,"),
        ("an alert of every job", 'banyan_storage_full{job="banyan"}', "banyan_storage_full"),
    ]
    expect_all_wrong("alerts.yaml", text, planted, check_alerts, documented(known, "banyan_storage_fool"))


def check_alerts(text, known):
    rules = [rule for group in load(text)["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    for rule in rules:
        name = rule["alert"]
        where = f"alerts.yaml: {name}"
        need(names.count(name) == 1, f"{where} twice")
        need(rule["labels"].get("severity") in COLOURS, f"{where} has no severity")
        need(rule["annotations"].get("summary"), f"{where} says nothing")
        check_expression(where, rule["expr"], known)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "alerts.yaml").write_text(text)
        run(["promtool", "check", "rules", Path(directory) / "alerts.yaml"])


def thresholds():
    """By alert: its colour, and the value above which it fires; nothing where it does not fire above one."""
    found = {}
    for group in load((DEPLOY / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            above = re.search(r"\s(?:>|(== 1)$)\s*([\d.]*)$", rule["expr"])
            value = None if above is None else 1.0 if above[1] else float(above[2])
            found[rule["alert"]] = (COLOURS[rule["labels"]["severity"]], value)
    return found


# --- dashboard -------------------------------------------------------------------------------------------------


def dashboard(known):
    text = DASHBOARD.read_text()
    board = json.loads(text)
    check_dashboard(board, known)
    first = next(panel for panel in panels_of(board) if panel["type"] == "timeseries")["id"]

    def panel(broken):
        return next(panel for panel in panels_of(broken) if panel["id"] == first)

    for words, plant in {
        "a panel without a description": lambda b: panel(b).pop("description"),
        "a panel that says next to nothing": lambda b: panel(b).update({"description": "Sends."}),
        "a panel without a unit": lambda b: panel(b)["fieldConfig"]["defaults"].pop("unit"),
        "a unit that is none": lambda b: panel(b)["fieldConfig"]["defaults"].update({"unit": "pings"}),
        "a line without a legend": lambda b: panel(b)["targets"][0].pop("legendFormat"),
        "a legend of a label that is summed away": lambda b: panel(b)["targets"][0].update({"legendFormat": "{{worker}}"}),
        "a data source of somebody's own": lambda b: panel(b)["datasource"].update({"uid": "PBFA97CFB590B2093"}),
        "two panels in one place": lambda b: panel(b)["gridPos"].update({"x": 0, "y": 1}),
        "a panel twice": lambda b: b["panels"].append(copy.deepcopy(panel(b))),
        "no variable for the node": lambda b: b["templating"]["list"].pop(),
    }.items():
        broken = copy.deepcopy(board)
        plant(broken)
        expect_wrong(f"a dashboard with {words}", lambda: check_dashboard(broken, known))
    planted = [
        ("a metric that is none", "banyan_storage_queue_depth{", "banyan_storage_queue_dept{"),
        ("a metric that the code has no more", "banyan_storage_queue_depth{", "banyan_storage_queue_length{"),
        ("a label that is none", "by (instance, why)", "by (instance, reason)"),
        ("a value that is none", 'kind=\\"fence_read\\"', 'kind=\\"fence\\"'),
        ("a rate of a gauge", "rate(banyan_shard_reads_total{", "rate(banyan_shard_rooms_open{"),
        ("a counter's height", "banyan_router_slots_served{", "banyan_shard_moved_total{"),
        ("a histogram as a number", "banyan_storage_commit_seconds_bucket", "banyan_storage_commit_seconds"),
        ("another threshold than the alert's", '{"color": "red", "value": 0.2}', '{"color": "red", "value": 0.3}'),
        ("another colour than the alert's", '{"color": "red", "value": 0.2}', '{"color": "orange", "value": 0.2}'),
        ("an alert that is none", "BanyanEtcdFails", "BanyanEtcdFalls"),
        ("an alert on no panel", "(BanyanEtcdFails)", ""),
        ("a variable that is none", 'job=\\"$job\\"', 'job=\\"$jib\\"'),
        ("an expression that Prometheus does not read", "min by (instance) (up", "min by instance (up"),
    ]
    expect_all_wrong("the dashboard", text, planted, lambda text, known: check_dashboard(json.loads(text), known), documented(known, "banyan_storage_queue_length"))


def panels_of(board):
    """All that show something; those of a closed row lie in it."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def check_dashboard(board, known):
    need("uid" not in board and board.get("id") is None, "the dashboard has an identity: two in one Grafana would be one")
    # The newest of dashboards that are no resources; Grafana brings older ones up to it at every load.
    need(board["schemaVersion"] == 42, f"the dashboard's schema is {board['schemaVersion']}")
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    need(set(variables) == VARIABLES, f"the dashboard's variables are {sorted(variables)}")
    source = variables["datasource"]
    need((source["type"], source["query"]) == ("datasource", "prometheus"), "the data source is not for the reader to choose")
    for holder in everything_with("datasource", board):
        named = holder["datasource"]
        need(named == {"type": "prometheus", "uid": "${datasource}"}, f"the dashboard names a data source: {named}")
    panels = list(panels_of(board))
    need(len(panels) > 20, f"the dashboard has only {len(panels)} panels")
    ids = [panel["id"] for panel in board["panels"]] + [panel["id"] for panel in panels if panel not in board["panels"]]
    need(len(ids) == len(set(ids)), "two panels have one id")
    check_places(board["panels"])
    wanted, shown, expressions = thresholds(), set(), []
    for panel in panels:
        where = f"panel {panel['title']!r}"
        says = panel.get("description", "")
        need(len(says) > 40 and says.endswith("."), f"{where} does not say what it means and what to do")
        need(panel["fieldConfig"]["defaults"].get("unit") in UNITS, f"{where} has no unit that Grafana knows")
        expressions += check_targets(where, panel, known)
        for name in re.findall(r"\bBanyan[A-Z]\w+", says):
            need(name in wanted, f"{where}: there is no alert {name}")
            shown.add(name)
            check_threshold(f"{where}: {name}", panel, *wanted[name])
    need(shown == set(wanted), f"no panel shows what fires {', '.join(sorted(set(wanted) - shown))}")
    asked = [variable["query"]["query"] for variable in variables.values() if variable["type"] == "query"]
    asked = [re.sub(r"^label_values\((.*), \w+\)$", r"\1", query) for query in asked]
    for query in asked:
        name = query.split("{")[0]
        need(name in known.metrics or name in OF_PROMETHEUS, f"a variable of the dashboard: there is no metric {name}")
    expressions += [filled(query) for query in asked] + [note["expr"] for note in board["annotations"]["list"]]
    check_syntax("dashboard", expressions)


def everything_with(key, part):
    if isinstance(part, dict):
        if key in part:
            yield part
        for value in part.values():
            yield from everything_with(key, value)
    if isinstance(part, list):
        for value in part:
            yield from everything_with(key, value)


def check_places(panels):
    taken = {}
    for panel in panels:
        at, title = panel["gridPos"], panel["title"]
        need(at["x"] >= 0 and at["w"] > 0 and at["x"] + at["w"] <= COLUMNS, f"panel {title!r} is wider than the page")
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                other = taken.setdefault((x, y), title)
                need(other == title, f"panels {title!r} and {other!r} lie on each other")


def check_targets(where, panel, known):
    targets = panel["targets"]
    need(targets, f"{where} asks for nothing")
    need(len({target["refId"] for target in targets}) == len(targets), f"{where}: two lines have one name")
    filled_in = []
    for target in targets:
        line = f"{where}, {target['refId']}"
        need(target.get("legendFormat"), f"{line} has no legend")
        labels = check_expression(line, target["expr"], known)
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            need(label in labels, f"{line}: what comes out has no label {label}")
        filled_in.append(filled(target["expr"]))
    return filled_in


def filled(expression):
    """As Grafana would send it."""
    for name in re.findall(r"\$\{?(\w+)", expression):
        need(name in VARIABLES | {"__rate_interval"}, f"{expression}: there is no variable {name}")
    return re.sub(r"\$\w+", "any", expression.replace("$__rate_interval", "1m"))


def check_threshold(where, panel, colour, value):
    if value is None:
        return
    steps = list(panel["fieldConfig"]["defaults"]["thresholds"]["steps"])
    for override in panel["fieldConfig"]["overrides"]:
        steps += [step for given in override["properties"] if given["id"] == "thresholds" for step in given["value"]["steps"]]
    # Above nothing: any step that a first one passes.
    fits = [step for step in steps if step["value"] is not None and (step["value"] == value or 0 == value < step["value"] <= 1)]
    need(any(step["color"] == colour for step in fits), f"{where} fires above {value:g}, which is not {colour} there: {steps}")


# --- Compose ---------------------------------------------------------------------------------------------------


def check_compose(document, nodes):
    """Whoever starts the profile sees every node, with the alerts and the dashboard of this repository."""
    services = document["services"]
    for name in ("prometheus", "grafana"):
        need(services[name].get("profiles") == ["monitoring"], f"compose.yaml: {name} would be started by everybody")
        need(re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"]), f"compose.yaml: {name} has no pinned release: {services[name]['image']}")
        need(all(port.startswith("127.0.0.1:") for port in services[name]["ports"]), f"compose.yaml: {name} has no log-in, and is open to others")
    files = {name: mounted(services[name]) for name in ("prometheus", "grafana")}
    with tempfile.TemporaryDirectory() as directory:
        for inside, file in files["prometheus"].items():
            shutil.copy(file, Path(directory) / Path(inside).name)
        run(["promtool", "check", "config", Path(directory) / "prometheus.yaml"])
    need(f"--config.file={place_of(files['prometheus'], 'prometheus.yaml')}" in services["prometheus"]["command"], "compose.yaml: Prometheus reads another file")
    scraped = load((DEPLOY / "compose/monitoring/prometheus.yaml").read_text())
    [job] = scraped["scrape_configs"]
    targets = [target for group in job["static_configs"] for target in group["targets"]]
    need(sorted(targets) == sorted(f"{node}:9000" for node in nodes), f"Prometheus of Compose scrapes {targets}, not {sorted(nodes)}")
    need(job["job_name"] == "banyan", f"the alerts ask for the job banyan, not {job['job_name']}")
    need(scraped["rule_files"] == ["alerts.yaml"] and DEPLOY / "alerts.yaml" in files["prometheus"].values(), "Prometheus of Compose has no alerts")
    [source] = load((DEPLOY / "compose/monitoring/datasource.yaml").read_text())["datasources"]
    need(source["url"] == "http://prometheus:9090", f"Grafana of Compose asks {source['url']}")
    interval = source["jsonData"]["timeInterval"]
    need(interval == scraped["global"]["scrape_interval"], f"Grafana of Compose believes in a scrape each {interval}")
    [provider] = load((DEPLOY / "compose/monitoring/dashboards.yaml").read_text())["providers"]
    shown = [file for inside, file in files["grafana"].items() if str(Path(inside).parent) == provider["options"]["path"]]
    need(shown == [DASHBOARD], f"Grafana of Compose shows {shown}")
    for kind, file in (("datasources", "datasource.yaml"), ("dashboards", "dashboards.yaml")):
        place = f"/etc/grafana/provisioning/{kind}/{file}"
        need(files["grafana"].get(place) == DEPLOY / "compose/monitoring" / file, f"compose.yaml: Grafana has no {place}")


def mounted(service):
    """Files by their place in the container."""
    pairs = [volume.split(":") for volume in service["volumes"]]
    found = {pair[1]: (DEPLOY / "compose" / pair[0]).resolve() for pair in pairs if pair[0].startswith(".")}
    need(all(pair[2:] == ["ro"] for pair in pairs if pair[0].startswith(".")), f"compose.yaml: files of the repository that could be written: {pairs}")
    return found


def place_of(files, name):
    [place] = [inside for inside in files if Path(inside).name == name]
    return place
