"use strict";
// Ranking by keys, taps and dragging; ratings by digits. The plain controls below hold the answer; this moves them.

document.addEventListener("card", (event) => {
  const card = event.target;
  if (card.querySelector(".ranking")) ranking(card);
  if (card.querySelector(".ratings")) ratings(card);
});

function keysOf(card, act) {
  const listen = (event) => {
    if (!card.isConnected) { document.removeEventListener("keydown", listen); return; }
    const typing = event.target.closest("input[type=text], textarea, select");
    if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]") || !document.getElementById("keys").checked) return;
    if (act(event.key)) event.preventDefault();
  };
  document.addEventListener("keydown", listen);
}

function ranking(card) {
  const responses = [...card.querySelectorAll(".response")], list = card.querySelector(".order ol");
  const selects = responses.map((_, i) => card.querySelector(`[name="place-${i}"]`));
  const done = card.querySelector("button[value=ranking]");
  const letter = (i) => responses[i].dataset.letter;
  const given = selects.map((select, i) => [Number(select.value), i]).filter(([value]) => value).sort((a, b) => a[0] - b[0]);
  let order = given.map(([, i]) => i), equal = given.map(([value], n) => n > 0 && given[n - 1][0] === value);
  card.querySelector(".places").hidden = true;

  // `order` names responses, best first; `equal[n]` says that the one at n is as good as the one before it.
  const placeOf = (n) => equal.slice(0, n + 1).filter((same, m) => m === 0 || !same).length;
  function draw(focus) {
    equal = order.map((_, n) => n > 0 && Boolean(equal[n]));
    list.replaceChildren(...order.map((i, n) => {
      const item = document.createElement("li"), chip = document.createElement("button");
      if (n) item.append(link(n));
      chip.type = "button";
      chip.className = "chip";
      chip.textContent = letter(i);
      chip.setAttribute("aria-label", `Response ${letter(i)}, place ${placeOf(n)}; arrow keys move it`);
      chip.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
        if (step) { event.preventDefault(); move(n, n + step); }
      });
      chip.addEventListener("pointerdown", (event) => drag(event, chip, n));
      item.append(chip);
      return item;
    }));
    responses.forEach((response, i) => {
      const n = order.indexOf(i);
      selects[i].value = n < 0 ? "" : placeOf(n);
      response.classList.toggle("placed", n >= 0);
      response.dataset.place = n < 0 ? "" : placeOf(n);
    });
    card.dataset.said = order.map((i, n) => (n ? (equal[n] ? " = " : " > ") : "") + letter(i)).join("");
    done.disabled = order.length < 2;
    card.querySelector(".left").textContent = order.length > 1 && order.length < responses.length
      ? "Responses without a place are compared with nothing." : "";
    if (focus !== undefined) list.children[focus].querySelector(".chip").focus();
  }
  function link(n) {
    const between = document.createElement("button");
    between.type = "button";
    between.className = "link";
    between.textContent = equal[n] ? "=" : ">";
    between.setAttribute("aria-label", `${letter(order[n - 1])} is ${equal[n] ? "as good as" : "better than"} ${letter(order[n])}; press to change`);
    between.addEventListener("click", () => { join(n); list.children[n].querySelector(".link").focus(); });
    return between;
  }
  function join(n) {
    if (n < 1 || n >= order.length) return;
    equal[n] = !equal[n];
    draw();
  }
  function move(from, to) {
    if (to < 0 || to >= order.length) return;
    order.splice(to, 0, ...order.splice(from, 1));
    draw(to);
  }
  function drag(event, chip, from) {
    chip.setPointerCapture(event.pointerId);
    chip.classList.add("dragged");
    const middle = (item) => { const box = item.querySelector(".chip").getBoundingClientRect(); return box.left + box.width / 2; };
    const middles = [...list.children].map(middle), began = event.clientX;
    const follow = (moved) => { chip.style.translate = `${moved.clientX - began}px`; };
    const drop = (end) => {
      chip.removeEventListener("pointermove", follow);
      chip.classList.remove("dragged");
      chip.style.translate = "";
      if (end.type === "pointercancel") return;
      const to = middles.filter((x, i) => i !== from && x < end.clientX).length;
      if (to !== from) move(from, to);
    };
    chip.addEventListener("pointermove", follow);
    chip.addEventListener("pointerup", drop, { once: true });
    chip.addEventListener("pointercancel", drop, { once: true });
  }
  function place(i) {
    if (i >= responses.length || order.includes(i)) return;
    order.push(i);
    // The last one needs no key: its place is what is left.
    if (order.length === responses.length - 1) order.push(responses.findIndex((_, other) => !order.includes(other)));
    draw();
  }
  responses.forEach((response, i) => response.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !String(getSelection())) place(i);
  }));
  keysOf(card, (key) => {
    if (key === "Backspace") { order.pop(); draw(); return true; }
    if (key === "=") { join(order.length - 1); return true; }
    if (!/^[1-9]$/.test(key)) return false;
    place(Number(key) - 1);
    return true;
  });
  draw();
}

