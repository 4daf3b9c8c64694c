// The panel of one token: its probabilities by both models, and their candidates.
// Text of models is inserted as text (textContent), never as markup.
"use strict";
const token = (() => {
  const detail = document.getElementById("detail");
  const gap = (t) => (t.teacher === null || t.student === null ? 0 : t.teacher - t.student);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const nats = (x) => (x === null || x === undefined ? "–" : x <= -99 ? "−∞" : x.toFixed(3).replace("-", "−"));
  const percent = (p) => (p >= 0.1 ? `${(100 * p).toFixed(1)} %` : p >= 1e-4 ? `${(100 * p).toFixed(2)} %` : "< 0.01 %");
  const spaced = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

  function hint(any) {
    const text = any ? "Point at a token, or press → for the first one or n for the worst one, to see its candidates here." : "";
    detail.replaceChildren(make("p", "none", text));
  }

  function show(t, n, total) {
    const difference = gap(t);
    const head = make("div", "sampled");
    head.append(make("code", "", spaced(t.text) || "∅"), make("span", "facts", `token ${n + 1} of ${total} · turn ${t.turn} · id ${t.id}`));
    if (t.control) head.append(make("span", "pill", "control token"));
    if (!t.kept) head.append(make("span", "pill", "left out of the loss by the mask"));
    const facts = make("dl", "facts-list");
    const known = t.teacher !== null && t.student !== null;
    const verdict = !known ? "" : difference < 0 ? "teacher finds it less likely" : "teacher finds it more likely";
    for (const [name, value, note] of [
      ["student log π", nats(t.student), t.student === null ? "" : percent(Math.exp(t.student))],
      ["teacher log q", nats(t.teacher), t.teacher === null ? "" : percent(Math.exp(t.teacher))],
      ["log q − log π", known ? nats(difference) : "–", verdict],
      ["engine log-prob", nats(t.engine), t.engine === null || t.student === null ? "" : `${nats(t.engine - t.student)} from the student's`],
      ["divergence", nats(t.divergence), "nats, on the top-K"],
      ["coverage", t.mass === null ? "–" : percent(t.mass), "student mass on the top-K"],
    ]) {
      const item = make("div");
      item.append(make("dt", "", name), make("dd", "", value), make("span", "facts", note));
      facts.append(item);
    }
    detail.replaceChildren(head, facts, candidates("Student's best", t.student_top, t.text, false), candidates("Teacher's best", t.teacher_top, t.text, true));
  }

  function candidates(title, top, sampled, teacherFirst) {
    const table = make("table", "candidates"), head = make("tr"), body = make("tbody");
    table.append(make("caption", "", title));
    head.append(make("th", "", "token"), make("th", "n student", "student"), make("th", "n teacher", "teacher"));
    table.createTHead().append(head);
    for (const [text, own, other] of top) {
      const row = make("tr", text === sampled ? "is-sampled" : ""), name = make("th");
      name.scope = "row";
      name.append(make("code", "", spaced(text) || "∅"));
      row.append(name, ...[["student", teacherFirst ? other : own], ["teacher", teacherFirst ? own : other]].map(([who, log]) => {
        const p = log === null ? 0 : Math.exp(log), cell = make("td", `n bar ${who}`, log === null ? "–" : percent(p));
        cell.style.setProperty("--p", p.toFixed(4));
        return cell;
      }));
      body.append(row);
    }
    table.append(body);
    return table;
  }

  return { gap, make, nats, spaced, hint, show, clear: () => detail.replaceChildren() };
})();
