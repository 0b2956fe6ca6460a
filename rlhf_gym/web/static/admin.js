"use strict";
// The administration page updates itself: metrics, raters and the audit trail, never a form that somebody is filling in.

document.body.classList.add("has-script");
const PARTS = ["metrics", "raters", "trail"];
const LEAST = 15000; // ms between two updates; more where the store is so large that one takes long

async function look() {
  const began = performance.now();
  if (!document.hidden) {
    try {
      const reply = await fetch("/admin", { credentials: "same-origin", redirect: "error" });
      if (reply.ok) take(new DOMParser().parseFromString(await reply.text(), "text/html"));
    } catch { /* the next update tries again */ }
  }
  setTimeout(look, Math.max(LEAST, 20 * (performance.now() - began)));
}
function take(page) {
  for (const id of PARTS) {
    const old = document.getElementById(id), fresh = page.getElementById(id);
    const busy = old.querySelector("details[open]") || old.contains(document.activeElement);
    if (fresh && !busy) old.replaceWith(document.adoptNode(fresh));
  }
}
setTimeout(look, LEAST);
