"""The texts around the figures: headings, how to read them, and what they show for those who do not see them."""

from __future__ import annotations

from typing import NamedTuple

from fedfault.report import summary
from fedfault.report.words import MANY, format_change, format_count, name_metric
from fedfault.runs.recorded import RunData


class Caption(NamedTuple):
    """Heading of a figure and how to read it."""

    title: str
    text: str


CAPTIONS = {
    "loss_by_topic": Caption(
        "Loss by topic",
        "Thick line: validation loss of the mixture. Thin lines: each topic. The cells below show the clients that "
        "trained in a round{by_number}, in the colour of the topic they mostly hold{marked}. "
        "A loss that jumps when its topic was absent, while the mixture falls, is one topic's gain at another's cost.",
    ),
    "labels": Caption("Answers", "Thick line: the global model on the validation set."),
    "clients": Caption(
        "Clients",
        "Loss on the documents that each client kept back, under the model that it uses: its own where it has one, else "
        "the server's. A fan that opens means that some clients gain more than others, or at their cost. Best and worst "
        "are not the same client in every round.",
    ),
    "fairness": Caption(
        "Gains of the clients",
        "Held-out loss of each client before training minus now: above zero, the client gained. Median, the band of the "
        "middle 80 %, and the smallest gain. Below zero a client would have been better off with the untrained model.",
    ),
    "personal": Caption(
        "Who gains by a model of its own",
        "Every client's models at the end of the run, on what that client held back: further left is better. A client "
        "whose own model lies to the right of the server's loses by it.",
    ),
    "general": Caption(
        "General English",
        "Loss on general text minus its value before training: above zero, the model forgets. A band around the line "
        "holds the true change with 95 % confidence; documents are compared with themselves.",
    ),
    "privacy": Caption(
        "Privacy",
        "Epsilon of all rounds so far, as it is claimed; and a lower bound from canaries, which are made-up clients: "
        "what the models give away of who of them took part, with 95 % confidence over all rounds. A bound above the "
        "claim means that something is published without its noise. Models and scores are covered; the picture of the "
        "split, where there is one, shows the clients' data as they are.",
    ),
    "leakage": Caption(
        "What the models give away",
        "Membership: how well texts that the round's clients train on are told from those that they keep back, by what "
        "a model has learned of them beyond the untrained one. Exposure: how likely a model finds secrets that were "
        "planted in the clients' texts, among 255 others that nobody has; 8 bits is likelier than all of them. A dot is a "
        "client's upload on its own texts. Dashed: the same where nothing can be known; dotted: what that is on average.",
    ),
    "contributions": Caption(
        "Who did what",
        "How much the loss of the mixture would be larger had the server left out a client's updates, each "
        " round made again from where it started: blue updates helped, the others did harm. A dot is the "
        "client's Shapley value, its fair share of what the rounds gained together, with a 95 % interval where it is "
        "estimated. Leaving one out says little of clients that others can stand in for; the Shapley value shares their "
        "gain between them.",
    ),
    "drift": Caption("Client drift", ""),
    "gradients": Caption(
        "Gradients of the clients",
        "Norm of each client's gradient at the model that the round starts from, with the noise of batches taken out: "
        "mean, a band of one standard deviation between clients, and the one over the other. "
        "A mean that grows while the loss does not fall announces divergence.",
    ),
    "divergence": Caption(
        "Disagreement between clients",
        "First panel: mean distance of the clients' updates from their mean, relative to its length; 0 is full "
        "agreement. Second panel: their mean cosine to it; 1 is the same direction, 0 is unrelated.",
    ),
    "cosines": Caption(
        "Who pulls with whom",
        "Cosine between the updates of two clients. Blue: the same direction; orange: against each other{empty}. Blue "
        "blocks along the diagonal are groups of clients that would be served better by models of their own.",
    ),
    "control": Caption("Control variates", ""),
    "layers": Caption(
        "Layer by layer",
        "The same held-out text in the untrained and in the trained model.",
    ),
    "ranks": Caption(
        "Ranks",
        "Effective rank counts the directions in which the adapter changes the model, stable rank those as strong as "
        "the strongest.",
    ),
    "generation": Caption(
        "Continuations",
        "Greedy continuations of held-out prefixes.",
    ),
    "client_ranks": Caption(
        "Ranks of the clients",
        "The LoRA rank that each client was given; an empty cell is a client that was not drawn.",
    ),
    "gantt": Caption(
        "Who took how long",
        "One bar a client on the simulated clock, in the first round, in that of median length and in the slowest.",
    ),
    "clock": Caption(
        "By the simulated clock",
        "Validation against simulated time, and the seconds that every round took.",
    ),
    "staleness": Caption(
        "How old updates were",
        "Updates by their staleness: the rounds that the server made between sending the model to a client and taking its "
        "update in. Dashed: the mean. Where the server discounts old updates, those far to the right counted for less.",
    ),
    "participation": Caption(
        "Participation",
        "A filled cell is a client that trained in that round; its colour is the training loss. "
        "Clients that mostly hold the same topic are next to each other.",
    ),
    "split": Caption(
        "Who holds what",
        "Colour: the share of the client's documents that belongs to the topic; numbers count documents. "
        "Bars: what there is to learn from, by which clients are weighted unless the setup says otherwise.",
    ),
    "traffic": Caption(
        "Cost",
        "Bytes as they would be serialised, clients to server (up) and server to clients (down), and wall time of each "
        "round on this machine, which simulates all clients. Probes: what the figures above were measured with.",
    ),
}
PANELS = {  # figure -> the probes that a panel or line of it needs, its name, how to read it
    "drift": (
        (
            ("drift_between",),
            "Differences between clients",
            "variance of their gradients between clients over that within a client, from two disjoint halves of examples; "
            "zero on average when clients hold the same data, in single rounds also below. The line of all rounds so far "
            "is the one to trust.",
        ),
        (
            ("gradient_alignment",),
            "To −gradient",
            "cosine of the mean update to the direction in which the loss falls, with AdamW about 0.4 for IID clients.",
        ),
        (
            ("round_cosine",),
            "To last round",
            "cosine of the mean update to that of the round before; below zero the server swings.",
        ),
    ),
    "control": (
        (
            ("control_error",),
            "Steps with control variates",
            "how far the clients' steps are from the shared gradient, squared and with the noise of a batch, beside steps "
            "without control variates; above the line at 1 they do harm.",
        ),
        (
            ("control_ratio",),
            "Their length",
            "beside that of the gradients; far from 1 they are in other units, as with momentum or an adaptive optimiser.",
        ),
    ),
    "layers": (
        (("hidden_cosine",), "Hidden states", "at cosine 1 the layer represents the text as before."),
        (("cka",), "Their geometry", "at CKA 1 it is as before but for rotations."),
        (("attention_entropy",), "Attention", "1 when a head looks everywhere alike, 0 when it looks at one place."),
        (("client_cosine", "client_cka"), "Dashed, between clients", "of the clients' models in the last round."),
        (("attention_entropy_base",), "Dashed, base", "of the untrained model."),
    ),
    "generation": (
        (("bleu",), "BLEU", "likeness to the true continuation."),
        (("rouge_l",), "ROUGE-L", "likeness to the true continuation, by the words in common."),
        (("distinct_2",), "Variety", "distinct word pairs over all; a fall means that the model repeats itself."),
    ),
}
CELLS = " The cells below show the clients that trained in a round{by_number}."  # where all data have one topic
NUMBERED = 6, 25  # clients of a round, and rounds, of which the cells have room for numbers
CENTRAL = {  # of a run with all data in one place, where it is another text
    "loss_by_topic": "Thick line: validation loss of the mixture. Thin lines: each topic.",
    "traffic": "Wall time of each round on this machine. Probes: what the figures above were measured with.",
}
# Sentences about panels that only some runs have
ENERGY = " Energy: the share of the change that clients of the smallest rank do not see."
FILLED = (
    " Representations: directions that hidden states and sentence embeddings fill, beside the untrained model's; a fall "
    "far below 1 is collapse."
)
UNSCORED = " Clients without a score of their own, as those with too few texts to hold one back, are left out."
LOSERS = " Red bars count such clients, however little they lose; detectors count those that lose beyond chance."
SAMPLED = " The text was sampled from the untrained model itself, so the rise estimates KL(base || model)."
CUT_SHORT = " A thin line goes on to where all of the client's work would have ended, as far as there is room."
FATES = {  # what became of a client that was not done in time
    "dropped": "Dropped: nothing of it arrived by the deadline",
    "partial": "Partial: the steps that it had done count",
    "late": "Late: the round waited for it",
    "excluded": "Left out: it had nothing to do",
}
TARGET = " Dashed: the target."
DEADLINE = " The horizontal line over the lengths is the deadline."
PROMPT = " Done by the deadline: of the clients with work, those that finished all of it in time."
REGRET = (
    " Regret: seconds of the slowest client with all of its work over those of the shortest round in which the same "
    "clients have ranks of the same sum; 1 is none."
)
MARKED = " Vertical lines: solid, an alarm; dotted, a suspicion."
FORKED = " Dashed: {other}; the dashed vertical line says from where on, and what this run does differently."


