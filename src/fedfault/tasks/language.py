"""The language-model task: next-token prediction by many clients on one frozen backbone.

Its data are blocks of running text, or conversations of which the responses count: rows of different lengths, which are
not padded to the longest, see `grouping`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedfault.algebra import widest
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.prefix import read_ids_only
from fedfault.backbones.sample import answer_prompts, decode_greedily
from fedfault.measures.answers import measure_sameness, score_answers
from fedfault.records import Score
from fedfault.tasks.base import CohortTask, Pairs
from fedfault.tasks.grouping import place_tokens, split_by_length, split_prompts
from fedfault.text.decoding import Decode
from fedfault.text.packing import Blocks
from fedfault.text.questions import Questions
from fedfault.text.responses import Responses
from fedfault.types.adapter import Adapter
from fedfault.types.task import Continuations, SecretLosses, Served, Step

Rows = Blocks | Responses


class Group(NamedTuple):
    """Rows of a step that go through the model together."""

    rows: Tensor  # (K, b) among all rows of the task
    known: Tensor | None  # the same on the CPU, where there is a cache
    weight: Tensor  # (K, b, T)
    places: Tensor | None  # (K, b * T) see `Slots`; None without dropout
    columns: Tensor  # (K, b) of the step
    targets: Tensor | None  # see `CohortModel.losses`; None where the device alone knows them


class SecretRows(NamedTuple):
    """Made-up secrets that differ in a few tokens, a row each, see `types.task.SecretLosses`."""

    planted: Responses  # by client
    decoys: Responses  # by client
    others: Responses


class LanguageTask(CohortTask):
    """Implements `types.task.Task` over token blocks, or over conversations.

    clients: each client's training rows; sets: evaluation rows by score name; mixture: weight of each `topic/...` set
    in the score `validation`, its share of the validation tokens; decode: ids -> text, for `continuations` and answers;
    questions: those that models answer when they are evaluated; secrets: those that were planted in clients' texts.
    """

    metrics: tuple[str, ...] = ()  # beside the loss of every set of `mixture`

    def __init__(
        self,
        model: CohortModel,
        clients: Sequence[Rows],
        sets: Mapping[str, Rows],
        mixture: Mapping[str, float],
        *,
        cache_mb: int = 0,
        decode: Decode | None = None,
        questions: Questions | None = None,
        secrets: SecretRows | None = None,
    ) -> None:
        super().__init__(model, clients, seed=0)  # before training B is zero, so that A may be anybody's
        self.sizes = [b.num_tokens for b in clients]
        self.sets: dict[str, Rows] = dict(sets)
        self.mixture, self.decode, self.questions, self.secrets = dict(mixture), decode, questions, secrets
        every: list[Any] = [*clients, *self.sets.values()]
        self.table = table = type(every[0]).concatenate(every)  # training rows of all clients, then evaluation rows
        self.ids, self.mask = table.ids, table.mask  # (N, T+1), (N, T)
        self.grouped = isinstance(table, Responses)
        self.lengths = table.lengths - 1 if isinstance(table, Responses) else table.targets
        self.probed = self.draw_in_turn(self.sets, list(self.mixture))
        self.cache = self.make_cache(cache_mb, self.ids[:, :-1])
        self.plan_passes()

    def make_like(self, clients: Sequence[Any]) -> LanguageTask:
        """See `CohortTask.make_like`."""
        return LanguageTask(self.model, clients, {}, {})

    def tokens(self, client: int) -> int:
        """Count the target tokens of the client."""
        return self.sizes[client]

    def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """See `types.task.Task.grad`: mean loss over each client's target tokens (K,), gradient (K, P), tokens (K,).

        The representation of a row is the mean of its last hidden states over its target positions.
        """
        step = step.to(params.device)
        t = self.tables
        rows = t.first[step.clients][:, None] + step.rows  # (K, B)
        real = t.mask[rows] & step.real[..., None]  # (K, B, T)
        tokens = real.sum((1, 2))
        flat = params.detach().requires_grad_(torch.is_grad_enabled())
        weight = real / tokens.clamp(min=1)[:, None, None]
        if not self.grouped and self.cache is None:
            return *self._differentiate(flat, step, rows, None, weight), tokens
        if not self.grouped:
            known = self._list_rows(step.on_host)  # cached rows are found without waiting for the device
            return *self._differentiate(flat, step, rows, known, weight), tokens
        return *self.differentiate_groups(flat, step, weight), tokens

    def differentiate_groups(self, flat: Tensor, step: Step, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiate the weighted loss of a step's rows, a group of about equal length at a time: (K,) and (K, P).

        weight: (K, B, T), what each target's loss counts; may be below zero.
        """
        loss, gradient = flat.new_zeros(len(flat), dtype=widest(flat.device)), torch.zeros_like(flat)
        for group in self.iterate_groups(step, weight):
            some, change = self._differentiate(
                flat, step, group.rows, group.known, group.weight, group.places, group.targets
            )
            loss, gradient = loss + some, gradient + change
        return loss, gradient

    def iterate_groups(self, step: Step, weight: Tensor) -> Iterator[Group]:
        """Yield the rows of a step, which is on the device, in groups of about equal length."""
        rows = self.tables.first[step.clients][:, None] + step.rows  # (K, B)
        for here, columns, T in self.iterate_columns(step):  # (K, b)
            known = targets = None
            if columns is not None:
                known = self._list_rows(step.on_host).gather(1, columns)
                targets = self._list_targets(known, T, step.on_host.real.gather(1, columns))
            share = weight.gather(1, here[..., None].expand(-1, -1, weight.shape[2]))[..., :T]
            places = None if step.key is None else place_tokens(here, T)
            yield Group(rows.gather(1, here), known, share, places, here, targets)

    def _list_targets(self, rows: Tensor, T: int, there: Tensor | None = None) -> Tensor:
        """List the positions of targets in the first T tokens of rows (..., b), on the CPU: (m,) on the device.

        there: (..., b) bool, whether a row is one.
        """
        real = self.mask[rows][..., :T] if there is None else self.mask[rows][..., :T] & there[..., None]
        return real.flatten().nonzero()[:, 0].to(self.model.device)

    def _differentiate(
        self,
        flat: Tensor,
        step: Step,
        rows: Tensor,
        cached: Tensor | None,
        weight: Tensor,
        places: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Differentiate the weighted loss of some rows (K, b) of a step: its value (K,) and gradient (K, P).

        cached: the same rows in the CPU's memory, where there is a cache; weight: (K, b, T), of which T tokens are computed.
        """
        T = weight.shape[2]
        own = self.tables.ids[rows][..., : T + 1]
        with self._skip_frozen_blocks(cached, T):
            total, each = self.model.losses(
                flat, own, weight, step.key, step.extra_loss, places=places, targets=targets
            )
        gradient = torch.autograd.grad(total, flat)[0] if flat.requires_grad else torch.zeros_like(flat)
        return (each.detach() * weight).sum((1, 2), dtype=widest(flat.device)), gradient

    @torch.no_grad()
    def compute_losses(self, flat: Tensor, step: Step, group: Group) -> Tensor:
        """Compute the losses of a group's targets under each client's parameters, with the step's dropout: (K, b, T)."""
        T = group.weight.shape[2]
        with self._skip_frozen_blocks(group.known, T):
            own = self.tables.ids[group.rows][..., : T + 1]
            _, each = self.model.losses(flat, own, group.weight, step.key, places=group.places, targets=group.targets)
        return each

    def _skip_frozen_blocks(self, rows: Tensor | None, T: int) -> AbstractContextManager[None]:
        """Within the block, layers below the first trained one are not computed but looked up, if there is a cache."""
        if self.cache is None or rows is None:
            return nullcontext()
        return self.cache.skip_frozen_blocks(rows.flatten(), T)

    def answer(self, flat: Tensor, places: Sequence[int]) -> list[list[int]]:
        """Answer some of the questions by one model (P,): the tokens of each answer."""
        assert self.questions is not None
        sampling = self.questions.sampling
        asked = [self.questions.prompts[i] for i in places]
        out: list[list[int]] = [[] for _ in asked]
        for some in split_prompts([*map(len, asked)], self.questions.length, self.evaluation_tokens()):
            own = None if sampling is None else sampling._replace(draws=sampling.draws[[places[i] for i in some]])
            made = answer_prompts(
                self.model, flat, [asked[i] for i in some], self.questions.length, self.questions.stops, own
            )
            for i, ids in zip(some, made, strict=True):
                out[i] = ids
        return out

    def choose(self, flat: Tensor, places: Sequence[int]) -> dict[int, float]:
        """Whether the likeliest possible answer is the true one, 1 or 0, by place of the questions that have some."""
        c, asked = None if self.questions is None else self.questions.choices, {*places}
        here = [] if c is None else [i for i, place in enumerate(c.questions) if place in asked]
        if c is None or not here:
            return {}
        nll = self.fit_evaluation(self._sum_rows, flat, c.rows[here]).tolist()
        best: dict[int, tuple[float, float]] = {}
        for i, loss in zip(here, nll, strict=True):
            place = c.questions[i]
            best[place] = min(best.get(place, (math.inf, 0.0)), (loss, float(c.right[i])))
        return {place: right for place, (_, right) in best.items()}

    @torch.no_grad()
    def _sum_rows(self, flat: Tensor, rows: Responses) -> Tensor:
        """The summed loss of each of rows that are not the task's own, (n,) float64."""
        out = torch.empty(len(rows), dtype=torch.float64)
        for some, T in split_by_length(rows.lengths - 1, self.evaluation_tokens()):
            ids, real = rows.ids[some, : T + 1], rows.mask[some, :T]
            given = (x.to(flat.device) for x in (ids[None], real[None], real.flatten().nonzero()[:, 0]))
            out[some] = self.model.sum_losses(flat[None], *given)[0].cpu().double()
        return out

    def secret_losses(
        self, models: Sequence[Tensor], clients: Sequence[Sequence[int]]
    ) -> Sequence[SecretLosses] | None:
        """See `types.task.Task.secret_losses`."""
        s, found = self.secrets, []
        if s is None:
            return None
        for flat, own in zip(models, clients, strict=True):
            k, rows = len(own), Responses.concatenate([s.planted[list(own)], s.decoys[list(own)], s.others])
            nll = self.fit_evaluation(self._sum_rows, flat, rows).numpy()
            found.append(SecretLosses(nll[:k], nll[k : 2 * k], nll[2 * k :]))
        return found

    def _add_answers(self, scores: dict[str, Score], models: Mapping[str, Tensor]) -> dict[str, Score]:
        """Add what answers are worth to the scores; models: score name -> (P,) the one that answers."""
        q = self.questions
        if q is None or self.decode is None:
            return scores
        by_model: dict[int, list[str]] = {}  # most sets share the server's model: their questions go side by side
        for name in q.places:
            by_model.setdefault(id(models[name]), []).append(name)
        said: dict[str, list[str]] = {}
        chosen: dict[int, float] = {}
        for names in by_model.values():
            places = [i for name in names for i in q.places[name]]
            made = iter(self.fit_evaluation(self.answer, models[names[0]], places))
            chosen |= self.choose(models[names[0]], places)
            said |= {name: [self.decode(next(made)).strip() for _ in q.places[name]] for name in names}
        each = {
            name: score_answers(own, [q.answers[i] for i in q.places[name]], q.pattern) for name, own in said.items()
        }
        groups = {name: [name] for name in said}
        groups["validation"] = [name for name in said if name in self.mixture]
        groups["personal"] = [name for name in said if name.startswith("client/")]
        out = dict(scores)
        for name, members in groups.items():
            if name in scores and members:
                found = {m: [value for own in members for value in each[own][m]] for m in each[members[0]]}
                metrics = {m: sum(values) / len(values) for m, values in found.items()}
                texts = [text for own in members for text in said[own]]
                metrics["one_answer"] = measure_sameness(
                    texts, [q.answers[i] for own in members for i in q.places[own]]
                )
                if picked := [chosen[i] for own in members for i in q.places[own] if i in chosen]:
                    metrics["choice"] = sum(picked) / len(picked)
                out[name] = replace(scores[name], metrics=metrics)
        return out

    def _answer_in_turn(self, flat: Tensor, number: int) -> Continuations | None:
        """Answer at most so many questions, one of every topic in turn."""
        q = self.questions
        own = [q.places[name] for name in self.mixture if name in q.places] if q else []
        places = [i for turn in itertools.zip_longest(*own) for i in turn if i is not None][:number]
        if q is None or self.decode is None or not places:
            return None
        made = self.fit_evaluation(self.answer, flat, places)
        texts = [self.decode(row).strip() for row in made]
        return Continuations(made, texts, [q.answers[i] for i in places], [q.texts[i] for i in places])

    def continuations(self, flat: Tensor, blocks: int) -> Continuations | None:
        """See `types.task.Task.continuations`: blocks without padding, one of every topic in turn. None without `decode`.

        Of conversations these are answers to the questions, if there are any.
        """
        if self.grouped:
            return self._answer_in_turn(flat, blocks)
        topics = [own for name in self.mixture if isinstance(own := self.sets[name], Blocks)]
        rows = itertools.zip_longest(*(b.ids[b.targets == b.ids.shape[1] - 1] for b in topics))
        whole = [ids for turn in rows for ids in turn if ids is not None]  # (T+1,) each
        if self.decode is None or not whole:
            return None
        first, second = torch.stack(whole[:blocks]).tensor_split(2, dim=1)
        made = decode_greedily(self.model, flat, first, second.shape[1])
        return Continuations(made.tolist(), *([self.decode(row) for row in half.tolist()] for half in (made, second)))

    def iterate_passes(self, rows: Tensor, models: int) -> Iterator[tuple[Tensor, Mapping[str, Any]]]:
        """See `CohortTask.iterate_passes`."""
        per = max(1, self.evaluation_tokens() // (models * self.mask.shape[1]))
        for some in rows.split(per):
            yield self.ids[some, :-1], read_ids_only(some)

    def make_scores(self, out: Tensor, model: Served) -> dict[str, Score]:
        """See `CohortTask.make_scores`: weighted by tokens, sums over sums, whatever the batches.

        With personal models `client/ID` are theirs, and `personal` is their mean over all held-out tokens.
        """
        found = self._score_sets(out, model.adapter)
        if model.personal is None:
            return self._add_answers(found, dict.fromkeys(self.sets, model.adapter.flat))
        held_out = [s for name, s in found.items() if name.startswith("client/")]
        tokens = sum(s.tokens for s in held_out)
        if tokens:
            found["personal"] = Score(sum(s.loss * s.tokens for s in held_out) / tokens, tokens)
        return self._add_answers(found, self.choose_models(model.adapter, model.personal))

    def compute_outputs(self, flat: Tensor, rows: Tensor) -> Tensor:
        """See `CohortTask.compute_outputs`: the summed loss of each of these rows, (n,) float64."""
        _, ids, mask, _ = self.tables
        lengths = self.lengths[rows] if self.grouped else torch.full((len(rows),), self.mask.shape[1])
        out = torch.empty(len(rows), dtype=widest(flat.device), device=flat.device)
        for some, T in split_by_length(lengths, self.evaluation_tokens()):
            here = rows[some].to(flat.device)
            targets = self._list_targets(rows[some], T) if self.grouped else None
            given = flat[None], ids[here][None, :, : T + 1], mask[here][None, :, :T], targets
            with self._skip_frozen_blocks(rows[some], T):
                out[some.to(flat.device)] = self.model.sum_losses(*given, replay=self.cache is None)[0]
        return out.cpu().double()

    def compute_side_by_side(self, pairs: Pairs) -> list[Tensor]:
        """See `CohortTask.compute_side_by_side`: whoever has fewer rows than others has some of no weight."""
        _, ids, mask, _ = self.tables
        sizes = [len(rows) for _, rows in pairs]
        table = torch.nn.utils.rnn.pad_sequence([rows for _, rows in pairs], batch_first=True).to(ids.device)  # (k, n)
        there = torch.arange(max(sizes), device=ids.device) < torch.tensor(sizes, device=ids.device)[:, None]
        real = mask[table] & there[..., None]  # (k, n, T)
        sums = self.model.sum_losses(torch.stack([flat for flat, _ in pairs]), ids[table], real).cpu().double()
        return [own[:n] for own, n in zip(sums, sizes, strict=True)]

    def _compute_nll(self, out: Tensor, rows: Tensor) -> Tensor:
        return out

    def _count_targets(self, rows: Tensor) -> int:
        return int(self.mask[rows].sum())

    def _score_sets(self, nll: Tensor, adapter: Adapter) -> dict[str, Score]:
        """Make scores, with standard errors of their changes since round 0, from the loss of every block (n,)."""
        rows = torch.arange(sum(self.counts), len(self.ids))
        before = self.losses_before_training(nll, adapter, rows)
        out, at = {}, 0
        for name, blocks in self.sets.items():
            own = slice(at, at := at + len(blocks))
            out[name] = self.score_set(name, nll[own], before[own], rows[own])
        shares = self.mixture.items()
        errors = [out[name].se for name in self.mixture]
        se = None if None in errors else math.sqrt(sum((w * (out[name].se or 0.0)) ** 2 for name, w in shares))
        mixture = Score(
            loss=sum(share * out[name].loss for name, share in shares),
            tokens=sum(out[name].tokens for name in self.mixture),
            se=se,
            blocks=sum(out[name].blocks or 0 for name in self.mixture),
            metrics={m: sum(w * out[name].metrics[m] for name, w in shares) for m in self.metrics},
        )
        return {"validation": mixture, **out}

    def score_set(self, name: str, nll: Tensor, before: Tensor, rows: Tensor) -> Score:
        """Score an evaluation set by the summed losses of its rows, now and before training: (n,) each."""
        own = self.sets[name]
        se = estimate_error(nll - before, own.targets.double())
        return Score(float(nll.sum()) / own.num_tokens, own.num_tokens, se, len(own))


def estimate_error(change: Tensor, tokens: Tensor) -> float | None:
    """Estimate the standard error of sum(change) / sum(tokens) over blocks drawn at random, (n,) each; None for one.

    The usual one of a ratio estimator (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    n, total = len(change), tokens.sum()
    rest = change - tokens * (change.sum() / total)
    return None if n < 2 else float((rest.square().sum() * n / (n - 1)).sqrt() / total)
