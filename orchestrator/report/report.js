"use strict";
// Values of the picture's point that is nearest to the pointer, or chosen with the arrow keys.
const NEAR = 48;
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
tip.hidden = true;
document.body.append(tip);
let lit = null;

function middle(mark) {
  const box = mark.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}

function show(mark) {
  if (lit !== null && lit !== mark) lit.classList.remove("lit");
  lit = mark;
  tip.hidden = mark === null;
  if (mark === null) return;
  mark.classList.add("lit");
  tip.textContent = mark.getAttribute("aria-label");
  const [x, y] = middle(mark);
  const left = Math.min(x + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, y - tip.offsetHeight - 12)}px`;
}

for (const figure of document.querySelectorAll("figure")) {
  const marks = [...figure.querySelectorAll('[aria-roledescription="point"], [aria-roledescription="bar"], [aria-roledescription="rect"]')];
  if (marks.length === 0) continue;
  figure.tabIndex = 0;
  figure.addEventListener("pointermove", (event) => {
    let best = null;
    let least = NEAR;
    for (const mark of marks) {
      const [x, y] = middle(mark);
      const box = mark.getBoundingClientRect();
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      const distance = inside ? 0 : Math.hypot(x - event.clientX, y - event.clientY);
      if (distance < least) [best, least] = [mark, distance];
    }
    show(best);
  });
  figure.addEventListener("pointerleave", () => show(null));
  figure.addEventListener("blur", () => show(null));
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (step === undefined) return;
    event.preventDefault();
    const at = marks.indexOf(lit);
    show(marks[at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length]);
  });
}
// A point that was chosen with the keyboard stays; the pointer is elsewhere now.
addEventListener("scroll", () => show(lit?.closest("figure") === document.activeElement ? lit : null), { passive: true });

// Tables: sorted within their groups by a click on a heading, filtered by what a row holds.
const UNITS = { KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, ms: 0.001, min: 60, h: 3600 };

function value(text) {
  const found = /[-+−]?\d[\d,]*(\.\d+)?/.exec(text);
  if (found === null) return null;
  const unit = /^\s*([A-Za-z]+)/.exec(text.slice(found.index + found[0].length));
  return Number(found[0].replaceAll(",", "").replace("−", "-")) * (UNITS[unit?.[1]] ?? 1);
}

function sort(table, column, down) {
  const order = down ? -1 : 1;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
    const texts = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
    const isNumber = table.tHead.rows[0].cells[column].classList.contains("number") || [...texts.values()].every((text) => /^([([≥–+−-]*\s*\d|–$)/.test(text));
    rows.sort((one, other) => {
      const [a, b] = [texts.get(one), texts.get(other)];
      if (!isNumber) return order * a.localeCompare(b);
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return order * (x - y);
    });
    body.append(...rows);
  }
}

const FILTER_FROM = 8;
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.classList.contains("group"));
  if (rows.length < 2) continue;
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(table, column, down);
    });
  }
  if (rows.length < FILTER_FROM) continue;
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = `Filter ${rows.length} rows`;
  input.setAttribute("aria-label", "Filter the rows of this table");
  table.parentElement.before(input);
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const body of table.tBodies) {
      const title = body.querySelector(".group");
      let left = 0;
      for (const row of body.rows) {
        if (row === title) continue;
        const text = `${title?.textContent ?? ""} ${row.textContent}`.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
        left += row.hidden ? 0 : 1;
      }
      if (title !== null) title.hidden = left === 0;
    }
  });
}

// A link leads to what it names, also where that is folded away or filtered out.
function reveal() {
  const name = decodeURIComponent(location.hash.slice(1));
  const target = name === "" ? null : document.getElementById(name);
  if (target === null) return;
  target.hidden = false;
  for (let at = target; at !== null; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();
