"""What a request shows beside its tokens: hidden states of layers, and logits that were drawn from.

Owns the memory that the engine writes them to and the views that outputs hand out. Layers count as
in transformers' output_hidden_states: 0 is the embeddings, l what the l-th layer gives, the last
(-1) that of the last layer after the final norm. Invariant: memory is checked before any of it is
taken; a row is written before the event that tells of its token, and never again with other bits.

Called by calls.py, scoring.py and pooling.py; read by request.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from llmaccel import _core
from llmaccel.config import ModelConfig
from llmaccel.errors import RequestError, shown
from llmaccel.memory import check_available
from llmaccel.whole import is_whole

if TYPE_CHECKING:
    from llmaccel.request import Request

_FLOAT = 4  # bytes


class Wanted(NamedTuple):
    """What a call asks for. layers: as the engine counts them; empty: no hidden states."""

    logits: bool
    layers: tuple[int, ...]


def wanted_of(output_logits: Any, output_hidden_states: Any, n_layers: int) -> Wanted | None:
    """The arguments of generate, checked; None where nothing is asked for."""
    if output_logits is not None and not isinstance(output_logits, bool):
        raise RequestError(f"output_logits: expected True or False, got {shown(output_logits)}")
    layers: tuple[int, ...] = ()
    if output_hidden_states is not None and output_hidden_states is not False:
        layers = layers_of(output_hidden_states, n_layers, "output_hidden_states")
    return Wanted(bool(output_logits), layers) if output_logits or layers else None


def layers_of(layers: Any, n_layers: int, name: str) -> tuple[int, ...]:
    """Indices into the n_layers + 1 hidden states, counted from the first; RequestError names a bad
    one."""
    if not isinstance(layers, Iterable) or isinstance(layers, (str, bytes)):
        raise RequestError(f"{name}: expected a list of layers, got {shown(layers)}")
    found = []
    for i, layer in enumerate(layers):
        if not is_whole(layer, -n_layers - 1, n_layers):
            raise RequestError(
                f"{name}[{i}]: expected a layer from {-n_layers - 1} to {n_layers}, "
                f"got {shown(layer)}"
            )
        found.append(int(layer) % (n_layers + 1))
    if not found:
        raise RequestError(f"{name}: empty")
    if len(found) > 2 * (n_layers + 1):
        raise RequestError(f"{name}: {len(found)} layers of {n_layers + 1}")
    return tuple(found)


def _view(tensor: Any, *index: Any) -> Any:
    """A part of a Tensor as a Tensor over the same memory, which it keeps."""
    return _core.Tensor(tensor.numpy()[index])


@dataclass(frozen=True)
class Shown:
    """Of one request. drawn_logits: Tensor float32 [n, max_tokens, V]; prompt: [S, T, D]; drawn:
    [n, S, max_tokens, D], S being the number of layers."""

    n_states: int
    drawn_logits: Any = None
    prompt: Any = None
    drawn: Any = None

    def logits(self, branch: int, start: int, stop: int) -> Any:
        """Tensor [stop - start, V] of these tokens of a branch, or None."""
        if self.drawn_logits is None:
            return None
        return _view(self.drawn_logits, branch, slice(start, stop))

    def states(self, branch: int, start: int, stop: int) -> list[Any] | None:
        """Tensors [stop - start, D], one per layer, or None."""
        if self.drawn is None:
            return None
        return [_view(self.drawn, branch, s, slice(start, stop)) for s in range(self.n_states)]

    @cached_property
    def prompt_states(self) -> list[Any] | None:
        """Tensors [T, D], one per layer, or None."""
        if self.prompt is None:
            return None
        return [_view(self.prompt, s) for s in range(self.n_states)]


def prompt_states(
    config: ModelConfig, n_prompt: int, layers: Sequence[int], rows: tuple[int, int] | None = None
) -> tuple[Shown, dict[str, Any]]:
    """Room for hidden states of a prompt's positions (rows: of first to last + 1), and the options
    of Engine.add that fill it. The caller has checked the memory."""
    first, end = rows or (0, n_prompt)
    room = _core.Tensor.zeros((len(layers), end - first, config.d_model), "F32")
    options = {"states": room, "layers": layers, "state_from": first, "state_to": end}
    return Shown(len(layers), prompt=room), options


def states_bytes(config: ModelConfig, n_rows: int, n_layers: int) -> int:
    """What hidden states of so many positions take."""
    return _FLOAT * n_rows * n_layers * config.d_model


def show(
    config: ModelConfig, wanted: Wanted | None, made: Sequence[tuple[Request, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Give requests room for what is wanted of them; the options of Engine.add that fill it.
    MemoryPlanError where all of it together does not fit."""
    if wanted is None:
        return [{} for _ in made]
    n, total = len(wanted.layers), 0
    for request, fields in made:
        drawn = len(request.branches) * fields["max_tokens"]
        total += _FLOAT * drawn * config.n_vocab if wanted.logits else 0
        total += states_bytes(config, drawn + len(request.prompt_ids), n)
    check_available(f"logits and hidden states of {len(made)} prompts and what they draw", total)
    every = []
    for request, fields in made:
        given: dict[str, Any] = {}
        branches, tokens = len(request.branches), fields["max_tokens"]
        logits = drawn_states = prompt = None
        if wanted.logits:
            logits = _core.Tensor.zeros((branches, tokens, config.n_vocab), "F32")
            given["drawn_logits"] = logits
        if n:
            prompt_room, given_states = prompt_states(
                config, len(request.prompt_ids), wanted.layers
            )
            prompt = prompt_room.prompt
            drawn_states = _core.Tensor.zeros((branches, n, tokens, config.d_model), "F32")
            given |= {**given_states, "drawn_states": drawn_states}
        request.shown = Shown(n, logits, prompt, drawn_states)
        every.append(given)
    return every
