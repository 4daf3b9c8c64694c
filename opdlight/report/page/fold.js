// Long observations: their first lines are shown, the rest opens by click, by key, or when the browser finds text in it.
// Text of environments is inserted as text, never as markup.
"use strict";
const folding = (() => {
  const LINES = 12, CHARACTERS = 900; // shown of a long observation
  const LEAST = 300; // characters that are worth folding
  const { make } = token;
  let open = false; // what the key has said last; holds for the next trajectories, too

  // Where to cut a text: after so many lines, or at a blank before so many characters; its length if it is not long.
  function cut(text) {
    let end = 0;
    for (let line = 0; line < LINES && end >= 0; line++) end = text.indexOf("\n", end) + 1 || -1;
    if (end < 0 || end > CHARACTERS) {
      const blank = Math.max(text.lastIndexOf(" ", CHARACTERS), text.lastIndexOf("\n", CHARACTERS)) + 1;
      end = blank > CHARACTERS / 2 ? blank : CHARACTERS;
      if (/[\udc00-\udfff]/.test(text[end])) end--; // not within a character
    }
    return text.length - end < LEAST ? text.length : end;
  }

  const filled = (parts) => {
    const block = make("pre");
    block.append(...parts.map(([text, control]) => (control ? make("span", "control", text) : text)));
    return block;
  };

  // The elements that show an observation of these parts, [text, whether it is a control token].
  function observation(parts) {
    const text = parts.map(([t]) => t).join(""), head = [], tail = [];
    let left = cut(text);
    const rest = text.slice(left);
    for (const [t, control] of parts) {
      if (left > 0) head.push([t.slice(0, left), control]);
      if (t.length > left) tail.push([t.slice(Math.max(0, left)), control]);
      left -= t.length;
    }
    if (!rest) return [filled(parts)];
    const details = make("details", "rest"), summary = make("summary");
    const lines = rest.replace(/^\n|\n$/g, "").split("\n").length;
    const count = lines > 1 ? `${lines} more lines, ${rest.length.toLocaleString("en")} characters` : `${rest.length.toLocaleString("en")} more characters`;
    summary.append(make("span", "shut", `… ${count}`), make("span", "open", `fold ${count.replace(" more", "")}`));
    details.append(summary, filled(tail));
    details.open = open;
    return [filled(head), details];
  }

  const all = () => document.querySelectorAll("#transcript details");
  function toggle() {
    open = !open;
    for (const details of all()) details.open = open;
  }

  // a printed page shows everything
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...all()].filter((details) => !details.open);
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });

  return { observation, toggle };
})();
