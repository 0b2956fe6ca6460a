"use strict";
// The page works without this script, by plain forms. With it: one key an answer, the next question at once, and answers
// that wait here (also through a reload) until the server has said that it stored them.

const $ = (id) => document.getElementById(id);
const place = $("cards"), told = $("status"), alertBox = $("alert");
document.body.classList.add("has-script");

const SETTLE = 200; // ms in which a new card takes no answer: a bounced key must not answer what nobody has read
const ahead = [...$("ahead").content.querySelectorAll(".card")];
const finished = new Set(); // assignments answered here, whatever the server still lists
const unsent = restore();
let sending = false, retryIn = 500, shownAt = 0, spent = 0, running = false, count = 0, blocked = false, replaced = null;

function restore() {
  try { return JSON.parse(sessionStorage.getItem("unsent") || "[]"); } catch { return []; }
}
function remember() {
  try { sessionStorage.setItem("unsent", JSON.stringify(unsent)); } catch { /* a private window: kept in this page only */ }
}
unsent.forEach((item) => finished.add(item.id));

const current = () => place.querySelector(".card");

// --- The clock is stopped while the page is hidden or paused.
function tick(on) {
  const now = performance.now();
  if (running) spent += now - shownAt;
  shownAt = now;
  running = on;
}
document.addEventListener("visibilitychange", () => { tick(!document.hidden && !$("paused").open); if (!document.hidden) refresh(); });

function show(card, words) {
  place.replaceChildren(card || $("waiting").content.cloneNode(true));
  if (!card && unsent.length) { // the reply to what is being sent brings the next one
    current().querySelector("h2").textContent = "One moment …";
    current().querySelector("p").textContent = "";
  }
  spent = 0;
  running = false;
  tick(!document.hidden && !$("paused").open);
  if (current().dataset.id) enhance(current());
  const prompt = current().querySelector(".prompt"); // of a conversation that does not fit, its end
  if (prompt && prompt.querySelectorAll(".turn").length > 1) prompt.scrollTop = prompt.scrollHeight;
  current().querySelector("h2").focus({ preventScroll: true });
  scrollTo(0, 0);
  if (words) told.textContent = words;
}
function next(words) {
  let card = ahead.shift();
  while (card && finished.has(card.dataset.id)) card = ahead.shift();
  show(card, words);
}

// --- Sending: one after the other, again and again until the server confirms; a repeat is harmless there.
async function send() {
  if (sending) return;
  sending = true;
  while (unsent.length) {
    const item = unsent[0];
    let reply;
    try {
      reply = await post(item.action, item.body);
    } catch (error) {
      warn(error.words || "There is no connection. Your answers wait here and are sent as soon as it is back; leave this page open.");
      if (error.final) { unsent.shift(); remember(); await refresh(); continue; }
      await new Promise((done) => setTimeout(done, error.wait || retryIn));
      retryIn = Math.min(retryIn * 2, 15000);
      continue;
    }
    retryIn = 500;
    unsent.shift();
    remember();
    if (!blocked) warn("");
    take(reply);
    replaced = reply.replaced;
    if (reply.feedback) feedback(reply.feedback);
  }
  sending = false;
}
async function post(action, body) {
  const have = [current(), ...ahead].filter(Boolean).map((card) => card.dataset.id).join(" ");
  const response = await fetch(action, {
    method: "POST", body: new URLSearchParams([...body, ["have", have]]), headers: { Accept: "application/json" },
    credentials: "same-origin", redirect: "error",
  });
  if (response.status === 401) { location.href = "/"; throw { words: "You are no longer signed in.", wait: 60000 }; }
  if (response.status === 429 || response.status >= 500) {
    const trouble = response.status === 503 ? "The study's database cannot store answers at the moment." : "The server is busy.";
    throw { words: `${trouble} Your answers wait here and are sent in a moment; leave this page open.`, wait: 1000 * (response.headers.get("Retry-After") || 2) };
  }
  if (!response.ok) throw { words: (await response.text()).slice(0, 300), final: true };
  return response.json();
}
function take(reply) {
  for (const html of reply.cards || []) {
    const card = new DOMParser().parseFromString(html, "text/html").querySelector(".card");
    const id = card.dataset.id, known = [current(), ...ahead].some((other) => other && other.dataset.id === id);
    if (!known && !finished.has(id)) ahead.push(card);
  }
  if (reply.counts) {
    $("counts").textContent = reply.counts;
    $("done").max = reply.total;
    $("done").value = reply.answered;
    $("undo").querySelector("button").disabled = reply.answered === 0 && !unsent.length;
  }
  if (reply.held && !reply.paused && !blocked) drop(new Set(reply.held));
  if (!blocked && !current().dataset.id && (ahead.length || !unsent.length)) next();
}
// What was answered in another tab, or went to somebody else meanwhile, is no question any more; what was typed stays.
function drop(held) {
  for (let i = ahead.length - 1; i >= 0; i--) if (!held.has(ahead[i].dataset.id)) ahead.splice(i, 1);
  if (current().dataset.id && !held.has(current().dataset.id) && !begun(current())) next("That question has been answered meanwhile.");
}
const begun = (card) => card.querySelector(".chip, .rate input:checked")
  || [...card.querySelectorAll("input[type=text], textarea")].some((field) => field.value !== field.defaultValue);
