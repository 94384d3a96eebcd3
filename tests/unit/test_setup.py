"""`scripts/setup` on machines that lack something: what it says and where, what it installs."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from saga.local import places
from saga.local.places import POSTGRESQL, homes

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")

# What the script needs of any system, and nothing of Debian's.
PROGRAMS = (
    *(
        "awk",
        "bash",
        "cat",
        "chmod",
        "cp",
        "cut",
        "dirname",
        "env",
        "grep",
        "mkdir",
        "mktemp",
        "rm",
    ),
    *("sed", "sha256sum", "sleep", "tail", "tee", "uname"),
)

PYTHON = """\
#!/bin/bash
# An interpreter that has everything; its environments' pip says what pip says.
case "$*" in
*"import ensurepip"*) exit "${NO_ENSUREPIP:-0}" ;;
*"%d.%d"*) echo 3.11 ;;
-c*) ;;
--version) echo Python 3.11.2 ;;
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*"pip --version"*) echo "pip from $PWD/.venv/lib (python 3.11)" ;;
*install*)
  echo "$*" >>"$PWD/installed"
  lock=$(sed -n 's/.*--requirement \\([^ ]*\\).*/\\1/p' <<<"$*")
  [ -z "$lock" ] || sed -n 's/^\\([a-z].*\\)==.*/Collecting \\1/p' "$lock"
  [ -z "${SLOW:-}" ] || sleep 2
  echo 'Installing collected packages: all of them' ;;
esac
"""


class Machine:
    """A checkout of the project, on a machine that has only what it is given."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.programs = folder / "checkout", folder / "bin"
        (self.checkout / "scripts").mkdir(parents=True)
        for name in (*LOCKS, "pyproject.toml"):
            shutil.copy(ROOT / name, self.checkout)
        script = (ROOT / "scripts" / "setup").read_text()
        # Where Debian's packages put things on the machine that runs this test.
        for place in ("/usr/lib/", "/usr/sbin/", "/etc/"):
            script = script.replace(place, f"{folder}{place}")
        (folder / "usr" / "sbin").mkdir(parents=True)
        self.script = self.checkout / "scripts" / "setup"
        self.script.write_text(script.replace("SILENCE_SECONDS=15", "SILENCE_SECONDS=0.2"))
        self.programs.mkdir()
        for name in PROGRAMS:
            found = shutil.which(name)
            assert found is not None
            (self.programs / name).symlink_to(found)
        self.user(0)

    def has(self, name: str, text: str) -> None:
        """Give it a program."""
        (self.programs / name).unlink(missing_ok=True)
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def user(self, number: int) -> None:
        self.has("id", f"#!/bin/bash\necho {number}\n")

    def setup(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.programs / "bash", self.script, *options],
            env={"PATH": str(self.programs), **environment},
            cwd=self.checkout,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def installed(self) -> str:
        return (self.checkout / "installed").read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.has("python3", PYTHON)
    return machine


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: ")
    for word in words:
        assert word in line


EVERYTHING = ("python3.11-venv", "rabbitmq-server", "postgresql", "prometheus", "chromium")


def test_everything_that_is_missing_is_named_at_once_with_the_command_that_installs_it(
    machine: Machine,
) -> None:
    machine.user(1000)
    machine.has("apt-get", "#!/bin/bash\nexit 1\n")

    done = machine.setup("--own-broker", NO_ENSUREPIP="1")

    command = f"apt-get install --no-install-recommends {' '.join(EVERYTHING)}"
    assert_one_line(done, "RABBITMQ_HOME", "AMQP_URL", "POSTGRESQL_HOME", "PATH", "PYTHON")
    assert command in done.stderr


