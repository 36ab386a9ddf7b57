"""What becomes of HADFL when processes die, hang, lie or return: docs/methods/hadfl.md 4.8, line by line."""

from __future__ import annotations

import itertools
import re
import socket
import struct

import pytest
from failing import TRICKS, Plot

from sparsync.transport import TOKEN_BYTES, Signal
from sparsync.wire import pack
from sparsync.wire.parcel import RAW

CAPPED = "unit=4,max_units=1,backup_every=1"


def survives(run, lost, plot):
    """Train with four devices; whatever happens to some, the others agree and end well. Return the cycle's line."""
    run.coordinate()
    run.devices(plot=plot)
    codes = run.end()
    gone = {number for number in range(run.workers) if codes[f"device{number}"]}
    assert len(gone) == lost
    assert set(run.lost()) == gone, run.said()
    assert codes["coordinator"] == 0, run.said()
    run.check()
    (line,) = [line for line in run.history("cycle") if line["cycle"] == plot.cycle]
    later = [line for line in run.history("cycle") if line["cycle"] > plot.cycle]
    assert later
    assert all(set(line["available"]) == set(range(run.workers)) - gone for line in later)
    return line


@pytest.mark.parametrize("moment", ["before", "scatter", "gather"])
def test_a_member_is_killed(field, moment):
    run = field(f"{CAPPED},members=4")
    line = survives(run, 1, Plot(moment, places=(1,)))
    assert line["attempts"] == 2
    assert len(line["ring"]) == 3


@pytest.mark.parametrize("moment", ["before", "gather"])
def test_two_adjacent_members_are_killed(field, moment):
    run = field(f"{CAPPED},members=4")
    line = survives(run, 2, Plot(moment, places=(1, 2)))
    assert line["attempts"] <= 3
    assert len(line["ring"]) == 2


def test_all_members_but_one_are_killed(field):
    """The survivor has nobody to average with: no mean of that cycle, and it goes on alone."""
    run = field(f"{CAPPED},members=3", workers=3)
    run.coordinate()
    run.devices(plot=Plot("before", places=(0, 1)))
    codes = run.end()
    assert sorted(codes.values()) == [-9, -9, 0, 0]
    run.check()
    assert len(run.lost()) == 2
    lines = run.history("cycle")
    assert 2 not in [line["cycle"] for line in lines]
    assert [len(line["ring"]) for line in lines] == [3] + [1] * (len(lines) - 1)
    assert len(lines) > 1


def test_a_slow_member_is_not_passed_over(field):
    """It says nothing for longer than others wait, but it answers."""
    run = field(f"{CAPPED},members=4", steps=24)
    run.meeting = 1.0
    plot = Plot("before", "sleep", places=(1,), seconds=2.0)
    line = survives(run, 0, plot)
    assert line["attempts"] == 1
    assert len(line["ring"]) == 4


@pytest.mark.parametrize("members", [2, 3, 4])
def test_the_broadcaster_is_killed_in_the_ring(field, members):
    run = field(f"{CAPPED},members={members}")
    plot = Plot("gather", broadcaster=True)
    run.coordinate()
    run.devices(plot=plot)
    codes = run.end()
    run.check()
    (gone,) = [number for number in range(4) if codes[f"device{number}"]]
    assert list(run.lost()) == [gone]
    assert codes["coordinator"] == 0
    ring = list(run.rings()[2, 0])
    following = ring[(ring.index(gone) + 1) % members]
    again = [line for line in run.history("cycle") if line["cycle"] == 2]
    assert len(again) == (members > 2)
    if again:
        assert again[0]["broadcaster"] == following
        others = set(range(4)) - set(ring)
        assert {number for number in range(4) for line in run.log(number, "merged") if line["tag"][0] == 2} == others


def test_the_broadcaster_is_killed_before_it_has_sent(field):
    """It holds the mean like the others of the ring, of whom the next one passes it on."""
    run = field(f"{CAPPED},members=2")
    plot = Plot("broadcast", broadcaster=True)
    line = survives(run, 1, plot)
    assert (line["attempts"], len(line["ring"])) == (1, 2)
    others = set(range(4)) - set(line["ring"])
    assert {number for number in range(4) for one in run.log(number, "merged") if one["tag"][0] == 2} == others


# The coordinator


def again(run, ready):
    """The coordinator has been killed; start it again, and end once three more cycles are there."""
    run.wait(lambda: run.ended("coordinator"), "the coordinator's end")
    assert run.processes["coordinator"].exitcode == -9
    run.wait(lambda: all(run.log(number, "alone") for number in range(run.workers)), "devices that notice")
    before = max(line["cycle"] for line in run.history("cycle"))
    run.resume()
    run.wait(lambda: ready(run) and run.history("cycle")[-1]["cycle"] > before + 3, "three cycles")
    run.enough()
    codes = run.end()
    assert not any(codes.values()), run.said()
    assert not run.lost()
    run.check()


