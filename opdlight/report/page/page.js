// The page: tabs for its two views, the links to sections, and the switch between light and dark.
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

  const root = document.documentElement;
  const remembered = (() => {
    try {
      return localStorage.getItem("opdlight-theme");
    } catch {
      return null; // some browsers have no storage for local files
    }
  })();
  if (remembered === "light" || remembered === "dark") root.dataset.theme = remembered;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("opdlight-theme", root.dataset.theme);
    } catch {
      // the choice is not saved
    }
  });

  const links = new Map([...document.querySelectorAll(".sections a")].map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        for (const [id, link] of links) link.classList.toggle("here", id === target.id);
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const id of links.keys()) seen.observe(document.getElementById(id));
})();