@pytest.mark.parametrize(
    ("user", "programs", "said", "unsaid"),
    [
        (0, {}, "no apt-get, dnf, pacman, apk or brew here", "root|sudo"),
        (1000, {}, "no apt-get, dnf, pacman, apk or brew here", "root|sudo"),
        (1000, {"apt-get": "exit 0"}, "Run as root: apt-get install", "sudo"),
        (1000, {"apt-get": "exit 0", "sudo": "exit 1"}, "Run: sudo apt-get install", "as root"),
        (0, {"apt-get": "echo 'E: no such package'; exit 100"}, "E: no such package", "root|sudo"),
    ],
)
def test_what_keeps_it_from_installing_is_said_and_nothing_else_is_blamed(
    user: int, programs: Mapping[str, str], said: str, unsaid: str, machine: Machine
) -> None:
    machine.user(user)
    for name, text in programs.items():
        machine.has(name, f"#!/bin/bash\n{text}\n")

    done = machine.setup("--embedded")

    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert not re.search(unsaid, done.stderr)


def test_what_is_missing_is_installed_in_one_go(machine: Machine, tmp_path: Path) -> None:
    machine.has("apt-get", f'#!/bin/bash\necho "$@" >>{tmp_path}/apt\n')

    assert machine.setup("--own-broker", NO_ENSUREPIP="1").returncode == 0

    (line,) = (tmp_path / "apt").read_text().splitlines()
    assert {*EVERYTHING} <= {*line.split()}


PACKAGES = {
    "dnf": ("rabbitmq-server", "postgresql-server", "golang-github-prometheus", "chromium"),
    "pacman": ("rabbitmq", "postgresql", "prometheus", "chromium"),
    "apk": ("rabbitmq-server", "postgresql", "prometheus", "chromium"),
    "brew": ("rabbitmq", "postgresql@17", "prometheus", "chromium"),
}
"""Keyed by package manager: what its system calls what is wanted."""


@pytest.mark.parametrize("manager", PACKAGES)
def test_every_package_manager_installs_what_its_system_calls_it(
    manager: str, machine: Machine, tmp_path: Path
) -> None:
    machine.user(501 if manager == "brew" else 0)
    machine.has(manager, f'#!/bin/bash\necho "$@" >>{tmp_path}/told\n')

    done = machine.setup("--own-broker")

    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "told").read_text().splitlines()
    assert [word for word in line.split() if word in PACKAGES[manager]] == [*PACKAGES[manager]]
    assert f"setup: {' '.join(PACKAGES[manager])} from the system's packages" in done.stderr


@pytest.mark.parametrize("manager", PACKAGES)
def test_where_a_package_is_not_to_be_had_one_line_has_the_command_and_a_container(
    manager: str, machine: Machine
) -> None:
    machine.user(501 if manager == "brew" else 0)
    machine.has(manager, "#!/bin/bash\necho 'E: no such package'; exit 1\n")
    machine.has("podman", "#!/bin/bash\nexit 1\n")

    done = machine.setup("--embedded")

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{manager} cannot install them (E: no such package)" in last
    assert "podman run --detach --publish 127.0.0.1:5672:5672 docker.io/library/rabbitmq:" in last
    assert "then AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ make demo" in last


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_a_container_engine_alone_is_a_way_to_a_broker(engine: str, machine: Machine) -> None:
    machine.has(engine, "#!/bin/bash\nexit 1\n")

    assert_one_line(machine.setup("--embedded"), f"here: {engine} run --detach", "AMQP_URL=")
    assert machine.setup("--embedded", AMQP_URL="amqp://elsewhere/").returncode == 0


def test_the_container_is_of_the_image_that_the_compose_file_has() -> None:
    (image,) = re.findall(r"^RABBITMQ_IMAGE=(\S+)", (ROOT / "scripts/setup").read_text(), re.M)
    compose = (ROOT / "compose.yaml").read_text()
    assert re.findall(r"image: (\S+/rabbitmq:[^@\s]+)", compose) == [image]


def test_homebrew_is_not_asked_as_root(machine: Machine) -> None:
    machine.has("brew", "#!/bin/bash\nexit 1\n")

    assert_one_line(machine.setup("--embedded"), "Run as another user than root: brew install")


