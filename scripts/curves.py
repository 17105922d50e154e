"""Learning curves of training folders as a report.

    .venv/bin/python scripts/curves.py OUT.json KEY NAME=FOLDER[,FOLDER...] ... [--title TITLE] [--label LABEL]

KEY of log.jsonl over the steps, e.g. valid_top1 or valid_perplexity; folders of one NAME are its seeds: their mean.
`moh report OUT.json --out OUT.html` draws it.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("key")
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER[,FOLDER...]")
    parser.add_argument("--title", default="Learning curves")
    parser.add_argument("--label", help="what the y axis shows; KEY if not given")
    options = parser.parse_args()

    series = []
    for run in options.runs:
        name, found, folders = run.partition("=")
        if not found:
            sys.exit(f"curves: `{run}` must be NAME=FOLDER[,FOLDER...]")
        values = collections.defaultdict(list)
        folders = folders.split(",")
        for folder in folders:
            for line in pathlib.Path(folder, "log.jsonl").read_text().splitlines():
                record = json.loads(line)
                if options.key in record:
                    values[record["step"]].append(record[options.key])
        steps = [step for step in sorted(values) if len(values[step]) == len(folders)]
        if not steps:
            sys.exit(f"curves: no step with `{options.key}` in every log.jsonl of {name}")
        series.append({"name": name, "x": steps, "y": [statistics.mean(values[step]) for step in steps]})

    label = options.label or options.key
    plot = {"type": "lines", "title": label, "x_label": "step", "y_label": label, "series": series}
    report = {"title": options.title, "sections": [{"heading": "Over training", "items": [plot]}]}
    pathlib.Path(options.out).write_text(json.dumps(report))


main()
