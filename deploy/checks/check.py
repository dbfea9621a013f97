"""Checks deploy/ without starting anything: every file by its schema and by the program that will read it.

Owns: what is checked of Compose, chart, HAProxy, nginx and Dockerfile; planted mistakes that the checks must find.
Does not: run containers; know metrics, alerts and the dashboard (monitoring.py). `cargo xtask test --stage deploy` calls it
with the tools that it needs.
"""

import argparse
import copy
import importlib.resources
import ipaddress
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Nothing is to be written beside the sources.
sys.dont_write_bytecode = True

import jsonschema
import kubernetes_validate

import monitoring
from wrong import Wrong, expect_wrong, load, load_all, need, run

DEPLOY = Path(__file__).resolve().parent.parent
KUBERNETES = "1.31"

# What the chart cannot know by itself.
REQUIRED = {
    "etcd": {"endpoints": ["http://etcd-0:2379", "http://etcd-1:2379", "http://etcd-2:2379"]},
    "scylla": {"nodes": ["scylla-0:9042", "scylla-1:9042"]},
    "peer": {"gatewaySecret": "banyan-gateway-peer", "shardSecret": "banyan-shard-peer"},
    "accounts": {"keysSecret": "banyan-token-keys"},
}
# Everything that is off by default, on.
EVERYTHING = {
    **REQUIRED,
    "etcd": {"endpoints": ["https://etcd-0:2379"], "tlsSecret": "etcd-client", "tlsClientCertificate": True},
    "scylla": {**REQUIRED["scylla"], "tlsSecret": "scylla-client", "tlsClientCertificate": True, "tlsServerName": "scylla"},
    "gateway": {
        "autoscaling": {"enabled": True},
        "trustedProxies": ["10.0.0.0/8", "192.168.1.1"],
        "proxyProtocol": True,
        "service": {"type": "LoadBalancer", "annotations": {"example.com/proxy-protocol": "v2"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "chat", "operator": "Exists"}],
    },
    "shard": {"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "chat", "operator": "Exists"}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "grafana": {"dashboards": {"enabled": True, "annotations": {"grafana_folder": "Chat"}}},
    "networkPolicy": {"clientsFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "extraEgress": [{"ports": [{"port": 443}]}]},
    "imagePullSecrets": [{"name": "pull"}],
    "extraEnv": [{"name": "BANYAN_SCYLLA__PASSWORD", "valueFrom": {"secretKeyRef": {"name": "scylla", "key": "password"}}}],
    "config": {"limits": {"connections": 50000}, "scylla": {"user": "banyan"}, "log": {"level": "info", "format": "json"}, "gateway": {"allowed_origins": ["https://a.example", "https://b.example"], "workers": 2}},
}
LEAST = {**REQUIRED, "networkPolicy": {"enabled": False}, "scylla": {**REQUIRED["scylla"], "applySchema": False}}

# Kinds that kubernetes-validate has no schema for: they belong to operators.
OPERATORS = {"ServiceMonitor"}


# --- command lines of banyan -----------------------------------------------------------------------------------


class Banyan:
    def __init__(self, path):
        self.path = path
        self.checked = 0

    def check(self, where, arguments, environment):
        """`serve` with these would start: checkconfig reads exactly what serve reads."""
        need(arguments and arguments[0] == "serve", f"{where}: not a serve command: {arguments}")
        arguments = list(arguments[1:])
        mine = {name: value for name, value in environment.items() if name.startswith("BANYAN_")}
        try:
            run([self.path, "checkconfig", *arguments], env={"PATH": os.defpath, **mine})
        except Wrong as e:
            raise Wrong(f"{where}: {e}") from e
        self.checked += 1

    def check_health(self, where, command, environment):
        """It asks, with what the container gives it: nobody answers here, and that is all that is wrong."""
        need(command[:1] == ["CMD"] and command[1:3] == ["banyan", "healthcheck"], f"{where}: no healthcheck of banyan: {command}")
        mine = {name: value for name, value in environment.items() if name.startswith("BANYAN_")}
        # A port that nobody listens on.
        mine["BANYAN_SERVER__OPS_LISTEN"] = "127.0.0.1:1"
        done = subprocess.run([self.path, *command[2:]], env={"PATH": os.defpath, **mine}, capture_output=True, text=True)
        need(done.returncode == 1, f"{where}: its healthcheck ends with {done.returncode}, not 1: {done.stderr.strip()}")


# --- Compose ---------------------------------------------------------------------------------------------------


def compose_schema():
    files = importlib.resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json")
    return json.loads(files.read_text())


def compose(banyan):
    path = DEPLOY / "compose/compose.yaml"
    document = load(path.read_text())
    check_compose(document, banyan)
    for mistake, plant in {
        "an unknown key": lambda d: d["services"]["shard-1"].update({"comand": "x"}),
        "a gateway that is not known to HAProxy": lambda d: d["services"].update({"gateway-4": d["services"]["gateway-1"]}),
        "a grace shorter than the drain": lambda d: d["services"]["shard-1"].update({"stop_grace_period": "10s"}),
        "a name that is another's": lambda d: d["services"]["shard-1"].update({"command": d["services"]["shard-2"]["command"]}),
        "a balancer at another address": lambda d: d["services"]["haproxy"]["networks"]["cluster"].update({"ipv4_address": "10.77.0.11"}),
        "an address that another may get": lambda d: d["networks"]["cluster"]["ipam"]["config"][0].update({"ip_range": "10.77.0.0/25"}),
        "a service that is not there": lambda d: d["services"]["haproxy"]["depends_on"].update({"gateway-9": {"condition": "service_healthy"}}),
        "a setting that is none": lambda d: d["services"]["shard-1"]["environment"].update({"BANYAN_SERVER__LISTN": "x"}),
        "a healthcheck of a bad setting": lambda d: d["services"]["shard-1"]["healthcheck"]["test"].append("--ops-listen=nowhere"),
        "a bad flag": lambda d: d["services"]["shard-1"]["command"].append("--no-such-flag"),
        "monitoring for everybody": lambda d: d["services"]["grafana"].pop("profiles"),
        "a Grafana of any release": lambda d: d["services"]["grafana"].update({"image": "grafana/grafana:latest"}),
        "a Prometheus open to others": lambda d: d["services"]["prometheus"].update({"ports": ["9090:9090"]}),
        "a Prometheus without alerts": lambda d: d["services"]["prometheus"]["volumes"].pop(1),
        "a node that is not scraped": lambda d: d["services"].update({"shard-4": renamed(d["services"]["shard-3"], "shard-3", "shard-4")}),
    }.items():
        broken = copy.deepcopy(document)
        plant(broken)
        expect_wrong(f"Compose with {mistake}", lambda: check_compose(broken, banyan))


def renamed(service, old, new):
    return {**service, "command": [word.replace(old, new) for word in service["command"]]}


def check_compose(document, banyan):
    schema = compose_schema()
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(document):
        raise Wrong(f"compose.yaml: {'.'.join(map(str, error.path))}: {error.message}")
    services = document["services"]
    for name, service in services.items():
        for needed in service.get("depends_on", {}):
            need(needed in services, f"compose.yaml: {name} depends on {needed}, which is not there")
        for secret in service.get("secrets", []):
            need(secret in document["secrets"], f"compose.yaml: {name}: no secret {secret}")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (DEPLOY / "compose" / source).is_file() if source.startswith(".") else source in document["volumes"]
            need(known, f"compose.yaml: {name}: no volume or file {source}")
    balancer = services["haproxy"]["networks"]["cluster"]["ipv4_address"]
    [net] = document["networks"]["cluster"]["ipam"]["config"]
    given_out, whole = ipaddress.ip_network(net["ip_range"]), ipaddress.ip_network(net["subnet"])
    # Addresses are given out as containers start, and HAProxy starts last.
    taken = ipaddress.ip_address(balancer)
    need(given_out.subnet_of(whole) and taken in whole and taken not in given_out, f"compose.yaml: {balancer} may be given to another")
    nodes = {name: s for name, s in services.items() if s.get("command", [])[:1] == ["serve"]}
    roles = {role: [n for n, s in nodes.items() if f"--roles={role}" in s["command"]] for role in ("gateway", "shard")}
    need(len(roles["gateway"]) >= 3 and len(roles["shard"]) >= 3, f"compose.yaml: too few nodes: {roles}")
    for kind in ("etcd", "scylla"):
        need(sum(name.startswith(f"{kind}-") for name in services) == 3, f"compose.yaml: not three of {kind}")
    balanced = re.findall(r"^\s*server (\S+) \1:8000$", (DEPLOY / "haproxy/haproxy.cfg").read_text(), re.M)
    need(sorted(balanced) == sorted(roles["gateway"]), f"haproxy.cfg has {balanced}, compose.yaml {roles['gateway']}")
    for name, service in nodes.items():
        environment = {key: str(value) for key, value in service["environment"].items()}
        drain, grace = environment["BANYAN_SERVER__DRAIN_DEADLINE"], service["stop_grace_period"]
        need(seconds(grace) > seconds(drain), f"compose.yaml: {name} is killed after {grace}, its drain may take {drain}")
        need(f"--node-id={name}" in service["command"], f"compose.yaml: {name} has another --node-id")
        need(f"--advertise={name}:7000" in service["command"], f"compose.yaml: {name} does not advertise itself")
        trusted = environment.get("BANYAN_GATEWAY__TRUSTED_PROXIES")
        need(name in roles["shard"] or trusted == balancer, f"compose.yaml: {name} trusts {trusted}, HAProxy is {balancer}")
        banyan.check(f"compose.yaml: {name}", service["command"], environment)
        banyan.check_health(f"compose.yaml: {name}", service["healthcheck"]["test"], environment)
    monitoring.check_compose(document, nodes)


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


# --- chart -----------------------------------------------------------------------------------------------------


def chart(helm, banyan):
    with tempfile.TemporaryDirectory() as directory:
        for name, values in (("required", REQUIRED), ("everything", EVERYTHING), ("least", LEAST)):
            file = Path(directory) / f"{name}.json"
            file.write_text(json.dumps(values))
            run([helm, "lint", "--strict", "--kube-version", KUBERNETES, DEPLOY / "helm/banyan", "--values", file])
            documents = template(helm, file)
            check_documents(name, documents, banyan)
            kinds = {d["kind"] for d in documents}
            least = {"StatefulSet", "Deployment", "Service", "PodDisruptionBudget", "ServiceAccount"}
            wanted = {
                "required": least | {"NetworkPolicy", "Job"},
                "everything": least | {"NetworkPolicy", "Job", "HorizontalPodAutoscaler", "ServiceMonitor", "ConfigMap"},
                "least": least,
            }[name]
            need(kinds == wanted, f"chart with {name}: kinds are {sorted(kinds)}, not {sorted(wanted)}")
        plant_in_chart(helm, documents, banyan, Path(directory))


def template(helm, *files):
    command = [helm, "template", "chat", DEPLOY / "helm/banyan", "--namespace", "chat", "--kube-version", KUBERNETES]
    for file in files:
        command += ["--values", file]
    return load_all(run(command))


def plant_in_chart(helm, documents, banyan, directory):
    for words, values in {
        "no etcd": {"etcd": {"endpoints": []}},
        "etcd without a port": {"etcd": {"endpoints": ["http://etcd"]}},
        "no certificate": {"peer": {"shardSecret": ""}},
        "gateways without keys in common": {"accounts": {"keysSecret": ""}},
        "a drain above the grace": {"drainSeconds": 600},
    }.items():
        (directory / "least.json").write_text(json.dumps(LEAST))
        (directory / "broken.json").write_text(json.dumps(values))
        expect_wrong(f"a chart with {words}", lambda: template(helm, directory / "least.json", directory / "broken.json"))
    (directory / "broken.json").write_text(json.dumps({"config": {"limits": {"conections": 1}}}))
    broken = template(helm, directory / "least.json", directory / "broken.json")
    expect_wrong("a chart with a setting that is none", lambda: check_documents("planted", broken, banyan))
    (directory / "broken.json").write_text(json.dumps({"grafana": {"dashboards": {"enabled": True, "labels": {"grafana_dashboard": None}}}}))
    unseen = template(helm, directory / "least.json", directory / "broken.json")
    expect_wrong("a chart with a dashboard that no sidecar looks for", lambda: check_documents("planted", unseen, banyan))
    for words, plant in {
        "an unknown field": lambda pod: pod.update({"terminationGraceSeconds": 1}),
        "a short grace": lambda pod: pod.update({"terminationGracePeriodSeconds": 30}),
        "keys that are not mounted": lambda pod: pod["containers"][0]["volumeMounts"].pop(),
        "keys for all to read": lambda pod: [v["secret"].update({"defaultMode": 0o444}) for v in pod["volumes"] if "secret" in v],
        "a bad probe port": lambda pod: pod["containers"][0]["readinessProbe"]["httpGet"].update({"port": "opps"}),
    }.items():
        broken = copy.deepcopy(documents)
        for document in broken:
            if document["kind"] == "Deployment":
                plant(document["spec"]["template"]["spec"])
        expect_wrong(f"a Deployment with {words}", lambda: check_documents("planted", broken, banyan))
    broken = copy.deepcopy(documents)
    for document in broken:
        if document["kind"] == "Deployment":
            document["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] = 1
    expect_wrong("a Deployment that takes one before it gives one", lambda: check_documents("planted", broken, banyan))


def check_documents(name, documents, banyan):
    need(documents, f"chart with {name}: nothing is rendered")
    seen = set()
    for document in documents:
        kind, called = document["kind"], document["metadata"]["name"]
        where = f"chart with {name}: {kind} {called}"
        need((kind, called) not in seen, f"{where} is there twice")
        seen.add((kind, called))
        if kind not in OPERATORS:
            try:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as e:
                raise Wrong(f"{where}: {'.'.join(map(str, e.path))}: {e.message}") from e
        if kind in ("Deployment", "StatefulSet"):
            check_workload(where, kind, document["spec"], banyan)
        if kind == "ConfigMap":
            need(document["metadata"]["labels"].get("grafana_dashboard") == "1", f"{where}: Grafana's sidecar does not look for it")
            need(document["data"] == {"banyan.json": monitoring.DASHBOARD.read_text()}, f"{where} has another dashboard")
    check_selectors(name, documents)


def check_workload(where, kind, spec, banyan):
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    need(container["command"] == ["banyan"], f"{where}: runs {container['command']}")
    given = {"POD_NAME": "chat-shard-0", "POD_IP": "10.1.2.3"}
    environment = {e["name"]: e.get("value", given.get(e["name"])) for e in container["env"]}
    for entry in container["env"]:
        if "secretKeyRef" in entry.get("valueFrom", {}):
            environment[entry["name"]] = "secret"
        if asked := entry.get("valueFrom", {}).get("resourceFieldRef"):
            need(asked["containerName"] == container["name"], f"{where}: {entry['name']} is of another container")
            bound, resource = asked["resource"].split(".")
            environment[entry["name"]] = container["resources"][bound][resource]
    need(all(value is not None for value in environment.values()), f"{where}: a variable without a value: {environment}")
    need(len(environment) == len(container["env"]), f"{where}: a variable twice")
    arguments = [re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], a) for a in container["args"]]
    banyan.check(where, arguments, environment)
    stop = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    grace, drain = pod["terminationGracePeriodSeconds"], seconds(environment["BANYAN_SERVER__DRAIN_DEADLINE"])
    need(grace > drain + int(stop[1]), f"{where}: killed after {grace} s, drain and preStop may take {drain} + {stop[1]}")
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        at = container[probe]["httpGet"]["port"]
        need(at in ports, f"{where}: {probe} asks port {at}; there are {sorted(ports)}")
    need(container["readinessProbe"]["httpGet"]["path"] == "/readyz", f"{where}: readiness is /readyz")
    mounted, volumes = {m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]}
    places = [m["mountPath"] for m in container["volumeMounts"]]
    for name, value in environment.items():
        if isinstance(value, str) and value.startswith("/"):
            need(any(value == place or value.startswith(f"{place}/") for place in places), f"{where}: {name}={value} is not mounted")
    # Of Secrets, with fsGroup: root's and our group's. The server refuses keys of tokens that others may read.
    modes = {v["name"]: v["secret"].get("defaultMode") for v in pod["volumes"] if "secret" in v}
    need(set(modes.values()) <= {0o440, 0o400}, f"{where}: Secrets that others may read: {modes}")
    keys_dir = environment.get("BANYAN_ACCOUNTS__KEYS_DIR")
    need(kind != "Deployment" or keys_dir, f"{where}: gateways without keys in common refuse each other's tokens")
    need(mounted == volumes, f"{where}: mounts {sorted(mounted)} of volumes {sorted(volumes)}")
    if kind == "Deployment":
        rolling = spec["strategy"]["rollingUpdate"]
        need(rolling == {"maxSurge": 1, "maxUnavailable": 0}, f"{where}: rolls by {rolling}")


