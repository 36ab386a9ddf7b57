"""What users may get wrong with `sparsync coordinate`, `device` and `resume`: one clear line, and nothing is left."""

from __future__ import annotations

import json
import socket
import sys

import pytest

from sparsync.__main__ import main

EXPERIMENT = """
workers = 4
model = "mlp:hidden=4"
steps = 10
[strategies]
hadfl = "hadfl:unit=2"
"""


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Run ``sparsync ARGUMENTS`` in this process: (exit status, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "file.toml").write_text(EXPERIMENT)
    (tmp_path / "study.toml").write_text(EXPERIMENT + "[variants.one]\nsteps = 5\n")
    (tmp_path / "other.toml").write_text(EXPERIMENT.replace('hadfl = "hadfl:unit=2"', 'sync = "synchronous"'))
    (tmp_path / "two.toml").write_text(EXPERIMENT + 'more = "hadfl:unit=3"\n')
    (tmp_path / "broken.toml").write_text("workers = ")
    (tmp_path / "token").write_text("0a" * 16 + "\n")
    (tmp_path / "short").write_text("0a" * 15)
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00")

    def run(arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sparsync", *arguments.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


DEVICE = "device file.toml --coordinator localhost:9 --token token"

MISTAKES = [
    (f"{DEVICE} --number 4", "device 4: the experiment has 4, numbered from 0; name one of them"),
    (f"{DEVICE} --number -1", "device -1: the experiment has 4, numbered from 0; name one of them"),
    (DEVICE, "--number: say which device this is, from 0 on; torchrun says it by itself"),
    (f"{DEVICE} --number 0 --slowdown 0.5", "slowdown 0.5: a step cannot take less time than it does; give 1 or more"),
    (f"{DEVICE} --number 0 --slowdown nan", "slowdown nan: a step cannot take less"),
    (f"{DEVICE} --number 0 --slowdown inf", "slowdown inf: "),
    (f"{DEVICE} --number 0 --token nowhere", "nowhere: no token; give the file `token` of the coordinator's folder"),
    (f"{DEVICE} --number 0 --token short", "short: no token"),
    (f"{DEVICE} --number 0 --token noise", "noise: no token"),
    (f"{DEVICE} --number 0 --token file.toml", "file.toml: no token"),
    (f"{DEVICE} --number 0 --token .", ".: no token"),
    (f"{DEVICE} --number 0 --coordinator localhost", "--coordinator localhost: expected HOST:PORT, as in 192.168.1.10"),
    (f"{DEVICE} --number 0 --coordinator :9", "--coordinator :9: expected HOST:PORT"),
    (f"{DEVICE} --number 0 --coordinator localhost:http", "--coordinator localhost:http: expected HOST:PORT"),
    (f"{DEVICE} --number 0 --coordinator localhost:70000", "coordinator localhost:70000: no such port"),
    (f"{DEVICE} --number 0 --coordinator localhost:0", "coordinator localhost:0: no such port"),
    (f"{DEVICE} --number 0 --patience 0", "patience 0: give a number of seconds above 0"),
    (f"{DEVICE} --number 0 --threads 0", "threads 0: give 1 or more"),
    (f"{DEVICE} --number 0 --strategy more", "strategy more: name one that is HADFL; the experiment has hadfl"),
    (f"{DEVICE.replace('file', 'study')} --number 0", "study.toml: a study; real devices train one variant"),
    (f"{DEVICE.replace('file', 'other')} --number 0", "strategy ?: name one that is HADFL; the experiment has none"),
    (
        f"{DEVICE.replace('file', 'two')} --number 0",
        "strategy ?: name one that is HADFL; the experiment has hadfl, more",
    ),
    (f"{DEVICE.replace('file', 'broken')} --number 0", "broken.toml: not valid TOML"),
    (f"{DEVICE.replace('file', 'nowhere')} --number 0", "nowhere.toml: No such file or directory"),
    ("coordinate study.toml", "study.toml: a study; real devices train one variant, so write a file for that"),
    ("coordinate other.toml", "strategy ?: name one that is HADFL; the experiment has none"),
    ("coordinate two.toml", "strategy ?: name one that is HADFL; the experiment has hadfl, more"),
    ("coordinate file.toml --begin-with 9", "begin with 9 of 4 devices; name 1 to all of them"),
    ("coordinate file.toml --begin-with 0", "begin with 0 of 4 devices; name 1 to all of them"),
    ("coordinate file.toml --port 99999", "port 99999: there is none of that number; name another"),
    ("coordinate file.toml --port -1", "port -1: there is none of that number; name another"),
    ("coordinate file.toml --here --slowdown 0.5", "slowdown 0.5: a step cannot take less"),
    ("coordinate file.toml --heartbeat-timeout 0", "heartbeat_timeout 0: give a number of seconds above 0"),
    ("coordinate file.toml --patience nan", "patience nan: give a number of seconds above 0"),
    ("resume nowhere", "nowhere is not a folder"),
]


@pytest.mark.parametrize(("arguments", "line"), MISTAKES)
def test_a_mistake_is_one_line(cli, tmp_path, arguments, line):
    code, said = cli(arguments)
    assert code == 2, said
    assert said.startswith(f"sparsync: {line}")
    assert said.count("\n") == 1
    assert not (tmp_path / "runs").exists()  # nothing has been begun


def test_a_port_that_is_taken(cli, tmp_path):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = cli(f"coordinate file.toml --port {port}")
    assert (code, said) == (2, f"sparsync: port {port}: cannot listen there (Address already in use); name another\n")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_holds_a_run(cli, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    code, said = cli("coordinate file.toml --out run")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("sparsync: run already holds a run; `sparsync resume run` goes on with it")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"port": "x"}', '{"ports": 1}'])
def test_a_folder_of_a_coordinator_that_is_broken(cli, tmp_path, text):
    assert cli("coordinate file.toml --out run --patience 0.1")[0] == 1
    (tmp_path / "run" / "devices.json").write_text(text)
    code, said = cli("resume run")
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("sparsync: run/devices.json: does not say where the coordinator listened")


def test_a_run_without_devices(cli, tmp_path):
    """It ends, can be resumed, and ends again in the same way at the same port."""
    code, said = cli("coordinate file.toml --out run --patience 0.2")
    assert code == 1
    lines = said.splitlines()
    assert lines[0].startswith("waiting for devices 0 to 3 at port ")
    assert lines[-1] == (
        "sparsync: 0 of 4 devices have come within 0.2 s, device 0 has not; start it with the same experiment file, "
        "this address and the token"
    )
    port = json.loads((tmp_path / "run" / "devices.json").read_text())["port"]
    code, again = cli("resume run")
    assert code == 1
    assert f"at port {port};" in again


def test_a_device_without_a_coordinator(cli):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, said = cli(f"{DEVICE.replace(':9', f':{port}')} --number 0 --patience 0.2")
    assert code == 1
    assert said == (
        "sparsync: device 0: no coordinator for 0.2 s; check its address, the token, and that no other device has this "
        "number\n"
    )
