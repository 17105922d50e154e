"""Reports in a headless Chromium, 1,200 and 380 pixels wide, light and dark: no label is clipped, nothing hangs out of the
page, tables scroll. Skipped where there is no Chromium. `--keep FOLDER` before the tool's path keeps the screenshots."""

import html
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

KEEP = None
if "--keep" in sys.argv:
    place = sys.argv.index("--keep")
    KEEP = pathlib.Path(sys.argv[place + 1])
    del sys.argv[place:place + 2]

from tool import run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1200, 380)

# Every text of a picture must lie inside the picture, every other element must have room for what is in it, and only the
# boxes of tables may be wider inside than outside.
CHECK = """
const wrong = [];
const say = (what, element) => wrong.push(what + ': ' + (element.textContent || element.tagName).trim().slice(0, 60));
for (const svg of document.querySelectorAll('svg')) {
  const frame = svg.getBoundingClientRect();
  if (!frame.width) continue;
  for (const text of svg.querySelectorAll('text')) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - .5 || box.right > frame.right + .5 || box.top < frame.top - .5 || box.bottom > frame.bottom + .5)
      say('clipped', text);
    const size = parseFloat(getComputedStyle(text).fontSize) * frame.width / svg.viewBox.baseVal.width;
    if (size < 11) say('tiny, ' + size.toFixed(1) + ' px', text);
  }
  const labels = [...svg.querySelectorAll('text.tick')].map(t => t.getBoundingClientRect());
  for (let i = 0; i < labels.length; i++) for (let j = i + 1; j < labels.length; j++) {
    const a = labels[i], b = labels[j];
    if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3) wrong.push('labels overlap in ' + svg.getAttribute('aria-label'));
  }
}
for (const element of document.querySelectorAll('main *:not(svg):not(svg *)')) {
  const style = getComputedStyle(element);
  if (style.display === 'inline' || element.classList.contains('scroll')) continue;
  if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth) say('too wide', element);
}
if (document.documentElement.scrollWidth > window.innerWidth) wrong.push('the page scrolls sideways');
for (const box of document.querySelectorAll('.scroll')) {
  if (box.scrollWidth > box.clientWidth + 1 && !['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) say('cut off', box);
}
const shown = [...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().width > 200).length;
parent.postMessage(JSON.stringify({wrong: [...new Set(wrong)], shown, dashes: [...document.querySelectorAll('.reference')].map(l => { const s = getComputedStyle(l); return s.stroke + s.strokeDasharray; })}), '*');
"""


def chromium(*arguments):
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
                               f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=240).stdout


def framed(page, width, height=3000):
    """The page in a frame of that width: a window of Chromium has a least width."""
    source = html.escape(page, quote=True)
    return (f"<!doctype html><body style='margin:0'><iframe id=f width={width} height={height} style='border:0' "
            f"srcdoc=\"{source}\"></iframe><pre id=out></pre><script>addEventListener('message', e => {{"
            "document.getElementById('out').textContent = e.data})</script>")


def looked_at(page, width, folder, name):
    probe = page.replace("</body>", f"<script>{CHECK}</script></body>")
    file = folder / "probe.html"
    file.write_text(framed(probe, width))
    dom = chromium("--virtual-time-budget=2000", "--dump-dom", f"--window-size={max(width, 600)},1000", file.as_uri())
    found = re.search(r"<pre id=\"?out\"?>(.*?)</pre>", dom, re.S)
    assert found and found[1], f"{name}: Chromium gave no answer: {dom[:300]}"
    if KEEP:
        KEEP.mkdir(parents=True, exist_ok=True)
        file.write_text(framed(page, width))
        chromium(f"--screenshot={KEEP / (name + '.png')}", f"--window-size={max(width, 500)},3000", file.as_uri())
    return json.loads(html.unescape(found[1]))


