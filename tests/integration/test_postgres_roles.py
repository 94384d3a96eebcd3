"""What the PostgreSQL container runs: a role and a database for each service, its alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import yarl

from saga.local.postgres import PostgresCluster, find_postgresql

SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres-roles.sh"


def run_script(cluster: PostgresCluster, roles: Path) -> None:
    """As the image does, but on this cluster and with these files."""
    url = yarl.URL(cluster.url("postgres"))
    environment = {
        "PATH": f"{find_postgresql() / 'bin'}:{os.environ['PATH']}",
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "PGPASSWORD": str(url.password),
        "POSTGRES_USER": str(url.user),
        "ROLES": str(roles),
    }
    subprocess.run(["/bin/sh", SCRIPT], env=os.environ | environment, check=True)


async def test_a_service_has_its_own_database_and_no_other_even_one_that_is_added_later(
    postgres_cluster: PostgresCluster, tmp_path: Path
) -> None:
    passwords = {f"{name}_{uuid4().hex[:8]}": f"it's {name}" for name in ("order", "payment")}
    for name, password in passwords.items():
        (tmp_path / name).write_text(password)

    run_script(postgres_cluster, tmp_path)
    later = f"history_{uuid4().hex[:8]}"
    (tmp_path / later).write_text("late")
    run_script(postgres_cluster, tmp_path)  # as one does for a service that is added later

    address: dict[str, Any] = {"host": "127.0.0.1", "port": postgres_cluster.port}
    added = await asyncpg.connect(**address, user=later, database=later, password="late")
    await added.close()

    one, other = passwords
    address["user"] = one
    connection = await asyncpg.connect(**address, database=one, password=passwords[one])
    try:
        await connection.execute("create table states (key text primary key)")
    finally:
        await connection.close()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(**address, database=other, password=passwords[one])
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(**address, database=one, password=passwords[other])