function warn(words, kind) {
  const said = document.createElement("span");
  said.textContent = words;
  alertBox.replaceChildren(said);
  alertBox.className = kind || "";
  alertBox.hidden = !words;
}
async function refresh() {
  if (document.hidden || unsent.length || $("paused").open) return;
  try { take(await post("/next", [["csrf", csrf()]])); } catch { /* the next refresh tries again */ }
}
setInterval(() => { if (!current().dataset.id) refresh(); }, 2000);
const csrf = () => document.querySelector("#undo [name=csrf]").value;

// --- Answering.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method === "dialog") return;
  if (form.id === "undo") { event.preventDefault(); undo(); return; }
  if (!form.matches(".answer")) return;
  event.preventDefault();
  const card = form.closest(".card");
  if (blocked || spent + performance.now() - shownAt < SETTLE) return;
  tick(false);
  const body = [...new FormData(form, event.submitter)].map(([name, value]) => [name, String(value)]);
  body.push(["seconds", (spent / 1000).toFixed(3)]);
  finished.add(card.dataset.id);
  unsent.push({ id: card.dataset.id, action: new URL(form.action).pathname, body });
  remember();
  const said = card.dataset.said || (event.submitter && (event.submitter.dataset.said || event.submitter.getAttribute("aria-label"))) || "Answered";
  if (card.dataset.kind === "practice") { // the reply is shown first; practice is neither counted nor taken back
    blocked = true;
    card.querySelectorAll("button, input, select, textarea").forEach((field) => { field.disabled = true; });
  } else {
    $("session").textContent = `· ${++count} in this sitting`;
    $("session").hidden = false;
    $("undo").querySelector("button").disabled = false;
    next(`${said}. Stored in a moment.`);
  }
  send().then(() => {
    if (!blocked) told.textContent = replaced ? `${said}. Stored instead of your answer in another window: ${replaced}.` : `${said}. Stored.`;
  });
});
function feedback(found) {
  const words = found.correct ? "As expected." : "Something else was expected.";
  warn(`${words} ${found.explanation || ""}`, found.correct ? "right" : "wrong");
  const go = document.createElement("button");
  go.className = "primary";
  go.dataset.key = "Enter";
  go.textContent = "Go on";
  go.addEventListener("click", () => { blocked = false; warn(""); next(); });
  alertBox.append(go);
  go.focus();
  scrollTo(0, 0);
}
async function undo() {
  if (blocked) return;
  for (let waited = 0; unsent.length && waited < 100; waited++) await new Promise((done) => setTimeout(done, 100));
  if (unsent.length) return;
  try {
    const reply = await post("/undo", [["csrf", csrf()]]);
    if (!reply.reopened) { told.textContent = "There is no answer to take back."; return; }
    finished.delete(reply.reopened);
    const back = current();
    for (let i = ahead.length - 1; i >= 0; i--) if (ahead[i].dataset.id === reply.reopened) ahead.splice(i, 1);
    if (back && back.dataset.id && back.dataset.id !== reply.reopened) ahead.unshift(back);
    const card = new DOMParser().parseFromString(reply.card, "text/html").querySelector(".card");
    take(reply); // before the card is there: it is not to be shown twice
    ahead.unshift(card);
    next("Here is your last answer again.");
  } catch (error) {
    warn(error.words || "There is no connection; try again in a moment.");
  }
}

// --- Keys, dialogs.
function press(button) {
  if (button.disabled) return;
  if (button.form && button.type === "submit") button.form.requestSubmit(button);
  else button.click();
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const field = event.target.closest("input[type=text], input[type=number], textarea, select");
  if (field) {
    if (event.key === "Escape") { field.blur(); event.preventDefault(); }
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const open = document.querySelector("dialog[open]");
  if (open) {
    if ((open.id === "paused" && key === "p") || (open.id === "guidelines" && key === "g")) { open.close(); event.preventDefault(); }
    return;
  }
  if (!$("keys").checked || (key === "Enter" && event.target.closest("button:not(.chip), a, summary"))) return;
  if (event.defaultPrevented) return; // the query type has used the key
  const wanted = [...document.querySelectorAll("[data-key]")].find((b) => b.dataset.key.split(" ").includes(key));
  const focus = document.querySelector(`[data-focus="${CSS.escape(key)}"]`);
  if (!wanted && !focus) return;
  event.preventDefault();
  if (wanted) press(wanted); else focus.focus();
});
$("pause").addEventListener("click", () => { tick(false); $("paused").showModal(); });
$("paused").addEventListener("close", () => tick(!document.hidden));
$("guidelines-link").addEventListener("click", (event) => { event.preventDefault(); $("guidelines").showModal(); $("guidelines-title").focus(); });
const keys = $("keys");
try { keys.checked = localStorage.getItem("keys") !== "off"; } catch { /* stays on */ }
keys.addEventListener("change", () => { try { localStorage.setItem("keys", keys.checked ? "on" : "off"); } catch { /* for now */ } });
addEventListener("beforeunload", (event) => { if (unsent.length) event.preventDefault(); });

// What a query type needs beyond plain controls: `controls.js` listens for this event.
function enhance(card) {
  card.dispatchEvent(new CustomEvent("card", { bubbles: true }));
}

if (current().dataset.id && finished.has(current().dataset.id)) next();
else show(current());
if (unsent.length) send();
