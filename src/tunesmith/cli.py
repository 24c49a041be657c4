"""The verbs. Nothing heavy is imported until a verb needs it, so `--help` answers at once."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import BUG, INTERRUPTED, Refusal
from .printed import answer_text, check_text, eval_text, list_text, mined_text, print_comparison, print_demo, print_families, run_text
from .spoken import LOOSE, Json, Lang, OneTask, RecipeFile, RunFolder, fail, overrides, tell

app = typer.Typer(
    name="tunesmith", no_args_is_help=True, add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Every way to fine-tune a Transformer, in one place, measured side by side on your own data.",
)  # fmt: skip


def main() -> None:
    """Entry point: a Refusal is one message and its exit code; anything else is our bug and keeps its traceback with TUNESMITH_DEBUG=1."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # it speaks at import, whether or not it is used
    try:
        app(standalone_mode=False)
    except Refusal as e:
        fail(str(e), e.code)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("stopped", INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as e:
        shown = getattr(e, "format_message", None)  # click's own complaints about flags
        if shown is not None:
            fail(shown(), getattr(e, "exit_code", 2))
        if os.environ.get("TUNESMITH_DEBUG"):
            raise
        fail(
            f"{type(e).__name__}: {e}\n  why: this is a fault of Tunesmith, not yours\n  fix: run it again with TUNESMITH_DEBUG=1 and report what it prints",
            BUG,
        )


@app.command(help="Look at a data file and write a commented recipe for it.")
def init(
    data: Annotated[str, typer.Argument(help="JSONL, JSON, CSV, TSV, Parquet, CoNLL, text, or a hub data set.")],
    out: Annotated[Path, typer.Option(help="Where to write the recipe.")] = Path("recipe.yaml"),
    task: Annotated[str | None, typer.Option(help="classify, tag, score or generate; by default what the columns say.")] = None,
    force: Annotated[bool, typer.Option(help="Replace the recipe if it is there.")] = False,
    json: Json = False,
) -> None:
    from .start import init as write

    text, notes = write(data, out, task, force)
    tell(json, {"recipe": str(out), "notes": notes}, lambda: print("\n".join([text, *(f"note: {n}" for n in notes), f"\nnext: tunesmith check {out}"])))


@app.command(context_settings=LOOSE, help="Say everything that can be known before training: data, tokens, parameters, memory. Trains nothing.")
def check(context: typer.Context, recipe: RecipeFile, json: Json = False) -> None:
    from .check import check as look
    from .progress import Reporter
    from .recipe import read_recipe

    report = look(read_recipe(recipe, overrides(context)), Reporter())
    tell(json, {**report.facts, "warnings": report.warnings}, lambda: print(check_text(report.facts, report.warnings, recipe)))


@app.command(context_settings=LOOSE, help="Train by a recipe. The same command continues an interrupted run.")
def run(
    context: typer.Context,
    recipe: RecipeFile,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier run in the same folder.")] = False,
    json: Json = False,
) -> None:
    from .progress import Reporter
    from .recipe import read_recipe
    from .train import run as train

    result = train(read_recipe(recipe, overrides(context)), Reporter(), fresh=fresh)
    tell(json, {"folder": str(result.folder), **result.record}, lambda: print(run_text(result)))


@app.command(context_settings=LOOSE, help="Train one recipe by several methods, with baselines; print and write the measured table. Continues where it was.")
def compare(
    context: typer.Context,
    recipe: RecipeFile,
    methods: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each arm, by default 3 (10 draws of few rows); the first has the recipe's seed.")] = None,
    budget: Annotated[str | None, typer.Option(help="Of each run: 20m, epochs=3, steps=500, examples=10k, tokens=2M.")] = None,
    vary: Annotated[list[str] | None, typer.Option(help="Any key of the recipe as a further axis: update.rate=1e-3,2e-3. Repeatable.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="First search each method's learning rate, on rows held out of the training rows.")] = False,
    trials: Annotated[int, typer.Option(min=2, help="Rates that --tune tries for each.")] = 8,
    jobs: Annotated[int, typer.Option(min=1, help="Arms trained at a time, each by a process of its own, on a GPU of its own where there are.")] = 1,
    on: Annotated[str | None, typer.Option(help="ray: the --jobs on the machines of the Ray cluster that this one belongs to.")] = None,
    general: Annotated[Path | None, typer.Option(help="A text, a passage a line, to measure forgetting on. Default: an embedded one.")] = None,
    lang: Lang = "en",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier comparison in this folder has trained.")] = False,
    json: Json = False,
) -> None:
    from .comparison.arms import EIGHT, budget_of
    from .comparison.compare import compare as measure
    from .progress import Reporter
    from .recipe import read_recipe

    given = [*overrides(context), *([budget_of(budget)] if budget else [])]
    names = EIGHT if methods == "all" else methods.split(",")
    passages = str(general) if general else None
    made = measure(
        read_recipe(recipe, given), names, seeds=seeds, vary=vary or [], tune=trials if tune else 0, jobs=jobs, on=on, general=passages, fresh=fresh, lang=lang,
        reporter=Reporter(),
    )  # fmt: skip
    tell(json, made.record, lambda: print_comparison(made))


@app.command(context_settings=LOOSE, help="Which rows of the guide fit a recipe or a data file, in order and why, before anything is trained.")
def recommend(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="A recipe, or a data file. Then any number of key=value to override.")],
    model: Annotated[str | None, typer.Option(help="For a data file: hub id, folder, minilm or desk-lm.")] = None,
    task: Annotated[str | None, typer.Option(help="For a data file: classify, tag, score or generate; by default what the columns say.")] = None,
    memory: Annotated[str | None, typer.Option(help="That a run may take, such as 8G; by default what is free.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks are to be served from one base.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="What the base knows must not be lost.")] = False,
    over_time: Annotated[bool, typer.Option("--over-time", help="Tasks or data arrive one after another.")] = False,
    teacher: Annotated[str | None, typer.Option(help="A larger model at hand.")] = None,
    reward: Annotated[bool, typer.Option("--reward", help="How good an answer is can be computed.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Load the model: time three steps of each method, and ask what its frozen trunk knows.")] = False,
    json: Json = False,
) -> None:
    from .advice.case import Wishes, bytes_of
    from .advice.recommend import recommend as advise
    from .advice.shown import show

    wishes = Wishes(bytes_of(memory) if memory else None, tasks, keep, over_time, teacher, reward)
    advice = advise(target, overrides(context), model=model, task=task, wishes=wishes, probe=probe)
    tell(json, advice.record, lambda: show(advice))


@app.command(help="What one row of the guide does to a model: drawn, counted, measured, sourced. Loads no weights.")
def explain(
    name: Annotated[str, typer.Argument(help="A method, an objective or a stream.")],
    model: Annotated[str, typer.Option(help="Hub id, folder, minilm or desk-lm.")] = "minilm",
    option: Annotated[list[str] | None, typer.Option(help="Of the method: rank=32. Repeatable.")] = None,
    task: Annotated[str | None, typer.Option(help="classify or generate; by default what the model is for.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the drawing to this file.")] = None,
    json: Json = False,
) -> None:
    from .explanation.explain import explain as look

    found = look(name, model, option or [], task)
    if svg:
        if not found.svg:
            raise Refusal(f"{name} leaves open what moves: there is nothing to draw", where="--svg", fix="a method, such as lora")
        svg.write_text(found.svg, encoding="utf-8")
    tell(json, found.record, lambda: print("\n".join(found.lines())))


@app.command(help="Write report.html for finished runs and comparisons, joined into one, whenever they were made.")
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs or of comparisons of the same task on the same rows.")],
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    lang: Lang = "en",
    json: Json = False,
) -> None:
    from .comparison.join import join

    made = join(folders, out, lang)
    tell(json, made.record, lambda: print_comparison(made))


@app.command("eval", help="Measure a finished run on a file.")
def evaluate(
    folder: RunFolder, data: Annotated[str, typer.Argument(help="A file in the format of the training data.")], task: OneTask = None, json: Json = False
) -> None:
    from .ask import evaluate as measure

    scores = measure(folder, data, task)
    tell(json, scores, lambda: print(eval_text(scores)))


@app.command(help="Ask a finished run: texts as arguments, a file, or a chat.")
def predict(
    folder: RunFolder,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts. None: a file with --file, else a chat on the terminal.")] = None,
    file: Annotated[str | None, typer.Option(help="A file with a text, prompt or messages column; - for lines on standard input.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
    rows: Annotated[bool, typer.Option(help="Rows to learn from: what was asked, with the answer. A teacher's text for its students.")] = False,
    task: OneTask = None,
    json: Json = False,
) -> None:
    from .ask import chat, kind_of_run, learnable, lines_of, predictions

    asked = lines_of(file, kind_of_run(folder, task)) if file else texts
    if not asked:
        chat(folder, max_new_tokens, temperature, task)
        return
    for record in (learnable if rows else predictions)(folder, asked, max_new_tokens, temperature, task):
        tell(json, record, lambda record=record: print(answer_text(record)))


@app.command(help="Write a plain Hugging Face model with the change folded in.")
def export(folder: RunFolder, out: Annotated[Path, typer.Argument(help="A new folder.")], json: Json = False) -> None:
    from .artifact import export as merge

    files = merge(folder, out)
    tell(json, {"folder": str(out), "files": files}, lambda: print(f"{out}: {', '.join(files)}"))


@app.command(help="Write hard negatives for a file of pairs: texts that an embedder finds near, but well below the right one.")
def mine(
    data: Annotated[str, typer.Argument(help="A file with anchor and positive.")],
    out: Annotated[Path, typer.Option(help="JSONL with anchor, positive, negative_1 ... negative_n.")],
    model: Annotated[str, typer.Option(help="The embedder: hub id, folder, minilm, or the folder of a run.")] = "minilm",
    corpus: Annotated[str | None, typer.Option(help="A file of further texts to choose from.")] = None,
    negatives: Annotated[int, typer.Option(min=1, help="For each pair, at most.")] = 3,
    margin: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the positive's score that they stay below it.")] = 0.05,
    skip: Annotated[int, typer.Option(min=0, help="The nearest that are not considered.")] = 0,
    among: Annotated[int, typer.Option(min=1, help="How many of the nearest are.")] = 100,
    json: Json = False,
) -> None:
    from .mining import Rule
    from .mining import mine as search

    found = search(data, out, model=model, corpus=corpus, rule=Rule(negatives, margin, skip, among))
    tell(json, found, lambda: print(mined_text(found)))


@app.command("list", help="What there is: methods, objectives, sources, streams, updates, tasks.")
def catalogue(what: Annotated[str | None, typer.Argument(help="One of them.")] = None, json: Json = False) -> None:
    from .recipe import vocabulary

    found = vocabulary()
    if what and what not in found:
        raise Refusal(f"there are no {what}", where="list", fix=f"one of {', '.join(found)}")
    tell(json, shown := {k: v for k, v in found.items() if what in (None, k)}, lambda: print(list_text(shown)))


@app.command(help="Fine-tune the embedded model on the embedded data by all eight methods and print one table. About five minutes.")
def demo(
    out: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("tunesmith-demo"),
    every: Annotated[bool, typer.Option("--all", help="Instead, one run of every family: what is learnt from what. About a quarter of an hour.")] = False,
    json: Json = False,
) -> None:
    if every:
        from .families import families

        rows = families(out)
        tell(json, {"families": rows}, lambda: print_families(rows))
        return
    from .show import demo as show

    made = show(out)
    tell(json, made.record, lambda: print_demo(made))


@app.command(help="The version.")
def version() -> None:
    from . import __version__

    print(__version__)


if __name__ == "__main__":
    main()
