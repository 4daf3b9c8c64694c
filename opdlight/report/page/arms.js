// The arms that have a colour in the figures: as many as there are colours, chosen with the buttons above the figures.
"use strict";
(() => {
  const COLOURS = ["--student", "--run-b", "--run-c", "--run-d", "--run-e", "--run-f"];
  const chips = [...document.querySelectorAll(".chip")];
  const names = new Map(chips.map((chip) => [chip.dataset.arm, chip.querySelector(".long").textContent]));
  const chosen = new Map(); // arm → colour, in the order in which they were chosen
  for (const [arm] of [...names].slice(0, COLOURS.length)) chosen.set(arm, COLOURS[chosen.size]);

  function paint() {
    for (const element of document.querySelectorAll("[data-arm]")) {
      const colour = chosen.get(element.dataset.arm);
      element.style.setProperty("--arm", colour ? `var(${colour})` : "var(--muted)");
      element.classList.toggle("off", !colour);
      if (element.matches(".chip")) element.setAttribute("aria-pressed", String(Boolean(colour)));
    }
    for (const line of document.querySelectorAll("svg .line:not(.off)")) line.parentNode.append(line); // above the others
  }

  for (const chip of chips) {
    chip.addEventListener("click", () => {
      const { arm } = chip.dataset;
      if (!chosen.delete(arm)) {
        if (chosen.size === COLOURS.length) chosen.delete([...chosen.keys()][0]);
        chosen.set(arm, COLOURS.find((colour) => ![...chosen.values()].includes(colour)));
      }
      paint();
    });
  }

  for (const drawn of document.querySelectorAll("svg [data-arm]")) {
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = names.get(drawn.dataset.arm) ?? "";
    drawn.append(title);
  }
  paint();
})();