def check_selectors(name, documents):
    """Whatever selects pods finds some."""
    pods = [d["spec"]["template"]["metadata"]["labels"] for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    for document in documents:
        spec = document.get("spec", {})
        selector = spec.get("selector") if document["kind"] == "Service" else spec.get("podSelector", spec.get("selector", {})).get("matchLabels")
        if document["kind"] in OPERATORS or selector is None:
            continue
        found = any(selector.items() <= labels.items() for labels in pods)
        need(found, f"chart with {name}: {document['kind']} {document['metadata']['name']} selects no pod: {selector}")
    services = [d["metadata"] for d in documents if d["kind"] == "Service"]
    for document in documents:
        if document["kind"] == "StatefulSet":
            need(document["spec"]["serviceName"] in [s["name"] for s in services], f"chart with {name}: the StatefulSet's Service is not there")
        if document["kind"] == "ServiceMonitor":
            selector = document["spec"]["selector"]["matchLabels"]
            need(any(selector.items() <= s["labels"].items() for s in services), f"chart with {name}: the ServiceMonitor selects no Service")


# --- balancers and image ---------------------------------------------------------------------------------------


def balancers():
    sbin = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    environment = {**os.environ, "PATH": sbin}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)

        def haproxy(text):
            (place / "haproxy.cfg").write_text(text)
            run(["haproxy", "-c", "-f", place / "haproxy.cfg"], env=environment)

        def nginx(text):
            (place / "banyan.conf").write_text(text)
            (place / "nginx.conf").write_text(f"pid {place}/pid; events {{}} http {{ include {place}/banyan.conf; }}")
            run(["nginx", "-t", "-e", "stderr", "-p", place, "-c", place / "nginx.conf"], env=environment)

        text = (DEPLOY / "haproxy/haproxy.cfg").read_text()
        haproxy(text)
        expect_wrong("HAProxy with a typo", lambda: haproxy(text.replace("timeout tunnel", "timeout tunel")))
        # Names of gateways are the cluster's; nginx wants to know them at once.
        text = re.sub(r"gateway-\d:", "127.0.0.1:", (DEPLOY / "nginx/banyan.conf").read_text())
        nginx(text)
        expect_wrong("nginx with a typo", lambda: nginx(text.replace("proxy_pass", "proxy_pas")))


def dockerfile(banyan):
    text = (DEPLOY / "Dockerfile").read_text()
    [(variables, command)] = re.findall(r"^ENV (.*)$[\s\S]*^CMD (\[.*\])$", text, re.M)
    environment = dict(variable.split("=", 1) for variable in variables.split())
    banyan.check("Dockerfile", json.loads(command), environment)
    need(re.search(r"^USER 65532:65532$", text, re.M), "Dockerfile: the server runs as user 65532")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", required=True)
    parser.add_argument("--banyan", required=True)
    given = parser.parse_args()
    try:
        banyan = Banyan(given.banyan)
        compose(banyan)
        chart(given.helm, banyan)
        balancers()
        dockerfile(banyan)
        monitoring.monitoring()
    except Wrong as e:
        sys.exit(f"deploy/: {e}")
    print(f"deploy/ is as it should be; {banyan.checked} command lines of banyan were checked")


if __name__ == "__main__":
    main()
