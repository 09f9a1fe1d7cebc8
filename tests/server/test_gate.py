import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import load_settings
from server.errors import ConfigError, Denied, Unauthenticated
from server.gate import ANONYMOUS, CLASSES, Gate, Operation, is_loopback, parse_tokens, read_tokens
from server.messages import Principal
from tests.server.pages import DOCS


def line(name: str, secret: str, classes: str) -> str:
    return f"{name}:{hashlib.sha256(secret.encode()).hexdigest()}:{classes}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(
        "\n".join(
            [
                "# who may do what",
                line("ops", "ops-secret", "infer,read,control,debug") + "   # all",
                "",
                line("ci", "ci-secret", "infer, read"),
                line("robot", "robot-secret", "control"),
            ]
        )
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def gate(file: Path) -> Gate:
    return Gate(read_tokens(file), loopback=False, control=True)


ON_LOOPBACK = Gate(None, loopback=True, control=True)
ON_NETWORK = Gate(None, loopback=False, control=False)
WHO = {
    "anonymous": (None, {"infer", "read"}),
    "ops": ("Bearer ops-secret", {"infer", "read", "control", "debug"}),
    "ci": ("bearer  ci-secret ", {"infer", "read"}),
    "robot": ("Bearer robot-secret", {"control"}),
}


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("who", WHO)
def test_who_may_do_what(gate: Gate, who: str, operation: Operation) -> None:
    authorization, grants = WHO[who]
    principal = gate.principal(authorization)
    assert principal.name == who
    if operation.grant in grants:
        gate.check(principal, operation)
        return
    expected = Unauthenticated if who == "anonymous" else Denied
    with pytest.raises(expected, match=f"needs the class '{operation.grant}'"):
        gate.check(principal, operation)


@pytest.mark.parametrize("operation", Operation)
def test_anonymous_may_change_and_see_all_on_loopback_only(operation: Operation) -> None:
    ON_LOOPBACK.check(ON_LOOPBACK.principal(None), operation)
    principal = ON_NETWORK.principal(None)
    if operation.grant in ("infer", "read"):
        ON_NETWORK.check(principal, operation)
    else:
        with pytest.raises(Denied, match="this server has no tokens"):
            ON_NETWORK.check(principal, operation)


def test_tenants_are_believed_of_those_who_may_name_them() -> None:
    proxy = Principal("proxy", "token", frozenset(("infer", "tenant")))
    alice = Principal("alice", "token", frozenset(("infer",)))
    assert [ON_NETWORK.tenant(proxy, named) for named in ("blue", "", None)] == ["blue", "proxy", "proxy"]
    assert [ON_NETWORK.tenant(alice, named) for named in ("blue", "", None)] == ["alice", "alice", "alice"]
    assert [ON_NETWORK.tenant(ANONYMOUS, named) for named in ("blue", None)] == ["", ""]
    assert ON_LOOPBACK.tenant(ON_LOOPBACK.principal(None), "blue") == "blue"


def test_every_operation_has_a_class_and_what_it_is() -> None:
    assert {operation.grant for operation in Operation} == CLASSES.keys()
    assert len({operation.what for operation in Operation}) == len(Operation)
    assert ANONYMOUS.grants == {"infer", "read"}


@pytest.mark.parametrize(
    "authorization", ["Bearer wrong", "Bearer ", "Bearer", "", "Basic b3BzOng=", "ops-secret", "Bearer " + "x" * 100_000, "Bearer \udcff"]
)
def test_what_is_no_known_token_is_refused_without_repeating_it(gate: Gate, authorization: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        gate.principal(authorization)
    assert len(str(caught.value)) < 120
    assert "wrong" not in str(caught.value)


@given(st.text())
def test_any_header_names_a_principal_or_is_refused(header: str) -> None:
    gate = Gate((), loopback=False, control=False)
    with pytest.raises(Unauthenticated):
        gate.principal(header)


def test_without_a_token_file_the_header_belongs_to_others() -> None:
    assert ON_NETWORK.principal("Bearer of-the-mesh") == ANONYMOUS


def test_two_tokens_whose_hashes_begin_alike_are_told_apart() -> None:
    digest = hashlib.sha256(b"right").digest()
    other = digest[:4] + bytes(28)
    tokens = parse_tokens(f"other:{other.hex()}:read\nright:{digest.hex()}:read", "here")
    assert Gate(tokens, loopback=False, control=False).principal("Bearer right").name == "right"


@pytest.mark.parametrize("tokens", [None, ()])
def test_a_server_that_anyone_could_change_does_not_start(tokens: tuple[()] | None) -> None:
    with pytest.raises(ConfigError, match=r"anyone on the network .* admin\.token_file"):
        Gate(tokens, loopback=False, control=True)


def test_from_settings(file: Path) -> None:
    flags = {"repository": "models", "admin_token_file": file}
    assert Gate.from_settings(load_settings(None, flags, {})).principal("Bearer ops-secret").name == "ops"
    network = Gate.from_settings(load_settings(None, {"repository": "models", "host": "0.0.0.0"}, {}))
    with pytest.raises(Denied):
        network.check(network.principal(None), Operation.MODEL_LOAD)
    local = Gate.from_settings(load_settings(None, {"repository": "models"}, {}))
    local.check(local.principal(None), Operation.MODEL_LOAD)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o660, 0o602])
