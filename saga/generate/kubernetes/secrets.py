"""The values of the Secrets that the manifests name, made on the machine of who deploys.

    python -m saga.generate.kubernetes.secrets secrets
    kubectl apply -k secrets

The folder must not be committed to any repository. What is in it already stays, so this may run
again once there is a service more. Where a store of secrets makes them instead, they are to have
the same names and keys: see README.md in `deploy/kubernetes`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

import yarl

from saga.bootstrap import OPERATORS_FOLDER, bootstrap
from saga.broker.passwords import variable
from saga.commands.output import remark
from saga.declaration import Saga, SagaError
from saga.deployment import FILE_NAME, Deployment, DeploymentError, write_secret
from saga.discovery import saga
from saga.generate.kubernetes.names import called
from saga.runtime.urls import without_passwords
from saga.text import harmless

BROKER_PASSWORDS: Final = "broker-passwords"
"""A line for each user of the broker, as `saga topology apply --passwords-from` reads them."""
API_KEYS: Final = f"{OPERATORS_FOLDER}/api_keys.json"
"""The keys that services take, as hashes."""
TOOLS_KEY: Final = f"{OPERATORS_FOLDER}/saga_api_key"
"""The one of these with which the operators' tools ask services."""
_OWNER_ONLY: Final = 0o700


def write_secrets(folder: Path, declared: Saga) -> None:
    """Make what is missing in `folder`. Raises `OSError`, `ValueError` and `DeploymentError`."""
    namespace = called(declared.name)
    graph = declared.choreography
    folder.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
    bootstrap(
        folder,
        graph,
        brokers=[f"rabbitmq.{namespace}.svc"],
        database_host=f"{{service}}-db-rw.{namespace}.svc",
        outsides=declared.outside,
        host_of=called,
    )
    operators = folder / OPERATORS_FOLDER
    users = Deployment.load(operators).amqp_urls
    write_secret(
        operators / BROKER_PASSWORDS,
        "".join(f"{variable(user)}={yarl.URL(url).password}\n" for user, url in users.items()),
    )
    write_secret(folder / ".gitignore", "*\n")
    write_secret(folder / "kustomization.yaml", _kustomization(folder, namespace, declared))


def missing(folder: Path) -> list[Path]:
    """The files with API keys that are not there yet."""
    return [file for file in (folder / API_KEYS, folder / TOOLS_KEY) if not file.is_file()]


def _kustomization(folder: Path, namespace: str, declared: Saga) -> str:
    graph = declared.choreography
    of_services = "".join(_of_service(service.name) for service in graph.own_services)
    of_others = "".join(_of_foreign(participant.name) for participant in graph.foreign)
    operators = [f"{OPERATORS_FOLDER}/{name}" for name in (FILE_NAME, BROKER_PASSWORDS)]
    lacking = missing(folder)
    operators += [TOOLS_KEY] if folder / TOOLS_KEY not in lacking else []
    keys = _OF_KEYS if folder / API_KEYS not in lacking else ""
    return f"""\
# Passwords: for no repository. `kubectl apply -k` makes the Secrets of it.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: {namespace}
generatorOptions: {{ disableNameSuffixHash: true }}
secretGenerator:
  - name: operator-secrets
    files: [{", ".join(operators)}]
{keys}{of_services}{of_others}"""


_OF_KEYS = f"""\
  - name: api-keys
    files: [{API_KEYS}]
"""


def _of_service(name: str) -> str:
    return f"""\
  - name: {called(name)}-secrets
    files: [{name}/amqp_url, {name}/database_url]
  - name: {called(name)}-db-owner
    type: kubernetes.io/basic-auth
    literals: [username={name}]
    files: [password=postgres/roles/{name}]
"""


def _of_foreign(name: str) -> str:
    return f"""\
  - name: {called(name)}-secrets
    files: [{name}/amqp_url]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="has a folder for each Secret afterwards")
    folder = parser.parse_args().folder
    try:
        write_secrets(folder, saga())
    except (DeploymentError, SagaError, OSError, ValueError) as error:
        sys.exit(f"error: {harmless(without_passwords(str(error)))}")
    for file in missing(folder):
        remark(f"{file} is missing: put an API key there, and run this again")
    remark(f"{folder}: `kubectl apply -k {folder}` makes the Secrets of it")


if __name__ == "__main__":
    main()
