"""The memory plan: what a model needs, what there is, and what would fit.

Owns the sizes (packed weights, KV pages, workspace; the numbers come from the core, which lays out
its memory by the same functions) and the reading of what this process may use: MemAvailable and the
limits of its cgroup, less what the group uses, the file cache not counted because the kernel takes
it back. Invariant: needs headers only, nothing is loaded or reserved.

Called by loading.prepare, llm.py and the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmaccel import _core
from llmaccel.config import ModelConfig
from llmaccel.environment import open_device, thread_count
from llmaccel.errors import MemoryPlanError

if TYPE_CHECKING:
    from llmaccel.options import LoadOptions

PAGE_TOKENS = 64
# Of what weights and workspace leave: others need memory too.
_KV_SHARE = 0.5


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a model needs, and what there is. str() gives a table.

    weights: packed. kv_page_bytes: 64 tokens in all layers. kv_pages: cap of the pool, committed
    only as tokens arrive. workspace: activations, logits tile, tables. available: at the time of
    the plan, and source says what bounds it. host: where all of that is a device's, what its steps
    take of this machine's memory: pinned arrays, and draws by host_threads threads (0: one per
    usable processor).
    """

    weights: int
    kv_page_bytes: int
    kv_pages: int
    workspace: int
    rope: int
    available: int
    source: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    host: int = 0
    host_threads: int = 0

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of cache per token."""
        return self.kv_page_bytes // PAGE_TOKENS

    @property
    def kv_bytes(self) -> int:
        """Cap of the cache."""
        return self.kv_page_bytes * self.kv_pages

    @property
    def kv_sequence_bytes(self) -> int:
        """Cache of one sequence of max_model_len tokens."""
        return self.kv_page_bytes * _pages(self.max_model_len)

    @property
    def required(self) -> int:
        """What must be there: weights, workspace, tables, and the cache of one longest sequence."""
        return self.weights + self.workspace + self.rope + self.kv_sequence_bytes

    @property
    def total(self) -> int:
        """With the cache at its cap."""
        return self.weights + self.workspace + self.rope + self.kv_bytes

    @property
    def limits(self) -> dict[str, int]:
        """The limits of the engine (la_limits)."""
        return {
            "max_seqs": self.max_num_seqs,
            "max_batch_tokens": self.max_num_batched_tokens,
            "max_len": self.max_model_len,
            "kv_pages": self.kv_pages,
            "host_threads": self.host_threads,
        }

    def __str__(self) -> str:
        sequences = self.kv_bytes / self.kv_sequence_bytes
        rows = [
            ("weights", format_bytes(self.weights), "packed"),
            (
                "KV cache, cap",
                format_bytes(self.kv_bytes),
                f"{self.kv_pages} pages of 64 tokens, {format_bytes(self.kv_token_bytes)} a token, "
                f"{sequences:.1f} sequences of {self.max_model_len}",
            ),
            (
                "workspace",
                format_bytes(self.workspace),
                f"{self.max_num_seqs} sequences, {self.max_num_batched_tokens} tokens a step",
            ),
            ("rope tables", format_bytes(self.rope), f"{self.max_model_len} positions"),
            ("needed at least", format_bytes(self.required), "with one sequence of full length"),
            ("needed at most", format_bytes(self.total), "with the cache at its cap"),
            ("available", format_bytes(self.available), self.source),
        ]
        if self.host:
            note = f"memory of this machine: arrays of steps, draws, threads={self.host_threads}"
            rows.append(("beside it", format_bytes(self.host), note))
        return "\n".join(f"{name:16s} {size:>12s}  {note}" for name, size, note in rows)


def format_bytes(n: float) -> str:
    """n bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def plan_memory(
    config: ModelConfig,
    weights: Mapping[str, Any],
    slots: list[tuple[str, list[tuple[str, int, int]], int]],
    options: LoadOptions,
) -> MemoryPlan:
    """The plan for a configuration; MemoryPlanError with the numbers if it does not fit."""
    device = open_device(options.backend) if options.backend != "cpu" else None
    available, source = available_memory() if device is None else device_memory(device)
    weight_bytes = _core.weight_bytes(vars(config), weights, slots)
    weight_bytes += 4 * config.n_labels * config.d_model  # a classifier's head
    threads = thread_count(options.threads)

    def sized(max_len: int, max_seqs: int, pages: int = 0) -> MemoryPlan:
        pages = pages or _pages(max_len)  # one sequence of full length is the least
        limits = {
            "max_seqs": max_seqs,
            "max_len": max_len,
            "kv_pages": pages,
            "max_batch_tokens": options.max_num_batched_tokens,
            "host_threads": threads,
        }
        numbers = _core.plan({**vars(config), "max_len": max_len}, limits, threads, device)
        return MemoryPlan(
            weight_bytes,
            numbers["kv_page_bytes"],
            pages,
            numbers["workspace_bytes"],
            numbers["rope_bytes"],
            available,
            source,
            max_len,
            max_seqs,
            options.max_num_batched_tokens,
            numbers["host_bytes"],
            threads,
        )

    plan = sized(config.max_len, options.max_num_seqs)
    check_available("arrays of steps and draws beside the device", plan.host)
    cap = options.kv_cache_memory_bytes
    if plan.required > available or (cap is not None and plan.kv_sequence_bytes > cap):
        raise _refusal(plan, sized, cap)
    if cap is None:
        left = available - plan.weights - plan.workspace - plan.rope
        cap = max(int(left * _KV_SHARE), plan.kv_sequence_bytes)
    wanted = options.max_num_seqs * _pages(config.max_len)
    pages = min(wanted, cap // plan.kv_page_bytes)

    def with_pages(n: int) -> MemoryPlan:
        return sized(config.max_len, options.max_num_seqs, n)

    capped = with_pages(pages)
    if capped.total > available:  # an explicit cap: the share above leaves room
        fits = _largest(pages, lambda n: with_pages(n).total <= available)
        raise MemoryPlanError(
            f"kv_cache_memory_bytes={cap}: with a KV cache of {format_bytes(capped.kv_bytes)} "
            f"{format_bytes(capped.total)} would be needed, {format_bytes(available)} available "
            f"({source}); would fit: kv_cache_memory_bytes={fits * plan.kv_page_bytes}"
        )
    return capped


def check_available(what: str, n_bytes: int) -> None:
    """MemoryPlanError with the numbers where n_bytes for `what` are more than there is now."""
    available, source = available_memory()
    if n_bytes > available:
        raise MemoryPlanError(
            f"{what}: {format_bytes(n_bytes)} needed, "
            f"{format_bytes(available)} available ({source})"
        )


def _pages(tokens: int) -> int:
    return (tokens + PAGE_TOKENS - 1) // PAGE_TOKENS


def _refusal(
    plan: MemoryPlan, sized: Callable[[int, int], MemoryPlan], cap: int | None
) -> MemoryPlanError:
    """What does not fit, in numbers, and the largest limits that would."""

    def fits(candidate: MemoryPlan) -> bool:
        return candidate.required <= plan.available and (
            cap is None or candidate.kv_sequence_bytes <= cap
        )

    parts = (
        f"weights {format_bytes(plan.weights)}, "
        f"KV cache {format_bytes(plan.kv_sequence_bytes)} for one sequence of "
        f"max_model_len={plan.max_model_len} ({format_bytes(plan.kv_token_bytes)} per token), "
        f"workspace {format_bytes(plan.workspace)} for max_num_seqs={plan.max_num_seqs}, "
        f"rope tables {format_bytes(plan.rope)}"
    )
    what = (
        f"{format_bytes(plan.required)} needed, "
        f"{format_bytes(plan.available)} available ({plan.source})"
    )
    if cap is not None:
        what += f", kv_cache_memory_bytes={cap}"
    length = _largest(plan.max_model_len, lambda n: fits(sized(n, plan.max_num_seqs)))
    seqs = _largest(plan.max_num_seqs, lambda n: fits(sized(plan.max_model_len, n)))
    hints = []
    if length:
        hints.append(f"max_model_len={length} (with max_num_seqs={plan.max_num_seqs})")
    if seqs:
        hints.append(f"max_num_seqs={seqs} (with max_model_len={plan.max_model_len})")
    both = 0 if length or seqs else _largest(plan.max_model_len, lambda n: fits(sized(n, 1)))
    if both:
        hints.append(f"max_model_len={both} with max_num_seqs=1")
    would = (
        f"would fit: {' or '.join(hints)}"
        if hints
        else "no max_model_len or max_num_seqs would fit"
    )
    error = MemoryPlanError(f"the model does not fit: {what}: {parts}; {would}")
    error.max_model_len = length
    return error


def _largest(upper: int, good: Callable[[int], bool]) -> int:
    """The largest n in 1..upper with good(n), 0 if none; good is true up to some n."""
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        if good(middle):
            low = middle
        else:
            high = middle - 1
    return low


# ---- what there is -------------------------------------------------------------------------------


def device_memory(device: Any) -> tuple[int, str]:
    """(bytes, what bounds them) that are free on a backend's device."""
    info = device.info
    return info["memory_free"], f"free of {format_bytes(info['memory_total'])} on {info['device']}"


def available_memory(root: Path = Path("/")) -> tuple[int, str]:
    """(bytes, what bounds them) that this process may still use. `root`: where proc and sys are."""
    found = [(_meminfo_available(root), "MemAvailable")]
    found += [(left, f"cgroup limit {format_bytes(limit)}") for limit, left in _cgroups(root)]
    return min(found)


def _meminfo_available(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, what is left) of every limited group that this process is in, version 2 or 1."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = base / group.lstrip("/")
        # Inside a container the path may be the host's: then the mount itself is the group.
        for place in [folder, *folder.parents]:
            if place == base or base in place.parents:
                found += _group_left(place, *names)
    return found


def _group_left(
    folder: Path, limit_file: str, usage_file: str, prefix: str
) -> list[tuple[int, int]]:
    limit, usage = _read(folder / limit_file).strip(), _read(folder / usage_file).strip()
    if not limit.isdecimal() or not usage.isdecimal():
        return []
    counts: dict[str, Any] = dict(
        line.split()[:2] for line in _read(folder / "memory.stat").splitlines() if " " in line
    )
    cache = sum(int(counts.get(prefix + name, 0)) for name in ("inactive_file", "active_file"))
    return [(int(limit), max(0, int(limit) - max(0, int(usage) - cache)))]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
