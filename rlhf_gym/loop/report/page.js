"use strict";
// The page is complete without this script; it makes hover titles instant and tables sortable.

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);

addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

function enhance(root) {
  for (const target of root.querySelectorAll(".hit")) {
    const words = target.querySelector("title").textContent;
    target.querySelector("title").remove(); // or the browser's own tooltip would come up as well
    const show = (event) => {
      tip.textContent = words;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
      const above = event.clientY - box.height - 12;
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${above < 8 ? event.clientY + 18 : above}px`;
    };
    target.addEventListener("pointermove", show);
    target.addEventListener("pointerdown", show);
    target.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  for (const table of root.querySelectorAll("table.pairs")) {
    const body = table.tBodies[0];
    const folded = body.querySelectorAll(".extra").length;
    for (const heading of table.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") === "descending";
        for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const number = Number.parseFloat(row.cells[heading.cellIndex].dataset.value);
          return Number.isNaN(number) ? -Infinity : number;
        };
        const rows = [...body.rows].sort((a, b) => (up ? value(a) - value(b) : value(b) - value(a)) || 0);
        // The fold keeps its length: what comes first after sorting is what is shown.
        rows.forEach((row, index) => row.classList.toggle("extra", index >= rows.length - folded));
        body.append(...rows);
      });
    }
  }
}

enhance(document);