def test_the_coordinator_is_killed_and_started_again(field):
    run = field("unit=4,members=2,backup_every=1", steps=10**6)
    run.coordinate(plot=Plot("planned", cycle=3))
    run.devices("--slowdown", 4)
    again(run, lambda run: True)
    for number in range(run.workers):
        (alone,) = run.log(number, "alone")
        first, second = run.log(number, "welcome")
        assert first["model"]
        assert not second["model"]  # it keeps its own
        assert second["trained"] >= second["version"] > alone["version"]
    versions = [dict(zip(line["available"], line["versions"], strict=True)) for line in run.history("cycle")]
    for earlier, later in itertools.pairwise(versions):
        assert all(later[number] >= earlier[number] for number in later)


@pytest.mark.parametrize("moment", ["agreed", "committed"])
def test_the_coordinator_is_killed_while_it_tells_members_to_commit(field, moment):
    """Nobody has been told, and nobody adopts; or one has, who tells the next."""
    run = field(f"{CAPPED},members=3", steps=10**6)
    if moment == "agreed":  # nothing ends that wait
        run.meeting = 1.0
    run.coordinate(plot=Plot(moment))
    run.devices()
    again(run, lambda run: True)
    ring = set(run.rings()[2, 0])
    assert set(run.adopted().get((2, 0), {})) == (ring if moment == "committed" else set())


# Who comes late, and who comes back


def test_a_device_joins_late(field):
    run = field(f"{CAPPED},members=2", steps=10**6)
    run.coordinate("--begin-with", 3)
    for number in range(3):
        run.device(number)
    run.wait(lambda: len(run.history("cycle")) >= 2, "two cycles")
    run.device(3)
    run.wait(lambda: any(3 in line["ring"] for line in run.history("cycle")), "a ring with the new device")
    run.enough()
    assert not any(run.end().values()), run.said()
    run.check()
    begins_with_the_mean(run, 3, 0)


def begins_with_the_mean(run, number, time):
    """A device has received the mean of a cycle, bit for bit, and goes on from the mean version of its ring."""
    received, welcome = run.log(number, "received")[time], run.log(number, "welcome")[time]
    assert welcome["model"]
    assert received["holds"] == received["vector"]
    cycle = received["cycle"]
    (line,) = [line for line in run.history("cycle") if line["cycle"] == cycle]
    assert received["vector"] in run.adopted()[cycle, line["attempts"] - 1].values()
    versions = dict(zip(line["available"], line["versions"], strict=True))
    assert welcome["version"] == round(sum(versions[member] for member in line["ring"]) / len(line["ring"]))


def test_a_device_that_was_given_up_comes_back(field):
    run = field(f"{CAPPED},members=4", steps=10**6)
    run.coordinate("--heartbeat-timeout", 2)
    run.devices(plot=Plot("before", "stop", places=(2,)))
    run.wait(run.lost, "a device that is given up")
    (number,) = run.lost()
    run.wait(lambda: run.history("cycle")[-1]["cycle"] > 3, "cycles without it")
    (run.folder / f"stopped-{number}").unlink()
    run.signal(f"device{number}", "SIGCONT")

    def back():
        return any(number in line["ring"] and line["cycle"] > 3 for line in run.history("cycle"))

    run.wait(back, "a ring with it")
    run.enough()
    assert not any(run.end().values()), run.said()
    run.check()
    assert set(run.lost()) == {number}
    begins_with_the_mean(run, number, 1)


# Who lies


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raw control", "it sent a frame of no known kind"),
        ("no word", "payload: no message of a device"),
        ("no json", "payload: no message of a device"),
        ("torn word", "payload: checksum does not hold"),
        ("huge word", "payload: declares a body of"),
        ("not for it", "payload: CHUNK is nothing that a device says to its coordinator"),
        ("trained back", "payload: it has trained less than it said before"),
        ("nan backup", "payload: holds NaN or infinity"),
        ("raw piece", "it sent a frame of no known kind"),
        ("long piece", "payload: declares a body of|payload: body of|declares"),
        ("nan piece", "payload: holds NaN or infinity"),
        ("short piece", "payload: "),
        ("stop others", "payload: 'stop' is nothing that devices say to one another"),
    ],
)
def test_a_lie_costs_its_sender(field, how, why):
    run = field(f"{CAPPED},members=3", workers=3, steps=24)
    line = survives(run, 1, Plot("before", how, places=(1,)))
    assert len(line["ring"]) == 2
    banned(run, why)


@pytest.mark.parametrize("how", ["nan mean", "long mean", "raw mean"])
def test_a_broadcast_that_cannot_be_used_costs_its_sender(field, how):
    run = field(f"{CAPPED},members=2")
    survives(run, 1, Plot("broadcast", how, broadcaster=True))
    banned(run, "it sent a frame of no known kind" if how == "raw mean" else "payload: ")


