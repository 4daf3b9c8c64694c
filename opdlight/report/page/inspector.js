// The trajectory inspector: a list, of which only the visible rows are drawn, and one trajectory, token by token.
// Text of models and environments is inserted as text (textContent), never as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  if (!$("index")) return;
  const rows = JSON.parse($("index").textContent);
  const lines = $("trajectories").textContent.trim().split("\n"); // a line is parsed when its trajectory is opened
  const list = $("list"), spacer = $("spacer"), transcript = $("transcript");
  const { gap, make, nats, spaced } = token;
  const ROW = 62, OVERSCAN = 4;
  const MODES = {
    ratio: {
      measure: (t) => Math.abs(gap(t)),
      strength: (t) => Math.abs(gap(t)) / 3,
      kind: (t) => (gap(t) < 0 ? "lowered" : "raised"),
      scale: ["lowered", "raised", "log q − log π", "≤ −3", "0", "≥ 3 nats"],
    },
    divergence: {
      measure: (t) => t.divergence ?? 0,
      strength: (t) => (t.divergence ?? 0) / 2,
      kind: () => "far",
      scale: [null, "far", "divergence on the top-K", "0", "", "≥ 2 nats"],
    },
    coverage: {
      measure: (t) => 1 - (t.mass ?? 1),
      strength: (t) => (1 - (t.mass ?? 1)) * 2,
      kind: () => "outside",
      scale: [null, "outside", "student mass on the top-K", "100 %", "", "≤ 50 %"],
    },
  };
  const WASTED = ["inadmissible", "unparsable", "ineffective"]; // of the actions that an environment judges
  let shown = [], current = -1, tokens = [], spans = [], selected = -1, mode = "ratio", ranked = [], rank = -1;

  const plain = (status) => status.replaceAll("_", " ");

  // ---- the list

  const FILTERS = ["run", "task", "status", "stage", "update"];
  for (const name of FILTERS) {
    const select = $(`f-${name}`);
    const values = [...new Set(rows.map((row) => row[name]))].sort((a, b) => (a > b) - (a < b));
    select.append(new Option("all", ""), ...values.map((v) => new Option(plain(String(v)), String(v))));
    select.closest("label").hidden = values.length < 2;
    select.addEventListener("change", filter);
  }
  $("sort").addEventListener("change", () => {
    filter();
    if (shown.length) select(shown[0]);
    reveal();
  });
  $("reset").addEventListener("click", () => {
    for (const name of FILTERS) $(`f-${name}`).value = "";
    $("sort").value = "order";
    filter();
  });

  function filter() {
    const wanted = FILTERS.map((name) => [name, $(`f-${name}`).value]).filter(([, value]) => value !== "");
    shown = rows.map((_, i) => i).filter((i) => wanted.every(([name, value]) => String(rows[i][name]) === value));
    const by = $("sort").value;
    if (by === "coverage") shown.sort((a, b) => rows[a].coverage - rows[b].coverage);
    else if (by !== "order") shown.sort((a, b) => rows[b][by] - rows[a][by]);
    $("matches").textContent = `${shown.length} of ${rows.length}`;
    list.scrollTop = 0;
    if (!shown.includes(current)) select(shown.length ? shown[0] : -1);
    reveal();
  }

  function drawList() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - OVERSCAN);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + OVERSCAN);
    spacer.style.height = `${shown.length * ROW}px`;
    spacer.replaceChildren(...shown.slice(first, last).map((i, n) => option(i, first + n)));
    if (!shown.length) spacer.append(make("p", "none", "No trajectory matches these filters."));
    if (shown.includes(current) && $(`option-${current}`)) list.setAttribute("aria-activedescendant", `option-${current}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function option(i, position) {
    const row = rows[i], element = make("div", "option");
    element.id = `option-${i}`;
    element.style.top = `${position * ROW}px`;
    element.style.setProperty("--status", `var(--${row.status.replaceAll("_", "-")}, var(--muted))`);
    element.setAttribute("role", "option");
    element.setAttribute("aria-selected", String(i === current));
    element.setAttribute("aria-posinset", position + 1);
    element.setAttribute("aria-setsize", shown.length);
    const head = make("div", "head");
    head.append(make("b", "", row.task), make("span", "status", plain(row.status)));
    if (!$("f-run").closest("label").hidden) {
      head.prepend(make("span", "letter small", row.run));
      head.firstChild.dataset.letter = row.run;
    }
    const facts = `${row.stage} · update ${row.update} · ${row.turns} ${row.turns === 1 ? "turn" : "turns"} · ${row.tokens} tokens`;
    const strip = make("div", "strip");
    strip.setAttribute("aria-hidden", "true");
    const cells = [...row.strip].map((c, n) => `rgb(from var(--lowered) r g b / ${c / 9}) ${(100 * n) / row.strip.length}% ${(100 * (n + 1)) / row.strip.length}%`);
    if (cells.length) strip.style.backgroundImage = `linear-gradient(to right, ${cells.join(", ")})`;
    element.append(head, make("div", "facts", facts), strip);
    element.addEventListener("click", () => select(i));
    return element;
  }

  function reveal() {
    const top = shown.indexOf(current) * ROW;
    if (top >= 0 && top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    drawList();
  }
  list.addEventListener("scroll", drawList);
  new ResizeObserver(reveal).observe(list); // the list also changes its size when the view is opened

  // ---- one trajectory

  function select(i) {
    current = i;
    selected = rank = -1;
    tokens = [];
    spans = [];
    token.clear();
    if (i < 0) {
      $("heading").textContent = "";
      transcript.replaceChildren();
      return;
    }
    const t = JSON.parse(lines[i]);
    const metrics = Object.entries(t.metrics).filter(([, v]) => v !== null).map(([k, v]) => `${k} ${+v.toPrecision(4)}`);
    $("heading").replaceChildren(
      make("span", "", `${t.task} · ${plain(t.status)}`),
      make("small", "", [`seed ${t.seed}`, `group ${t.group}`, `reward ${t.reward ?? "–"}`, ...metrics].join(" · ")),
    );
    transcript.replaceChildren(...t.turns.flatMap((turn, n) => [observation(turn), completion(turn, n)]));
    if (!t.turns.length) transcript.append(make("p", "none", "This trajectory has no turns: the environment raised an error before the first."));
    transcript.scrollTop = 0;
    paint();
    drawList();
    token.hint(tokens.length > 0);
    if (document.documentElement.dataset.view === "inspector") history.replaceState(null, "", `#t${i}`);
  }

  function observation(turn) {
    const block = make("section", turn.split ? "observation split" : "observation");
    block.append(make("h3", "", turn.split ? "environment · the history was rewritten: the whole context again" : "environment"), ...folding.observation(turn.parts));
    return block;
  }

  function completion(turn, n) {
    const block = make("section", "completion");
    const facts = [`student · turn ${n + 1}`, `${turn.ids.length} tokens`, `ended by ${turn.finish_reason}`, `policy ${turn.policy_version}`, `reward ${turn.reward ?? "–"}`];
    block.append(make("h3", "", facts.join(" · ")), ...WASTED.filter((kind) => turn.counts[`${kind}_actions`] > 0).map((kind) => make("span", "pill", `${kind} action`)));
    const text = make("div", "tokens");
    turn.ids.forEach((id, c) => {
      const pick = (name) => turn[name][c];
      const one = {
        id, turn: n + 1, text: pick("text"), student: pick("student"), teacher: pick("teacher"), engine: pick("engine"),
        mass: pick("mass"), divergence: pick("divergence"), kept: pick("kept"), control: pick("control"), student_top: pick("student_top"), teacher_top: pick("teacher_top"),
      };
      const span = make("span", one.kept ? "tok" : "tok masked");
      const blank = /^\s+$/.test(one.text);
      span.textContent = blank ? spaced(one.text) : one.text.replaceAll("\n", "⏎\n");
      if (blank) span.classList.add("blank");
      if (!one.text) span.textContent = "∅";
      if (one.control) span.classList.add("control");
      span.tabIndex = -1;
      span.dataset.n = tokens.length;
      span.setAttribute("aria-label", `${spaced(one.text)}: student ${nats(one.student)}, teacher ${nats(one.teacher)}${one.control ? ", control token" : ""}${one.kept ? "" : ", left out by the mask"}`);
      span.setAttribute("role", "button");
      tokens.push(one);
      spans.push(span);
      text.append(span);
      if (blank && one.text.includes("\n")) text.append(make("br"));
    });
    block.append(text);
    return block;
  }

  function paint() {
    const { strength, kind, measure, scale } = MODES[mode];
    tokens.forEach((t, n) => {
      spans[n].dataset.kind = kind(t);
      spans[n].style.setProperty("--a", Math.min(1, strength(t)).toFixed(3));
    });
    ranked = tokens.map((_, n) => n).filter((n) => tokens[n].kept).sort((a, b) => measure(tokens[b]) - measure(tokens[a]));
    rank = ranked.indexOf(selected);
    const [from, to, name, ...ticks] = scale;
    const line = make("div", "line");
    line.style.setProperty("--from", from ? `var(--${from})` : "transparent");
    line.style.setProperty("--to", `var(--${to})`);
    const labels = make("div", "ticks");
    labels.append(...ticks.map((tick) => make("span", "", tick)));
    $("scale").replaceChildren(make("span", "what", name), line, labels);
  }

  function choose(n) {
    if (!tokens.length) return;
    selected = Math.max(0, Math.min(tokens.length - 1, n));
    spans[selected].focus({ preventScroll: true });
    spans[selected].scrollIntoView({ block: "nearest" });
  }
  const show = (n) => token.show(tokens[n], n, tokens.length);
  transcript.addEventListener("focusin", (event) => {
    if (event.target.dataset.n === undefined) return;
    for (const old of transcript.querySelectorAll('[aria-current="true"]')) old.removeAttribute("aria-current");
    selected = Number(event.target.dataset.n);
    rank = ranked.indexOf(selected);
    event.target.setAttribute("aria-current", "true");
    show(selected);
  });
  transcript.addEventListener("mouseover", (event) => event.target.dataset.n !== undefined && show(Number(event.target.dataset.n)));
  transcript.addEventListener("mouseleave", () => (selected >= 0 ? show(selected) : token.hint(tokens.length > 0)));

  // ---- keys

  function recolour(name) {
    mode = name;
    document.querySelector(`input[name="mode"][value="${name}"]`).checked = true;
    paint();
  }
  for (const input of document.querySelectorAll('input[name="mode"]')) input.addEventListener("change", () => recolour(input.value));
  $("help-button").addEventListener("click", () => $("help").showModal());

  const step = (by) => {
    if (!shown.length) return;
    select(shown[Math.max(0, Math.min(shown.length - 1, shown.indexOf(current) + by))]);
    list.focus({ preventScroll: true });
    reveal();
  };
  const KEYS = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    ArrowRight: () => choose(selected + 1), ArrowLeft: () => choose(selected - 1),
    n: () => ranked.length && choose(ranked[Math.min(ranked.length - 1, rank + 1)]),
    p: () => ranked.length && choose(ranked[Math.max(0, rank - 1)]),
    o: folding.toggle,
    1: () => recolour("ratio"), 2: () => recolour("divergence"), 3: () => recolour("coverage"),
    "?": () => $("help").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if ($("view-inspector").hidden || $("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("select") || !(event.key in KEYS)) return;
    if (event.target.closest("input") && event.key.startsWith("Arrow")) return; // arrow keys move between the radio buttons
    event.preventDefault();
    KEYS[event.key]();
  });

  const asked = /^#t(\d+)$/.exec(location.hash);
  filter();
  if (asked && Number(asked[1]) < rows.length) select(Number(asked[1]));
})();