def test_macos_takes_homebrew_and_what_it_has_put_there(machine: Machine, tmp_path: Path) -> None:
    machine.user(501)
    machine.has("uname", "#!/bin/bash\necho Darwin\n")
    machine.has("apt-get", "#!/bin/bash\nexit 1\n")  # of Java's, say
    for program in ("brew", "prometheus", "promtool", "chromium", "shasum"):
        machine.has(program, "#!/bin/bash\n[ $# -eq 2 ] && cat >/dev/null; exit 0\n")
    (machine.programs / "sha256sum").unlink()  # macOS has the other one.
    prefix = tmp_path / "homebrew"
    for program in ("rabbitmq/sbin/rabbitmq-server", "postgresql@16/bin/initdb"):
        place = prefix / "opt" / program
        place.parent.mkdir(parents=True)
        place.touch(mode=0o755)

    done = machine.setup("--own-broker", HOMEBREW_PREFIX=str(prefix))

    assert done.returncode == 0, done.stderr
    assert "from the system's packages" not in done.stderr


@pytest.mark.parametrize(
    "initdb",
    ["usr/lib/postgresql/15/bin", "usr/pgsql-17/bin", "usr/bin"],
    ids=["deb", "rpm", "any"],
)
def test_postgresql_is_found_by_the_script_where_it_is_found_by_the_program(
    initdb: str, machine: Machine, tmp_path: Path
) -> None:
    script = machine.script.read_text().replace(" /usr)", f" {tmp_path}/usr)")
    machine.script.write_text(script.replace('"/usr/pgsql-', f'"{tmp_path}/usr/pgsql-'))
    (tmp_path / initdb).mkdir(parents=True, exist_ok=True)
    (tmp_path / initdb / "initdb").touch(mode=0o755)
    machine.has("apt-get", f'#!/bin/bash\necho "$@" >>{tmp_path}/apt\n')

    assert machine.setup("--own-broker").returncode == 0

    (line,) = (tmp_path / "apt").read_text().splitlines()
    assert "postgresql" not in line.split()
    assert homes(POSTGRESQL, (), "bin/initdb", root=tmp_path) == [(tmp_path / initdb).parent]


def test_the_script_and_the_program_look_in_the_same_places() -> None:
    script = (ROOT / "scripts" / "setup").read_text()

    def listed(name: str) -> tuple[str, ...]:
        (words,) = re.findall(rf"^{name}=\((.*)\)$", script, re.MULTILINE)
        found = [word.strip('"') for word in words.split()]
        return tuple(word for word in found if not word.startswith("$"))

    assert listed("rabbitmq_places") == tuple(f"/{place}" for place in places.RABBITMQ)
    assert listed("postgresql_places") == tuple(f"/{place}" for place in POSTGRESQL)
    assert listed("rabbitmq_of_homebrew") == places.RABBITMQ_OF_HOMEBREW
    assert listed("postgresql_of_homebrew") == places.POSTGRESQL_OF_HOMEBREW
    assert listed("brews") == places.HOMEBREW_PREFIXES


def test_a_checkout_on_a_drive_of_windows_is_refused(machine: Machine) -> None:
    script = machine.script.read_text()
    machine.script.write_text(script.replace("^/mnt/[a-z]/", f"^{machine.checkout}"))

    done = machine.setup("--no-broker", WSL_DISTRO_NAME="Debian")

    assert_one_line(done, "is on a drive of Windows'", "clone it below $HOME in WSL")


def test_installing_packages_is_never_silent_for_long(machine: Machine) -> None:
    machine.has("apt-get", "#!/bin/bash\nsleep 2\n")

    done = machine.setup("--embedded")

    assert done.returncode == 0, done.stderr
    assert "setup: installing rabbitmq-server: still at it" in done.stderr.splitlines()