def write_caption(run: RunData, name: str) -> Caption:
    """Write the caption of a figure, which also explains the marks that only some runs have."""
    title, text = CAPTIONS[name]
    if name == "labels":
        title = "Labels" if run.headless else "Preferences" if run.labelled else title
        text += _describe_answers(run)
    if name == "loss_by_topic" and len(run.topics) < 2:
        title, text = "Loss", "Loss on the validation set." + ("" if run.centralised else CELLS)
    elif run.centralised:
        text = CENTRAL.get(name, text)
    text += "".join(_describe_panels(run, name))
    if name == "cosines":
        text = text.format(empty="; an empty cell: they never trained in the same round" if _are_apart(run) else "")
    if name == "loss_by_topic":
        marked = "; a marker on a line says that its topic was among them" if len(run.records) <= MANY else ""
        text = text.format(by_number=", by number" if have_numbers(run) else "", marked=marked)
        text += MARKED if run.findings else ""
        courses = {"parent": "the run that this one was forked from", "given up": "the course that the run gave up"}
        text += (
            FORKED.format(other=" and ".join(dict.fromkeys(courses[f.name] for f in run.forks))) if run.forks else ""
        )
    return Caption(title.replace("topic", run.group), text.replace("topic", run.group).strip())


def _describe_panels(run: RunData, name: str) -> list[str]:
    """Say what panels and lines of a figure are that only some runs have."""
    if name in PANELS:
        return [f" {title}: {text}" for title, text in _list_drawn(run, name)]
    fates = {t.fate for r in run.records for t in r.turns}
    if name in ("clients", "fairness"):
        some = 0 < len(run.score_names("client/")) < run.num_clients
        lost = name == "fairness" and any(not gain >= 0 for _, gains in run.gains() for gain in gains.values())
        return [LOSERS] * lost + [UNSCORED] * some
    if name == "general":
        return [SAMPLED] * (run.setting("evaluation", "general") == "base_samples")
    if name in ("gantt", "client_ranks"):
        told = [f" {said}." for fate, said in FATES.items() if fate in fates]
        return [CUT_SHORT] * (name == "gantt" and bool(fates & {"dropped", "partial"})) + told
    if name == "ranks":
        filled = any(run.ratio(f"{what}_rank", f"{what}_rank_base")[0] for what in ("hidden", "embedding"))
        return [ENERGY] * bool(run.probe("energy_above")[0]) + [FILLED] * filled
    if name == "clock":
        late = bool(fates - {"done", "excluded"})
        aimed = run.setting("evaluation", "target_score") is not None and bool(run.metrics_measured)
        due = run.deadline is not None
        said = ((TARGET, aimed), (DEADLINE, due), (PROMPT, due or late), (REGRET, bool(run.probe("regret")[0])))
        return [sentence for sentence, there in said if there]
    return []