def demo_report():
    """All that scripts/demo.py puts on a page, with long names and large numbers."""
    steps = list(range(0, 1000, 50))
    heat = [[None if head < 2 else (head * 7 + layer) % 10 / 10 for head in range(8)] for layer in range(4)]
    return {
        "title": "moh: a dense model becomes a Mixture-of-Head model",
        "subtitle": "make demo, 193 seconds, stories of its own grammar",
        "summary": ["With 75 % of the heads, perplexity is 1.194: +0.1 % against the dense model's 1.192."],
        "facts": [{"name": "FLOPs a token", "value": "1.23 billion"}, {"name": "parameters", "value": "134,515,008"}],
        "sections": [{"heading": "Quality", "items": [
            {"type": "table", "columns": ["model", "heads on, %", "perplexity", "against dense, %", "tuning tokens"],
             "rows": [["dense", 100.0, 1.1922, 0.0, "-"], ["MoH 75%, converted and tuned", 75.0, 1.194, 0.15, 614400]]},
            {"type": "lines", "title": "Perplexity while tuning", "x_label": "tuning tokens", "y_label": "perplexity",
             "series": [{"name": f"MoH {p}%", "x": [614.4e3 * s for s in steps], "y": [1.19 + 1 / (s + 9) for s in steps]}
                        for p in (75, 50)],
             "reference_lines": [{"name": "dense", "y": 1.1922}, {"name": "optimum", "y": 1.1136}]},
            {"type": "bars", "title": "Bars", "y_label": "ms", "groups": ["automobile", "a much longer name", "c", "d", "e", "f"],
             "series": [{"name": "moh", "values": [1, 2, 3, 4, 5, 123456]}]}]},
            {"heading": "Load", "items": [
                {"type": "heatmap", "title": "By layer", "x_label": "head", "y_label": "layer", "x": [str(i) for i in range(8)],
                 "y": [f"layer {i}" for i in range(4)], "values": heat},
                {"type": "heatmap", "title": "By class", "x_label": "routed head", "y_label": "class",
                 "x": [str(i) for i in range(40)], "y": ["airplane", "automobile", "a class with a name longer than a phone is wide"],
                 "values": [[0.5] * 40] * 3},
                {"type": "heads", "title": "Which heads every token uses", "x_label": "head", "y_label": "layer",
                 "x": [str(i) for i in range(32)], "group": 4,
                 "rows": [{"name": "0-28", "shared": [i < 8 for i in range(32)], "note": "8 + 16 of 24"},
                          {"name": "29", "shared": [i % 3 == 0 for i in range(32)], "note": "11 + 8 of 21"}]}]}]}


def main():
    if BROWSER is None:
        print("skipped: no Chromium")
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix="moh_browser_") as name:
        folder = pathlib.Path(name)
        pages = {}
        (folder / "demo.json").write_text(json.dumps(demo_report()))
        run("report", folder / "demo.json", "--out", folder / "demo.html")
        pages["demo"] = (folder / "demo.html").read_text()
        run("inspect", "moh-llm-s", "--html", folder / "inspect.html")
        for run_name in ("first", "second"):
            (folder / run_name).mkdir()
            lines = [{"step": s, "tokens": s * 8192, "loss": 3 / (s + 1), "lr": 3e-4, "grad_norm": 1.0, "load_balance_loss": 1.1,
                      "active_heads": 0.75, "tokens_per_second": 13400.0, "valid_loss": 3.1 / (s + 1),
                      "valid_perplexity": 20.0 / (s + 1)} for s in range(1, 400, 20)]
            (folder / run_name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run("report", folder / "first", folder / "second", "--out", folder / "runs.html")
        for page in ("inspect", "runs"):
            pages[page] = (folder / f"{page}.html").read_text()
        bad = []
        for name, page in pages.items():
            for shade in ("light", "dark"):
                shown = page.replace("@media(prefers-color-scheme:dark)", "@media all" if shade == "dark" else "@media not all")
                for width in WIDTHS:
                    seen = looked_at(shown, width, folder, f"{name}-{width}-{shade}")
                    bad += [f"{name}, {width} pixels, {shade}: {what}" for what in seen["wrong"]]
                    if name == "demo" and ("layer…" in page or "automobile" not in page):
                        bad.append(f"{name}: a name was cut that has room")
                    if not seen["shown"]:
                        bad.append(f"{name}, {width} pixels, {shade}: no picture is shown")
                    if name == "demo" and len(set(seen["dashes"])) < 2:
                        bad.append(f"{name}, {shade}: dense and optimum look alike")
        assert not bad, "\n".join(bad)
        print("reports fit")


if __name__ == "__main__":
    main()