@pytest.mark.parametrize("status", [0, 1])
def test_uv_installs_by_the_same_hashes_and_pip_where_it_cannot(
    status: int, machine: Machine, tmp_path: Path
) -> None:
    machine.has("uv", f'#!/bin/bash\necho "$@" >>{tmp_path}/uv\nexit {status}\n')

    assert machine.setup("--embedded", AMQP_URL="amqp://elsewhere/").returncode == 0

    told = (tmp_path / "uv").read_text().splitlines()
    assert all("--require-hashes" in line for line in told)
    assert f"--requirement {LOCKS[0]}" in told[0]
    assert (f"--requirement {LOCKS[0]}" in machine.installed) == bool(status)


def test_an_index_that_cannot_be_asked_is_named_with_the_reason(machine: Machine) -> None:
    why = "Could not fetch URL https://index/: There was a problem confirming the ssl certificate"
    said = f'  echo "{why}"\n  echo "ERROR: No matching distribution found"\n  exit 1 ;;\nesac\n'
    before, _, _ = PYTHON.rpartition(" ;;\nesac\n")
    machine.has("python3", f"{before}\n{said}")

    done = machine.setup("--embedded", AMQP_URL="amqp://elsewhere/")

    assert done.returncode == 1
    assert why in done.stderr.splitlines()[-1]


LACKING = {
    "mapfile": r"\b(mapfile|readarray)\b",
    "changing case": r"\$\{\w+(,|\^)",
    "associative arrays": r"\b(declare|local|typeset) -\w*A",
    "namerefs": r"\b(declare|local) -n\b",
    "|& and &>>": r"\|&|&>>",
    "a negative index": r"\[-\d+\]\}",
    "printf of a time": r"%\(",
    "operators on parameters": r"\$\{\w+@",
    "read with fractions or its status": r"read -\w* ?-?t",
    "wait -n": r"\bwait -n",
    "coproc": r"\bcoproc\b",
    "GNU's options": r"(^|[|;&(!])\s*(mktemp|cp|rm|date|sed|tail|head|sort|diff)\b[^|;]* --[a-z]",
    "GNU's readlink and sed": r"readlink -f|sed -i |sed -r|grep -P|\bnproc\b|date -d",
}
"""What bash 3.2 lacks, or the programs of BSD."""


@pytest.mark.parametrize("name", ["setup", "every-python", "mutants", "lock", "release"])
def test_what_users_call_takes_no_more_than_macos_has(name: str) -> None:
    lines = (ROOT / "scripts" / name).read_text().splitlines()
    found = [
        (number, what, line)
        for number, line in enumerate(lines, start=1)
        for what, pattern in LACKING.items()
        if not line.lstrip().startswith("#") and re.search(pattern, line)
    ]
    assert found == []


def test_standard_output_is_left_to_the_command_that_comes_after(machine: Machine) -> None:
    done = machine.setup("--no-broker")

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert all(line.startswith("setup: ") for line in done.stderr.splitlines())
    assert machine.setup("--no-broker").stderr == ""


def test_nobody_has_to_guess_whether_pip_is_still_at_it(machine: Machine) -> None:
    done = machine.setup("--no-broker", SLOW="1")

    total = len(re.findall("^[a-z].*==", (ROOT / LOCKS[1]).read_text(), re.MULTILINE))
    said = done.stderr.splitlines()
    assert f"setup: {total} packages of {LOCKS[1]}" in said
    assert [line for line in said if re.fullmatch(r"setup: \d+ of \d+ packages", line)]
    assert f"setup: {total} of {total} packages: still at it" in said


def test_running_takes_only_what_running_needs_and_development_adds_to_it(
    machine: Machine,
) -> None:
    embedded = installed_by(machine, "--embedded")
    assert f"--requirement {LOCKS[0]}" in embedded
    assert LOCKS[1] not in embedded
    assert installed_by(machine, "--embedded") == ""
    assert f"--requirement {LOCKS[1]}" in installed_by(machine, "--no-broker")
    assert installed_by(machine, "--embedded") == ""


def installed_by(machine: Machine, option: str) -> str:
    """What a run installs, where a broker is given."""
    (machine.checkout / "installed").write_text("")
    done = machine.setup(option, AMQP_URL="amqp://elsewhere/")
    assert done.returncode == 0, done.stderr
    return machine.installed