def test_a_token_file_that_others_can_read_or_change_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o} lets others at it.*chmod 600"):
        read_tokens(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hush", "expected name:sha256:classes"),
        ("anonymous:" + "0" * 64 + ":read", "expected name:sha256:classes"),
        ("a b:" + "0" * 64 + ":read", "expected name:sha256:classes"),
        ("a:hush:read", "expected the SHA-256 of the token as 64 hex digits"),
        ("a:" + "0" * 64, "expected name:sha256:classes"),
        ("a:" + "0" * 64 + ":", "expected classes out of infer, read, control, debug, tenant, got none"),
        ("a:" + "0" * 64 + ":reed", "got reed"),
        ("a:" + "0" * 64 + ":read\na:" + "1" * 64 + ":read", "tokens:4: this name is given twice"),
        ("\udcff", "expected name:sha256:classes"),
    ],
)
def test_a_wrong_line_is_told_by_number_and_not_repeated(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "tokens"
    file.write_text("# tokens\n\n" + text, errors="surrogateescape")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        read_tokens(file)
    assert re.search(r"tokens:[34]: ", str(caught.value))
    assert "hush" not in str(caught.value)


def test_token_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_tokens(tmp_path / "absent")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_tokens(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        read_tokens(tmp_path / "pipe")
    big = tmp_path / "big"
    big.write_bytes(b"#" * (1 << 21))
    big.chmod(0o600)
    with pytest.raises(ConfigError, match="larger than"):
        read_tokens(big)


@given(st.text(max_size=200))
def test_any_line_is_a_token_or_an_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_tokens(text, "here")


def test_the_documented_commands_make_a_line_that_works(tmp_path: Path) -> None:
    page = (DOCS / "security.md").read_text()
    command = re.search(r'^\$ python -c "(.*)"$', page, re.MULTILINE)
    assert command is not None
    token, entry = subprocess.run([sys.executable, "-c", command[1]], capture_output=True, text=True, check=True).stdout.split()
    file = tmp_path / "tokens"
    file.write_text(entry + "\n")
    file.chmod(0o600)
    principal = Gate(read_tokens(file), loopback=False, control=True).principal(f"Bearer {token}")
    assert principal.grants == {"infer", "read", "control"}
    if shutil.which("openssl"):
        shell = re.search(r"`(printf .* openssl .*?)`", page)
        assert shell is not None
        said = subprocess.run(["sh", "-c", shell[1]], env={**os.environ, "TOKEN": token}, capture_output=True, text=True, check=True).stdout
        assert said.split()[-1] == entry.split(":")[1]


def test_a_certificate_names_and_grants_what_anonymous_ones_may(gate: Gate) -> None:
    principal = gate.principal(None, "alice")
    assert (principal.name, principal.kind, principal.grants) == ("alice", "certificate", ANONYMOUS.grants)
    with pytest.raises(Unauthenticated, match="send 'Authorization: Bearer TOKEN'"):
        gate.check(principal, Operation.MODEL_LOAD)
    with pytest.raises(Unauthenticated, match="isn't one of"):
        gate.principal("Bearer another", "alice")
    assert ON_NETWORK.principal("Bearer whatever", "alice").kind == "certificate"
    with pytest.raises(Denied, match="has no tokens"):
        ON_NETWORK.check(ON_NETWORK.principal(None, "alice"), Operation.MODEL_LOAD)
    assert ON_LOOPBACK.principal(None, "alice").grants == set(CLASSES)
