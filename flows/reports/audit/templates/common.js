"use strict";
// What all pages share: tables are sorted by a click on a heading, and the dots of charts are reached by the keyboard.

// Makes the headings `heads` (of one table) buttons: a click calls `sort` with the number of the column and whether it
// falls, which a second click turns round. Returns what marks a heading as the one that is sorted by.
function headings(heads, sort) {
  let by = null, falls = true;
  function mark(number, downwards) {
    [by, falls] = [number, downwards];
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[number].setAttribute("aria-sort", falls ? "descending" : "ascending");
  }
  heads.forEach((head, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.scope = "col";
    head.append(button);
    button.addEventListener("click", () => {
      mark(number, by === number ? !falls : true);
      sort(number, falls);
    });
  });
  return mark;
}

// The rows by their values; what is not known (null) stands last either way.
function inOrder(rows, valueOf, falls) {
  const before = ([, a], [, b]) => (a === null) - (b === null) || (a < b ? 1 : a > b ? -1 : 0) * (falls ? 1 : -1);
  return rows.map((row) => [row, valueOf(row)]).sort(before).map(([row]) => row);
}

// What the cells of a column are sorted by: what they say they are (`data-sort`), else their texts; as numbers where each
// begins with one ("42.1% (3.0% to 81.2%)", "3 of 6", "1,024"; no date and no id).
function columnValues(rows, number) {
  const texts = rows.map((row) => row.cells[number]?.dataset.sort ?? row.cells[number]?.textContent.trim() ?? "");
  const known = (text) => text !== "" && text !== "–";
  const numbers = texts.map((text) => /^([+−-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?:$|[%\s(,;])/.exec(text)?.[1]);
  const areNumbers = texts.every((text, place) => !known(text) || numbers[place] !== undefined);
  const value = (text, place) => (areNumbers ? Number(numbers[place].replaceAll(",", "").replace("−", "-")) : text);
  return new Map(rows.map((row, place) => [row, known(texts[place]) ? value(texts[place], place) : null]));
}

// Makes a table that is there sortable; `start` and what `changed` is told: the number of the column, after a `-` where it
// rises.
function sortable(table, start = "", changed = () => {}) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const sort = (number, falls) => {
    const values = columnValues(rows, number);
    body.append(...inOrder(rows, (row) => values.get(row), falls));
  };
  const mark = headings(heads, (number, falls) => {
    changed(`${falls ? "" : "-"}${number}`);
    sort(number, falls);
  });
  const [, rises, first] = /^(-?)(\d+)$/.exec(start) ?? [];
  if (heads[first]) {
    mark(Number(first), !rises);
    sort(Number(first), !rises);
  }
}

// A chart is one stop of the Tab key, at first its last dot; arrows go to the dots beside it, and to the other lines.
function reachable(chart) {
  const lines = [...chart.querySelectorAll(".series")].map((one) => [...one.querySelectorAll("circle")]).filter((dots) => dots.length);
  if (!lines.length) return;
  let [line, place] = [0, lines[0].length - 1];
  function stop(nextLine, nextPlace) {
    lines[line][place].removeAttribute("tabindex"); // a click would give it the focus
    line = Math.max(0, Math.min(lines.length - 1, nextLine));
    place = Math.max(0, Math.min(lines[line].length - 1, nextPlace));
    lines[line][place].setAttribute("tabindex", "0");
    return lines[line][place];
  }
  stop(line, place);
  chart.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: [line, place + 1], ArrowLeft: [line, place - 1], ArrowDown: [line + 1, place], ArrowUp: [line - 1, place], Home: [line, 0], End: [line, Infinity] };
    if (event.altKey || event.ctrlKey || event.metaKey || !moves[event.key]) return;
    event.preventDefault(); // the page stays
    stop(...moves[event.key]).focus();
  });
}

// What pointing at a dot shows is shown beside the one that has the focus.
function notesOfDots() {
  const note = document.createElement("div");
  note.className = "dot-note";
  note.setAttribute("aria-hidden", "true"); // it is the dot's own name
  // of the document: an SVG that listens for the focus gets it
  document.addEventListener("focusin", (event) => {
    if (!event.target.matches(".series circle")) return;
    note.textContent = event.target.querySelector("title").textContent;
    document.body.append(note);
    const dot = event.target.getBoundingClientRect(), box = note.getBoundingClientRect();
    const widest = document.documentElement.clientWidth - box.width - 4, above = dot.top - box.height - 6;
    note.style.left = `${scrollX + Math.max(4, Math.min(dot.left - box.width / 2, widest))}px`;
    note.style.top = `${scrollY + (above < 0 ? dot.bottom + 6 : above)}px`;
  });
  document.addEventListener("focusout", () => note.remove());
}

for (const chart of new Set([...document.querySelectorAll(".series")].map((one) => one.ownerSVGElement))) reachable(chart);
notesOfDots();
