"""The page's own style, script and controls, as text; html.py puts them together.

The script shows rows as text nodes only, never as markup. Usage: `f"<style>{STYLE}</style>"`.
"""

STYLE = """
:root { color-scheme: light dark; --face: #ffffff; --card: #f7f8fa; --text: #1f2933;
  --quiet: #66717e; --line: #e2e6ea; --accent: #b24a23; --wash: #fcf1ea; --bar: #a9b2bc; }
@media (prefers-color-scheme: dark) { :root { --face: #171b21; --card: #1e242b; --text: #e4e8ec;
  --quiet: #98a3af; --line: #2e363f; --accent: #e58a5f; --wash: #2b221d; --bar: #5b6672; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0; background: var(--face); color: var(--text); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main, header { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.015em; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; letter-spacing: -.005em; }
h3 { font-size: .95rem; margin: 1.5rem 0 .25rem; }
p { margin: .4rem 0; }
.quiet, figcaption { color: var(--quiet); font-size: .875rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; margin: 1rem 0 0; padding: .6rem 0;
  border-bottom: 1px solid var(--line); border-top: 1px solid var(--line); font-size: .9rem; }
a { color: inherit; text-decoration-color: var(--bar); text-underline-offset: .2em; }
a:hover { color: var(--accent); }
.notes { border-left: 3px solid var(--accent); background: var(--wash); margin: 1.25rem 0 0;
  padding: .6rem 1rem; font-size: .9rem; }
.notes ul { margin: .2rem 0; padding-left: 1.1rem; }
.flow { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.25rem 0 0; padding: 0;
  list-style: none; }
.flow li { flex: 1 1 7.5rem; background: var(--card); border-radius: .5rem; padding: .6rem .85rem; }
.flow b { display: block; font-size: 1.35rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.flow .unknown { color: var(--quiet); font-size: .95rem; line-height: 1.85; font-weight: normal; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--quiet); font-size: .8rem;
  white-space: nowrap; }
th, td { padding: .45rem 1rem .45rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td:last-child, th:last-child { padding-right: 0; }
td { white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 16rem; }
td:first-child { font-weight: 600; }
figure { margin: 1rem 0 0; }
picture { display: block; overflow-x: auto; }
img { display: block; width: 48rem; min-width: 32rem; max-width: 100%; height: auto;
  border-radius: .4rem; }
details > summary { cursor: pointer; color: var(--quiet); font-size: .9rem; padding: .3rem 0; }
.controls { display: flex; flex-wrap: wrap; gap: .6rem .9rem; align-items: center;
  margin: .75rem 0; font-size: .9rem; }
input[type=search] { flex: 1 1 14rem; }
input, select, button { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .65rem; }
button:disabled { opacity: .4; }
.pair { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 0 0 1rem;
  display: grid; gap: .5rem 1.25rem; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
.pair > .id { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .25rem .9rem; }
pre { margin: 0; padding: .75rem; background: var(--card); border-radius: .4rem; overflow: auto;
  max-height: 26rem; font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.candidate { padding: .45rem .65rem; margin: 0 0 .3rem; border-left: 3px solid transparent; }
.candidate p { margin: .15rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .875rem; }
.chosen { border-left-color: var(--accent); background: var(--wash); border-radius: .3rem; }
.score { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; font-size: .8rem;
  color: var(--quiet); font-variant-numeric: tabular-nums; }
.meter { width: 4.5rem; height: .35rem; background: var(--line); border-radius: .2rem;
  overflow: hidden; }
.meter i { display: block; height: 100%; background: var(--bar); }
.chosen .meter i { background: var(--accent); }
.tag { border: 1px solid var(--line); border-radius: 1rem; padding: 0 .5rem; font-size: .75rem; }
.tag.strong { border-color: var(--accent); color: var(--accent); }
footer { color: var(--quiet); font-size: .8rem; margin: 3rem 0 2rem; }
@media (max-width: 44rem) { .pair { grid-template-columns: minmax(0, 1fr); }
  h1 { font-size: 1.4rem; } header { padding-top: 1.25rem; } }
"""