def test_a_checkout_that_cannot_be_written_is_one_line(machine: Machine) -> None:
    assert machine.setup("--no-broker").returncode == 0
    (machine.checkout / "pyproject.toml").write_text("changed")
    machine.has("rm", '#!/bin/bash\necho "rm: cannot remove: Read-only file system" >&2; exit 1\n')

    assert_one_line(
        machine.setup("--no-broker"), str(machine.checkout), "Read-only file system", "VENV"
    )
    shutil.rmtree(machine.checkout / ".venv")
    assert_one_line(machine.setup("--no-broker"), str(machine.checkout), "Read-only", "a copy")


def test_another_interpreter_is_taken_when_it_is_named(machine: Machine) -> None:
    assert machine.setup("--no-broker").returncode == 0
    other = PYTHON.replace("-c*) ;;", "*base_prefix*) echo other ;;\n-c*) ;;")
    machine.has("python3.13", other)

    again = machine.setup("--no-broker", PYTHON="python3.13")

    assert "virtual environment in .venv" in again.stderr
    assert machine.setup("--no-broker", PYTHON="python3.13").stderr == ""
    assert machine.setup("--no-broker").stderr == ""


def imported(file: Path) -> set[str]:
    """The top-level names of all modules that a file imports where it runs, wherever in it."""
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(file.read_text())]
    for node in todo:  # grows
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        todo += ast.iter_child_nodes(node)
    return {name.partition(".")[0] for name in names}


def test_nothing_that_runs_needs_a_package_of_development() -> None:
    def plain(name: str) -> str:
        return name.lower().replace("_", "-").replace(".", "-")

    lines = re.findall(r"^([a-z][\w.-]*)(?:\[.*\])?==", (ROOT / LOCKS[0]).read_text(), re.MULTILINE)
    locked = {plain(name) for name in lines}
    distributions = packages_distributions()
    runs = [ROOT / "common", ROOT / "saga", ROOT / "order_saga", *ROOT.glob("*_service")]
    ours = {path.name for path in runs}
    for folder in runs:
        for file in folder.rglob("*.py"):
            if {"testing", "template"} & {*file.relative_to(folder).parts}:
                continue  # For a run of pytest, and another project's.
            # `_typeshed` is there for type checkers only.
            for name in imported(file) - ours - sys.stdlib_module_names - {"_typeshed"}:
                assert locked.intersection(map(plain, distributions[name])), f"{file}: {name}"


EVERY = ROOT / "scripts" / "every-python"


def test_the_unit_tests_are_run_on_each_version_once_and_not_on_the_one_that_has_run_them(
    tmp_path: Path,
) -> None:
    def python(place: str, version: str) -> Path:
        program = tmp_path / place
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
        return program

    python("checkout/.venv/bin/python", "3.11")
    python("bin/python3.11", "3.11")
    on_path = python("bin/python3.13", "3.13")
    python("pyenv/versions/3.13.0/bin/python3", "3.13")
    of_pyenv = python("pyenv/versions/3.12.1/bin/python3", "3.12")
    python("pyenv/versions/3.10.13/bin/python3", "3.10")
    (tmp_path / "checkout" / "scripts").mkdir()
    shutil.copy(EVERY, tmp_path / "checkout" / "scripts")

    done = subprocess.run(
        [tmp_path / "checkout" / "scripts" / EVERY.name, "--list"],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "PYENV_ROOT": str(tmp_path / "pyenv")},
        capture_output=True,
        text=True,
        check=True,
    )

    found = dict(line.split() for line in done.stdout.splitlines())
    assert found["3.12"] == str(of_pyenv)
    assert found["3.13"] == str(on_path)
    assert "3.11" not in found
    assert "3.10" not in found


def test_make_verify_goes_through_every_python() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nverify:")[1].split("\n\n")[0]

    assert f"scripts/{EVERY.name}" in recipe