def have_numbers(run: RunData) -> bool:
    """Whether there is room for numbers of clients in the cells below the losses, on a wide page."""
    clients, rounds = NUMBERED
    return max(len(r.clients) for r in run.records) <= clients and len(run.records) <= rounds


def _are_apart(run: RunData) -> bool:
    """Whether some two clients have never trained in the same round."""
    met = {(a.client, b.client) for r in run.records for a in r.clients for b in r.clients if a.client < b.client}
    return len(met) < run.num_clients * (run.num_clients - 1) // 2


def _list_drawn(run: RunData, name: str) -> list[tuple[str, str]]:
    """List the panels and lines of a figure that this run has, each with how to read it."""
    measured = {probe.partition("/")[0] for r in run.records for probe in r.probes}
    return [(title, text) for probes, title, text in PANELS[name] if measured.intersection(probes)]


def _describe_answers(run: RunData) -> str:
    """Explain what is drawn beside the first metric: a second one, that of the clients, the target."""
    said = [" Thin line: the second metric."] if len(run.metrics_measured) > 1 else []
    first = run.metrics_measured[0]
    own = {n for r in run.records for n, s in r.scores.items() if n.startswith("client/") and first in s.metrics}
    if own and len(run.score_names("client/")) > 1:
        said.append(
            " Line with a band: the same model on what each client kept back, median and the middle 80 % of the clients; "
            "small sets make it wide."
        )
    if run.setting("evaluation", "target_score") is not None:
        said.append(" Dashed: the target.")
    return "".join(said)