SCRIPT = """
"use strict";
const pairs = JSON.parse(document.getElementById("pairs-data").textContent);
const PER_PAGE = 5;
const get = (id) => document.getElementById(id);
const texts = pairs.map((p) => [p.id, p.pair, p.language, p.block, p.original,
  ...p.candidates.map((c) => c.text)].join("\\n").toLowerCase());
const chosen = (p) => p.candidates.filter((c) => c.chosen);
const best = (p) => Math.max(-1, ...chosen(p).map((c) => c.score ?? -1));
const keeps = {
  all: () => true,
  marked: (p) => chosen(p).some((c) => c.marks.length),
  removed: (p) => p.removed !== "",
  none: (p) => chosen(p).length === 0,
};
let page = 0;

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function candidate(c) {
  const box = make("div", c.chosen ? "candidate chosen" : "candidate");
  const line = make("div", "score");
  const meter = make("span", "meter");
  const fill = make("i");
  fill.style.width = 100 * (c.score ?? 0) + "%";
  meter.append(fill);
  line.append(meter, make("span", "", c.score === null ? "no score yet" : c.score.toFixed(4)),
    make("span", "", "sample " + c.sample + ", ended by " + c.finish));
  if (c.chosen) line.append(make("span", "tag strong", "chosen"));
  for (const mark of c.marks) line.append(make("span", "tag", mark.replaceAll("_", " ")));
  box.append(line, make("p", "", c.text || "(empty)"));
  return box;
}

function folded(title, nodes, open) {
  const box = make("details");
  box.open = open;
  box.append(make("summary", "", title), ...nodes);
  return box;
}

function pair(p) {
  const box = make("article", "pair");
  const head = make("div", "id quiet");
  head.append(make("span", "", "snippet " + p.id), make("span", "", p.language || "no language"));
  const removed = "removed by decontamination: " + p.removed;
  if (p.removed) head.append(make("span", "tag strong", removed));
  const left = make("div");
  const pre = make("pre");
  pre.tabIndex = 0;
  pre.append(make("code", "", p.block));
  left.append(pre);
  if (p.original) left.append(folded("original instruction", [make("p", "", p.original)], false));
  const right = make("div");
  const order = (a, b) => (b.score ?? -1) - (a.score ?? -1) || a.sample - b.sample;
  const others = p.candidates.filter((c) => !c.chosen).sort(order);
  right.append(...chosen(p).map(candidate));
  if (!p.candidates.length) right.append(make("p", "quiet", "no candidates"));
  if (others.length) {
    const word = chosen(p).length ? " other" : "";
    const title = others.length + word + (others.length === 1 ? " candidate" : " candidates");
    right.append(folded(title, others.map(candidate), get("open").checked));
  }
  box.append(head, left, right);
  return box;
}

function show() {
  const words = get("query").value.toLowerCase().split(/\\s+/).filter(Boolean);
  let found = pairs.map((p, i) => i).filter((i) => keeps[get("keep").value](pairs[i])
    && words.every((word) => texts[i].includes(word)));
  const sign = {high: -1, low: 1}[get("order").value];
  if (sign) found.sort((a, b) => sign * (best(pairs[a]) - best(pairs[b])) || a - b);
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const here = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  get("list").replaceChildren(...here.map((i) => pair(pairs[i])));
  get("count").textContent = found.length + " of " + pairs.length + " snippets, page "
    + (page + 1) + " of " + pages;
  for (const id of ["back", "back2"]) get(id).disabled = page === 0;
  for (const id of ["next", "next2"]) get(id).disabled = page === pages - 1;
}

function turn(by) { page += by; show(); get("pairs").scrollIntoView(); }
for (const id of ["query", "keep", "order", "open"]) {
  get(id).addEventListener("input", () => { page = 0; show(); });
}
for (const id of ["back", "back2"]) get(id).addEventListener("click", () => turn(-1));
for (const id of ["next", "next2"]) get(id).addEventListener("click", () => turn(1));
show();
"""

BROWSER = """
<div class="controls">
<input id="query" type="search" placeholder="search code and instructions"
 aria-label="search code and instructions">
<select id="keep" aria-label="which snippets">
<option value="all">all snippets</option>
<option value="marked">chosen instruction is marked</option>
<option value="removed">removed by decontamination</option>
<option value="none">nothing chosen</option></select>
<select id="order" aria-label="order">
<option value="corpus">order of the corpus</option>
<option value="high">highest chosen score first</option>
<option value="low">lowest chosen score first</option></select>
<label><input id="open" type="checkbox" checked> open all candidates</label></div>
<div class="controls"><button id="back">previous</button><button id="next">next</button>
<span id="count" class="quiet" aria-live="polite"></span></div>
<div id="list"></div>
<div class="controls"><button id="back2">previous</button><button id="next2">next</button></div>
<noscript><p>Browsing the snippets needs the page's own script.</p></noscript>
"""
