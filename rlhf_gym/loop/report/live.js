"use strict";
// Renews the page from the server that it came from, part by part, so that the reader keeps their place. It stands before
// page.js: a part is compared with what was served, not with what page.js made of it.

const EVERY = 2000; // milliseconds between two looks
const PARTS = "body > header, #state, main > section, body > footer";
const PLACES = "h2, h3, figure, tr, summary, details, p"; // what may stand at the top of the window
const keyOf = (part) => part.id || part.className || part.localName;
const partsOf = (root) => new Map([...root.querySelectorAll(PARTS)].map((part) => [keyOf(part), part]));
const served = new Map([...partsOf(document)].map(([key, part]) => [key, part.outerHTML]));
let version = document.documentElement.dataset.version;
document.documentElement.style.overflowAnchor = "none"; // the script itself keeps what the reader sees where it is

// What a reader has done to a part, as a function that does it again to the part in its place.
function habits(part) {
  const opened = [...part.querySelectorAll("details[open] > summary")].map((summary) => summary.textContent);
  const checked = [...part.querySelectorAll("input:checked")].map((input) => input.id);
  const scrolled = [...part.querySelectorAll(".scroll")].map((box) => [box.scrollTop, box.scrollLeft]);
  const sorted = [...part.querySelectorAll("th[aria-sort]")].map((th) => [th.textContent, th.getAttribute("aria-sort")]);
  const reached = (root) => [...root.querySelectorAll("button, summary, input, [tabindex]")];
  const focus = reached(part).indexOf(document.activeElement);
  return (fresh) => {
    for (const summary of fresh.querySelectorAll("details > summary")) {
      if (opened.includes(summary.textContent)) summary.parentElement.open = true;
    }
    for (const input of fresh.querySelectorAll("input")) input.checked = checked.includes(input.id);
    for (const [title, way] of sorted) {
      const heading = [...fresh.querySelectorAll("th[data-sort]")].find((th) => th.textContent === title);
      for (let clicks = way === "ascending" ? 2 : 1; heading && clicks > 0; clicks -= 1) heading.firstChild.click();
    }
    [...fresh.querySelectorAll(".scroll")].forEach((box, i) => {
      if (scrolled[i]) [box.scrollTop, box.scrollLeft] = scrolled[i];
    });
    if (focus >= 0) reached(fresh)[focus]?.focus({ preventScroll: true });
  };
}

// The first thing in the window, as a function that finds it again.
function place() {
  for (const [key, part] of partsOf(document)) {
    if (part.getBoundingClientRect().bottom <= 0) continue;
    const things = [...part.querySelectorAll(PLACES)];
    const first = things.findIndex((thing) => thing.getClientRects().length && thing.getBoundingClientRect().top >= 0);
    return () => {
      const now = partsOf(document).get(key);
      const same = now ? [...now.querySelectorAll(PLACES)] : [];
      // Above what was added at the part's end, things keep their numbers.
      return (same[first]?.localName === things[first]?.localName && same[first]) || now;
    };
  }
  return () => null;
}

// Puts what is new in its place; false if something must wait until the reader has let go of it.
function renew(page) {
  const find = place();
  const before = find()?.getBoundingClientRect().top;
  const selection = getSelection();
  let whole = true;
  tip.hidden = true;
  const shown = partsOf(document);
  for (const [key, fresh] of partsOf(page)) {
    const html = fresh.outerHTML;
    const part = shown.get(key);
    if (html === served.get(key) || !part) continue;
    if (!selection.isCollapsed && selection.containsNode(part, true)) {
      whole = false; // the text that is being copied
      continue;
    }
    const again = habits(part);
    part.replaceWith(fresh);
    enhance(fresh);
    again(fresh);
    served.set(key, html);
  }
  document.title = page.title;
  const after = find()?.getBoundingClientRect().top;
  if (scrollY > 0 && before !== undefined && after !== undefined) scrollBy({ top: after - before, behavior: "instant" });
  return whole;
}

const lost = document.createElement("p");
lost.id = "lost";
lost.className = "problem";
lost.setAttribute("role", "alert");

let looking = false;

async function look() {
  if (document.hidden || looking) return;
  looking = true;
  try {
    const reply = await fetch("version", { cache: "no-store" });
    if (!reply.ok) throw new Error(String(reply.status));
    if ((await reply.text()) !== version) {
      const fetched = await fetch("./", { cache: "no-store" });
      if (!fetched.ok) throw new Error(String(fetched.status));
      const page = new DOMParser().parseFromString(await fetched.text(), "text/html");
      if (renew(page)) version = page.documentElement.dataset.version;
    }
    lost.remove();
  } catch {
    lost.textContent = "rlhf-gym watch does not answer any more, so this page is not renewed. It shows what was known last.";
    if (!lost.isConnected) document.querySelector("main").prepend(lost);
  } finally {
    looking = false;
  }
}

(async () => {
  for (;;) {
    await new Promise((done) => { setTimeout(done, EVERY); });
    await look();
  }
})();
document.addEventListener("visibilitychange", look);