function ratings(card) {
  const sets = [...card.querySelectorAll("fieldset.rate")], done = card.querySelector("button[value=rating]");
  const value = (set) => set.querySelector("input:checked");
  function draw() {
    const open = sets.find((set) => !value(set));
    sets.forEach((set) => set.classList.toggle("marked", set === open));
    done.disabled = Boolean(open);
  }
  card.addEventListener("change", draw);
  keysOf(card, (key) => {
    if (key === "Backspace") {
      const last = sets.filter(value).pop();
      if (last) value(last).checked = false;
      draw();
      return true;
    }
    const open = sets.find((set) => !value(set));
    const wanted = open && /^[1-9]$/.test(key) && open.querySelector(`input[value="${key}"]`);
    if (!wanted) return /^[1-9]$/.test(key);
    wanted.checked = true;
    draw();
    return true;
  });
  draw();
}

// What two responses do not share, marked on request, in place: words, by their longest common subsequence.
document.addEventListener("card", (event) => {
  const card = event.target, button = card.querySelector(".differ");
  if (!button) return;
  const texts = [...card.querySelectorAll(".response .text")], before = texts.map((text) => [...text.childNodes]);
  let on = false;
  button.addEventListener("click", () => {
    on = !on;
    button.setAttribute("aria-pressed", String(on));
    if (!on) { texts.forEach((text, side) => text.replaceChildren(...before[side])); return; }
    texts.forEach((text, side) => text.replaceChildren(...before[side].map((node) => node.cloneNode(true))));
    const words = texts.map(wordsIn), shared = common(...words.map((found) => found.map((word) => word.text)));
    words.forEach((found, side) => mark(found.filter((word, i) => !shared[side].has(i))));
  });
});

// The words of an element: each with its node and where it begins there.
function wordsIn(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), words = [];
  while (walker.nextNode() && words.length < 3000) {
    for (const found of walker.currentNode.data.matchAll(/[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu)) {
      words.push({ node: walker.currentNode, at: found.index, text: found[0] });
    }
  }
  return words.slice(0, 3000);
}

function common(a, b) {
  const rows = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) rows[i][j] = a[i] === b[j] ? rows[i + 1][j + 1] + 1 : Math.max(rows[i + 1][j], rows[i][j + 1]);
  }
  const left = new Set(), right = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) { left.add(i++); right.add(j++); } else if (rows[i + 1][j] >= rows[i][j + 1]) i++; else j++;
  }
  return [left, right];
}

// From the end, so that what comes before stays where it was; words with only space between them are marked as one.
function mark(words) {
  for (let last = words.length - 1; last >= 0; last--) {
    const { node } = words[last], end = words[last].at + words[last].text.length;
    while (last > 0 && words[last - 1].node === node
      && !node.data.slice(words[last - 1].at + words[last - 1].text.length, words[last].at).trim()) last--;
    const range = document.createRange();
    range.setStart(node, words[last].at);
    range.setEnd(node, end);
    range.surroundContents(document.createElement("mark"));
  }
}
