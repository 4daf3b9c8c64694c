// Any page: the links to sections, and the switch between light and dark.
"use strict";
(() => {
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
