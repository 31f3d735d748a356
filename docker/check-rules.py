"""check-rules.py VERSION RENDERED...: what no schema knows of compose.yaml and of the rendered kustomizations.

Pods are those that Kubernetes' standard "restricted" lets run, with a read-only root; whoever is asked to
stop has longer than its drain takes; selectors and ports mean something; images are of this version.
Prints what is wrong, a line each, and exits with 1 where there is something.
"""
import pathlib
import re
import sys

import yaml

FOLDER = pathlib.Path(__file__).parent
VERSION = sys.argv[1]
problems = []


def require(true, where, what):
    if not true:
        problems.append(f"{where}: {what}")


def seconds(duration):
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+)(ms|s|m|h)", str(duration)))


def check_image(image, where):
    if image.split(":")[0] == "gradclip":
        require(image == f"gradclip:{VERSION}", where, f"{image} is not of version {VERSION}")
    else:
        require(re.search(r":[^/]*\d", image), where, f"{image} names no version")


# The variables of the server's flags, and those that are none.
KNOWN = {"GRADCLIP_SERVER", "GRADCLIP_GROUP_STORE_PASSWORD"} | {
    "GRADCLIP_" + flag.upper().replace("-", "_")
    for flag in re.findall(r'^ +{"([a-z-]+)", "', (FOLDER.parent / "server/options/flags.cc").read_text(), re.M)}


def check_variables(names, where):
    for name in names:
        require(name in KNOWN or not name.startswith("GRADCLIP_"), where, f"the server knows no {name}")


def check_drain(variables, grace, before, where):
    if "GRADCLIP_DRAIN_TIMEOUT" in variables:
        drain = seconds(variables["GRADCLIP_DRAIN_TIMEOUT"])
        require(grace > drain + before, where,
                f"is killed after {grace:g} s, but may take {drain + before:g} s to stop")


# ---- Kubernetes ----

def pod_template(document):
    return document["spec"]["template"] if "template" in document.get("spec", {}) else None


def check_container(container, pod, where):
    where = f"{where}, container {container['name']}"
    context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    require(context.get("runAsNonRoot") is True, where, "runAsNonRoot is not true")
    require(context.get("runAsUser", 0) > 0, where, "runAsUser is not a number over 0")
    require(context.get("allowPrivilegeEscalation") is False, where, "allowPrivilegeEscalation is not false")
    require(context.get("readOnlyRootFilesystem") is True, where, "readOnlyRootFilesystem is not true")
    require(context.get("capabilities", {}) == {"drop": ["ALL"]}, where, "capabilities are not dropped, all of them")
    require(context.get("seccompProfile", {}).get("type") == "RuntimeDefault", where,
            "seccompProfile is not RuntimeDefault")
    resources = container.get("resources", {})
    require("memory" in resources.get("limits", {}), where, "there is no limit of memory, which the budget follows")
    require({"cpu", "memory"} <= set(resources.get("requests", {})), where, "cpu or memory are not requested")
    check_image(container["image"], where)
    variables = {v["name"]: v.get("value") for v in container.get("env", [])}
    check_variables(variables, where)
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    check_drain(variables, pod.get("terminationGracePeriodSeconds", 30), before, where)
    mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
    return mounts


def check_pod(template, where, claims):
    pod = template["spec"]
    require(pod.get("automountServiceAccountToken") is False, where, "the token of the API is mounted")
    require(pod.get("enableServiceLinks") is False, where, "services set variables GRADCLIP_...")
    volumes = {volume["name"] for volume in pod.get("volumes", [])} | claims
    for container in pod.get("initContainers", []) + pod["containers"]:
        mounts = check_container(container, pod, where)
        require(mounts <= volumes, where, f"mounts {mounts - volumes}, which are no volumes")


