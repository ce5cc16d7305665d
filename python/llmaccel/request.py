"""A request between the engine's events and the outputs that users see.

Owns the text of every continuation (whole UTF-8, stop strings held back across token borders) and
the cursors of a stream. Invariant: the driver's thread alone adds events; consumers take snapshots
on their own threads, one at a time by the request's lock, which the driver never waits for: a
branch publishes its count of tokens last and its finish_reason after that, and a snapshot reads
them in the opposite order. Text is decoded by the driver only where stop strings need it at once,
else by whoever looks.

Made by those that submit (calls.py, scoring.py, beams.py); called by driver.py (events), waiting.py
and llm.py (snapshots).
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmaccel._core import EVENT_KINDS
from llmaccel.errors import RequestError
from llmaccel.outputs import (
    CompletionOutput,
    FlatLogprobs,
    LogprobList,
    RequestOutput,
    Scores,
    Timings,
)
from llmaccel.params import RequestOutputKind, SamplingParams
from llmaccel.processors import Processing
from llmaccel.states import Shown

EVENT_TOKEN, EVENT_PROMPT, EVENT_FINISH = EVENT_KINDS
# la_event.reason
REASONS = ("stop", "length", "abort", "timeout", "repetition", "failed", "empty", "lost")

Event = tuple[int, int, int, int, int, int, float, int, "bytes | None", "bytes | None", float]


class TextStream:
    """The text of one continuation and where a stop string ends it.

    text: what is decoded; cut at the stop string once one matched. hold: characters at the end of
    text that may still become part of a stop string and are not shown while the continuation runs.
    """

    def __init__(self, decoder: Any, params: SamplingParams) -> None:
        self.text = ""
        self.stop: str | None = None
        self._decoder = decoder
        self._stops = list(params.stop or ())
        self._include = params.include_stop_str_in_output
        self.hold = 0 if self._include else max(map(len, self._stops), default=1) - 1

    def push(self, ids: Iterable[int], look: bool = True) -> None:
        """Add tokens. look: whether a stop string that they complete ends the text."""
        self._extend(self._decoder.push(ids), look)

    def finish(self) -> None:
        """Add what an incomplete character held back."""
        self._extend(self._decoder.finish(), True)

    def _extend(self, piece: str, look: bool) -> None:
        if self.stop is not None or not piece:
            return
        before = len(self.text)
        self.text += piece
        if not look:
            return
        found: tuple[int, str] | None = None
        for stop in self._stops:
            # A match ends in what is new; an earlier one was looked at when its last token came.
            at = self.text.find(stop, max(0, before - len(stop) + 1))
            if at >= 0 and (found is None or at < found[0]):
                found = (at, stop)
        if found is not None:
            self.stop = found[1]
            self.text = self.text[: found[0] + (len(found[1]) if self._include else 0)]


class Extent(NamedTuple):
    """How much of a branch: tokens, characters, and whether it has ended."""

    tokens: int
    text: int
    ended: bool


_NOTHING = Extent(0, 0, False)


class Branch:
    """One continuation while it runs."""

    def __init__(self, index: int, text: TextStream | None, scores: Scores | None) -> None:
        self.index = index
        self.ids = array("i")
        self.scores = scores
        self.text = text
        self.n = 0  # tokens that a snapshot may read
        self.n_text = 0  # tokens that went into text
        self.n_hidden = 0  # tokens at the end that give no text: the stop token
        self.flushed = False  # text is complete
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.ended = False  # the engine is done with it
        self.sent = _NOTHING

    def decode(self, n: int, last: bool) -> None:
        """Bring text up to n tokens; `last` ends it."""
        if self.text is None or self.flushed:
            return
        n -= self.n_hidden if last else 0
        if n > self.n_text:
            self.text.push(self.ids[self.n_text : n])
            self.n_text = n
        if last:
            self.text.finish()
            self.flushed = True


class Request:
    """One prompt with its continuations.

    listener: called on the driver's thread, outside its lock, after a step that touched the
    request: after every such step if `streaming`, else only when all is done. own_stop_ids: ids
    that end the text without being a stop_reason. cancelled: whether it ends within a step.
    draws: whether it makes tokens; else it scores or pools, and params say nothing of it.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        n_branches: int = 1,
        prompt_index: int = 0,
        draws: bool = True,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_ids = list(prompt_ids)
        self.params = params
        self.prompt_index = prompt_index
        self.draws = draws
        self.engine_id = 0
        self.error: BaseException | None = None
        self.listener: Callable[[Request], None] | None = None
        self.streaming = False
        self.cancelled = False
        self.own_stop_ids: frozenset[int] = frozenset()
        self.token_text: Callable[[int], str] | None = None
        self.arrival = time.monotonic()
        self.scheduled = 0.0
        self.first_token = 0.0
        self.finished = 0.0
        self.shown: Shown | None = None
        self.processing: Processing | None = None
        self.prompt_scores = Scores() if params.scores_prompt else None
        wanted = params.scores_output or params.n_drawn > params.n
        self.branches = [Branch(i, None, Scores() if wanted else None) for i in range(n_branches)]
        # Counted, because a request may have thousands of branches and every event asks.
        self._n_running = n_branches  # without a finish_reason
        self._n_open = n_branches  # that the engine is not done with
        self._final: RequestOutput | None = None
        self._looking = threading.Lock()  # around what consumers decode and keep

    def attach_text(self, tokenizer: Any) -> None:
        """Give every branch a decoder; without this call text stays empty."""
        from llmaccel.tokenize import StreamDecoder

        params = self.params
        self.token_text = tokenizer.token_text
        if not params.detokenize:
            return
        for branch in self.branches:
            decoder = StreamDecoder(
                tokenizer,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
                prompt_ids=self.prompt_ids,
            )
            branch.text = TextStream(decoder, params)

    @property
    def done(self) -> bool:
        """Whether every continuation has ended or the request failed."""
        return self.error is not None or self._n_running == 0

    @property
    def ended(self) -> bool:
        """Whether the engine has nothing more to say about it."""
        return self._n_open == 0

    # ---- events, on the driver's thread ---------------------------------------------------------

    def on_event(self, event: Event, now: float) -> int:
        """Take one event. Returns a branch that the engine shall stop at once, or -1."""
        _, index, kind, position, token, reason, logprob, rank, top_ids, top_logprobs, start = event
        self.scheduled = start
        branch = self.branches[index]
        top = None if top_ids is None or top_logprobs is None else (top_ids, top_logprobs)
        if kind == EVENT_FINISH:
            self._n_open -= not branch.ended
            branch.ended = True
            if branch.finish_reason is None:
                self._check_reason(REASONS[reason])
                self._finish(branch, REASONS[reason], token, now)
            return -1
        if branch.finish_reason is not None:
            return -1
        if kind == EVENT_PROMPT and position < len(self.prompt_ids):
            if self.prompt_scores is not None:
                self.prompt_scores.add(token, logprob, rank, top)
            return -1
        if self.first_token == 0.0:
            self.first_token = now
        branch.ids.append(token)
        if branch.scores is not None:
            branch.scores.add(token, logprob, rank, top)
        branch.n += 1
        if self.params.stop and branch.text is not None:
            return self._look_for_stop(branch, now)
        return -1

    def _check_reason(self, reason: str) -> None:
        """RequestError where a branch ended because there was nothing to draw from."""
        if reason == "failed" and self.processing is not None and self.processing.error is not None:
            raise self.processing.error
        if reason in ("failed", "empty"):
            raise RequestError(
                "no token is left to draw: every logit is -inf under this request's rules"
            )

    def _look_for_stop(self, branch: Branch, now: float) -> int:
        """Decode the newest token now: a stop string must end the branch within this step."""
        text = branch.text
        assert text is not None
        token = branch.ids[branch.n - 1]
        if token in self.own_stop_ids or token in (self.params.stop_token_ids or ()):
            return -1  # perhaps the end; its FINISH tells whether it is part of the text
        text.push(branch.ids[branch.n_text : branch.n], look=branch.n > self.params.min_tokens)
        branch.n_text = branch.n
        if text.stop is None:
            return -1
        branch.stop_reason = text.stop
        self._set_reason(branch, "stop", now)
        return branch.index

    def _finish(self, branch: Branch, reason: str, token: int, now: float) -> None:
        if reason == "stop":
            if token not in self.own_stop_ids:
                branch.stop_reason = token
            if not self.params.include_stop_str_in_output:
                branch.n_hidden = 1
        if self.params.stop and branch.text is not None:
            branch.decode(branch.n, True)
            if branch.text.stop is not None:
                reason, branch.stop_reason = "stop", branch.text.stop
        self._set_reason(branch, reason, now)

    def _set_reason(self, branch: Branch, reason: str, now: float) -> None:
        self.finished = now
        branch.finish_reason = reason
        self._n_running -= 1  # last: whoever sees that all is done must see every reason

    # ---- snapshots, on the consumers' threads ---------------------------------------------------

    def output(self) -> RequestOutput:
        """Everything, once it is done; the same object every time. Raises the request's error."""
        with self._looking:
            return self._whole()

    def _whole(self) -> RequestOutput:
        if self.error is not None:
            raise self.error
        if self._final is None:
            parts = [self._part(b, self._visible(b), 0, 0) for b in self._kept()]
            for index, part in enumerate(parts):
                part.index = index
            self._final = self._wrap(parts, True)
        return self._final

    def _kept(self) -> list[Branch]:
        """Of best_of branches the n of the largest cumulative logprob, best first; else all."""
        if self.params.n_drawn == self.params.n:
            return self.branches

        def rank(branch: Branch) -> tuple[float, int]:
            return -sum(branch.scores.logprobs if branch.scores else ()), branch.index

        return sorted(self.branches, key=rank)[: self.params.n]

    def snapshot(self, kind: RequestOutputKind) -> RequestOutput | None:
        """The next chunk of a stream; None where nothing is new. Raises the request's error."""
        with self._looking:
            return self._chunk(kind)

    def _chunk(self, kind: RequestOutputKind) -> RequestOutput | None:
        if self.error is not None:
            raise self.error
        finished = self.done
        if kind == RequestOutputKind.FINAL_ONLY or self.params.n_drawn > self.params.n:
            return self._whole() if finished else None
        parts = []
        for branch in self.branches:
            seen = self._visible(branch)
            few = seen.tokens - branch.sent.tokens < self.params.stream_interval
            if seen == branch.sent or (few and branch.sent.tokens > 0 and not seen.ended):
                continue
            start = branch.sent if kind == RequestOutputKind.DELTA else _NOTHING
            parts.append(self._part(branch, seen, start.tokens, start.text))
            branch.sent = seen
        return self._wrap(parts, finished) if parts else None

    def _visible(self, branch: Branch) -> Extent:
        """How much of a branch may be shown now; decodes up to there."""
        ended = branch.finish_reason is not None
        n = branch.n
        if not self.params.stop:
            branch.decode(n, ended)
        shown = len(branch.text.text) if branch.text is not None else 0
        if not ended and branch.text is not None:
            shown = max(branch.sent.text, shown - branch.text.hold)
        return Extent(n, shown, ended)

    def _part(self, branch: Branch, seen: Extent, start: int, start_text: int) -> CompletionOutput:
        scores = branch.scores
        logprobs = values = cumulative = None
        if scores is not None:
            if self.params.scores_output:
                part = scores.part(start, seen.tokens)
                logprobs = self._list_of(part, self.params.logprobs, 0)
            values = np.array(scores.logprobs[start : seen.tokens], np.float32)
            cumulative = float(sum(scores.logprobs[: seen.tokens]))
        text = branch.text.text[start_text : seen.text] if branch.text is not None else ""
        return CompletionOutput(
            branch.index,
            text,
            np.array(branch.ids[start : seen.tokens], np.int32),
            cumulative,
            logprobs,
            branch.finish_reason if seen.ended else None,
            branch.stop_reason if seen.ended else None,
            values,
            logits=None
            if self.shown is None
            else self.shown.logits(branch.index, start, seen.tokens),
            hidden_states=None
            if self.shown is None
            else self.shown.states(branch.index, start, seen.tokens),
        )

    def _list_of(self, scores: Scores, n_best: int | None, leading: int) -> LogprobList:
        kind = FlatLogprobs if self.params.flat_logprobs else LogprobList
        return kind(scores, self.token_text, leading=leading, n_best=n_best or 0)

    def _wrap(self, parts: list[CompletionOutput], finished: bool) -> RequestOutput:
        prompt_logprobs = None
        if self.prompt_scores is not None:
            skipped = max(1, min(self.params.prompt_logprob_start, len(self.prompt_ids)))
            n_best = self.params.prompt_logprobs
            prompt_logprobs = self._list_of(self.prompt_scores, n_best, skipped)
        n_tokens = sum(branch.n for branch in self.branches)
        timings = Timings(
            self.arrival,
            self.scheduled,
            self.first_token,
            self.finished if finished else 0.0,
            n_tokens,
        )
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_ids,
            parts,
            finished,
            prompt_logprobs=prompt_logprobs,
            timings=timings,
            prompt_index=self.prompt_index,
            hidden_states=None if self.shown is None else self.shown.prompt_states,
        )
