"""Throughput and latency of `bayeslora serve` against concurrency, with batching and without, as ratios in one run.

python -m studies.cost.serving.measure runs/sst2 --output studies/cost/serving/load_cpu.json

Two servers of the same run stand side by side, one with a batch size above 1 and one of batch size 1. A client keeps
`concurrency` requests of one item under way until it has sent them all. Every round measures each concurrency with both
servers, one right after the other in an order of its own; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from bayeslora.deploy.serve.server import serve
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs import task_items
from bayeslora.runs.config_files import read_config
from bayeslora.tasks import Item
from studies.cost.timing import environment, save


@dataclass(frozen=True)
class Load:
    """One server under one concurrency in one round."""

    latencies: list[float]
    seconds: float

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        return float(torch.tensor(self.latencies, dtype=torch.float64).quantile(share))


@contextmanager
def server(run: Path, settings: Settings) -> Iterator[str]:
    """The address of a process that does what `bayeslora serve` does; forked, so that nothing is imported again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = multiprocessing.get_context("fork").Process(
        target=serve, args=(str(run), settings), kwargs={"port": port}
    )
    process.start()
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(address):
            if not process.is_alive():
                raise RuntimeError(f"the server of {run} did not start; its message stands above.")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.join()


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=600, trust_env=False).is_success
    except httpx.TransportError:
        return False


async def loaded(address: str, items: Sequence[Item], concurrency: int) -> Load:
    """Send one request per item, `concurrency` at a time."""
    waiting, latencies = iter(items), []

    async def worker(client: httpx.AsyncClient) -> None:
        for item in waiting:
            body = {"items": [{"question": item.question, "choices": list(item.choices)}]}
            started = time.perf_counter()
            (await client.post("/v1/predict", json=body)).raise_for_status()
            latencies.append(time.perf_counter() - started)

    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits, trust_env=False) as client:
        started = time.perf_counter()
        await asyncio.gather(*(worker(client) for _ in range(concurrency)))
    return Load(latencies, time.perf_counter() - started)


def batch_sizes(address: str) -> tuple[float, float]:
    """Number of forwards so far, and of items in them."""
    text = httpx.get(f"{address}/metrics", timeout=600, trust_env=False).text
    numbers = dict(re.findall(r"^bayeslora_batch_items_(count|sum) (\S+)$", text, flags=re.M))
    return float(numbers["count"]), float(numbers["sum"])


def row(batched: Sequence[Load], single: Sequence[Load], unit: float, mean_batch: float) -> dict[str, Any]:
    """Medians over the rounds; latencies as multiples of `unit` seconds."""

    def ratio(values: Sequence[float], others: Sequence[float]) -> float:
        return round(statistics.median(one / other for one, other in zip(values, others, strict=True)), 3)

    table: dict[str, Any] = {
        "throughput_ratio": ratio([load.throughput for load in batched], [load.throughput for load in single]),
        "mean_batch": round(mean_batch, 2),
    }
    for share in (0.5, 0.9, 0.99):
        quantiles = [[load.quantile(share) for load in loads] for loads in (batched, single)]
        table[f"p{100 * share:.0f}"] = {
            "ratio": ratio(*quantiles),
            "batched": round(statistics.median(quantiles[0]) / unit, 2),
            "single": round(statistics.median(quantiles[1]) / unit, 2),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_wait_ms", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32, help="In each round, for each server and concurrency.")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = {"max_wait_ms": options.max_wait_ms, "timeout": 600.0}
    config = read_config(options.run / "config.yaml")
    items = task_items(config.task).test
    chosen, order = [items[index % len(items)] for index in range(options.requests)], random.Random(0)
    measured: dict[tuple[str, int], list[Load]] = {}
    forwards: dict[int, list[float]] = {concurrency: [0.0, 0.0] for concurrency in options.concurrency}
    with ExitStack() as stack:
        addresses = {
            name: stack.enter_context(server(options.run, Settings(batch_size=size, **shared)))
            for name, size in (("batched", options.batch_size), ("single", 1))
        }
        for address in addresses.values():
            asyncio.run(loaded(address, chosen[:4], 1))
        for number in range(options.rounds):
            for concurrency in options.concurrency:
                for name in order.sample(list(addresses), 2):
                    before = batch_sizes(addresses[name])
                    load = asyncio.run(loaded(addresses[name], chosen, concurrency))
                    measured.setdefault((name, concurrency), []).append(load)
                    if name == "batched":
                        grown = zip(forwards[concurrency], before, batch_sizes(addresses[name]), strict=True)
                        forwards[concurrency] = [total + new - old for total, old, new in grown]
                print(f"round {number + 1} of {options.rounds}, concurrency {concurrency}", file=sys.stderr, flush=True)
    unit = statistics.median(load.quantile(0.5) for load in measured["single", options.concurrency[0]])
    record = environment(torch.device("cpu")) | {
        "model": config.model.name,
        "task": config.task.name,
        "scoring": config.task.scoring,
        "method": config.method.name,
        "num_samples": config.num_samples,
        "batch_size": options.batch_size,
        "max_wait_ms": options.max_wait_ms,
        "requests": options.requests,
        "rounds": options.rounds,
        "load_average": [round(number, 1) for number in os.getloadavg()],
        "latency_unit": f"median latency of the single server at concurrency {options.concurrency[0]}",
        "concurrency": {
            concurrency: row(
                measured["batched", concurrency],
                measured["single", concurrency],
                unit,
                forwards[concurrency][1] / forwards[concurrency][0],
            )
            for concurrency in options.concurrency
        },
    }
    save(options.output, record)


if __name__ == "__main__":
    main()
