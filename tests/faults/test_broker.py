"""RabbitMQ fails in each of its ways, under load: nothing is lost, nothing happens twice, work goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.harness import Site, Verdict, chance, record_row, size, wait_until
from faults.proxy import FaultProxy
from services import RabbitCluster, RabbitServer, find_rabbitmq

pytestmark = pytest.mark.rabbitmq

BACK_S = 10.0
"""From the moment that the broker can be reached again until a fresh job has gone all the way."""
NOTICED_S = 35.0
"""Until a link on which nothing comes any more is given up: heartbeats are 10 s apart."""
JOBS_A_SECOND = 40


# --- the node goes away -----------------------------------------------------------------------------------


@pytest.mark.timeout(size(180, 1800))
@pytest.mark.parametrize("fault", ["restart", "kill -9"])
def test_jobs_survive_a_node_that_goes_and_comes(rabbit_server: RabbitServer, tmp_path: Path, fault: str) -> None:
    random = chance()
    rabbit_server.start()
    recovery_s = []
    with Site(tmp_path, brokers=(rabbit_server.new_vhost(),)) as site:
        site.start()
        with site.load(JOBS_A_SECOND):
            site.probe(time.time())
            for _ in range(size(3, 25)):
                time.sleep(random.uniform(0.2, 2))
                if fault == "kill -9":
                    rabbit_server.flush()
                    rabbit_server.kill()
                else:
                    rabbit_server.stop()
                rabbit_server.start()
                recovery_s.append(site.probe(time.time()))
        verdict = site.settled()
    record_row(f"RabbitMQ {fault}", len(recovery_s), [verdict], recovery_s)
    verdict.assert_kept()
    assert max(recovery_s) <= BACK_S


# --- the network --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ride:
    """What a network fault led to."""

    verdict: Verdict
    noticed_s: float
    back_s: float


def cut(proxy: FaultProxy) -> None:
    proxy.cut()
    time.sleep(size(5, 30))


def reset(proxy: FaultProxy) -> None:
    """Again and again: what has just come back goes, too."""
    for _ in range(5):
        time.sleep(size(1, 6))
        proxy.reset()


def slow(proxy: FaultProxy) -> None:
    proxy.delay(0.2)
    time.sleep(size(5, 30))


def silent(proxy: FaultProxy) -> None:
    proxy.half_open()
    until_given_up(proxy)


def deaf(proxy: FaultProxy) -> None:
    """The broker's part is lost, flowrun's arrives."""
    proxy.one_way("to_server")
    until_given_up(proxy)


def mute(proxy: FaultProxy) -> None:
    proxy.one_way("from_server")
    until_given_up(proxy)


def until_given_up(proxy: FaultProxy) -> None:
    """Until flowrun tries a new connection."""
    before = proxy.accepted
    wait_until(lambda: proxy.accepted > before, "flowrun to give the link up")


FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "network cut": cut,
    "connections reset": reset,
    "half-open link": silent,
    "link deaf": deaf,
    "link mute": mute,
    "link slow": slow,
}


def ride(fault: str, broker: str, folder: Path) -> Ride:
    with FaultProxy(broker) as proxy, Site(folder, brokers=(proxy.url,), producer_urls=(broker,)) as site:
        site.start()
        with site.load(JOBS_A_SECOND / 4):
            site.probe(time.time())
            began = time.time()
            FAULTS[fault](proxy)
            healed = time.time()
            proxy.heal()
            back_s = site.probe(healed)
        print(f"{fault}: {healed - began:.1f} s, back after {back_s:.1f} s")
        return Ride(site.settled(), healed - began, back_s)


@pytest.mark.timeout(size(240, 2400))
def test_jobs_survive_what_a_network_can_do(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    rabbit_server.start()
    rides: dict[str, list[Ride]] = {fault: [] for fault in FAULTS}
    for turn in range(size(1, 10)):  # all faults at once, each with a vhost, a store and a flowrun of its own
        with ThreadPoolExecutor(len(FAULTS)) as pool:
            brokers = {fault: rabbit_server.new_vhost() for fault in FAULTS}
            begun = [pool.submit(ride, fault, brokers[fault], tmp_path / f"{fault} {turn}") for fault in FAULTS]
            for fault, future in zip(FAULTS, begun, strict=True):
                rides[fault].append(future.result())
    for fault, ridden in rides.items():
        record_row(fault, len(ridden), [one.verdict for one in ridden], [one.back_s for one in ridden])
    for fault, ridden in rides.items():
        for one in ridden:
            one.verdict.assert_kept()
            assert one.back_s <= BACK_S, fault
            assert one.noticed_s <= NOTICED_S or fault not in ("half-open link", "link deaf", "link mute"), fault


# --- the memory alarm -----------------------------------------------------------------------------------------


@pytest.mark.timeout(size(180, 900))
def test_work_goes_on_while_the_broker_takes_nothing(rabbit_server: RabbitServer, tmp_path: Path) -> None:
    """A memory alarm blocks who publishes: runs end and are acknowledged all the same, their events wait."""
    rabbit_server.start()
    jobs = 500
    recovery_s = []
    broker = rabbit_server.new_vhost()
    with Site(tmp_path, brokers=(broker,)) as site:
        runner = site.start()
        site.probe(time.time())
        for _ in range(size(1, 5)):
            runner.terminate()
            site.publish(jobs, ["slow"])
            before = site.count_noted()
            runner = site.start()
            wait_until(lambda before=before: site.count_noted() > before, "the first events to go out")
            try:
                rabbit_server.ctl("set_vm_memory_high_watermark", "0.0000001")
                alarmed, noted = time.monotonic(), site.count_noted()
                wait_until(lambda: unfinished(site) == 0 and waiting(rabbit_server, broker) == 0, "the runs to end")
                assert site.count_noted() < len(site.confirmed), "the alarm came too late to mean anything"
                time.sleep(max(0, alarmed + size(6, 30) - time.monotonic()))
                print(f"{site.count_noted() - noted} noted during the alarm")
            finally:
                rabbit_server.ctl("set_vm_memory_high_watermark", "absolute", "2GB")
            recovery_s.append(site.probe(time.time()))
        verdict = site.settled()
    record_row("memory alarm", len(recovery_s), [verdict], recovery_s)
    verdict.assert_kept()
    assert max(recovery_s) <= BACK_S


def unfinished(site: Site) -> int:
    """Of the confirmed jobs, how many have no finished run."""
    [(finished,)] = site.query("SELECT count(*) FROM runs WHERE handler = 'ledger.work' AND finished_at IS NOT NULL")
    return len(site.confirmed) - int(finished)


def waiting(server: RabbitServer, broker: str) -> int:
    """Messages in the queue of `work`, unacknowledged ones included."""
    vhost = broker.rpartition("/")[2]
    listed = dict(line.split("\t") for line in server.ctl("list_queues", "-p", vhost, "name", "messages").splitlines())
    return int(listed["ledger.ledger.work"])


# --- a cluster of three --------------------------------------------------------------------------------------


@pytest.fixture
def cluster(rabbit_server: RabbitServer) -> Iterator[RabbitCluster]:
    rabbit_server.stop()  # only for the memory; whoever needs it starts it again
    sbin = find_rabbitmq()
    assert sbin is not None
    cluster = RabbitCluster(sbin)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.mark.timeout(size(240, 1200))
def test_jobs_survive_the_loss_of_one_node_of_three(cluster: RabbitCluster, tmp_path: Path) -> None:
    """The node that flowrun is connected to is killed, and the one that it turns to hangs for a while."""
    urls = cluster.new_vhost()
    here, there, _ = cluster.nodes
    killed_s, frozen_s = [], []
    with Site(tmp_path, brokers=urls) as site:
        site.start()
        with site.load(JOBS_A_SECOND):
            site.probe(time.time())
            for _ in range(size(1, 5)):
                here.flush()
                here.kill()
                killed_s.append(site.probe(time.time()))
                here.start()
                here, there = there, here
                here.freeze()
                time.sleep(size(10, 20))
                here.thaw()
                frozen_s.append(site.probe(time.time()))
        verdict = site.settled()
    record_row("one node of three killed", len(killed_s), [verdict], killed_s)
    record_row("one node of three hangs", len(frozen_s), [verdict], frozen_s, note="the same jobs as above")
    verdict.assert_kept()
