"""The secrets of a deployment in containers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yarl

from saga.auth.caller import NotAllowed
from saga.auth.keys import ApiKeys, changing
from saga.bootstrap import bootstrap
from saga.deployment import Deployment
from saga.runtime.messaging.permissions import OPERATOR, REPLAY
from saga.runtime.settings import SECRETS_DIR, Settings, SettingsError, load
from tests.circle import GRAPH

NODES = ("rabbitmq-1", "rabbitmq-2")


def made(folder: Path) -> dict[str, str]:
    """Every file below the folder, with what is in it."""
    bootstrap(folder, GRAPH, brokers=NODES, database_host="postgres", replicas=2)
    return {
        file.relative_to(folder).as_posix(): file.read_text()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_each_service_is_told_its_own_addresses_and_nobody_elses(tmp_path: Path) -> None:
    files = made(tmp_path)

    for name in [service.name for service in GRAPH.services]:
        mine = {file for file in files if file.startswith(f"{name}/")}
        assert mine == {f"{name}/{told}" for told in ("amqp_url", "database_url", "api_keys.json")}
        mine.remove(f"{name}/api_keys.json")
        broker, database = (yarl.URL(files[f]) for f in sorted(mine))
        assert (broker.user, broker.host, broker.query["also"]) == (name, *NODES)
        assert (database.user, database.host, database.path) == (name, "postgres", f"/{name}")
        assert files[f"postgres/roles/{name}"] == database.password
        assert broker.password
        assert database.password
        for other in files.keys() - mine:
            if not other.startswith(("operator/", "postgres/")):
                assert broker.password not in files[other]
                assert database.password not in files[other]


def test_operators_are_told_everything(tmp_path: Path) -> None:
    made(tmp_path)

    known = Deployment.load(tmp_path / "operator")
    assert yarl.URL(known.amqp_url).user == OPERATOR
    assert yarl.URL(known.amqp_url_of(REPLAY)).user == REPLAY
    assert known.http_urls["starter"] == ("http://starter:8000", "http://starter-2:8000")
    assert known.http_urls["history"] == ("http://history:8000",)


def test_operators_have_a_key_that_every_service_knows_by_its_hash(tmp_path: Path) -> None:
    files = made(tmp_path)

    key = files["operator/saga_api_key"]
    assert [name for name in files if key in files[name]] == ["operator/saga_api_key"]
    for name in ("operator", *(service.name for service in GRAPH.services)):
        caller = ApiKeys(tmp_path / name / "api_keys.json").caller(key)
        assert caller.may("anything:write")
        assert not caller.may("personal:read")


def test_a_key_that_operators_revoke_is_revoked_everywhere_by_the_next_start(
    tmp_path: Path,
) -> None:
    key = made(tmp_path)["operator/saga_api_key"]
    with changing(tmp_path / "operator" / "api_keys.json") as keys:
        keys.clear()

    made(tmp_path)

    with pytest.raises(NotAllowed, match="revoked"):
        ApiKeys(tmp_path / "starter" / "api_keys.json").caller(key)


def test_what_was_made_stays(tmp_path: Path) -> None:
    before, after = made(tmp_path), made(tmp_path)

    changed = {file for file in before if before[file] != after[file]}
    assert changed == {"rabbitmq/definitions.json"}  # new salts


def test_what_is_missing_is_made(tmp_path: Path) -> None:
    before = made(tmp_path)
    (tmp_path / "starter" / "amqp_url").unlink()

    assert made(tmp_path)["starter/amqp_url"] == before["starter/amqp_url"]


def test_the_broker_is_told_no_password(tmp_path: Path) -> None:
    files = made(tmp_path)

    known = Deployment.load(tmp_path / "operator")
    for url in known.amqp_urls.values():
        assert (yarl.URL(url).password or "") not in files["rabbitmq/definitions.json"]
    assert files["operator/rabbitmq-admin-password"] not in files["rabbitmq/definitions.json"]


def test_nodes_of_a_cluster_get_one_cookie_that_nobody_else_may_read(tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "two"]
    bootstrap(
        tmp_path / "secrets",
        GRAPH,
        brokers=NODES,
        database_host="postgres",
        cookies=homes,
    )

    cookies = [home / ".erlang.cookie" for home in homes]
    assert len({cookie.read_text() for cookie in cookies}) == 1
    assert {cookie.stat().st_mode & 0o777 for cookie in cookies} == {0o400}


def test_a_service_takes_its_settings_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(tmp_path)
    monkeypatch.setenv(SECRETS_DIR, str(tmp_path / "asker"))
    monkeypatch.setenv("DATABASE_URL", "sqlite:///elsewhere.db")

    settings = load(Settings)

    assert settings.amqp_url == files["asker/amqp_url"]
    assert settings.database_url == "sqlite:///elsewhere.db", "the environment counts more"


def test_secrets_that_are_not_mounted_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRETS_DIR, "/nowhere")

    with pytest.raises(SettingsError, match="SECRETS_DIR names /nowhere, which is no folder"):
        load(Settings)
