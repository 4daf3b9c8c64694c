// The tabs of a page with two views: the report and the inspector.
"use strict";
(() => {
  const tabs = ["report", "inspector"].map((name) => document.getElementById(`tab-${name}`));
  const places = new Map();

  function open(tab, focus) {
    for (const other of tabs) {
      const view = document.getElementById(other.getAttribute("aria-controls"));
      if (!view.hidden) places.set(other, window.scrollY);
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
      view.hidden = other !== tab;
    }
    document.documentElement.dataset.view = tab.id.slice(4);
    window.scrollTo(0, places.get(tab) ?? 0);
    if (focus) tab.focus();
  }

  for (const tab of tabs) {
    tab.addEventListener("click", () => {
      open(tab);
      history.replaceState(null, "", tab.id === "tab-inspector" ? "#inspector" : "#");
    });
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      event.stopPropagation();
      open(tabs[1 - tabs.indexOf(tab)], true);
    });
  }
  const follow = () => open(tabs[/^#(inspector|t\d+)$/.test(location.hash) ? 1 : 0]);
  window.addEventListener("hashchange", () => {
    if (location.hash === "" || tabs[1].getAttribute("aria-selected") === "true") follow();
  });
  follow();
})();