def describe_figure(run: RunData, name: str) -> str:
    """Describe the figure for a reader who does not see it; the tables hold the numbers."""
    clients, topics = format_count(run.num_clients, "client"), format_count(len(run.topics), run.group)
    rounds = format_count(run.rounds_done, "round")
    found = [f"{f.level} of {f.detector.replace('_', ' ')} in round {f.round}" for f in run.findings[:6]]
    marked = f" Marked: {', '.join(found)}." if found else ""
    about = {
        "loss_by_topic": f"Line chart of loss per round for the mixture and {topics}. "
        + " ".join(summary.list_sentences(run)[:2])
        + marked,
        "labels": f"Line chart of the validation {' and '.join(map(name_metric, run.metrics_measured))} per round.",
        "clients": "Line chart of the best, median and worst held-out loss of the clients per round.",
        "fairness": "Line chart of the median and smallest gain of the clients per round, with a band.",
        "general": "Line chart of the change of loss on general English per round, ending at "
        f"{format_change(summary.measure_forgetting(run))} nats per token.",
        "personal": "Dot chart: the held-out loss of every client with each of its models.",
        "contributions": "Bar chart: how much the updates of each client lowered the loss, with its Shapley value.",
        "privacy": "Line chart of epsilon per round, and of its audited lower bound.",
        "leakage": "Line charts per round: membership and exposure in the server's model and in uploads, with nulls.",
        "gradients": "Line charts per round: mean gradient norm of the clients with a band, and its variation.",
        "divergence": "Two line charts per round: distance of client updates from their mean, and cosine to it.",
        "cosines": f"Grid of {clients} by {clients}: cosine between the updates of each two.",
        "ranks": "Line charts per round: ranks of the adapter's change and of the model's representations.",
        "client_ranks": f"Grid of {clients} by {rounds}: the rank of each, and who was not done.",
        "gantt": "Bar charts of a few rounds: seconds of download, training and upload of each client, and the deadline.",
        "clock": "Line charts: validation over simulated seconds, and per round its length and what the caption names.",
        "staleness": "Bar chart: how many updates were how many rounds stale, by tier.",
        "participation": f"Grid of {clients} by {rounds}: who trained, and with which training loss.",
        "split": f"Grid of {clients} by {topics}: documents held, with a bar for the tokens of each client.",
        "traffic": "Line chart of bytes moved since the start, and stacked bars of seconds per round.",
    }
    if name in PANELS:
        over = "over layers, in some rounds" if name == "layers" else "per round"
        return f"Line charts {over}: {', '.join(title for title, _ in _list_drawn(run, name))}."
    return about[name]
