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
  let order = [];
  selects.forEach((select, i) => { if (select.value) order[select.value - 1] = i; });
  order = order.filter((i) => i !== undefined);
  card.querySelector(".places").hidden = true;

  function draw(focus) {
    // The last one needs no key: its place is what is left.
    if (order.length === responses.length - 1) order.push(responses.findIndex((_, i) => !order.includes(i)));
    list.replaceChildren(...order.map((i, place) => {
      const item = document.createElement("li"), chip = document.createElement("button");
      chip.type = "button";
      chip.className = "chip";
      chip.textContent = responses[i].dataset.letter;
      chip.setAttribute("aria-label", `Response ${responses[i].dataset.letter}, place ${place + 1}; arrow keys move it`);
      chip.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
        if (step) { event.preventDefault(); move(place, place + step); }
      });
      chip.addEventListener("pointerdown", (event) => drag(event, chip, place));
      item.append(chip);
      return item;
    }));
    responses.forEach((response, i) => {
      selects[i].value = order.includes(i) ? order.indexOf(i) + 1 : "";
      response.classList.toggle("placed", order.includes(i));
      response.dataset.place = order.includes(i) ? order.indexOf(i) + 1 : "";
    });
    done.disabled = order.length < responses.length;
    if (focus !== undefined) list.children[focus].firstChild.focus();
  }
  function move(from, to) {
    if (to < 0 || to >= order.length) return;
    order.splice(to, 0, ...order.splice(from, 1));
    draw(to);
  }
  function drag(event, chip, from) {
    chip.setPointerCapture(event.pointerId);
    chip.classList.add("dragged");
    const middle = (item) => { const box = item.getBoundingClientRect(); return box.left + box.width / 2; };
    const middles = [...list.children].map(middle);
    const drop = (end) => {
      chip.classList.remove("dragged");
      if (end.type === "pointercancel") return;
      const to = middles.filter((x, i) => i !== from && x < end.clientX).length;
      if (to !== from) move(from, to);
    };
    chip.addEventListener("pointerup", drop, { once: true });
    chip.addEventListener("pointercancel", drop, { once: true });
  }
  const place = (i) => { if (i < responses.length && !order.includes(i)) { order.push(i); draw(); } };
  responses.forEach((response, i) => response.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !String(getSelection())) place(i);
  }));
  keysOf(card, (key) => {
    if (key === "Backspace") {
      order.pop();
      if (order.length === responses.length - 1) order.pop();
      draw();
      return true;
    }
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

// What two responses do not share, marked on request: words, by their longest common subsequence.
document.addEventListener("card", (event) => {
  const card = event.target, button = card.querySelector(".differ");
  if (!button) return;
  const texts = [...card.querySelectorAll(".response .text")], before = texts.map((text) => [...text.childNodes]);
  const words = texts.map((text) => (text.innerText.match(/\s+|\w+|[^\s\w]/gu) || []).slice(0, 3000));
  let on = false;
  button.addEventListener("click", () => {
    on = !on;
    button.setAttribute("aria-pressed", String(on));
    const shared = on ? common(...words) : null;
    texts.forEach((text, side) => {
      text.replaceChildren(...(on ? marked(words[side], shared[side]) : before[side]));
      text.classList.toggle("differing", on);
    });
  });
});

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

function marked(words, shared) {
  const nodes = [];
  words.forEach((word, i) => {
    const same = shared.has(i) || !word.trim(), last = nodes[nodes.length - 1];
    if (last && (last.nodeName === "MARK") === !same) { last.textContent += word; return; }
    const node = same ? document.createTextNode("") : document.createElement("mark");
    node.textContent = word;
    nodes.push(node);
  });
  return nodes;
}