def matches(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def port_names(template):
    return {port.get("name") for container in template["spec"]["containers"] for port in container.get("ports", [])}


def check_selected(document, templates, where):
    """Services, budgets and policies select Pods that there are, and ports that these have."""
    spec = document["spec"]
    selector, ports = {
        "Service": lambda: (spec.get("selector"), [p["targetPort"] for p in spec["ports"]]),
        "PodDisruptionBudget": lambda: (spec.get("selector", {}).get("matchLabels"), []),
        "NetworkPolicy": lambda: (spec["podSelector"].get("matchLabels"),
                                  [p["port"] for rule in spec.get("ingress", []) for p in rule["ports"]]),
    }[document["kind"]]()
    chosen = [t for t in templates if matches(selector, t["metadata"].get("labels", {}))]
    require(len(chosen) == 1, where, f"its selector {selector} means {len(chosen)} kinds of Pods, not one")
    for template in chosen:
        for port in ports:
            require(port in port_names(template), where, f"the Pods have no port called {port}")
    # A policy whose callers would have to be servers themselves lets nobody in.
    for rule in spec.get("ingress", []) if document["kind"] == "NetworkPolicy" else []:
        for peer in rule["from"]:
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            require(not (selector and matches(selector, labels)), where, f"only its own Pods are let in: {labels}")


def check_rendered(path):
    with open(path) as file:
        documents = [d for d in yaml.safe_load_all(file) if d]
    templates = [t for t in map(pod_template, documents) if t]
    require(templates, path, "there is no Pod in it")
    for document in documents:
        where = f"{path}: {document['kind']} {document['metadata']['name']}"
        template = pod_template(document)
        if template:
            claims = {c["metadata"]["name"] for c in document["spec"].get("volumeClaimTemplates", [])}
            check_pod(template, where, claims)
        elif document["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            check_selected(document, templates, where)


# ---- Compose ----

def check_compose():
    with open(FOLDER / "compose.yaml") as file:
        compose = yaml.safe_load(file)
    for name, service in compose["services"].items():
        where = f"compose.yaml: {name}"
        require(service.get("read_only") is True, where, "read_only is not true")
        require(service.get("cap_drop") == ["ALL"], where, "capabilities are not dropped, all of them")
        require("no-new-privileges:true" in service.get("security_opt", []), where, "new privileges are allowed")
        require("mem_limit" in service and "pids_limit" in service, where, "mem_limit or pids_limit is missing")
        # Our image brings its own.
        require("healthcheck" in service or service["image"].startswith("gradclip:"), where, "there is no health check")
        check_image(service["image"], where)
        check_variables(service.get("environment", {}), where)
        check_drain(service.get("environment", {}), seconds(service["stop_grace_period"]), 0, where)
        for port in service.get("ports", []):
            require(port.startswith("127.0.0.1:"), where, f"port {port} is open to other hosts")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            there = (FOLDER / source).exists() if source.startswith(".") else source in compose["volumes"]
            require(there, where, f"{source} is mounted and is not there")
    check_prometheus(set(compose["services"]))


def check_prometheus(services):
    path = FOLDER / "prometheus" / "prometheus.yml"
    if not path.exists():
        return  # what mounts it has been told
    with open(path) as file:
        prometheus = yaml.safe_load(file)
    for rules in prometheus.get("rule_files", []):
        require((path.parent / rules).exists(), path.name, f"{rules} is not there")
    for job in prometheus["scrape_configs"]:
        for target in (t for config in job["static_configs"] for t in config["targets"]):
            host, port = target.split(":")
            require(host in services or host == "localhost", path.name, f"{host} is no service of compose.yaml")
            require(port == "9090", path.name, f"{target}: metrics are on port 9090")


check_variables(re.findall(r"\bGRADCLIP_\w+(?==)", (FOLDER / "Dockerfile").read_text()), "Dockerfile")
check_compose()
for rendered in sys.argv[2:]:
    check_rendered(rendered)
for problem in problems:
    print(problem)
sys.exit(bool(problems))