def banned(run, why):
    """One device has been locked out for a reason, and has been told."""
    ((number, reason),) = run.lost().items()
    assert re.match(why, reason)
    assert run.end()[f"device{number}"] == 1
    said = f"sparsync: device {number}: the coordinator does not let it in: {reason}"[:250]
    assert said in run.said()[f"device{number}"]
    assert "Traceback" not in "".join(run.said().values())


@pytest.mark.parametrize("how", list(TRICKS))
def test_what_belongs_to_no_ring_changes_nothing(field, how):
    run = field(f"{CAPPED},members=3")
    line = survives(run, 0, Plot("before", how, places=(1,)))
    assert (line["attempts"], len(line["ring"])) == (1, 3)
    assert max(line["tag"][0] for number in range(4) for line in run.log(number, "merged")) > 2


def test_strangers_change_nothing(field):
    run = field(f"{CAPPED},members=2", steps=10**6)
    run.coordinate()
    run.devices()
    run.wait(lambda: run.history("cycle"), "a cycle")
    hello = bytes((Signal.HELLO,)) + pack(RAW, struct.pack(f"<{TOKEN_BYTES}sI", bytes(TOKEN_BYTES), 1))
    ports = [run.port, *(run.log(number, "listens")[0]["port"] for number in range(run.workers))]
    for port, noise in itertools.product(ports, [b"GET / HTTP/1.1\r\n\r\n".ljust(200), hello, hello[:9], b""]):
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(noise)
    before = run.history("cycle")[-1]["cycle"]
    run.wait(lambda: run.history("cycle")[-1]["cycle"] > before + 2, "two more cycles")
    run.enough()
    assert not any(run.end().values()), run.said()
    assert not run.lost()
    run.check()


# When nobody is left, or nobody is of use


def test_all_devices_die(field):
    run = field(f"{CAPPED},members=2")
    run.coordinate()
    run.devices(plot=Plot("before", places=None, cycle=2))
    run.wait(lambda: len(run.lost()) == 2, "two deaths")
    for number in set(range(4)) - set(run.lost()):
        run.signal(f"device{number}", "SIGKILL")
    run.wait(lambda: all(run.ended(f"device{number}") for number in range(4)), "the devices' end")
    (run.folder / "nobody").touch()
    codes = run.end()
    assert codes.pop("coordinator") == 1
    assert set(codes.values()) == {-9}
    (line,) = [line for line in run.said()["coordinator"].splitlines() if line.startswith("sparsync: ")]
    assert re.fullmatch(r"sparsync: all devices are lost, the last was \d: .*; start them again, and resume", line)
    assert "Traceback" not in run.said()["coordinator"]


def test_a_second_process_of_a_number_is_sent_away(field):
    run = field(f"{CAPPED},members=2", steps=10**6)
    run.coordinate()
    run.devices()
    run.wait(lambda: run.history("cycle"), "a cycle")
    run.device(1, name="second")
    run.wait(lambda: run.ended("second"), "the second one's end")
    run.enough()
    codes = run.end()
    assert codes.pop("second") == 1
    assert run.said()["second"] == (
        "sparsync: device 1: another process is the device of this number; give each its own\n"
    )
    assert not any(codes.values()), run.said()
    assert not run.lost()
    run.check()


def test_a_device_with_another_experiment_is_sent_away(field, tmp_path):
    run = field(f"{CAPPED},members=2", steps=10**6)
    run.coordinate("--begin-with", 3)
    for number in range(3):
        run.device(number)
    other = tmp_path / "other.toml"
    other.write_text(run.file.read_text().replace("0.05", "0.06"))
    run.device(3, file=other)
    run.wait(lambda: run.ended("device3"), "its end")
    run.wait(lambda: run.history("cycle"), "a cycle")
    run.enough()
    codes = run.end()
    assert codes.pop("device3") == 1
    assert run.said()["device3"] == (
        "sparsync: device 3: its experiment is another one than the coordinator's; give both the same file and flags\n"
    )
    assert not any(codes.values()), run.said()


def test_a_device_of_another_run_gives_up(field, tmp_path):
    """Its token is none of this run's."""
    run = field(f"{CAPPED},members=2")
    run.coordinate("--patience", 3)
    (run.out / "token").write_text("00" * TOKEN_BYTES)
    run.device(0, "--patience", 2)
    codes = run.end()
    assert codes == {"coordinator": 1, "device0": 1}
    assert run.said() == {
        "coordinator": run.said()["coordinator"],
        "device0": "sparsync: device 0: no coordinator for 2 s; check its address, the token, and that no other device "
        "has this number\n",
    }
    assert run.said()["coordinator"].splitlines()[-1] == (
        "sparsync: 0 of 4 devices have come within 3 s, device 0 has not; start it with the same experiment file, this "
        "address and the token"
    )
